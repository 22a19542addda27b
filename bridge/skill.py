"""Samples of a skill, ready to be measured: rows chosen, tokenised, and answered by the model itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from bridge.data import ChatFormat, RowSet, Sample, encode_rows, with_response
from bridge.models import LoadedModel
from bridge.sampling import draw_responses, stream
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Checkpoints, short_hash, write_json


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
        """Of the random streams."""


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


def threads(device: str) -> int | None:
    """Threads decide the order of the CPU's sums, and so the last digits."""
    return torch.get_num_threads() if device == "cpu" else None


def run_name(model: str) -> str:
    """A model's name as a part of a folder's name."""
    return model.strip("/").replace("/", "--").replace(":", "-")[-60:]


def token_hash(samples: Sequence[Sample]) -> str:
    """Hash of what the tokenizer and its chat template made of the rows: it is part of what is measured."""
    return short_hash([[s.id, s.input_ids, s.response_mask, s.group] for s in samples])


def model_identity(loaded: LoadedModel) -> dict[str, object]:
    """What of a loaded model decides the numbers: weights, configuration, dtype, device, threads."""
    return {
        "dtype": loaded.dtype,
        "device": loaded.device,
        "threads": threads(loaded.device),
        "weights_sha256": loaded.weights_hash,
        "config": short_hash(json.loads(loaded.model.config.to_json_string())),
    }


def encode(
    option: str,
    rows: RowSet,
    chat: ChatFormat,
    *,
    count: int,
    max_length: int,
    seed: int,
    skip_bad_rows: bool,
    progress: Progress,
) -> list[Sample]:
    """Choose and tokenise rows; errors name the option that gave them, and skipped rows are told."""
    try:
        encoded = encode_rows(rows, chat, count, max_length, seed, skip_bad_rows)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    for line in encoded.skipped:
        progress.say(f"left out: {line}")
    return list(encoded.samples)


def check_positions(loaded: LoadedModel, whole: Sequence[Sample], answered: Sequence[Sample], new_tokens: int) -> None:
    """Refuse rows beyond the model's last position: learned positions end there, others are untrained.

    Args:
        loaded: the model.
        whole: samples that are measured as they are.
        answered: samples of which the prompt alone is used.
        new_tokens: how many tokens are drawn after those prompts.

    """
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    for sample in whole:
        if len(sample.input_ids) > limit:
            raise UserError(
                f"--max-length: expected at most {limit}, the positions that the model has, got {sample.id} of "
                f"{len(sample.input_ids)} tokens"
            )
    longest = max((len(sample.prompt_ids) for sample in answered), default=0)
    if answered and longest + new_tokens > limit:
        raise UserError(
            f"--max-new-tokens: expected at most {max(limit - longest, 0)}, since the model has {limit} positions and "
            f"the longest prompt {longest} tokens, got {new_tokens}"
        )


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
    files = [folder.checkpoint(f"responses-{k}.json") for k in range(len(groups))]
    out: list[Sample] = []
    with progress.stage("responses of the model", len(groups), sum(f.exists() for f in files)) as tick:
        for group, file in zip(groups, files, strict=True):
            if not file.exists():
                drawn = draw_responses(
                    loaded.model,
                    [samples[row].prompt_ids for row, _ in group],
                    [stream(how.seed, row, draw) for row, draw in group],
                    max_new_tokens=how.max_new_tokens,
                    end_token_ids=chat.end_token_ids,
                    pad_id=int(loaded.tokenizer.pad_token_id),
                )
                write_json(file, drawn)
                tick()
            for (row, draw), response in zip(group, json.loads(file.read_text()), strict=True):
                base = samples[row]
                room = how.max_length - len(base.prompt_ids)
                label = base.id if how.draws == 1 else f"{base.id}#{draw + 1}"
                out.append(
                    with_response(
                        base.prompt_ids, response[:room], set_name=base.set, sample_id=label, group=base.group
                    )
                )
    return out
