"""Which basis of a change's directions, and which part of another change, chosen by name; no torch is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Side = Literal["left", "right"]
Basis = Literal["top-k", "random-k", "random"]
Scheme = Literal["parallel", "orthogonal"]
Vectors = Literal["keep", "drop"]
BASES: tuple[Basis, ...] = get_args(Basis)
SIDES: tuple[Side, ...] = get_args(Side)
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


@dataclass(frozen=True)
class BasisChoice:
    """Which basis: its kind, its side (left: of dimension M, the paper's; right: N), and the seed of its draws."""

    kind: Basis
    side: Side = "left"
    seed: int = 0


@dataclass(frozen=True)
class ProjectionCounts:
    """What a projection did to the parameters of a change.

    Attributes:
        projected: matrices with a part in the basis and a part outside.
        short: of these, those with fewer directions than were asked for.
        without_directions: matrices that the alignment update did not move.
        kept: parameters that are not projected, kept whole.
        dropped: the same left out.

    """

    projected: int
    short: int
    without_directions: int
    kept: int
    dropped: int
