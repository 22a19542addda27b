"""A subject's answers to the prompts of an evaluation, as records, kept so that a killed run goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bridge.data.chat import ChatFormat
from bridge.data.rows import Row, question
from bridge.evaluation.records import Record, read_records, write_records
from bridge.generation.decodings import Decoding
from bridge.generation.generate import Response, check_room, generate_texts
from bridge.models.load import LoadedModel
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import kept, numbered
from commands.store import Checkpoints


def answer_prompts(
    subject: LoadedModel,
    rows: Sequence[Row],
    decoding: Decoding,
    max_new_tokens: int,
    batch_size: int,
    folder: Checkpoints,
    progress: Progress,
    *,
    name: str = "prompts",
    stage: str = "responses",
) -> list[Record]:
    """One record for every prompt, in the order of the rows, with what the model answered (status "generated").

    Batches are of prompts of similar length, and each is kept as soon as it is answered. A sampled answer follows
    from the seed and the row's line alone: other rows, their number and the batch size do not matter, up to the
    rounding of the logits. `latency` is the batch's seconds divided by its number of prompts; the answers of a batch
    end together.

    Args:
        subject: the model and its tokenizer.
        rows: the prompts; where one ends in an answer, that is left out. Their lines must differ.
        decoding: how responses are decoded.
        max_new_tokens: the longest response.
        batch_size: prompts computed at a time.
        folder: where finished batches are kept; it belongs to one subject, one list of rows and one decoding.
        progress: shows the batches.
        name: the set's name; a record's item is NAME:LINE.
        stage: what progress calls this.

    Raises:
        UserError: for settings out of range, a prompt that the chat template refuses, and prompts and responses
            beyond the model's last position.

    """
    decoding.check()
    if batch_size < 1:
        raise UserError(f"--batch-size: expected a whole number from 1, got {batch_size}")
    if len({row.line for row in rows}) != len(rows):
        raise ValueError("rows of one set have different lines")
    chat = ChatFormat(subject.tokenizer)
    lengths = [len(ids) for ids in prompt_ids(subject, rows, max_new_tokens)]
    order = sorted(range(len(rows)), key=lambda k: (-lengths[k], k))
    batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]

    def answered(batch: Sequence[int]) -> list[Record]:
        chosen = [rows[k] for k in batch]
        started = time.monotonic()
        answers = generate_texts(
            subject,
            chat,
            chosen,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            decoding=decoding,
            places=[row.line for row in chosen],
        )
        seconds = round((time.monotonic() - started) / len(batch), 4)
        made = zip(batch, chosen, answers, strict=True)
        return [_record(name, row, lengths[k], answer, seconds) for k, row, answer in made]

    files = numbered(folder, batches, "responses-{}.jsonl")
    found: dict[int, Record] = {}
    for batch, records in kept(batches, answered, files, stage, progress, write=write_records, read=read_records):
        found |= zip(batch, records, strict=True)
    return [found[k] for k in range(len(rows))]


def prompt_ids(subject: LoadedModel, rows: Sequence[Row], max_new_tokens: int) -> list[list[int]]:
    """Token ids of every prompt; UserError, naming the row, where one cannot be rendered or leaves no room."""
    chat = ChatFormat(subject.tokenizer)
    ids = [chat.prompt_ids(row) for row in rows]
    check_room(subject.model, rows, ids, max_new_tokens)
    return ids


def _record(name: str, row: Row, prompt_tokens: int, answer: Response, seconds: float) -> Record:
    return Record(
        item=f"{name}:{row.line}",
        prompt=question(row),
        response=answer.text,
        prompt_tokens=prompt_tokens,
        response_tokens=len(answer.token_ids),
        finished=answer.finished,
        latency=seconds,
    )
