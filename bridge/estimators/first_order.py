"""How a weight change moves the policy at first order, over every parameter that it changes.

With z' the derivative of the logits along dW (forward mode, one pass),

    s_i . dW = sum_t [ z'_y - E_t z' ]        E (s . dW)^2 = E sum_t Var_t(z') = dW^T F dW

E_t and Var_t over the vocabulary under the base policy. The two means are the same number when the responses are
drawn from the model; the second has no sampling noise from the token. Embeddings, norms and biases count here too,
while the scores of `bridge.estimators.taps` are those of linear modules.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp

from bridge.estimators.batches import Batch, response_logits, sum_by_row
from bridge.estimators.curvature import twice_differentiable_attention

_CHUNK_BYTES = 4 * 2**20


@torch.no_grad()
def first_order(
    model: torch.nn.Module, tangents: Mapping[str, Tensor], batch: Batch
) -> dict[str, Float[np.ndarray, " B"]]:
    """First derivative of the batch's policy along a change of the parameters.

    Args:
        model: a causal language model in evaluation mode.
        tangents: dW by parameter name; what is not named does not move. A tied weight is named once.
        batch: B samples.

    Returns:
        "first": s_i . dW, and "variance": sum_t Var_t(z'), for each sample of the batch in its own order.

    """
    weights = {name: parameter for name, parameter in model.named_parameters() if name in tangents}
    moving = {name: tangents[name].to(weight.device, weight.dtype) for name, weight in weights.items()}
    with twice_differentiable_attention():  # the fused kernels have no forward mode
        logits, moved = jvp(lambda changed: response_logits(model, batch, changed), (weights,), (moving,))[:2]
    rows = max(1, _CHUNK_BYTES // (8 * logits.shape[1]))
    chunks = zip(logits.split(rows), moved.split(rows), batch.target.split(rows), strict=True)
    parts = [_reduce(*chunk) for chunk in chunks]
    first, variance = (sum_by_row(torch.cat(column), batch).cpu().numpy() for column in zip(*parts, strict=True))
    return {"first": first, "variance": variance}


def _reduce(logits: Tensor, moved: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(logits.double(), 1)
    centred = moved.double() - (p * moved).sum(1, keepdim=True)
    return centred.gather(1, target[:, None])[:, 0], (p * centred * centred).sum(1)
