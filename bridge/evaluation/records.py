"""Records of an evaluation: what was asked, what the model answered, and what became of the answer.

They are kept as JSON Lines. While a run is under way every record that is finished is appended and synced to disk;
at the end the file is rewritten in order. What a killed process left half-written is dropped on reading.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, get_args

from commands.errors import UserError
from commands.store import write_atomically

Status = Literal["generated", "checked", "scored", "unparsed", "refused", "failed"]
"""generated: answered, not judged yet; checked: by a rule, without a judge; scored: the judge gave a score.

Without a score: unparsed, what the judge wrote holds none; refused, the judge declined; failed, it did not answer.
"""
NAME = "records.jsonl"


@dataclass(frozen=True)
class Record:
    """One prompt, the model's response to it, and one judge's verdict.

    `item` is unique among the records of one judge. `latency` is in seconds, of a batch its share. `finished` says
    whether the model ended its turn or was cut. `score` is 1 to 5 (status "scored") or None; `reason` says why there
    is none; `attempts` counts the requests to the judge. `details` are what a rule found (status "checked").
    """

    item: str
    prompt: str
    response: str
    prompt_tokens: int
    response_tokens: int
    finished: bool
    latency: float
    judge: str = ""
    judge_text: str = ""
    score: int | None = None
    status: Status = "generated"
    reason: str = ""
    judge_latency: float = 0.0
    judge_prompt_tokens: int = 0
    judge_response_tokens: int = 0
    attempts: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(line: str | bytes) -> Record:
        """The record of one line; raises ValueError if it is none."""
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object, got {type(value).__name__}")
        known = {f.name for f in fields(Record)}
        if unknown := sorted(value.keys() - known):
            raise ValueError(f"unknown field {unknown[0]!r}")
        if value.get("status", "generated") not in get_args(Status):
            raise ValueError(f"unknown status {value['status']!r}")
        try:
            return Record(**value)
        except TypeError as error:
            raise ValueError(f"a field is missing: {error}") from None


def read_records(path: Path) -> list[Record]:
    """The records of a file; a last line without its end was being written when a process died, and is left out.

    Raises:
        UserError: if the file cannot be read or another line is no record.

    """
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"records {path} cannot be read: {error.strerror}") from None
    del torn  # empty where the last line is whole
    found: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Record.from_json(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: expected a record of an evaluation: {error}") from None
    return found


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write all records at once, atomically."""
    write_atomically(path, "".join(record.to_json() + "\n" for record in records).encode())


class Journal:
    """Appends records to a file, each on disk before `append` returns. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Journal:
        self._file: IO[bytes] = self.path.open("ab")
        self._drop_torn_line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, record: Record) -> None:
        """Add one record; it survives whatever happens to the process afterwards."""
        self._file.write(record.to_json().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _drop_torn_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
