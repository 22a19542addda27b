"""Responses drawn from the model itself, for the sampled Fisher.

Drawn at temperature 1 from the full softmax, since the theory's expectation is over y from the policy. Each
response has its own random stream, so that it does not depend on which prompts share its batch (up to the
rounding of the logits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from bridge.models.transformers_setup import quiet_transformers
from commands.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class _InverseTransform:
    """Logits processor that leaves one token possible: the softmax's quantile at the row's next uniform."""

    def __init__(self, streams: Sequence[np.random.Generator]) -> None:
        self.streams = streams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative = torch.softmax(scores.double(), -1).cumsum(-1)
        _require_finite(cumulative)
        uniform = torch.tensor([[s.random()] for s in self.streams], dtype=torch.float64, device=scores.device)
        # The last sum is 1 up to rounding: scaling keeps the draw inside the vocabulary.
        token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        token = token.clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def check_logits(input_ids: Tensor, scores: Tensor) -> Tensor:
    """Logits processor that changes nothing; UserError for logits that are no numbers, where any token would win."""
    _require_finite(scores)
    return scores


def _require_finite(values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise UserError(
            "expected finite logits when drawing responses, got nan or inf: use --dtype float32, or look for broken "
            "weights"
        )


def stream(seed: int, row: int, draw: int) -> np.random.Generator:
    """The random stream of one response."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, row, draw))))


def draw_responses(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[np.random.Generator],
    *,
    max_new_tokens: int,
    end_token_ids: Sequence[int],
    pad_id: int,
    reshape: Sequence[Callable[..., Tensor]] = (),
) -> list[list[int]]:
    """Draw one response to each prompt from the model, at temperature 1 unless told otherwise.

    Args:
        model: a Hugging Face causal language model.
        prompts: token ids, each ending where the response begins.
        streams: one random stream a prompt.
        max_new_tokens: a longer response is cut here; its Fisher is that of the policy over this many tokens.
        end_token_ids: a response ends with the first of these, which belongs to it.
        pad_id: any token; it is never attended to.
        reshape: logits processors of transformers that change the distribution before each draw.

    Returns:
        the response's token ids, end-of-turn token included where one was drawn.

    """
    processors: list[Callable[..., Tensor]] = [*reshape, _InverseTransform(streams)]
    return decode(model, prompts, processors, max_new_tokens=max_new_tokens, end_token_ids=end_token_ids, pad_id=pad_id)


@torch.no_grad()
def decode(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    processors: Sequence[Callable[..., Tensor]],
    *,
    max_new_tokens: int,
    end_token_ids: Sequence[int],
    pad_id: int,
) -> list[list[int]]:
    """The most likely token again and again, after the processors have had their way with the logits.

    Arguments and result as of `draw_responses`.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    longest = max(len(p) for p in prompts)
    device = next(model.parameters()).device
    ids = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    config = GenerationConfig(
        do_sample=False,  # a processor that draws has made the draw
        max_new_tokens=max_new_tokens,
        eos_token_id=list(end_token_ids),
        pad_token_id=pad_id,
    )
    generate = cast("Callable[..., Tensor]", model.generate)
    kept = LogitsProcessorList(processors)
    with quiet_transformers():  # it would warn of model defaults that a greedy choice does not use
        out = generate(input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=kept)
    return [_until_end(row, set(end_token_ids)) for row in out[:, longest:].tolist()]


def _until_end(tokens: Sequence[int], ends: set[int]) -> list[int]:
    for k, token in enumerate(tokens):
        if token in ends:
            return list(tokens[: k + 1])
    return list(tokens)
