"""Projections of a change of weights on a subspace of another's singular directions, matrix by matrix.

After "Safety Subspaces are Not Distinct" (arXiv 2505.14185): with Q an orthonormal basis from the alignment update and
P = Q Q^T, the parallel part of a task update is P D from the left and D P from the right; the orthogonal part is the
rest. Both schemes use the same Q. The result is a change of weights like any other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bridge.deltas.bases import SingularVectors, basis, matrix_names, rank_of
from bridge.deltas.choices import BasisChoice, ProjectionCounts, Scheme, Vectors
from bridge.deltas.factors import Factors
from bridge.deltas.lora import CONFIG_FILE, WEIGHTS_FILE, LoraDelta
from bridge.deltas.tensor_files import Entry, write_tensors
from bridge.deltas.weight_delta import DELTA_CONTENT, FullDelta, WeightDelta
from commands.errors import UserError
from commands.store import write_json

_FULL, _ADAPTER = "delta.safetensors", "adapter"  # as a fine-tune's run folder calls them


class ProjectedDelta(WeightDelta):
    """The part of a task update inside (parallel) or outside (orthogonal) a basis of the alignment update.

    LoRA stays LoRA: P B A from the left, B A P from the right. What is no matrix (norms, biases) has no singular
    directions; it is kept whole, in either scheme, or dropped. A matrix that the alignment update did not move has no
    direction for any basis: its parallel part is zero and its orthogonal part everything. Where the alignment update
    has fewer directions than the rank asked for, Top-K and Random-K take all that there are. `counts` says how often.

    Attributes:
        counts: what becomes of the parameters.

    """

    def __init__(
        self,
        task: WeightDelta,
        alignment: SingularVectors,
        choice: BasisChoice,
        fraction: float,
        scheme: Scheme,
        *,
        vectors: Vectors = "keep",
        names: Collection[str] | None = None,
        device: str = "cpu",
    ) -> None:
        """Check that the two fit; nothing is computed yet.

        Args:
            task: the update to project.
            alignment: singular vectors of the alignment update, from the side of the choice.
            choice: which basis.
            fraction: the rank of the basis as a fraction of min(M, N) of each matrix, in (0, 1].
            scheme: parallel or orthogonal.
            vectors: whether parameters that are not projected are kept whole or dropped.
            names: the matrices that are projected; None for all of the task's.
            device: where projections are computed.

        Raises:
            UserError: the two are changes of different models: a matrix has different shapes.
            ValueError: the side or the fraction does not fit.

        """
        if choice.side != alignment.side:
            raise ValueError(f"expected {choice.side} singular vectors, got {alignment.side} ones")
        rank_of(fraction, 1, 1)
        self.task, self.alignment, self.choice = task, alignment, choice
        self.fraction, self.scheme, self.device = fraction, scheme, device
        self.kind, self.base_sha256 = task.kind, task.base_sha256
        self.label = f"{task.label}, {scheme} to {choice.kind} at {fraction:g}"
        chosen = {name for name in matrix_names(task) if names is None or name in names}
        directions = self._directions(chosen)
        self._projected = frozenset(name for name, count in directions.items() if count)
        without = chosen - self._projected
        left_out = set(task.names) - chosen if vectors == "drop" else set()
        gone = left_out | (without if scheme == "parallel" else set())
        self.names = tuple(name for name in task.names if name not in gone)
        self.counts = ProjectionCounts(
            projected=len(self._projected),
            short=sum(directions[name] < self._wanted(name) for name in self._projected),
            without_directions=len(without),
            kept=len(set(task.names) - chosen) - len(left_out),
            dropped=len(left_out),
        )

    def _directions(self, chosen: Collection[str]) -> dict[str, int]:
        """Number of directions that the basis has in each matrix."""
        found = {}
        for name in chosen:
            if name not in self.alignment.names:
                found[name] = 0
                continue
            if self.alignment.shape(name) != self.task.shape(name):
                raise UserError(
                    f"{self.task.label} and {self.alignment.label} are changes of different models: {name} is "
                    f"{self.task.shape(name)} in one and {self.alignment.shape(name)} in the other"
                )
            available = self.alignment.rank(name)
            if available and self.choice.kind == "random":
                available = min(self.task.shape(name))
            found[name] = min(available, self._wanted(name))
        return found

    def _wanted(self, name: str) -> int:
        rows, columns = self.task.shape(name)
        return rank_of(self.fraction, rows, columns)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter's change."""
        return self.task.shape(name)

    def check_layout(self, model: torch.nn.Module) -> None:
        """As of the update that is projected."""
        self.task.check_layout(model)

    def basis(self, name: str) -> Tensor:
        """(m, k) the basis of a matrix that is projected, in float64."""
        found = self.alignment.vectors(name).to(self.device, torch.float64)
        return basis(self.choice, found, self.task.shape(name), name, self._wanted(name))

    @torch.no_grad()
    def factors(self, name: str) -> Factors | None:
        """A weight's change as a product in float64, where the update that is projected has one."""
        found = self.task.factors(name) if self.moves(name) else None
        if found is None or name not in self._projected:
            return found
        if self.choice.side == "left":
            return Factors(self._part(name, found.left), found.right)
        return Factors(found.left, self._part(name, found.right.T).T)

    @torch.no_grad()
    def _exact(self, name: str) -> Tensor:
        factors = self.factors(name)
        if factors is not None:
            return factors.dense()
        dense = self.task.dense(name, None)
        if name not in self._projected:
            return dense
        if self.choice.side == "left":
            return self._part(name, dense)
        return self._part(name, dense.T).T.contiguous()

    def _part(self, name: str, columns: Tensor) -> Tensor:
        """The scheme's part of vectors of dimension m, the columns of a matrix (m, n); float64 on the CPU."""
        moved = columns.to(self.device, torch.float64)
        chosen = self.basis(name)
        inside = chosen @ (chosen.T @ moved)
        return (inside if self.scheme == "parallel" else moved - inside).cpu()


def write_projected(folder: Path, delta: ProjectedDelta, base_sha256: str, about: Mapping[str, object]) -> WeightDelta:
    """Write a projected change into a run folder as fine-tuning does; returns what was written.

    A full change becomes delta.safetensors in float32, LoRA an adapter's folder in peft's format with the rank and the
    scale that it had. Both appear whole or not at all.

    Args:
        folder: the run folder.
        delta: the change.
        base_sha256: `weights_hash` of the model that it starts from.
        about: the options, kept in the file's metadata.

    """
    if delta.kind == "lora" and isinstance(delta.task, LoraDelta):
        _write_adapter(folder / _ADAPTER, delta, delta.task)
        return LoraDelta(folder / _ADAPTER, base_sha256=base_sha256)
    metadata = {"format": "pt", "content": DELTA_CONTENT, "base_sha256": base_sha256, "projection": json.dumps(about)}
    entries = [Entry(n, delta.shape(n), torch.float32, partial(delta.dense, n)) for n in delta.names]
    write_tensors(folder / _FULL, entries, metadata)
    return FullDelta(folder / _FULL)


def _write_adapter(folder: Path, delta: ProjectedDelta, task: LoraDelta) -> None:
    """peft's format: B and A without the scale alpha / r, which stays in the configuration."""
    building = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(building, ignore_errors=True)  # a killed run's
    entries = [_stored_entry(delta, task, name, factor) for name in task.names for factor in _FACTORS]
    write_tensors(building / WEIGHTS_FILE, entries, {"format": "pt"})
    write_json(building / CONFIG_FILE, task.config)
    if folder.exists():
        shutil.rmtree(folder)
    building.rename(folder)


_Factor = Literal["A", "B"]
_FACTORS: tuple[_Factor, ...] = ("A", "B")


def _stored_entry(delta: ProjectedDelta, task: LoraDelta, name: str, factor: _Factor) -> Entry:
    key = f"base_model.model.{name.removesuffix('.weight')}.lora_{factor}.weight"
    shape = tuple(_stored(delta, task, name, factor).shape)
    return Entry(key, shape, torch.float32, lambda: _stored(delta, task, name, factor).float())


def _stored(delta: ProjectedDelta, task: LoraDelta, name: str, factor: _Factor) -> Tensor:
    """B or A of a weight as peft stores it, in float64; B is zero where nothing is left of the change."""
    module = name.removesuffix(".weight")
    left = delta.factors(name)
    product = left or task.factors(name)
    if product is None:
        raise KeyError(name)
    a, b = (product.left.T, product.right.T) if task.stored_transposed(module) else (product.right, product.left)
    return a if factor == "A" else b * ((0.0 if left is None else 1.0) / task.scale(module))
