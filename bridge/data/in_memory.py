"""Rows that a caller has in memory: a list of messages or mappings, or a `datasets.Dataset`, as a set of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from bridge.data.rows import RowSet, rows_of
from bridge.data.sets import CONVERSATIONS
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


def row_set(rows: Rows, *, answered: bool, skip_bad_rows: bool = False) -> RowSet:
    """A set of rows from memory; its name is made of its content.

    Args:
        rows: each a mapping with "messages" or with "prompt" and "completion", a list of messages, or, where no
            answers are needed, a prompt as text.
        answered: whether every row must end in an answer.
        skip_bad_rows: leave out rows that cannot be used.

    Raises:
        UserError: no row, or one that cannot be used, with its number and the reason.

    """
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise UserError(
            f"expected rows: a list of messages or mappings, or a datasets.Dataset, got {type(rows).__name__}"
        )
    records = [_record(row) for row in rows]
    text = "".join(json.dumps(record, ensure_ascii=False, sort_keys=True, default=str) + "\n" for record in records)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return rows_of(f"rows-{digest[:8]}", "rows in memory", records, CONVERSATIONS, digest, skip_bad_rows, answered)


def _record(row: object) -> dict[str, object] | ValueError:
    if isinstance(row, str):
        return {"prompt": row}
    if isinstance(row, Mapping):
        return {str(name): value for name, value in row.items() if value is not None}
    if isinstance(row, Sequence):
        return {"messages": [dict(turn) if isinstance(turn, Mapping) else turn for turn in row]}
    return ValueError(f"expected a mapping or a list of messages, got {type(row).__name__}")
