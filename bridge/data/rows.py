"""Reading conversations: JSON Lines files, the sets that come with the package, and known sets of the hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.data.conversations import Message, transcript
from bridge.data.hub_sets import hub_records
from bridge.data.sets import CONVERSATIONS, NAMED_SETS, NamedSet, local_copy, unknown_name
from commands.errors import UserError
from commands.paths import expanded

IN_MEMORY = "rows in memory"
"""Source of a set that a caller had in memory."""

_SHIPPED = Path(__file__).with_name("shipped")


@dataclass(frozen=True)
class Row:
    """A conversation and where it came from; `line` counts from 1, in a file that is one list its entries.

    It ends in the assistant's turn, or, if `load_prompts` read it, in the user's.
    """

    messages: tuple[Message, ...]
    source: str
    line: int

    def error(self, reason: str) -> UserError:
        """The error to raise when this row cannot be used."""
        return _row_error(self.source, self.line, reason)


@dataclass(frozen=True)
class RowSet:
    """Rows of one set in file order.

    `sha256` is that of the file's bytes, or for a set of the hub of its records as sorted compact JSON Lines.
    `skipped` holds one line "source, line n: reason" for each bad row, `left_out` counts the rows that are not
    part of the set by its definition (say BeaverTails' safe rows).
    """

    name: str
    rows: tuple[Row, ...]
    sha256: str
    skipped: tuple[str, ...] = ()
    left_out: int = 0


def load_rows(spec: str, *, skip_bad_rows: bool = False) -> RowSet:
    """Read a set of conversations that end in an answer.

    spec is a name of `NAMED_SETS` (the sets that come with the package, and known sets of the hub), NAME=FILE
    (a local file in that set's own format, e.g. GSM8K's question and answer), or the path of a file with
    {"messages": [{"role", "content"}, ...]} or {"prompt", "completion"} rows (both strings, or both lists of
    messages); other fields are ignored. A file is JSON Lines, or, if its name ends in .json, one JSON list.
    The prompt is the plain question except where `bridge.data.sets` says otherwise (Alpaca's template, SAMSum's
    instruction); the answer stands as it is published, GSM8K's calculator marks included.

    Raises UserError for an unknown name (with the nearest ones), a file or hub that cannot be read, a file
    without rows, and, unless skip_bad_rows, at the first malformed row, with file, line and reason.
    """
    return _load(spec, skip_bad_rows, answered=True)


def load_prompts(spec: str, *, skip_bad_rows: bool = False) -> RowSet:
    """Read prompts for a model to answer: as `load_rows`, but answers may be missing and are dropped.

    A row is {"prompt"} alone or a list of messages whose last answer is missing, or any that `load_rows`
    takes; its messages end in the user's turn, and `ChatFormat.prompt_ids` takes it as it is.
    """
    return _load(spec, skip_bad_rows, answered=False)


def _load(spec: str, skip_bad_rows: bool, answered: bool) -> RowSet:
    name, equals, file = spec.partition("=")
    if equals and name in NAMED_SETS:
        return _load_file(expanded(file), name, NAMED_SETS[name], skip_bad_rows, answered)
    if spec in NAMED_SETS:
        return _load_named(spec, NAMED_SETS[spec], skip_bad_rows, answered)
    path = expanded(spec)
    # "gsm8k1" and "gsm8=rows.jsonl" are misspelt names; with a dot or slash before any "=" it is a path.
    if path.exists() or any(mark in name for mark in (".", "/", os.sep)):
        return _load_file(path, path.stem, CONVERSATIONS, skip_bad_rows, answered)
    raise unknown_name(name)


def _load_named(name: str, known: NamedSet, skip_bad_rows: bool, answered: bool) -> RowSet:
    if known.shipped:
        return _load_file(_SHIPPED / f"{name}.jsonl", name, known, skip_bad_rows, answered)
    if known.generate is not None:
        content = known.generate()
        records, digest = _json_lines(content, lists=False), hashlib.sha256(content).hexdigest()
        return _row_set(name, f"the generated set {name}", records, known, digest, skip_bad_rows, answered)
    if not known.hub_id:
        raise UserError(f"{name} is read from local files only: {local_copy(name)}; it is from {known.origin}")
    hub = hub_records(name, known)
    lines = [json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in hub]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    source = f"{known.hub_id} ({', '.join(filter(None, (known.hub_config, known.hub_split)))})"
    return _row_set(name, source, iter(enumerate(hub, start=1)), known, digest, skip_bad_rows, answered)


def _row_error(source: str, line: int, reason: str) -> UserError:
    return UserError(f"{source}, {'row' if source == IN_MEMORY else 'line'} {line}: {reason}")


def _load_file(path: Path, name: str, known: NamedSet, skip_bad_rows: bool, answered: bool) -> RowSet:
    shipped = path.parent == _SHIPPED
    source = f"bridge/data/shipped/{path.name}" if shipped else str(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"data file {source} does not exist; give the path of a JSON Lines file") from None
    except OSError as error:
        raise UserError(f"data file {source} cannot be read: {error.strerror}") from None
    entries = _json_list(content) if path.suffix == ".json" else None
    if entries is not None:
        source = f"{source} (a list, its entries counted as lines)"
    records = _json_lines(content, known.lists) if entries is None else _list_entries(entries, known.lists)
    digest = hashlib.sha256(content).hexdigest()
    return _row_set(name, source, records, known, digest, skip_bad_rows, answered)


Parsed = tuple[int, Mapping[str, object] | ValueError]
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def _json_list(content: bytes) -> list[object] | None:
    """The list that a file holds as a whole, or None if it holds something else (JSON Lines, say)."""
    try:
        value = json.loads(content.removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _list_entries(entries: list[object], lists: bool) -> Iterator[Parsed]:
    for number, entry in enumerate(entries, start=1):
        yield number, _as_record(entry, lists)


def _json_lines(content: bytes, lists: bool) -> Iterator[Parsed]:
    """Line number and object (or what is wrong with it) of every line that is not blank."""
    # Lines end at \n only: str.splitlines would also cut at U+2028 and others, which JSON strings may hold.
    for number, raw in enumerate(content.removeprefix(_BYTE_ORDER_MARK).split(b"\n"), start=1):
        if raw.strip():
            yield number, _record(raw, lists)


def _record(raw: bytes, lists: bool) -> Mapping[str, object] | ValueError:
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        return ValueError(f"is not UTF-8 text (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return ValueError(f"is not valid JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return ValueError(f"is not readable JSON: {error}")
    return _as_record(value, lists)


def _as_record(value: object, lists: bool) -> Mapping[str, object] | ValueError:
    if lists and isinstance(value, list):
        return {"messages": value}
    if not isinstance(value, dict):
        return ValueError(f"expected one JSON object a line, got {type(value).__name__}")
    return value


def rows_of(
    name: str,
    source: str,
    records: Sequence[Mapping[str, object] | ValueError],
    known: NamedSet,
    sha256: str,
    skip_bad_rows: bool,
    answered: bool,
) -> RowSet:
    """A set from records that are at hand, each of which may say what is wrong with it; they count as its lines."""
    return _row_set(name, source, iter(enumerate(records, start=1)), known, sha256, skip_bad_rows, answered)


def _row_set(
    name: str,
    source: str,
    records: Iterator[Parsed],
    known: NamedSet,
    sha256: str,
    skip_bad_rows: bool,
    answered: bool,
) -> RowSet:
    rows: list[Row] = []
    skipped: list[str] = []
    left_out = 0
    for line, record in records:
        try:
            if isinstance(record, ValueError):
                raise record
            messages = known.to_messages(record, answered)
        except ValueError as error:
            problem = _row_error(source, line, str(error))
            if not skip_bad_rows:
                raise problem from None
            skipped.append(str(problem))
            continue
        if messages is None:
            left_out += 1
        else:
            rows.append(Row(tuple(messages), source, line))
    if not rows:
        kind = "" if source == IN_MEMORY else "data file "
        raise UserError(f"{kind}{source} has no usable row: {_why_none(skipped, left_out, known)}")
    return RowSet(name, tuple(rows), sha256, tuple(skipped), left_out)


def _why_none(skipped: list[str], left_out: int, known: NamedSet) -> str:
    if not (skipped or left_out):
        return "it is empty"
    parts = [f"{left_out} rows are not part of the set ({known.origin})"] if left_out else []
    if skipped:
        some = "all " if not left_out else ""
        parts.append(f"{some}{len(skipped)} rows are bad; the first: {skipped[0]}")
    return ", ".join(parts)


def question(row: Row) -> str:
    """What is asked in a row: its prompt, or where it has several turns all of them; an answer is left out."""
    return transcript(row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages)
