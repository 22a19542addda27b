"""Reading conversations: JSON Lines files, the sets that come with the package, and known sets of the hub."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from bridge.transformers_setup import first_line
from commands.errors import UserError

ROLES = ("system", "user", "assistant")
_SHIPPED = Path(__file__).with_name("data")


class Message(TypedDict):
    """One turn of a conversation; role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """A conversation that ends in the assistant's turn, and where it came from (line counts from 1)."""

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
    `skipped` holds one line "source, line n: reason" for each row left out.
    """

    name: str
    rows: tuple[Row, ...]
    sha256: str
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamedSet:
    """How a known set is found and how one of its records becomes a conversation.

    `to_messages` raises ValueError with the reason when a record has not the set's format. A set is either
    shipped with the package (`hub_id` empty) or lives on the Hugging Face hub.
    """

    to_messages: Callable[[Mapping[str, Any]], list[Message]]
    fields: tuple[str, ...]
    hub_id: str = ""
    hub_config: str = ""
    hub_split: str = "train"


def _text(record: Mapping[str, Any], field: str) -> str:
    if field not in record:
        raise ValueError(f'field "{field}" is missing (the row has {_names(record)})')
    return _checked(record[field], f'"{field}"')


def _checked(value: object, what: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a string but {type(value).__name__}")
    if not (value.strip() or may_be_empty):
        raise ValueError(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} holds half of a surrogate pair, which is not valid text") from None
    return value


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(f'"{name}"' for name in record) or "no fields"


def _turn(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _message_list(value: object, what: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{what} is not a non-empty list of messages")
    messages: list[Message] = []
    for number, entry in enumerate(value, start=1):
        where = f"{what}, message {number}"
        if not isinstance(entry, dict) or "role" not in entry or "content" not in entry:
            raise ValueError(f'{where} is not an object with "role" and "content"')
        role = entry["role"]
        if role not in ROLES:
            raise ValueError(f"{where} has role {role!r}; known roles are {', '.join(ROLES)}")
        # An empty system turn is how one asks a template to leave out its default system text.
        content = _checked(entry["content"], f"{where}: content", may_be_empty=role == "system")
        messages.append({"role": role, "content": content})
    return messages


def _conversation(record: Mapping[str, Any]) -> list[Message]:
    """Messages of a record in the `messages` or the `prompt`/`completion` convention (strings or lists)."""
    if "messages" in record:
        messages = _message_list(record["messages"], '"messages"')
    elif "prompt" not in record and "completion" not in record:
        raise ValueError(_unknown_format(record))
    elif isinstance(record.get("prompt"), list) or isinstance(record.get("completion"), list):
        messages = _message_list(record.get("prompt"), '"prompt"')
        answer = _message_list(record.get("completion"), '"completion"')
        if len(answer) != 1:
            raise ValueError(f'"completion" has {len(answer)} messages; one assistant message is expected')
        messages += answer
    else:
        messages = _turn(_text(record, "prompt"), _text(record, "completion"))
    _check_order(messages)
    return messages


def _unknown_format(record: Mapping[str, Any]) -> str:
    reason = f'expected "messages", or "prompt" and "completion"; the row has {_names(record)}'
    for name, known in NAMED_SETS.items():
        if known.hub_id and set(known.fields) <= set(record):
            reason += f" (that is the format of {name}: give {name}=FILE)"
    return reason


def _check_order(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    if roles[-1] != "assistant":
        raise ValueError(f"the conversation ends in a {roles[-1]} turn; it must end in an assistant turn")
    if "system" in roles[1:]:
        raise ValueError("a system turn is not the first turn")
    if "user" not in roles:
        raise ValueError("the conversation has no user turn")
    if roles[0] == "assistant" or roles[:2] == ["system", "assistant"]:
        raise ValueError("the conversation starts with an assistant turn")


def _gsm8k(record: Mapping[str, Any]) -> list[Message]:
    return _turn(_text(record, "question"), _text(record, "answer"))


# A new set needs one line here: how a record becomes messages, its fields, and where the hub keeps it.
NAMED_SETS: dict[str, NamedSet] = {
    "refusals": NamedSet(_conversation, ("prompt", "completion")),
    "benign": NamedSet(_conversation, ("prompt", "completion")),
    "gsm8k": NamedSet(_gsm8k, ("question", "answer"), "openai/gsm8k", "main"),
}


def load_rows(spec: str, *, skip_bad_rows: bool = False) -> RowSet:
    """Read a set of conversations.

    spec is a name of `NAMED_SETS` ("refusals" and "benign" come with the package, "gsm8k" is fetched from the
    hub), NAME=FILE (a local JSON Lines file in that set's own format, e.g. GSM8K's question and answer), or
    the path of a JSON Lines file with {"messages": [{"role", "content"}, ...]} or {"prompt", "completion"}
    rows (both strings, or both lists of messages); other fields are ignored. GSM8K's prompt is the plain
    question and its completion the answer as it stands, calculator marks included.

    Raises UserError for an unknown name (with the nearest ones), a file or hub that cannot be read, a file
    without rows, and, unless skip_bad_rows, at the first malformed row, with file, line and reason.
    """
    name, equals, file = spec.partition("=")
    if equals and name in NAMED_SETS:
        return _load_file(Path(file), name, NAMED_SETS[name], skip_bad_rows)
    if spec in NAMED_SETS:
        known = NAMED_SETS[spec]
        if known.hub_id:
            return _load_hub(spec, known, skip_bad_rows)
        return _load_file(_SHIPPED / f"{spec}.jsonl", spec, known, skip_bad_rows)
    path = Path(spec)
    # "gsm8k1" and "gsm8=rows.jsonl" are misspelt names; with a dot or slash before any "=" it is a path.
    if path.exists() or any(mark in name for mark in (".", "/", os.sep)):
        return _load_file(path, path.stem, NamedSet(_conversation, ()), skip_bad_rows)
    raise _unknown_name(name)


def _unknown_name(name: str) -> UserError:
    near = difflib.get_close_matches(name.lower(), NAMED_SETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(
        f"unknown data set {name!r}: {hint}known names are {', '.join(NAMED_SETS)}; "
        "NAME=FILE reads a local file in the format of that set, and a path reads a JSON Lines file"
    )


def _row_error(source: str, line: int, reason: str) -> UserError:
    return UserError(f"{source}, line {line}: {reason}")


def _load_file(path: Path, name: str, known: NamedSet, skip_bad_rows: bool) -> RowSet:
    shipped = path.parent == _SHIPPED
    source = f"bridge/data/{path.name}" if shipped else str(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"data file {source} does not exist; give the path of a JSON Lines file") from None
    except OSError as error:
        raise UserError(f"data file {source} cannot be read: {error.strerror}") from None
    records = _json_lines(content, source)
    return _row_set(name, source, records, known, hashlib.sha256(content).hexdigest(), skip_bad_rows)


Parsed = tuple[int, Mapping[str, Any] | ValueError]


def _json_lines(content: bytes, source: str) -> Iterator[Parsed]:
    """Line number and object (or what is wrong with it) of every line that is not blank."""
    # Lines end at \n only: str.splitlines would also cut at U+2028 and others, which JSON strings may hold.
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if raw.strip():
            yield number, _record(raw)


def _record(raw: bytes) -> Mapping[str, Any] | ValueError:
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        return ValueError(f"is not UTF-8 text (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return ValueError(f"is not valid JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return ValueError(f"is not readable JSON: {error}")
    if not isinstance(value, dict):
        return ValueError(f"expected one JSON object a line, got {type(value).__name__}")
    return value


def _row_set(
    name: str, source: str, records: Iterator[Parsed], known: NamedSet, sha256: str, skip_bad_rows: bool
) -> RowSet:
    rows: list[Row] = []
    skipped: list[str] = []
    for line, record in records:
        try:
            if isinstance(record, ValueError):
                raise record
            rows.append(Row(tuple(known.to_messages(record)), source, line))
        except ValueError as error:
            problem = _row_error(source, line, str(error))
            if not skip_bad_rows:
                raise problem from None
            skipped.append(str(problem))
    if not rows:
        why = f"all {len(skipped)} rows are bad; the first: {skipped[0]}" if skipped else "it is empty"
        raise UserError(f"data file {source} has no usable row: {why}")
    return RowSet(name, tuple(rows), sha256, tuple(skipped))


def _load_hub(name: str, known: NamedSet, skip_bad_rows: bool) -> RowSet:
    records = _hub_records(name, known)
    lines = [json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    source = f"{known.hub_id} ({known.hub_config}, {known.hub_split})"
    return _row_set(name, source, iter(enumerate(records, start=1)), known, digest, skip_bad_rows)


def _hub_records(name: str, known: NamedSet) -> list[Mapping[str, Any]]:
    """All records of a set of the hub, asked once first because `datasets` retries for half a minute."""
    local = f"give a local copy as {name}=FILE (JSON Lines with {' and '.join(known.fields)})"
    try:
        import datasets
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
    except ImportError as error:
        raise UserError(
            f"reading {name} from the hub needs the package {error.name!r}: install it, or {local}"
        ) from None
    failure = _hub_failure(known.hub_id)
    # In offline mode, which the user has asked for, `datasets` looks in its cache only.
    if failure is not None and not isinstance(failure, OfflineModeIsEnabled):
        raise UserError(
            f"cannot reach {known.hub_id} on the Hugging Face hub ({first_line(failure)}): {local}, "
            "or set HF_HUB_OFFLINE=1 if datasets has it in its cache"
        )
    try:
        data = datasets.load_dataset(known.hub_id, known.hub_config, split=known.hub_split)
    except (HTTPError, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot load {known.hub_id} ({first_line(error)}): {local}") from None
    return [dict(record) for record in data]


def _hub_failure(hub_id: str) -> Exception | None:
    """Why the hub does not show the set, or None if it does; answers in seconds whatever the network does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    from bridge.hub import HUB_PATIENCE

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().dataset_info(hub_id, timeout=HUB_PATIENCE)
        except (HTTPError, OSError, ValueError) as error:
            outcome.append(error)
        else:
            outcome.append(None)

    # In a thread of its own because the time-out does not bound the look-up of the host's name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_PATIENCE)
    return outcome[0] if outcome else TimeoutError(f"no answer in {HUB_PATIENCE:g} s")
