"""The models that `bridge.safety_subspaces` measures: references without any projection, and projected fine-tunes."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.deltas.choices import Basis, Scheme
from bridge.suites.safety_subspaces.result import ALIGNED, BASE
from bridge.suites.safety_subspaces.settings import ExperimentSettings


@dataclass(frozen=True)
class Draw:
    """A kind of basis and, of a random one, which draw: `seed` is that of the draw, `label` for people."""

    kind: Basis
    number: int
    seed: int
    label: str


@dataclass(frozen=True)
class Point:
    """One projected fine-tune."""

    finetune: str
    basis: Draw
    scheme: Scheme
    fraction: float

    @property
    def name(self) -> str:
        """Its name in the records."""
        draw = f"-{self.basis.number}" if self.basis.number else ""
        return f"{self.finetune}--{self.basis.kind}{draw}--{self.scheme}--{self.fraction!r}"


def references(settings: ExperimentSettings) -> list[str]:
    """Names of the models without projection: the base, the aligned one, and every fine-tune."""
    return [BASE, ALIGNED, *settings.finetunes]


def bases(settings: ExperimentSettings) -> list[Draw]:
    """Every basis; random ones as often as they are drawn, the draws counted from 1."""
    drawn: list[Draw] = []
    for kind in settings.bases:
        if kind == "top-k":
            drawn.append(Draw(kind, 0, settings.seed, kind))
            continue
        for number in range(1, settings.repeats + 1):
            label = kind if settings.repeats == 1 else f"{kind}, draw {number}"
            drawn.append(Draw(kind, number, settings.seed + number - 1, label))
    return drawn


def points(settings: ExperimentSettings) -> list[Point]:
    """Every projected model: those of one fine-tune and one basis follow each other."""
    return [
        Point(finetune, basis, scheme, fraction)
        for finetune in settings.finetunes
        for basis in bases(settings)
        for fraction in settings.fractions
        for scheme in settings.schemes
    ]
