"""Texts that a model answers prompts with: greedy or sampled, in batches, kept so that a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.data.chat import ChatFormat
from bridge.data.rows import Row
from bridge.generation.decodings import Decoding
from commands.errors import UserError
from commands.progress import Progress
from commands.store import write_json

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

    from bridge.models.load import LoadedModel


@dataclass(frozen=True)
class Response:
    """What the model answered.

    `text` is without special tokens; `token_ids` are all that it wrote, end-of-turn token included; `finished` says
    whether there is one, or else the longest response was reached.
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool


def generate_texts(
    loaded: LoadedModel,
    chat: ChatFormat,
    prompts: Sequence[Row],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    decoding: Decoding | None = None,
    places: Sequence[int] | None = None,
    model: PreTrainedModel | PeftModel | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    stage: str = "responses",
) -> list[Response]:
    """The model's answer to every prompt, in the order of the prompts.

    Batches are of prompts of similar length. A greedy answer does not depend on which prompts share its batch, up to
    the rounding of the logits; a sampled one has its own random stream, by the seed and its prompt's place in the
    list (or `places`), and does not either.

    Args:
        loaded: model and tokenizer.
        chat: the tokenizer's chat format.
        prompts: rows; where one ends in an answer, that is left out.
        max_new_tokens: the longest response; what is longer is cut.
        batch_size: prompts computed at a time; decides memory and rounding only.
        decoding: greedy unless given.
        places: number of each prompt's random stream, for prompts that are a part of a longer list; 0, 1, ... unless
            given.
        model: decode with this model instead (adapters put on, say, or in training); the tokenizer must fit it.
        checkpoint: each finished batch is kept in a file of this name with "-K.json" added, and not computed again;
            the caller makes sure that a name belongs to one model, one list of prompts and one decoding.
        progress: shows the batches; None for silence.
        stage: what progress calls them.

    Raises:
        UserError: for settings out of range, a prompt that the chat template refuses, prompts and responses
            beyond the model's last position, logits that are no numbers.

    """
    decoding = decoding or Decoding()
    decoding.check()
    for option, value in (("max-new-tokens", max_new_tokens), ("batch-size", batch_size)):
        if value < 1:
            raise UserError(f"--{option}: expected a whole number from 1, got {value}")
    subject = loaded.model if model is None else model
    ids = [chat.prompt_ids(row) for row in prompts]
    check_room(subject, prompts, ids, max_new_tokens)
    order = sorted(range(len(ids)), key=lambda k: (-len(ids[k]), k))
    batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
    files = [_file(checkpoint, k) for k in range(len(batches))]
    done = sum(file is not None and file.exists() for file in files)
    answers: dict[int, list[int]] = {}
    streams = range(len(ids)) if places is None else places
    with (progress or Progress(quiet=True)).stage(stage, len(batches), done) as tick:
        for batch, file in zip(batches, files, strict=True):
            if file is None or not file.exists():
                numbers = [streams[k] for k in batch]
                drawn = _answer(subject, loaded, chat, [ids[k] for k in batch], numbers, max_new_tokens, decoding)
                if file is not None:
                    write_json(file, drawn)
                tick()
            else:
                drawn = json.loads(file.read_text())
            answers |= zip(batch, drawn, strict=True)
    return [_response(loaded.tokenizer, chat, answers[k]) for k in range(len(ids))]


def _file(checkpoint: Path | None, batch: int) -> Path | None:
    return None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-{batch}.json")


def check_room(
    model: PreTrainedModel | PeftModel, prompts: Sequence[Row], ids: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Raise UserError, naming the row, for a prompt that leaves no room for its response.

    Args:
        model: the model, for its number of positions; without one nothing is checked.
        prompts: the rows.
        ids: their prompts' token ids.
        max_new_tokens: the longest response.

    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    for row, prompt in zip(prompts, ids, strict=True):
        if len(prompt) + max_new_tokens > limit:
            raise row.error(
                f"the prompt takes {len(prompt)} tokens of the {limit} positions that the model has, which leaves no "
                f"room for {max_new_tokens} new ones: lower --max-new-tokens or leave the row out"
            )


def _answer(
    model: PreTrainedModel | PeftModel,
    loaded: LoadedModel,
    chat: ChatFormat,
    ids: Sequence[Sequence[int]],
    places: Sequence[int],
    max_new_tokens: int,
    decoding: Decoding,
) -> list[list[int]]:
    """Token ids of one batch of answers."""
    from bridge.generation.sampling import check_logits, decode, draw_responses, stream

    common: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "end_token_ids": chat.end_token_ids,
        "pad_id": int(loaded.tokenizer.pad_token_id),
    }
    if decoding.greedy:
        return decode(model, ids, [check_logits], **common)
    streams = [stream(decoding.seed, place, 0) for place in places]
    return draw_responses(model, ids, streams, reshape=_warpers(decoding), **common)


def _warpers(decoding: Decoding) -> list[LogitsProcessor]:
    """The logits processors of a decoding, in transformers' own order."""
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    out: list[LogitsProcessor] = []
    if decoding.temperature != 1:
        out.append(TemperatureLogitsWarper(float(decoding.temperature)))
    if decoding.top_k:
        out.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        out.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p > 0:
        out.append(MinPLogitsWarper(decoding.min_p))
    return out


def _response(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, ids: Sequence[int]) -> Response:
    finished = bool(ids) and ids[-1] in chat.end_token_ids
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    return Response(text, tuple(ids), finished)
