"""Inner products of a fine-tuning set's rows with a skill's samples and with each other, exactly.

With s_i the score of a sample of the skill and s_r that of a row of the set (gradient of the log-probability of its
whole response), and M the identity or Adam's diagonal:

    s_i . M s_r        s_r . M s_r'        M s_r . M s_r'

summed over all modules of theta. From these `theory.risk` has every row's part in the leak v^T F v of the whole set,
v = M sum_r s_r / T. Scores are formed one module and some rows of its weight at a time, contracted, and dropped
(`bridge.estimators.taps`): nothing of the size of the model is kept for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bridge.data.samples import Sample
from bridge.estimators import taps
from bridge.estimators.batches import Batch, by_batch, log_probabilities, response_logits, sum_by_row
from bridge.estimators.curvature import Direction
from bridge.estimators.first_order import first_order
from bridge.estimators.scores import blocks_at_once, modules_at_once
from bridge.estimators.theta import Subject
from bridge.models import blocks as models_blocks
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import Arrays, kept, numbered
from commands.store import Checkpoints, read_arrays, write_arrays
from theory.risk import RowParts

_FORMS = ("skill", "decrease", "norm")


@dataclass(frozen=True)
class RowProducts:
    """Inner products of a set's rows over the whole of theta, and of the set as a whole module by module.

    velocity: (N,) s_i . v of each module; squared_norm: |v|^2 of each module.
    """

    parts: RowParts
    velocity: dict[str, Float[np.ndarray, " N"]]
    squared_norm: dict[str, float]


def measure_row_products(
    subject: Subject,
    skill: Sequence[Sample],
    rows: Sequence[Sample],
    preconditioner: Direction | None,
    folder: Checkpoints,
    progress: Progress,
) -> RowProducts:
    """All inner products of N samples of the skill with R rows, and of the rows with each other.

    Two passes over both, and 2 n (N R + 2 R^2) operations for n parameters (R^2 where M is the identity).

    Args:
        subject: the model and its modules.
        skill: N samples, with the model's own responses.
        rows: R rows of the set.
        preconditioner: M, a positive diagonal, or None for the identity.
        folder: the run's folder, which keeps finished blocks.
        progress: where to show the stage.

    Raises:
        UserError: something is not finite.

    """
    pairs = _Pair(subject.batches(skill), subject.batches(rows))
    blocks = models_blocks.group_by_block(list(subject.modules))
    order, size = list(blocks), blocks_at_once(subject, pairs.batches)
    files = numbered(folder, order, "rows-{}.npz")
    tape = taps.Tape()

    def forms(block: str) -> Arrays:
        if block not in tape.records:
            first = order.index(block) // size * size
            together = zip(order[first : first + size], files[first : first + size], strict=True)
            missing = [name for name, file in together if not file.exists()]
            tape.records.update(taps.record(subject.model, missing, pairs.batches).records)
        return _block(subject, block, blocks[block], tape, pairs, preconditioner)

    done = kept(order, forms, files, "scores of the rows", progress, write=write_arrays, read=read_arrays)
    return _joined([arrays for _, arrays in done], list(subject.modules), rows)


@dataclass(frozen=True)
class _Pair:
    """Batches of the skill's samples and of the rows, which are run together."""

    skill: list[Batch]
    rows: list[Batch]

    @property
    def batches(self) -> list[Batch]:
        return [*self.skill, *self.rows]


def _joined(blocks: Sequence[Arrays], names: Sequence[str], rows: Sequence[Sample]) -> RowProducts:
    """The blocks' sums put together."""
    arrays = {key: array for block in blocks for key, array in block.items()}
    sums = {form: np.sum([block[form] for block in blocks], axis=0) for form in _FORMS}
    if not all(np.isfinite(total).all() for total in sums.values()):
        raise UserError("expected finite scores of the rows, got inf or nan: use --dtype float32")
    tokens = np.array([sum(row.response_mask) for row in rows])
    total = tokens.sum()
    return RowProducts(
        parts=RowParts(**sums, tokens=tokens),
        velocity={name: arrays[f"{name}/velocity"] / total for name in names},
        squared_norm={name: max(0.0, float(arrays[f"{name}/norm"])) / float(total) ** 2 for name in names},
    )


def _block(
    subject: Subject,
    block: str,
    names: Sequence[str],
    tape: taps.Tape,
    pairs: _Pair,
    preconditioner: Direction | None,
) -> Arrays:
    """The forms summed over a block's modules, and every module's own part of the whole set's."""
    sums: Arrays = {}
    records = tape.records.pop(block)
    for group in modules_at_once(subject, names, pairs.batches):
        modules = {name: subject.modules[name] for name in group}
        tapped = taps.tap_block(subject.model, block, modules, records)
        for name in group:
            scale = None if preconditioner is None else preconditioner[name]
            forms = _contract(tapped.pop(name), pairs, modules[name], scale, subject.chunk_bytes)
            for form, values in forms.items():
                sums[form] = sums.get(form, 0.0) + values
            sums[f"{name}/velocity"] = forms["skill"].sum(axis=1)
            sums[f"{name}/norm"] = forms["norm"].sum()
    return sums


def _contract(
    tapped: Sequence[tuple[Tensor, Tensor]],
    pairs: _Pair,
    module: torch.nn.Module,
    scale: Tensor | None,
    chunk_bytes: int,
) -> Arrays:
    """The three forms of one module, in the samples' and the rows' own orders."""
    orders = [np.argsort([i for batch in part for i in batch.indices]) for part in (pairs.skill, pairs.rows)]
    count, total = len(orders[0]), sum(map(len, orders))
    zeros = {"skill": (count, total - count), "decrease": (total - count,) * 2, "norm": (total - count,) * 2}
    device = module.get_parameter("weight").device
    sums = {form: torch.zeros(shape, dtype=torch.float64, device=device) for form, shape in zeros.items()}
    for part, scores in taps.score_chunks(tapped, module, total, chunk_bytes):
        flat = scores.flatten(1)
        skill, rows = flat[:count], flat[count:]
        moved = rows if scale is None else rows * scale[part].flatten().to(rows.dtype)
        sums["skill"] += (skill @ moved.T).double()
        sums["norm"] += (moved @ moved.T).double()
        if scale is not None:
            sums["decrease"] += (rows @ moved.T).double()
    if scale is None:
        sums["decrease"] = sums["norm"]
    totals = {form: values.cpu().numpy() for form, values in sums.items()}
    mine, theirs = orders
    skill_part = totals["skill"][mine][:, theirs]
    squares = {form: totals[form][theirs][:, theirs] for form in ("decrease", "norm")}
    # the product of a matrix with itself rounds asymmetrically
    return {"skill": skill_part} | {form: (square + square.T) / 2 for form, square in squares.items()}


# --------------------------------------------------------------------------------- what else is asked of a set


def measure_row_losses(
    subject: Subject, rows: Sequence[Sample], folder: Checkpoints, progress: Progress
) -> Float[np.ndarray, " R"]:
    """Negative log-likelihood of every row's response, summed over its tokens, in nats."""

    @torch.no_grad()
    def losses(batch: Batch) -> Arrays:
        logits = response_logits(subject.model, batch).double()
        return {"loss": -sum_by_row(log_probabilities(logits, batch), batch).cpu().numpy()}

    stage = "losses of the rows"
    return by_batch(subject.batches(rows), losses, folder, stage, progress, "losses-{}.npz")["loss"]


def measure_exact_leak(
    subject: Subject, skill: Sequence[Sample], velocity: Direction, folder: Checkpoints, progress: Progress
) -> dict[str, Float[np.ndarray, " N"]]:
    """Measure how the update moves the policy on every sample of the skill, by `bridge.estimators.first_order`.

    Returns:
        "variance": sum_t Var_t(z'), whose mean is leak^2 without the noise of the tokens drawn, and "first": s_i . v.

    Raises:
        UserError: the derivatives are not finite.

    """
    tangents = {f"{name}.weight": part for name, part in velocity.items()}

    def motion(batch: Batch) -> Arrays:
        return first_order(subject.model, tangents, batch)

    derivatives = by_batch(subject.batches(skill), motion, folder, "motion of the policy", progress, "motion-{}.npz")
    if not all(np.isfinite(values).all() for values in derivatives.values()):
        raise UserError(
            "expected finite derivatives of the logits along the update, got inf or nan: use --dtype float32"
        )
    return derivatives
