"""Rows that a caller has in memory: a list of messages or mappings, or a `datasets.Dataset`, as a set of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from bridge.data.conversations import assistant
from bridge.data.rows import IN_MEMORY, RowSet, rows_of
from bridge.data.sets import CONVERSATIONS, NAMED_SETS
from commands.errors import UserError

Record = Mapping[str, object]
"""{"messages": [...]}, {"prompt", "completion"}, or {"prompt"} where the model answers itself."""


@runtime_checkable
class Dataset(Protocol):
    """What of a `datasets.Dataset` is used: its rows as mappings, and their names."""

    column_names: list[str]

    def __len__(self) -> int:
        """Number of rows."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        """The rows."""


Rows = Sequence[Record | str | Sequence[Record]] | Dataset


Answers = Literal["given", "drawn", "none"]
"""Of a set's rows: every one has its own; the model will draw them, so that they may be missing; prompts are enough."""

_STANDS_IN = "(the model answers)"


def row_set(rows: Rows, *, answers: Answers = "given", skip_bad_rows: bool = False) -> RowSet:
    """A set of rows from memory; its name is made of its content.

    Args:
        rows: each a mapping with "messages" or with "prompt" and "completion", a list of messages, or, where no
            answers are needed, a prompt as text.
        answers: whether every row must end in an answer; where the model draws it, another text stands in until then.
        skip_bad_rows: leave out rows that cannot be used.

    Raises:
        UserError: no row, or one that cannot be used, with its number and the reason.

    """
    listed = isinstance(rows, Sequence | Dataset) and not isinstance(rows, str | bytes | Mapping)
    if not listed:
        wanted = "expected rows: a list of messages, mappings or texts, or a datasets.Dataset"
        raise UserError(f"{wanted}, got {type(rows).__name__}")
    names = [row for row in rows if isinstance(row, str) and row in NAMED_SETS]
    if names:
        raise UserError(f"expected rows, got a list with {names[0]!r}, the name of a set: give the name by itself")
    records = [_record(row) for row in rows]
    text = "".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records)
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    if answers == "drawn":
        records = [_answered(record) for record in records]
    name = f"rows-{digest[:8]}"
    return rows_of(name, IN_MEMORY, records, CONVERSATIONS, digest, skip_bad_rows, answers != "none")


def _record(row: object) -> dict[str, object] | ValueError:
    if isinstance(row, str):
        return {"prompt": row}
    if isinstance(row, Mapping):
        return {str(name): row[name] for name in sorted(row, key=str) if row[name] is not None}
    if isinstance(row, Sequence) and not isinstance(row, bytes):
        return {"messages": [dict(turn) if isinstance(turn, Mapping) else turn for turn in row]}
    return ValueError(f"expected a mapping, a list of messages or a text, got {type(row).__name__}")


def _answered(record: dict[str, object] | ValueError) -> dict[str, object] | ValueError:
    """The record, with an answer that stands in where it has none; a bad one as it is."""
    if isinstance(record, ValueError):
        return record
    turns, prompt = record.get("messages"), record.get("prompt")
    if isinstance(turns, list):
        answered = bool(turns) and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
        return record if answered or not turns else record | {"messages": [*turns, assistant(_STANDS_IN)]}
    if prompt is None or "completion" in record or "messages" in record:
        return record
    return record | {"completion": [assistant(_STANDS_IN)] if isinstance(prompt, list) else _STANDS_IN}
