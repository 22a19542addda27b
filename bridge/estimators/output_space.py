"""How fast the policy itself moves: first and second derivatives of the logits, and the loss they predict.

Along theta(tau) = theta + tau v + tau^2/2 a the logits z of one response token have derivatives z', z''.
With E_t, Var_t over the vocabulary under the base policy at that token, and y the token itself,

    l'  = sum_t [ z'_y - E_t z' ]            l'' = sum_t [ z''_y - E_t z'' - Var_t(z') ]
    leak^2 = E sum_t Var_t(z')               onset^2 = E (l'')^2
    utility loss(tau) ~ E sum_t log E_t exp(dz - E_t dz),   dz = tau z' + tau^2/2 z''

The leak has no sampling noise from the token: the variance over the vocabulary is exact. No backward pass is
needed, and the path may be any (LoRA and projected updates included).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bridge.data.samples import Sample
from bridge.estimators.batches import Batch, in_sample_order, response_logits, sum_by_row
from bridge.estimators.curvature import Direction
from bridge.estimators.jets import moving_weights, parts_of
from bridge.estimators.theta import Subject
from bridge.estimators.update import Update
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import Arrays, arrays_of
from commands.store import Checkpoints

_CHUNK_BYTES = 4 * 2**20  # of one float64 working array: small enough to stay in the cache


@dataclass(frozen=True)
class TokenMoments:
    """Sums over the response tokens of each sample; every array is (N,) but `loss`, which is (N, T)."""

    first: Float[np.ndarray, " N"]  # l'
    second: Float[np.ndarray, " N"]  # l''
    leak_variance: Float[np.ndarray, " N"]  # sum_t Var_t(z')
    quartic_variance: Float[np.ndarray, " N"]  # sum_t Var_t(z'')
    cross: Float[np.ndarray, " N"]  # sum_t Cov_t(z', z'') + E_t[(z' - E_t z')^3] / 3
    loss: Float[np.ndarray, "N T"]  # predicted sum_t KL at each time

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def leak(self) -> float:
        """Root mean square speed of the policy, sqrt(E sum_t Var_t z')."""
        return float(np.sqrt(self.leak_variance.mean()))

    def onset(self) -> float:
        """Root mean square of l'' over the samples."""
        return float(np.sqrt(np.mean(self.second**2)))

    def quartic(self) -> float:
        """Root mean square of the second derivative over the vocabulary, sqrt(E sum_t Var_t z'')."""
        return float(np.sqrt(self.quartic_variance.mean()))


@torch.no_grad()
def token_moments(
    model: torch.nn.Module,
    modules: Mapping[str, torch.nn.Module],
    velocity: Direction,
    acceleration: Direction,
    batch: Batch,
    times: Float[np.ndarray, " T"],
) -> TokenMoments:
    """Derivatives of the batch's response logits along the path, reduced to the sums of `TokenMoments`.

    Args:
        model: a causal language model in eval mode.
        modules: the linear modules that move, by name.
        velocity: v by module name.
        acceleration: a by module name.
        batch: B samples.
        times: (T,) the tau at which the utility loss is predicted.

    Returns:
        sums for the B samples of the batch, in the batch's own order.

    """
    with moving_weights(modules, velocity, acceleration):
        logits, first, second = parts_of(response_logits(model, batch))
    columns: list[Tensor] = []
    losses: list[Tensor] = []
    grid = torch.from_numpy(times)
    rows = max(1, _CHUNK_BYTES // (8 * logits.shape[1]))
    for k in range(0, logits.shape[0], rows):
        part = slice(k, k + rows)
        sums, loss = reduce_tokens(logits[part], first[part], second[part], batch.target[part], grid)
        columns.append(sums)
        losses.append(loss)
    sums = torch.stack([sum_by_row(column, batch) for column in torch.cat(columns, 1)])
    loss = torch.stack([sum_by_row(column, batch) for column in torch.cat(losses, 1)], 1)
    first_, second_, leak, quartic, cross = (row.cpu().numpy() for row in sums)
    return TokenMoments(first_, second_, leak, quartic, cross, loss.cpu().numpy())


def reduce_tokens(
    logits: Tensor, first: Tensor, second: Tensor, target: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    """Five sums per token (5, R) and the predicted loss (T, R) of R tokens, in float64."""
    p = torch.softmax(logits.double(), 1)
    c1 = first.double() - (p * first).sum(1, keepdim=True)
    c2 = second.double() - (p * second).sum(1, keepdim=True)
    weighted = p * c1
    var1 = (weighted * c1).sum(1)
    cross = (weighted * c2).sum(1) + (weighted * c1 * c1).sum(1) / 3
    var2 = (p * c2 * c2).sum(1)
    chosen = target[:, None]
    sums = torch.stack([c1.gather(1, chosen)[:, 0], c2.gather(1, chosen)[:, 0] - var1, var1, var2, cross])
    loss = torch.stack([_log_mean_exp(p, c1, c2, var1, var2, float(t)) for t in times])
    return sums, loss


def _log_mean_exp(p: Tensor, c1: Tensor, c2: Tensor, var1: Tensor, var2: Tensor, t: float) -> Tensor:
    """log sum_y p_y e^{c_y} of each row, c = t c1 + t^2/2 c2.

    c1 and c2 have mean zero under p, so the sum is 1 + sum_y p_y (e^c - 1 - c), of non-negative terms. That form
    keeps its digits however small the loss. Where the loss of the rows together is not small, the plain form has
    as many and costs half the passes.
    """
    c = c1 * t
    c.add_(c2, alpha=t * t / 2)
    largest = float(c.amax())
    if largest > 600:  # e^c overflows: far outside the expansion's window, but finite all the same
        return torch.logsumexp(p.log() + c, 1)
    leading = float((t**2 / 2 * var1 + t**4 / 8 * var2).sum())
    if leading > 1e-4 * len(p):  # rounding of 1e-16 a row against a loss of 1e-4
        return torch.log(c.exp_().mul_(p).sum(1))
    smallest = float(c.amin())
    # For small c the difference e^c - 1 - c loses digits, and its series to c^4/24 is exact to 1e-13.
    small = max(largest, -smallest) < 1e-4
    terms = c * c * (0.5 + c * (1 / 6 + c / 24)) if small else torch.expm1(c).sub_(c)
    return torch.log1p(terms.mul_(p).sum(1))


def measure_output_space(
    subject: Subject,
    samples: Sequence[Sample],
    update: Update,
    times: Float[np.ndarray, " T"],
    folder: Checkpoints,
    progress: Progress,
) -> TokenMoments:
    """Derivatives of the policy along the path on the skill's samples, in the samples' order."""
    batches = subject.batches(samples)

    def moments(k: int) -> Arrays:
        path = (update.velocity, update.acceleration)
        return token_moments(subject.model, subject.modules, *path, batches[k], times).to_arrays()

    arrays = arrays_of(range(len(batches)), moments, folder, "motion of the policy", progress, "output-{}.npz")
    if not all(np.isfinite(values).all() for part in arrays.values() for values in part.values()):
        raise UserError("expected finite derivatives of the logits along the path, got inf or nan: use --dtype float32")
    return TokenMoments(**in_sample_order(list(arrays.values()), batches))
