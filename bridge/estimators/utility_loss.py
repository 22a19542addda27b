"""Utility loss of a moved model on a skill, exact over the vocabulary at every response token.

With y drawn from the base policy the utility loss is the Kullback-Leibler divergence from the moved policy,
E sum_t KL(base_t, moved_t) (Lemma 3.2 of "The Geometry of Alignment Collapse"). The sum over the vocabulary leaves
no sampling noise from the token itself, only from the responses that precede it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bridge.estimators.batches import Batch, in_sample_order, response_logits, sum_by_row
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Checkpoints, read_arrays, write_arrays

_CHUNK_BYTES = 4 * 2**20  # of one float64 working array: small enough to stay in the cache


def token_divergence(base: Tensor, moved: Tensor) -> Tensor:
    """KL(base, moved) of every row of logits, in float64.

    Written as sum_y p_y (e^d - 1 - d), d = log(q_y / p_y): all terms are non-negative, so that no digits are lost
    where the two are close, as they are in sum_y p_y d. Where d is large the term is taken as q - p - p d, which is
    also right where p is too small for a double.

    Args:
        base: (R, V) logits.
        moved: (R, V) logits.

    Returns:
        (R,) in nats.

    """
    out = []
    rows = max(1, _CHUNK_BYTES // (8 * base.shape[1]))
    for p, q in zip(base.split(rows), moved.split(rows), strict=True):
        log_p = torch.log_softmax(p.double(), 1)
        log_q = torch.log_softmax(q.double(), 1)
        base_p, d = log_p.exp(), log_q - log_p
        out.append(torch.where(d > 1, log_q.exp() - base_p * (1 + d), base_p * (torch.expm1(d) - d)).sum(1))
    return torch.cat(out)


def measure_utility_loss(
    model: torch.nn.Module,
    batches: Sequence[Batch],
    moves: Mapping[str, Callable[[], None]],
    restore: Callable[[], None],
    memory_bytes: int,
    folder: Checkpoints,
    progress: Progress,
) -> dict[str, dict[str, Float[np.ndarray, " N"]]]:
    """Utility loss of every sample under every move of the weights.

    The base model's logits are kept while the weights are moved: as many batches at once as fit in half of
    memory_bytes, but one at least.

    Args:
        model: the base model; it is moved and put back.
        batches: the skill's samples.
        moves: by name, what sets the model's weights to the moved ones.
        restore: what sets them back.
        memory_bytes: what may be kept.
        folder: the run's folder, which keeps finished parts.
        progress: where to show the stage.

    Returns:
        by move, "utility_loss": sum_t KL(base_t, moved_t) of each sample in the samples' order, and "sampled": the
        plain difference of log-probabilities of the response itself, whose mean estimates the same number with the
        token's own noise.

    """
    groups = _groups(model, batches, memory_bytes // 2)
    files = {
        (k, name): folder.checkpoint(f"loss-{k}-{j}.npz") for k in range(len(groups)) for j, name in enumerate(moves)
    }
    done = sum(file.exists() for file in files.values())
    try:
        with progress.stage("utility loss on the skill", len(files), done) as tick, torch.no_grad():
            for k, group in enumerate(groups):
                missing = [name for name in moves if not files[k, name].exists()]
                base = [response_logits(model, batch) for batch in group] if missing else []
                for name in missing:
                    moves[name]()
                    write_arrays(files[k, name], _losses(model, group, base, name))
                    tick()
                if missing:
                    restore()
    except BaseException:
        restore()
        raise
    parts = {name: [read_arrays(files[k, name]) for k in range(len(groups))] for name in moves}
    return {name: in_sample_order(found, batches) for name, found in parts.items()}


def _groups(model: torch.nn.Module, batches: Sequence[Batch], room: int) -> list[list[Batch]]:
    config = getattr(model, "config", None)
    vocabulary = 1 if config is None else int(config.get_text_config().vocab_size)
    groups: list[list[Batch]] = []
    left = -1
    for batch in batches:
        needed = 4 * vocabulary * batch.num_tokens
        if needed > left:
            groups.append([])
            left = room
        groups[-1].append(batch)
        left -= needed
    return groups


def _losses(model: torch.nn.Module, group: Sequence[Batch], base: Sequence[Tensor], name: str) -> dict[str, np.ndarray]:
    exact, sampled = [], []
    for batch, logits in zip(group, base, strict=True):
        moved = response_logits(model, batch)
        if not torch.isfinite(moved).all():
            raise UserError(
                f"expected finite logits of the model moved by {name}, got nan or inf: look at its training"
            )
        exact.append(sum_by_row(token_divergence(logits, moved), batch))
        chosen = [_chosen(x, batch) for x in (logits, moved)]
        sampled.append(sum_by_row(chosen[0] - chosen[1], batch))
    return {"utility_loss": torch.cat(exact).cpu().numpy(), "sampled": torch.cat(sampled).cpu().numpy()}


def _chosen(logits: Tensor, batch: Batch) -> Tensor:
    wide = logits.gather(1, batch.target[:, None])[:, 0].double()
    return wide - torch.logsumexp(logits.double(), 1)
