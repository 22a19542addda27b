"""The utility loss that finite steps are predicted to make, from derivatives at the base alone.

Steps of gradient descent have a share r < 1 of the flow's acceleration (`theory.descent`), so that at each time
z'' = z''_flow - (1 - r) J a, with J a the first derivative of the logits along the acceleration. Everything else is
as in `bridge.estimators.output_space`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp

from bridge.data.samples import Sample
from bridge.estimators.batches import Batch, by_batch, response_logits, sum_by_row
from bridge.estimators.curvature import twice_differentiable_attention
from bridge.estimators.jets import moving_weights, parts_of
from bridge.estimators.output_space import reduce_tokens
from bridge.estimators.theta import Subject
from bridge.estimators.update import Update
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import Arrays
from commands.store import Checkpoints

_CHUNK_BYTES = 4 * 2**20  # of one float64 working array: small enough to stay in the cache


@dataclass(frozen=True)
class StepMoments:
    """Sums over the response tokens of each of N samples at each of T times."""

    leak_variance: Float[np.ndarray, "N T"]  # sum_t Var_t(z'), the same at all times
    cross: Float[np.ndarray, "N T"]  # sum_t Cov_t(z', z'') + E_t[(z' - E_t z')^3] / 3
    quartic_variance: Float[np.ndarray, "N T"]  # sum_t Var_t(z'')
    loss: Float[np.ndarray, "N T"]  # predicted sum_t KL

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def measure_step_moments(
    subject: Subject,
    samples: Sequence[Sample],
    update: Update,
    times: Float[np.ndarray, " T"],
    shares: Float[np.ndarray, " T"],
    folder: Checkpoints,
    progress: Progress,
) -> StepMoments:
    """Predicted motion of the policy at each time, with that time's share of the acceleration, in samples' order.

    Raises:
        UserError: if a derivative is not finite.

    """

    def moments(batch: Batch) -> Arrays:
        return _of_batch(subject, update, batch, times, shares)

    sums = by_batch(subject.batches(samples), moments, folder, "prediction", progress, "steps-{}.npz")
    if not all(np.isfinite(values).all() for values in sums.values()):
        raise UserError("expected finite derivatives of the logits along the path, got inf or nan: use --dtype float32")
    return StepMoments(**sums)


@torch.no_grad()
def _of_batch(
    subject: Subject, update: Update, batch: Batch, times: Float[np.ndarray, " T"], shares: Float[np.ndarray, " T"]
) -> Arrays:
    with moving_weights(subject.modules, update.velocity, update.acceleration):
        logits, first, second = parts_of(response_logits(subject.model, batch))
    bent = _along_acceleration(subject, update, batch)
    rows = max(1, _CHUNK_BYTES // (8 * logits.shape[1]))
    instants = [torch.tensor([t], dtype=torch.float64) for t in times.tolist()]
    parts: list[Tensor] = []
    for k in range(0, logits.shape[0], rows):
        chosen = slice(k, k + rows)
        columns = []
        for t, share in zip(instants, shares.tolist(), strict=True):
            moved = second[chosen].double() - (1 - share) * bent[chosen].double()
            sums, loss = reduce_tokens(logits[chosen], first[chosen], moved, batch.target[chosen], t)
            columns.append(torch.stack([sums[2], sums[4], sums[3], loss[0]]))
        parts.append(torch.stack(columns, 1))  # (4, T, rows)
    sums = torch.cat(parts, 2)
    names = ("leak_variance", "cross", "quartic_variance", "loss")
    return {
        name: torch.stack([sum_by_row(column, batch) for column in values], 1).cpu().numpy()
        for name, values in zip(names, sums, strict=True)
    }


def _along_acceleration(subject: Subject, update: Update, batch: Batch) -> Tensor:
    """First derivative of the logits along the acceleration, (R, V)."""
    weights = {f"{name}.weight": weight for name, weight in subject.weights.items()}
    tangents = {f"{name}.weight": update.acceleration[name].to(w.dtype) for name, w in subject.weights.items()}
    with twice_differentiable_attention():  # the fused kernels have no forward mode
        derivative = jvp(lambda moved: response_logits(subject.model, batch, moved), (weights,), (tangents,))[1]
    assert isinstance(derivative, Tensor)
    return derivative
