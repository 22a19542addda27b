"""Velocity and acceleration of a fine-tune: gradient and Hessian-vector product of its loss.

The fine-tuning loss is the mean negative log-likelihood over all response tokens of the fine-tuning rows,
L = -(1/T) sum_i log pi(y_i | x_i). Everything is restricted to the selected weight matrices.

Gradient flow moves with velocity v = -g and acceleration a = H g. A preconditioned flow with a fixed
diagonal M moves with v = -M g and a = M H M g. Time is learning rate times steps in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bridge.batches import Batch, log_probabilities, response_logits
from bridge.errors import UserError

Direction = dict[str, Tensor]
"""A tangent vector: one tensor per selected module, in the shape of its weight."""

ADAM_EPSILON = 1e-8  # torch.optim.AdamW's default


def twice_differentiable_attention() -> AbstractContextManager[None]:
    """Attention kernels that support double backward; the fused ones do not."""
    return sdpa_kernel(SDPBackend.MATH)


def zeros_like(weights: Mapping[str, Tensor]) -> Direction:
    """The zero direction, accumulated in float32 when the weights are of lower precision."""
    return {
        name: torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32), requires_grad=False)
        for name, w in weights.items()
    }


def add_gradient(total: Direction, model: torch.nn.Module, weights: Mapping[str, Tensor], batch: Batch) -> float:
    """Add the gradient of the batch's summed token loss to `total`; returns that summed loss.

    Raises:
        UserError: if the loss is not finite.

    """
    with torch.enable_grad():
        loss = -log_probabilities(response_logits(model, batch), batch).sum()
        value = _finite(loss)
        grads = torch.autograd.grad(loss, list(weights.values()))
    for name, grad in zip(weights, grads, strict=True):
        total[name] += grad
    return value


def add_hessian_product(
    total: Direction,
    model: torch.nn.Module,
    weights: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    batch: Batch,
) -> None:
    """Add (Hessian of the batch's summed token loss) times `direction` to `total`, reverse over reverse."""
    leaves = list(weights.values())
    with torch.enable_grad(), twice_differentiable_attention():
        loss = -log_probabilities(response_logits(model, batch), batch).sum()
        _finite(loss)
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        cotangents = [direction[name].to(grad.dtype) for name, grad in zip(weights, grads, strict=True)]
        products = torch.autograd.grad(grads, leaves, grad_outputs=cotangents)
    for name, product in zip(weights, products, strict=True):
        total[name] += product


def _finite(loss: Tensor) -> float:
    value = float(loss.detach())
    if not torch.isfinite(loss.detach()):
        raise UserError(
            f"expected a finite fine-tuning loss, got {value}: use --dtype float32, or look for broken weights"
        )
    return value


def adam_preconditioner(second_moment: Mapping[str, Tensor]) -> Direction:
    """Adam's diagonal 1 / (sqrt(E g_b^2) + 1e-8) from the mean square of the per-batch gradients."""
    return {name: 1.0 / (moment.sqrt() + ADAM_EPSILON) for name, moment in second_moment.items()}


def times(scale: float | Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Direction:
    """A number, or a diagonal matrix, times a direction."""
    if isinstance(scale, float | int):
        return {name: scale * d for name, d in direction.items()}
    return {name: scale[name] * d for name, d in direction.items()}


def inner_product(a: Tensor, b: Tensor) -> float:
    """<a, b> of two tensors of one shape, summed in float64."""
    return float(torch.dot(a.flatten().double(), b.flatten().double()))
