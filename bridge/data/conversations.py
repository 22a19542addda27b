"""Conversations: the turns of a record in the `messages` or the `prompt`/`completion` convention, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation; role is "system", "user" or "assistant"."""

    role: str
    content: str


def transcript(messages: Sequence[Message]) -> str:
    """What is asked in turns that end in the user's: the text of a single turn, else every turn under its speaker."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def text_field(record: Mapping[str, object], field: str, may_be_empty: bool = False) -> str:
    """The text of a field; raises ValueError with the reason when it is missing, no valid text, or empty."""
    if field not in record:
        raise ValueError(f'field "{field}" is missing (the row has {field_names(record)})')
    return _checked(record[field], f'"{field}"', may_be_empty)


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


def field_names(record: Mapping[str, object]) -> str:
    """The fields of a record as a message shows them."""
    return ", ".join(f'"{name}"' for name in record) or "no fields"


def user(content: str) -> Message:
    """A user turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant turn."""
    return {"role": "assistant", "content": content}


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


def conversation(record: Mapping[str, object], answered: bool) -> list[Message]:
    """Messages of a record in the `messages` or the `prompt`/`completion` convention (strings or lists).

    With `answered` they end in the assistant's answer; without, in the user's turn: an answer in the last
    place is dropped and may be missing. Raises ValueError with the reason for anything else.
    """
    if "messages" in record:
        messages = _message_list(record["messages"], '"messages"')
        if not answered and messages[-1]["role"] == "assistant":
            messages.pop()
    elif "prompt" not in record and "completion" not in record:
        wanted = '"messages", or "prompt" and "completion"' if answered else '"messages" or "prompt"'
        raise ValueError(f"expected {wanted}; the row has {field_names(record)}")
    else:
        messages = _prompt(record, answered) + (_completion(record) if answered else [])
    _check_order(messages, "assistant" if answered else "user")
    return messages


def _prompt(record: Mapping[str, object], answered: bool) -> list[Message]:
    if isinstance(record.get("prompt"), list) or (answered and isinstance(record.get("completion"), list)):
        return _message_list(record.get("prompt"), '"prompt"')
    return [user(text_field(record, "prompt"))]


def _completion(record: Mapping[str, object]) -> list[Message]:
    if not (isinstance(record.get("prompt"), list) or isinstance(record.get("completion"), list)):
        return [assistant(text_field(record, "completion"))]
    answer = _message_list(record.get("completion"), '"completion"')
    if len(answer) != 1:
        raise ValueError(f'"completion" has {len(answer)} messages; one assistant message is expected')
    return answer


def _check_order(messages: list[Message], last: str) -> None:
    roles = [message["role"] for message in messages]
    if "user" not in roles and roles != ["system"]:
        raise ValueError("the conversation has no user turn")
    if roles[-1] != last:
        article = "an" if last == "assistant" else "a"
        raise ValueError(f"the conversation ends in a {roles[-1]} turn; it must end in {article} {last} turn")
    if "system" in roles[1:]:
        raise ValueError("a system turn is not the first turn")
    if roles[0] == "assistant" or roles[:2] == ["system", "assistant"]:
        raise ValueError("the conversation starts with an assistant turn")
