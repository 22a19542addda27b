"""Keys out of texts: whatever a judge's server sends back, no key from the environment is written anywhere.

A text is compared as it reads after undoing how addresses, JSON and HTML write it (percent signs, backslashes,
entities, several times over) and without white space, so that a key is found however it was encoded or broken.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, parse_qsl, urlsplit

KEYS = {"openai": ("OPENAI_API_KEY",), "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY")}
"""The variables that hold a provider's key, the first of them that is set."""
ENDPOINTS = {"openai": "OPENAI_BASE_URL", "google": "GOOGLE_BASE_URL"}
"""The variables that send a provider's requests elsewhere."""

_SHORTEST = 8  # what is shorter ("EMPTY", "none") would strike out ordinary text
_RUN = 12  # so many characters of a key in a row are struck out, wherever they stand
_DEEPEST = 5  # encodings of encodings
# Keys that are not ours, where something that looks like a token stands in an address or a header.
_OTHER_KEYS = re.compile(
    r"(?i)(\bbearer\s+|\bx-goog-api-key\W{1,4}|[?&]key=)(?=[\w.+/=~-]*\d)[\w.+/=~-]{12,}|(//)[^/\s@]+:[^/\s@]+(?=@)"
)
_ESCAPE = re.compile(
    r"%[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\[^ux]|&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,8});"
)
_ESCAPED_SPACE = {"\\n", "\\r", "\\t"}

_Places = list[tuple[int, int]]


def secrets() -> list[str]:
    """Everything in the environment that must not be written anywhere: keys, and what addresses hold of them."""
    found = {os.environ.get(name, "").strip() for names in KEYS.values() for name in names}
    for name in ENDPOINTS.values():
        url = os.environ.get(name, "").strip()
        parts = split_address(url)
        if parts is None:
            found.add(url)
            continue
        found |= {parts.username or "", parts.password or "", parts.query, *dict(parse_qsl(parts.query)).values()}
        found |= {name for name in parts.path.split("/") if len(name) >= _RUN and re.search("[0-9]", name)}
    return sorted((s for s in found if len(s) >= _SHORTEST), key=len, reverse=True)


def split_address(url: str) -> SplitResult | None:
    """The parts of an address, or None if it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def without_secrets(text: str) -> str:
    """The text with every key struck out, however it is written, whole or in runs of 12 characters."""
    found = secrets()
    if found:
        read, places = _read(text)
        struck: _Places = []
        for secret in found:
            struck += _whole(text, secret) if len(secret) < _RUN else _runs(read, places, secret)
        for start, end in reversed(_joined(struck)):
            text = f"{text[:start]}[key]{text[end:]}"
    return _OTHER_KEYS.sub(r"\1\2[key]", text)


def _whole(text: str, secret: str) -> Iterable[tuple[int, int]]:
    """Where a short secret stands as a word of its own."""
    return (found.span() for found in re.finditer(rf"(?i)(?<!\w){re.escape(secret)}(?!\w)", text))


def _runs(read: str, places: _Places, secret: str) -> Iterable[tuple[int, int]]:
    """Where a text, which reads like this, holds a part of the secret or of its base64."""
    parts: set[str] = set()
    for form in (secret, *_base64(secret)):
        plain = _read(form)[0]
        size = min(_RUN, len(plain))
        parts |= {plain[k : k + size] for k in range(len(plain) - size + 1)}
    for size in {len(part) for part in parts}:
        for k in range(len(read) - size + 1):
            if read[k : k + size] in parts:
                yield places[k][0], places[k + size - 1][1]


def _base64(secret: str) -> list[str]:
    """The characters of base64 that the secret alone decides, for the three places where it may begin."""
    found = []
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret.encode()).decode()
        inside = encoded[-(-before * 8 // 6) : (before + len(secret.encode())) * 8 // 6]
        found += [inside, inside.replace("/", "_").replace("+", "-")]
    return found


def _read(text: str) -> tuple[str, _Places]:
    """What a text reads in lower case, and the place of each character; spaces, and "+" for one, are left out."""
    places: _Places = [(k, k + 1) for k in range(len(text))]
    for _ in range(_DEEPEST):
        text, places, again = _once(text, places)
        if not again:
            break
    kept = [k for k, character in enumerate(text) if not (character.isspace() or character in "+\u200b\ufeff")]
    lower = "".join(text[k].lower() if len(text[k].lower()) == 1 else text[k] for k in kept)
    return lower, [places[k] for k in kept]


def _once(text: str, places: _Places) -> tuple[str, _Places, bool]:
    """The text with its escapes undone once, and whether there were any."""
    out: list[str] = []
    where: _Places = []
    at, any_found = 0, False
    for found in _ESCAPE.finditer(text):
        character = _character(found[0])
        if character is None:
            continue
        any_found = True
        out += text[at : found.start()]
        where += places[at : found.start()]
        out.append(character)
        where.append((places[found.start()][0], places[found.end() - 1][1]))
        at = found.end()
    return "".join([*out, text[at:]]), where + places[at:], any_found


def _character(escape: str) -> str | None:
    """The character that an escape stands for, or None."""
    if escape[0] == "%":
        return chr(int(escape[1:], 16))
    if escape[0] == "&":
        meant = html.unescape(escape)
        return meant if len(meant) == 1 else None
    if escape in _ESCAPED_SPACE:
        return " "
    return chr(int(escape[2:], 16)) if len(escape) > 2 else escape[1]


def _joined(places: Iterable[tuple[int, int]]) -> _Places:
    """The same places, in order, those that touch as one."""
    out: _Places = []
    for start, end in sorted(places):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out
