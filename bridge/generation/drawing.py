"""Samples of a skill, ready to be measured: rows chosen, tokenised, and answered by the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bridge.data.chat import ChatFormat
from bridge.data.samples import Sample, with_response
from bridge.generation.sampling import draw_responses, stream
from bridge.models.load import LoadedModel
from commands.progress import Progress
from commands.runs import values_of
from commands.store import Checkpoints


@runtime_checkable
class AsksForResponses(Protocol):
    """A command's settings that say how responses are drawn."""

    @property
    def draws(self) -> int:
        """Responses a prompt."""

    @property
    def max_new_tokens(self) -> int:
        """Longest response, in tokens."""

    @property
    def max_length(self) -> int:
        """Longest prompt and response together."""

    @property
    def batch_size(self) -> int:
        """Prompts answered at a time."""

    @property
    def seed(self) -> int:
        """Seed of the random streams."""


@dataclass(frozen=True)
class Drawing:
    """How responses are drawn from the model: `draws` a prompt, each of at most max_new_tokens tokens."""

    draws: int
    max_new_tokens: int
    max_length: int  # of prompt and response together; a longer response is cut
    batch_size: int
    seed: int

    @classmethod
    def of(cls, asked: AsksForResponses, seed: int | None = None) -> Drawing:
        """What a command's settings ask for, by their seed unless another is given."""
        given = asked.seed if seed is None else seed
        return cls(asked.draws, asked.max_new_tokens, asked.max_length, asked.batch_size, given)


def draw_samples(
    loaded: LoadedModel,
    chat: ChatFormat,
    samples: Sequence[Sample],
    how: Drawing,
    folder: Checkpoints,
    progress: Progress,
) -> list[Sample]:
    """Replace every sample's response by the model's own, `draws` times a prompt."""
    wanted = [(row, draw) for row in range(len(samples)) for draw in range(how.draws)]
    size = 8 * how.batch_size  # no backward pass: longer batches than elsewhere
    groups = [wanted[k : k + size] for k in range(0, len(wanted), size)]

    def drawn(k: int) -> list[list[int]]:
        return draw_responses(
            loaded.model,
            [samples[row].prompt_ids for row, _ in groups[k]],
            [stream(how.seed, row, draw) for row, draw in groups[k]],
            max_new_tokens=how.max_new_tokens,
            end_token_ids=chat.end_token_ids,
            pad_id=int(loaded.tokenizer.pad_token_id),
        )

    numbers = range(len(groups))
    responses = values_of(numbers, drawn, folder, "responses of the model", progress, "responses-{}.json")
    return [
        _answered(samples[row], draw, response, how)
        for k in numbers
        for (row, draw), response in zip(groups[k], responses[k], strict=True)
    ]


def _answered(base: Sample, draw: int, response: list[int], how: Drawing) -> Sample:
    room = how.max_length - len(base.prompt_ids)
    label = base.id if how.draws == 1 else f"{base.id}#{draw + 1}"
    return with_response(base.prompt_ids, response[:room], set_name=base.set, sample_id=label, group=base.group)
