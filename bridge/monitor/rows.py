"""The rows of a skill on which a training is watched: prompts with responses drawn from the model, or their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bridge.data.chat import ChatFormat
from bridge.data.conversations import Message, conversation, user
from bridge.data.rows import Row, RowSet, load_prompts, load_rows
from bridge.data.samples import Sample, with_response
from bridge.estimators.probe import measuring
from bridge.generation.sampling import draw_responses, stream
from bridge.models.blocks import inner_model
from commands.errors import UserError

Skill = str | Path | Sequence[Mapping[str, object] | str]
Responses = Literal["model", "rows"]
_MAX_LENGTH = 1024  # tokens of prompt and response


@dataclass(frozen=True)
class Drawn:
    """Which responses make the probe: `count` rows at random (all, where there are fewer), one response each."""

    skill: Skill
    count: int
    responses: Responses
    max_new_tokens: int
    seed: int


def skill_samples(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, how: Drawn) -> list[Sample]:
    """The probe's samples: prompts of the skill with responses drawn from the model at temperature 1, or the rows' own.

    Raises:
        UserError: for a skill that cannot be read, a tokenizer without a chat template, or rows beyond the model's
            positions.

    """
    chat = ChatFormat(tokenizer)
    own = how.responses == "rows"
    rows = _rows(how.skill, answered=own)
    order = np.random.default_rng(how.seed).permutation(len(rows.rows))[: how.count]
    chosen = [rows.rows[i] for i in sorted(order.tolist())]
    inner = inner_model(model)
    if own:
        samples = [chat.encode(row, rows.name, _MAX_LENGTH) for row in chosen]
        _check_positions(inner, max(len(sample.input_ids) for sample in samples))
        return samples
    prompts = [chat.prompt_ids(row) for row in chosen]
    _check_positions(inner, max(len(prompt) for prompt in prompts) + how.max_new_tokens)
    with measuring(inner):
        drawn = draw_responses(
            inner,
            prompts,
            [stream(how.seed, row.line, 0) for row in chosen],
            max_new_tokens=how.max_new_tokens,
            end_token_ids=chat.end_token_ids,
            pad_id=pad_id(tokenizer),
        )
    return [
        with_response(prompt, response, set_name=rows.name, sample_id=f"{rows.name}:{row.line}", group=row.line)
        for prompt, response, row in zip(prompts, drawn, chosen, strict=True)
    ]


def plain_skill(skill: Skill, responses: Responses) -> str | list[dict[str, list[Message]]]:
    """A skill as JSON can hold it: a name, a path, or rows of nothing but their messages.

    Raises:
        UserError: for a row that is none.

    """
    if isinstance(skill, str | Path):
        return str(skill)
    return [{"messages": _messages(record, line, responses == "rows")} for line, record in enumerate(skill, start=1)]


def _messages(record: Mapping[str, object] | str, line: int, answered: bool) -> list[Message]:
    try:
        if isinstance(record, str) and answered:
            raise ValueError('a prompt alone has no answer, which responses="rows" needs')
        return [user(record)] if isinstance(record, str) else conversation(record, answered)
    except ValueError as error:
        raise UserError(f"skill, row {line}: {error}") from None


def _rows(skill: Skill, answered: bool) -> RowSet:
    if isinstance(skill, str | Path):
        return (load_rows if answered else load_prompts)(str(skill))
    rows = [Row(tuple(_messages(each, line, answered)), "skill", line) for line, each in enumerate(skill, start=1)]
    if not rows:
        raise UserError("skill: expected at least one row, got none")
    return RowSet("skill", tuple(rows), "")


def _check_positions(model: PreTrainedModel, longest: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and longest > limit:
        raise UserError(
            f"skill: expected rows within the {limit} positions that the model has, got {longest} tokens of prompt and "
            "response: lower max_new_tokens, or leave out long rows"
        )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id that can fill a row up."""
    found = tokenizer.pad_token_id
    return int(found if found is not None else tokenizer.eos_token_id or 0)
