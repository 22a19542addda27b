"""Velocity and acceleration of a fine-tune: gradient and Hessian-vector product of its loss.

The fine-tuning loss is the mean negative log-likelihood over all response tokens of the fine-tuning rows,
L = -(1/T) sum_i log pi(y_i | x_i). Everything is restricted to the selected weight matrices.

Gradient flow moves with velocity v = -g and acceleration a = H g. A preconditioned flow with a fixed
diagonal M moves with v = -M g and a = M H M g. Time is learning rate times steps in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bridge.estimators.batches import Batch, log_probabilities, response_logits
from commands.errors import UserError

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
    modules: Mapping[str, torch.nn.Module],
    direction: Mapping[str, Tensor],
    batch: Batch,
) -> None:
    """Add (Hessian of the batch's summed token loss) times `direction` to `total`, reverse over reverse.

    The slope along the direction is sum_m sum_t delta_t . (V_m x_t), with x_t and delta_t the inputs and output
    gradients of module m. Differentiating that needs no weight gradient in the first backward pass.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []

    def catching(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append((name, args[0], output))

        return hook

    handles = [module.register_forward_hook(catching(name)) for name, module in modules.items()]
    try:
        with torch.enable_grad(), twice_differentiable_attention():
            loss = -log_probabilities(response_logits(model, batch), batch).sum()
            _finite(loss)
            deltas = torch.autograd.grad(loss, [output for _, _, output in calls], create_graph=True)
            slope = loss.new_zeros(())
            for (name, x, _), delta in zip(calls, deltas, strict=True):
                slope = slope + (delta * _applied(modules[name], direction[name], x)).sum()
            weights = [module.get_parameter("weight") for module in modules.values()]
            products = torch.autograd.grad(slope, weights)
    finally:
        for handle in handles:
            handle.remove()
    for name, product in zip(modules, products, strict=True):
        total[name] += product


def _applied(module: torch.nn.Module, direction: Tensor, x: Tensor) -> Tensor:
    """The module's linear map with `direction` in place of its weight."""
    v = direction.to(x.dtype)
    return F.linear(x, v) if isinstance(module, torch.nn.Linear) else x @ v  # Conv1D stores (in, out)


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
