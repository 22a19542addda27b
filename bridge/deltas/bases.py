"""Ordered orthonormal bases from a change of weights, and controls: the first k columns are the basis of rank k.

After "Safety Subspaces are Not Distinct" (arXiv 2505.14185): Top-K takes the first singular vectors of the alignment
update, Random-K draws among them, Random takes directions that have nothing to do with it. Unlike there, the controls
are seeded, and nested over ranks: one decomposition of a matrix serves every rank.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bridge.deltas.choices import BasisChoice, Side
from bridge.deltas.factors import Factors
from bridge.deltas.tensor_files import Entry, TensorFiles, write_tensors
from bridge.deltas.weight_delta import WeightDelta, fingerprint
from commands.errors import UserError
from commands.progress import Progress
from theory.subspaces import rank_of_fraction

_CONTENT = "singular vectors"
_VALUES = ":singular_values"


def rank_of(fraction: float, rows: int, columns: int) -> int:
    """k = max(1, round(fraction * min(rows, columns))); ValueError unless the fraction is in (0, 1]."""
    return rank_of_fraction(fraction, rows, columns)


# -------------------------------------------------------------------------------------------- one matrix


@dataclass(frozen=True)
class Update:
    """One matrix's change, scaled by a power of two and turned so that its directions are columns of dimension m.

    Attributes:
        part: (m, n) in float64, from the right transposed: (N, M). The largest entry of the matrix, or of each
            factor, has magnitude in [1, 2), so that no square over- or underflows.
        exponent: the change is `part` times 2 ** exponent.

    """

    part: Tensor | Factors
    exponent: int

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        rows, columns = self.part.shape
        return int(rows), int(columns)

    @property
    def scaled_square(self) -> float:
        """Squared Frobenius norm of `part`, in float64."""
        if isinstance(self.part, Factors):
            return self.part.squared_norm()
        return math.fsum(float(row.square().sum()) for row in self.part.split(1024))

    @property
    def norm(self) -> float:
        """Frobenius norm of the change itself."""
        return math.ldexp(math.sqrt(self.scaled_square), self.exponent)

    def scaled_inner(self, other: Update) -> float:
        """Inner product of the two `part`s, in float64."""
        if isinstance(self.part, Factors):
            return self.part.inner(other.part)
        if isinstance(other.part, Factors):
            return other.part.inner(self.part)
        pairs = zip(self.part.split(1024), other.part.split(1024), strict=True)
        return math.fsum(float((mine * theirs).sum()) for mine, theirs in pairs)


def matrix_names(delta: WeightDelta) -> tuple[str, ...]:
    """The parameters with two dimensions that a change moves: only these have singular directions."""
    return tuple(name for name in delta.names if len(delta.shape(name)) == 2)


def update_of(delta: WeightDelta, name: str, side: Side = "left") -> Update | None:
    """One parameter's change; None where it is zero. What is no matrix counts as one column.

    Raises:
        UserError: the change is not finite.

    """
    if not delta.moves(name):
        return None
    factors = delta.factors(name)
    if factors is None:
        dense = delta.dense(name, torch.float64)
        part, exponent = _scaled(dense if dense.ndim == 2 else dense.reshape(-1, 1))
        return None if part is None else Update(part if side == "left" else part.T, exponent)
    (left, first), (right, second) = _scaled(factors.left.double()), _scaled(factors.right.double())
    if left is None or right is None:
        return None
    update = Update(Factors(left, right) if side == "left" else Factors(right.T, left.T), first + second)
    return update if update.scaled_square > 0 else None


def _scaled(tensor: Tensor) -> tuple[Tensor | None, int]:
    """A float64 tensor divided by the power of two below its largest magnitude; None if it is zero."""
    largest = max(float(tensor.max()), -float(tensor.min())) if tensor.numel() else 0.0
    if largest == 0:
        return None, 0
    exponent = math.frexp(largest)[1] - 1
    return tensor / math.ldexp(1.0, exponent), exponent


@torch.no_grad()
def thin_svd(update: Update, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Left singular vectors (m, r) of an update's `part` and its singular values (r,), descending.

    r is min(m, n), or for factors at most their inner dimension. Small singular values are those of the matrix, never
    the roots of a Gram matrix's: a tall matrix is decomposed as it is, of a wide one the triangle of its QR, and
    factors through the triangles of theirs. Vectors are in `dtype`, values in float64.
    """
    if isinstance(update.part, Factors):
        left, right = (part.to(device, dtype) for part in (update.part.left, update.part.right))
        rotation, triangle = torch.linalg.qr(left)
        inner, values, _ = torch.linalg.svd(triangle @ torch.linalg.qr(right.T, mode="r").R.T, full_matrices=False)
        vectors = rotation @ inner
    else:
        matrix = update.part.to(device, dtype)
        if matrix.shape[0] < matrix.shape[1]:
            matrix = torch.linalg.qr(matrix.T, mode="r").R.T  # the same left vectors, and the long ones never formed
        vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return vectors, values.double().cpu()


def numerical_rank(values: Tensor, dtype: torch.dtype) -> int:
    """Number of singular values above rounding: r eps s_1, eps of the dtype in which they were computed.

    A direction beyond it is arbitrary, so that it belongs to no basis.
    """
    if not len(values) or float(values[0]) == 0:
        return 0
    return int((values > len(values) * torch.finfo(dtype).eps * values[0]).sum())


def row_energies(basis: Tensor, update: Update) -> Tensor:
    """|q_i^T D|^2 for every column q_i of a basis (m, r), in the scale of `update.part`; summed in float64."""
    if isinstance(update.part, Factors):
        left, right = (part.to(basis) for part in (update.part.left, update.part.right))
        rows = (basis.T @ left) @ torch.linalg.qr(right.T, mode="r").R.T
    else:
        rows = basis.T @ update.part.to(basis)
    return rows.double().square().sum(1).cpu()


# ----------------------------------------------------------------------------------------------- bases


def basis(choice: BasisChoice, vectors: Tensor, shape: tuple[int, ...], name: str, rank: int | None = None) -> Tensor:
    """An ordered orthonormal basis of one matrix's directions; its first k columns are the basis of rank k.

    Draws depend on the seed, the kind and the parameter's name alone: neither on other matrices nor on the rank. Where
    the alignment update has no direction at all, no basis has one: controls are drawn for the matrices that it moved.

    Args:
        choice: which basis.
        vectors: (m, r) left or right singular vectors of the alignment update, r its numerical rank.
        shape: (M, N) of the matrix.
        name: the parameter's name.
        rank: how many columns are wanted; None for as many as there are.

    Returns:
        (m, k) in the vectors' dtype, on their device: k = min(rank, r) for Top-K and Random-K, min(rank, M, N) for
        Random.

    Raises:
        ValueError: the vectors have another dimension than the matrix.

    """
    dimension, most = shape[0] if choice.side == "left" else shape[1], min(shape)
    if vectors.shape[0] != dimension:
        raise ValueError(f"{name}: expected vectors of dimension {dimension}, got {vectors.shape[0]}")
    wanted = most if rank is None else min(rank, most)
    if choice.kind == "top-k" or vectors.shape[1] == 0:
        return vectors[:, :wanted]
    if choice.kind == "random-k":
        return vectors[:, random_order(choice, vectors.shape[1], name)[:wanted].to(vectors.device)]
    drawn = torch.randn(most, dimension, generator=_generator(choice, name), dtype=torch.float64)[:wanted]
    return torch.linalg.qr(drawn.to(vectors).T).Q


def random_order(choice: BasisChoice, count: int, name: str) -> Tensor:
    """(count,) the order in which Random-K takes the singular vectors of a matrix."""
    return torch.randperm(count, generator=_generator(choice, name))


def _generator(choice: BasisChoice, name: str) -> torch.Generator:
    return seeded(f"{choice.kind} {choice.seed} {name}")


def seeded(text: str) -> torch.Generator:
    """A generator of the CPU whose seed is the hash of a text."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


# ---------------------------------------------------------------------------------- singular vectors on disk


class SingularVectors:
    """Left or right singular vectors of a change's matrices, in a file that `write_singular_vectors` wrote.

    Attributes:
        names: the matrices of the change, those that did not move included.
        side: whether the vectors are left or right ones.
        change_sha256: `bridge.deltas.weight_delta.fingerprint` of the change.
        label: where the change is from, for people.

    """

    def __init__(self, path: Path) -> None:
        """Read the header; UserError unless the file is whole and says that it holds singular vectors."""
        self._files = TensorFiles([path])
        about = self._files.metadata
        if about.get("content") != _CONTENT:
            raise UserError(f"{path} holds no singular vectors: expected a file of write_singular_vectors")
        self.path = path
        self.side: Side = "left" if about["side"] == "left" else "right"
        self.change_sha256, self.label = about["change_sha256"], about["label"]
        self.names = tuple(name for name in self._files.names if not name.endswith(_VALUES))
        self._shapes: dict[str, list[int]] = json.loads(about["shapes"])

    def shape(self, name: str) -> tuple[int, ...]:
        """(M, N) of a matrix."""
        return tuple(self._shapes[name])

    def singular_values(self, name: str) -> Tensor:
        """All singular values of a matrix's change, (r,) float64, descending, rounding included; none if it is zero."""
        return self._files.read(name + _VALUES)

    def rank(self, name: str) -> int:
        """Numerical rank r of a matrix's change: how many directions it has."""
        return numerical_rank(self.singular_values(name), self._files.dtype(name))

    def vectors(self, name: str) -> Tensor:
        """(m, r) singular vectors up to the numerical rank r; no column where the matrix did not move."""
        return self._files.read(name)[:, : self.rank(name)]


def singular_vectors(
    delta: WeightDelta,
    path: Path,
    *,
    side: Side = "left",
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    names: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> SingularVectors:
    """Those of `write_singular_vectors`, unless the file is there already: a killed run goes on with it."""
    if path.exists():
        return SingularVectors(path)
    return write_singular_vectors(delta, path, side=side, dtype=dtype, device=device, names=names, progress=progress)


def write_singular_vectors(
    delta: WeightDelta,
    path: Path,
    *,
    side: Side = "left",
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    names: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> SingularVectors:
    """Decompose every matrix of a change once, and write vectors and values, one matrix in memory at a time.

    Args:
        delta: the change; LoRA is decomposed through its factors.
        path: the file; it appears whole or not at all.
        side: left vectors (of dimension M) or right ones (N).
        dtype: of the decomposition and of the vectors, float32 or float64.
        device: where the decompositions are computed.
        names: the matrices; all that the change moves if None.
        progress: shows the matrices done.

    Raises:
        UserError: the change is not finite, or zero in every matrix.

    """
    wanted = None if names is None else frozenset(names)
    chosen = [name for name in matrix_names(delta) if wanted is None or name in wanted]
    sha256 = fingerprint(delta)
    moved = [name for name in chosen if update_of(delta, name, side) is not None]
    if not moved:
        raise UserError(f"{delta.label}: expected a change of at least one matrix, got one that moves none")
    metadata = {
        "content": _CONTENT,
        "side": side,
        "label": delta.label,
        "change_sha256": sha256,
        "shapes": json.dumps({name: list(delta.shape(name)) for name in chosen}),
    }
    with (progress or Progress(quiet=True)).stage("singular vectors", len(moved)) as tick:
        decomposed = _Decomposed(delta, side, dtype, device, tick)
        entries = [entry for name in chosen for entry in decomposed.entries(name, name in moved)]
        write_tensors(path, entries, metadata)
    return SingularVectors(path)


@dataclass
class _Decomposed:
    """Matrices of a change, each decomposed when its vectors are written; its values wait for their turn."""

    delta: WeightDelta
    side: Side
    dtype: torch.dtype
    device: str
    tick: Callable[[], None]
    values: dict[str, Tensor] = field(default_factory=dict)

    def entries(self, name: str, moved: bool) -> tuple[Entry, Entry]:
        """Vectors and values of a matrix in the file, in this order."""
        dimension, count = self._shape(name)
        shape = (dimension, count if moved else 0)
        values = Entry(name + _VALUES, shape[1:], torch.float64, partial(self._values, name))
        return Entry(name, shape, self.dtype, partial(self._vectors, name)), values

    def _shape(self, name: str) -> tuple[int, int]:
        """Shape of the vectors of a matrix that moved, known before they are."""
        rows, columns = self.delta.shape(name)
        factors = self.delta.factors(name)
        count = min(rows, columns) if factors is None else min(rows, columns, factors.left.shape[1])
        return rows if self.side == "left" else columns, count

    def _vectors(self, name: str) -> Tensor:
        update = update_of(self.delta, name, self.side)
        if update is None:
            return torch.empty(self._shape(name)[0], 0, dtype=self.dtype)
        vectors, scaled = thin_svd(update, self.dtype, self.device)
        self.values[name] = torch.ldexp(scaled, torch.tensor(update.exponent))
        self.tick()
        return vectors

    def _values(self, name: str) -> Tensor:
        return self.values.pop(name, torch.empty(0, dtype=torch.float64))
