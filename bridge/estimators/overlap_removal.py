"""Updates without their part in the skill's sensitive directions, static: the projector stays that of the base.

P b = S^T C S b with S the scores of N samples at the base and C the small matrix of the top-d eigenvectors of their
gram. P belongs to these N samples: an update orthogonal to their scores still moves other samples of the same skill,
and so in-sample orthogonality overstates how harmless it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.estimators.curvature import Direction
from bridge.estimators.probe import Probe
from theory.projection_coefficients import SnapshotProjector


@dataclass(frozen=True)
class Removal:
    """I - P. The base's weights must be in place when it is applied.

    probe: the model and the N samples; projector: C.
    """

    probe: Probe
    projector: SnapshotProjector

    def apply(self, direction: Direction) -> Direction:
        """(I - P) b."""
        inner = self.probe.inner(direction.get)[0]
        inside = self.probe.weighted_scores(self.projector.coefficients(inner))
        return {name: part - inside[name].to(part.dtype) for name, part in direction.items()}
