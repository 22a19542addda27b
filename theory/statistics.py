"""ScoreStatistics: the few numbers per sample from which every instability quantity follows.

Write ``s_i`` for the score of sample i (gradient of its log-probability ``l_i``), ``v`` and ``a`` for the
velocity and acceleration of the update path, and ``w_i`` for the sample weights. The Fisher matrix is
``F = sum_i w_i s_i s_i^T``; its non-zero eigenvalues are those of the N x N matrix
``diag(sqrt w) K diag(sqrt w)`` with ``K_ij = s_i . s_j``, and no n x n matrix is ever formed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

FisherKind = Literal["exact", "sampled", "empirical"]
Scalar = float | int | np.floating

_SYMMETRY_TOLERANCE = 1e-5  # of the largest entry: room for a Gram matrix accumulated in float32
_ARRAYS = ("gram", "velocity", "acceleration", "curvature", "weights")
_SCALARS = ("velocity_squared", "acceleration_squared", "velocity_dot_acceleration")


@dataclass(frozen=True, eq=False)
class ScoreStatistics:
    """Inner products of N scores with each other and with an update path, in n parameters.

    Arrays are copied to float64 and made read-only; a Gram matrix that is symmetric up to float32 rounding
    is symmetrised. Statistics of disjoint parameter blocks of the same samples add (``block + block``).

    Attributes:
        gram: (N, N), ``s_i . s_j``.
        velocity: (N,), ``s_i . v``: the first derivative l' of each log-probability along the path.
        acceleration: (N,), ``s_i . a``.
        velocity_squared: ``|v|^2``.
        acceleration_squared: ``|a|^2``.
        velocity_dot_acceleration: ``v . a``.
        dimension: n, the number of parameters of the block.
        fisher: which Fisher: ``"exact"`` (sum over outcomes), ``"sampled"`` (responses drawn from the
            model) or ``"empirical"`` (responses of the data).
        labels: N sample names.
        curvature: (N,), ``v^T Hess(l_i) v``, or None where it was not computed.
        weights: (N,) non-negative, summing to 1 (outcome probabilities for an exact Fisher), or None for
            the uniform 1/N.

    Raises:
        ValueError: if N = 0, a shape does not fit, a number is not finite, the Gram matrix is not
            symmetric, or a weight, squared norm, dimension or label count is impossible.
    """

    gram: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    velocity_squared: Scalar
    acceleration_squared: Scalar
    velocity_dot_acceleration: Scalar
    dimension: int
    fisher: FisherKind
    labels: tuple[str, ...] | list[str]
    curvature: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Validate, copy and freeze."""
        gram = _checked_gram(self.gram)
        count = len(gram)
        set_field = object.__setattr__  # the dataclass is frozen: this is its own initialisation
        set_field(self, "gram", gram)
        for name in _ARRAYS[1:]:
            value = getattr(self, name)
            if value is not None:
                set_field(self, name, _frozen(name, value, (count,)))
        for name in _SCALARS:
            set_field(self, name, _finite_scalar(name, getattr(self, name)))
        for name in _SCALARS[:2]:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a squared norm and cannot be negative, got {getattr(self, name)}")
        if self.weights is not None:
            _check_weights(self.weights)
        if self.dimension < 1:
            raise ValueError(f"dimension must be a positive number of parameters, got {self.dimension}")
        _fisher_kind(self.fisher)
        set_field(self, "labels", tuple(self.labels))
        if len(self.labels) != count:
            raise ValueError(f"expected one label for each of the {count} samples, got {len(self.labels)}")

    @classmethod
    def from_scores(
        cls,
        scores: Float[np.ndarray, "N n"],
        velocity_vector: Float[np.ndarray, " n"],
        acceleration_vector: Float[np.ndarray, " n"],
        *,
        fisher: FisherKind = "exact",
        curvature: Float[np.ndarray, " N"] | None = None,
        weights: Float[np.ndarray, " N"] | None = None,
        labels: Sequence[str] | None = None,
    ) -> ScoreStatistics:
        """Statistics of explicit scores, for models small enough to hold them.

        Args:
            scores: one score a row.
            velocity_vector: v, the first derivative of the path.
            acceleration_vector: a, the second derivative of the path.
            fisher: which Fisher the rows and weights make up.
            curvature: ``v^T Hess(l_i) v`` of each sample.
            weights: sample weights; None for uniform.
            labels: sample names; None for "0", "1", ...

        Raises:
            ValueError: as the class does.
        """
        rows = np.asarray(scores, dtype=np.float64)
        v = np.asarray(velocity_vector, dtype=np.float64)
        a = np.asarray(acceleration_vector, dtype=np.float64)
        return cls(
            gram=rows @ rows.T,
            velocity=rows @ v,
            acceleration=rows @ a,
            velocity_squared=float(v @ v),
            acceleration_squared=float(a @ a),
            velocity_dot_acceleration=float(v @ a),
            dimension=rows.shape[1],
            fisher=fisher,
            labels=tuple(labels) if labels is not None else tuple(str(i) for i in range(len(rows))),
            curvature=curvature,
            weights=weights,
        )

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.gram)

    @property
    def sample_weights(self) -> Float[np.ndarray, " N"]:
        """The weights w, with the uniform 1/N written out."""
        if self.weights is None:
            return np.full(self.num_samples, 1.0 / self.num_samples)
        return self.weights

    @property
    def velocity_norm(self) -> float:
        """``|v|``."""
        return float(np.sqrt(self.velocity_squared))

    @property
    def acceleration_norm(self) -> float:
        """``|a|``."""
        return float(np.sqrt(self.acceleration_squared))

    @property
    def second_derivative(self) -> Float[np.ndarray, " N"]:
        """``l''_i = s_i . a + v^T Hess(l_i) v``, the second derivative of each log-probability.

        Raises:
            ValueError: if the curvature is absent.
        """
        if self.curvature is None:
            raise ValueError(
                "the second derivative of the log-probabilities needs the curvature v^T Hess(l_i) v, which "
                "these statistics do not have (sums over blocks lose it): supply it by with_curvature(values)"
            )
        return self.acceleration + self.curvature

    def expectation(self, values: Float[np.ndarray, " N"]) -> float:
        """``E[f] = sum_i w_i f_i``.

        Raises:
            ValueError: if there is not one value a sample.
        """
        if values.shape != (self.num_samples,):
            raise ValueError(f"expected one value for each of the {self.num_samples} samples, got shape {values.shape}")
        return float(self.sample_weights @ values)

    def with_curvature(self, curvature: np.ndarray | None) -> ScoreStatistics:
        """The same statistics with ``v^T Hess(l_i) v`` of each sample, shape (N,), replaced."""
        return replace(self, curvature=curvature)

    def __add__(self, other: ScoreStatistics) -> ScoreStatistics:
        """Statistics of the union of two disjoint parameter blocks of the same samples.

        The curvature of a union also holds the cross-block second derivatives, so the sum has none.

        Raises:
            ValueError: if labels, Fisher kind or weights differ.
        """
        if not isinstance(other, ScoreStatistics):
            return NotImplemented
        self._require_same_samples(other)
        return replace(
            self,
            gram=self.gram + other.gram,
            velocity=self.velocity + other.velocity,
            acceleration=self.acceleration + other.acceleration,
            velocity_squared=self.velocity_squared + other.velocity_squared,
            acceleration_squared=self.acceleration_squared + other.acceleration_squared,
            velocity_dot_acceleration=self.velocity_dot_acceleration + other.velocity_dot_acceleration,
            dimension=self.dimension + other.dimension,
            curvature=None,
        )

    def __radd__(self, other: int) -> ScoreStatistics:
        """Lets ``sum(blocks)`` start from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def _require_same_samples(self, other: ScoreStatistics) -> None:
        if self.labels != other.labels:
            raise ValueError(
                f"only statistics of the same samples add: got labels of {self.num_samples} and "
                f"{other.num_samples} samples that differ; select() the common samples first"
            )
        if self.fisher != other.fisher:
            raise ValueError(f"cannot add {self.fisher} Fisher statistics to {other.fisher} ones")
        if not np.array_equal(self.sample_weights, other.sample_weights):
            raise ValueError("cannot add statistics whose sample weights differ")

    def select(self, indices: Int[np.ndarray, " M"] | Sequence[int]) -> ScoreStatistics:
        """The samples at ``indices`` (repeats allowed, as in resampling), weights renormalised.

        Raises:
            ValueError: if nothing is selected, an index is no integer or out of range, or all weights are zero.
        """
        index = np.asarray(indices)
        if index.ndim != 1 or index.size == 0 or not np.issubdtype(index.dtype, np.integer):
            raise ValueError("select() needs a non-empty list of sample indices, which are integers")
        if index.min() < -self.num_samples or index.max() >= self.num_samples:
            raise ValueError(f"sample indices must lie in 0..{self.num_samples - 1}, got {index.min()}..{index.max()}")
        weights = None
        if self.weights is not None:
            total = self.weights[index].sum()
            if total <= 0:
                raise ValueError("all selected samples have weight zero, so they define no expectation")
            weights = self.weights[index] / total
        return replace(
            self,
            gram=self.gram[np.ix_(index, index)],
            velocity=self.velocity[index],
            acceleration=self.acceleration[index],
            curvature=None if self.curvature is None else self.curvature[index],
            weights=weights,
            labels=tuple(self.labels[i] for i in index),
        )

    def to_arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The statistics as named numeric arrays, each name starting with ``prefix``.

        Text is stored as UTF-8 bytes of JSON, so that nothing needs pickle and nothing is altered. Several
        blocks with different prefixes can share one npz file.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        arrays |= {name: np.float64(getattr(self, name)) for name in _SCALARS}
        arrays["dimension"] = np.int64(self.dimension)
        text = json.dumps({"fisher": self.fisher, "labels": list(self.labels)})
        arrays["text"] = np.frombuffer(text.encode(), dtype=np.uint8)
        return {prefix + name: np.asarray(value) for name, value in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str = "") -> ScoreStatistics:
        """Inverse of :meth:`to_arrays`, exact to the last bit.

        Raises:
            ValueError: if an array is missing or what is stored is not valid.
        """
        required = (*_ARRAYS[:3], *_SCALARS, "dimension", "text")
        missing = [prefix + name for name in required if prefix + name not in arrays]
        if missing:
            raise ValueError(f"these arrays hold no score statistics under prefix {prefix!r}: missing {missing}")
        text = json.loads(np.asarray(arrays[prefix + "text"]).tobytes())
        stored = {name: np.asarray(arrays[prefix + name]) for name in _ARRAYS if prefix + name in arrays}
        return cls(
            gram=stored["gram"],
            velocity=stored["velocity"],
            acceleration=stored["acceleration"],
            velocity_squared=float(arrays[prefix + "velocity_squared"]),
            acceleration_squared=float(arrays[prefix + "acceleration_squared"]),
            velocity_dot_acceleration=float(arrays[prefix + "velocity_dot_acceleration"]),
            dimension=int(arrays[prefix + "dimension"]),
            fisher=_fisher_kind(text["fisher"]),
            labels=tuple(text["labels"]),
            curvature=stored.get("curvature"),
            weights=stored.get("weights"),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics to the npz file ``path``, under exactly that name."""
        with open(path, "wb") as file:
            np.savez(file, **self.to_arrays())  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScoreStatistics:
        """Read what :meth:`save` wrote.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is an npz file without score statistics.
        """
        with np.load(path, allow_pickle=False) as arrays:
            return cls.from_arrays(arrays)


def _frozen(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A read-only float64 copy of ``value``, which must have ``shape`` and be finite."""
    array = np.array(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to fit the Gram matrix, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {np.count_nonzero(~np.isfinite(array))} numbers that are not finite")
    array.setflags(write=False)
    return array


def _checked_gram(value: np.ndarray) -> np.ndarray:
    """The Gram matrix, validated, symmetrised to the last bit and frozen."""
    shape = np.shape(value)
    if len(shape) != 2 or shape[0] != shape[1] or 0 in shape:
        raise ValueError(f"gram must be a square matrix over at least one sample, got shape {shape}")
    gram = _frozen("gram", value, shape)
    scale = np.abs(gram).max()
    asymmetry = np.abs(gram - gram.T).max()
    if asymmetry > _SYMMETRY_TOLERANCE * scale:
        raise ValueError(f"gram must be symmetric: entries differ from their transpose by up to {asymmetry:.3g}")
    if gram.diagonal().min() < 0:
        raise ValueError(
            f"gram has squared norms on its diagonal, which cannot be negative, got {gram.diagonal().min()}"
        )
    if asymmetry == 0:
        return gram
    symmetric = gram / 2 + gram.T / 2
    symmetric.setflags(write=False)
    return symmetric


def _check_weights(weights: np.ndarray) -> None:
    if weights.min() < 0:
        raise ValueError(f"weights cannot be negative, got {weights.min()}")
    if abs(weights.sum() - 1.0) > 1e-9:
        raise ValueError(f"weights must sum to 1, got {weights.sum()}: divide them by their sum")


def _finite_scalar(name: str, value: Scalar) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def _fisher_kind(text: str) -> FisherKind:
    for kind in get_args(FisherKind):
        if text == kind:
            return kind
    raise ValueError(f"fisher must be one of {', '.join(get_args(FisherKind))}, got {text!r}")
