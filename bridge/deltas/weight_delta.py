"""A change of a model's weights: what full fine-tuning and LoRA have in common.

Nothing here holds more than one parameter's change at a time (two where two changes are compared).
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bridge.deltas.factors import Factors, dense_inner
from bridge.deltas.tensor_files import TensorFiles
from commands.errors import UserError

Kind = Literal["full", "lora"]
DELTA_CONTENT = "weight change"  # what the metadata of a file of changes say it holds


class WeightDelta(ABC):
    """A change dtheta of a model's parameters, read parameter by parameter.

    Attributes:
        kind: "lora" if it comes as factors, else "full".
        label: where it is from, for people.
        names: the parameters that it moves, as in `model.named_parameters()`.
        base_sha256: `weights_hash` of the model that it starts from, where that was recorded.

    """

    kind: Kind
    label: str
    names: tuple[str, ...]
    base_sha256: str | None = None

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter's change, in the layout of the parameter."""

    @abstractmethod
    def _exact(self, name: str) -> Tensor:
        """A parameter's change in the dtype in which it is known."""

    def factors(self, name: str) -> Factors | None:
        """A parameter's change as a product in float64, or None where it is not known as one."""
        return None

    def check_layout(self, model: torch.nn.Module) -> None:  # noqa: B027 - most kinds assume none
        """Raise UserError if the change assumes a layout of a weight that the model does not have."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Names and dense changes in float32, one after the other."""
        return ((name, self.dense(name)) for name in self.names)

    def moves(self, name: str) -> bool:
        """Whether the change has a part in a parameter."""
        return name in self.names

    def dense(self, name: str, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """A parameter's change as a whole tensor on the CPU; dtype None is the one in which it is known.

        Raises:
            KeyError: the change does not move such a parameter.
            UserError: it is not finite.

        """
        if not self.moves(name):
            raise KeyError(name)
        found = self._exact(name)
        if not found.isfinite().all():
            raise UserError(
                f"{self.label}: expected a finite change, got NaN or infinity in {name}; was the training's "
                f"loss finite?"
            )
        return found if dtype is None else found.to(dtype)

    def squared_norm(self, name: str | None = None) -> float:
        """Squared Frobenius norm of one parameter's change, or of all, summed in float64."""
        if name is None:
            return math.fsum(self.squared_norm(each) for each in self.names)
        factors = self.factors(name)
        if factors:
            return factors.squared_norm()
        dense = self.dense(name, None)
        return dense_inner(dense, dense)

    def norm(self) -> float:
        """Euclidean norm of the whole change."""
        return math.sqrt(self.squared_norm())

    def norms_by_module(self) -> dict[str, float]:
        """Euclidean norm of the change of each module that owns moved parameters (weight and bias together)."""
        squares: dict[str, list[float]] = {}
        for name in self.names:
            squares.setdefault(name.rpartition(".")[0], []).append(self.squared_norm(name))
        return {module: math.sqrt(math.fsum(values)) for module, values in squares.items()}

    def inner(self, other: WeightDelta, name: str | None = None) -> float:
        """Inner product with another change, of one parameter or of all, summed in float64.

        A parameter that only one of the two moves adds nothing. No product of LoRA factors is formed.

        Raises:
            UserError: the two give a parameter different shapes: they are of different models.

        """
        if name is None:
            return math.fsum(self.inner(other, each) for each in self.names)
        if not self.moves(name) or not other.moves(name):
            return 0.0
        if self.shape(name) != other.shape(name):
            raise UserError(
                f"{self.label} and {other.label} are changes of different models: {name} is {self.shape(name)} in "
                f"one and {other.shape(name)} in the other"
            )
        mine, theirs = self.factors(name), other.factors(name)
        if mine:
            return mine.inner(theirs or other.dense(name, None))
        if theirs:
            return theirs.inner(self.dense(name, None))
        return dense_inner(self.dense(name, None), other.dense(name, None))

    def modules(self) -> tuple[str, ...]:
        """Names of the modules whose two-dimensional weight moves (embeddings included)."""
        return tuple(
            name.removesuffix(".weight")
            for name in self.names
            if name.endswith(".weight") and len(self.shape(name)) == 2
        )

    def direction(self, module: str) -> Tensor | Factors | None:
        """The change of a module's weight: factors where they are known, else float32; None where it does not move."""
        name = f"{module}.weight"
        if not self.moves(name):
            return None
        return self.factors(name) or self.dense(name)

    def require_nonzero(self) -> None:
        """Raise UserError if nothing moves."""
        if all(self.squared_norm(name) == 0 for name in self.names):
            raise UserError(f"{self.label}: expected a change, got one that is zero everywhere: the model did not move")


class FullDelta(WeightDelta):
    """A change in a file that `bridge.deltas.parameters.write_full_delta` wrote: one tensor a parameter that moved."""

    kind: Kind = "full"

    def __init__(self, path: Path) -> None:
        """Read the header; UserError unless the file is whole and says that it holds a change of weights."""
        self._files = TensorFiles([path])
        self.label = str(path)
        self.metadata = self._files.metadata
        if self.metadata.get("content") != DELTA_CONTENT:
            raise UserError(
                f"{path} holds no change of weights: expected the delta.safetensors that bridge.finetune writes; "
                f"for a moved model give its folder, for an adapter the adapter's"
            )
        self.names = self._files.names
        self.base_sha256 = self.metadata.get("base_sha256")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter's change."""
        return self._files.shape(name)

    def _exact(self, name: str) -> Tensor:
        return self._files.read(name)


class Difference(WeightDelta):
    """One model's weights minus another's, both on disk and under the same names; subtracted in float64."""

    kind: Kind = "full"

    def __init__(self, moved: TensorFiles, base: TensorFiles, label: str, base_sha256: str | None = None) -> None:
        """Compare the headers; UserError, naming a tensor, unless both hold the same names and shapes."""
        self._moved, self._base = moved, base
        self.label, self.base_sha256 = label, base_sha256
        for name in (*base.names, *moved.names):
            shapes = [files.shape(name) if name in files else None for files in (moved, base)]
            if shapes[0] != shapes[1]:
                found, wanted = ("nothing" if shape is None else str(list(shape)) for shape in shapes)
                raise UserError(f"{label}: expected {name} to be {wanted} as in the base model, got {found}")
        self.names = base.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter's change."""
        return self._base.shape(name)

    def require_one_dtype(self) -> None:
        """UserError, naming a tensor, where the two models are stored in different dtypes."""
        for name in self.names:
            moved, base = self._moved.dtype(name), self._base.dtype(name)
            if moved != base:
                raise UserError(
                    f"{self.label}: expected weights of one dtype with the base model's, got {name} in {moved} and "
                    f"{base}: the difference would be that of the rounding, too"
                )

    def _exact(self, name: str) -> Tensor:
        return self._moved.read(name).double() - self._base.read(name).double()


def fingerprint(delta: WeightDelta) -> str:
    """Sha256 of a change's content, in the order of its names: two changes with the same numbers are the same."""
    digest = hashlib.sha256(delta.kind.encode())
    for name in delta.names:
        factors = delta.factors(name)
        parts = [delta.dense(name, None)] if factors is None else [factors.left, factors.right]
        digest.update(f"{name} {[tuple(part.shape) for part in parts]}".encode())
        for part in parts:
            digest.update(part.double().contiguous().numpy().tobytes())
    return digest.hexdigest()
