"""Sets and weight changes by label: [LABEL=]SPEC as a command line gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bridge.data.sets import NAMED_SETS
from commands.errors import UserError
from commands.options import require
from commands.paths import expanded


def labelled_sets(specs: str | Sequence[str]) -> dict[str, str]:
    """Sets of prompts by label: LABEL=SET, or SET under its own name; NAME=FILE reads a file in the format of NAME.

    Raises:
        UserError: two sets of one label, or a label that cannot be used.

    """
    found: dict[str, str] = {}
    for given in [specs] if isinstance(specs, str) else specs:
        label, equals, spec = given.partition("=")
        own_format = label in NAMED_SETS and spec not in NAMED_SETS  # gsm8k=FILE
        if not equals or own_format or "/" in label or Path(given).exists():
            label, spec = label if own_format else Path(given).stem, given
        usable = re.fullmatch(r"[\w.+ -]+", label) is not None
        require(usable, "set", "a label of letters, digits and . + - _ (LABEL=SET)", repr(label))
        require(label not in found, "set", "different labels (LABEL=SET)", f"{label} twice")
        require(bool(spec), "set", "a set behind the label (LABEL=SET)", given)
        found[label] = spec
    return found


_TAKEN = ("gram", "base")  # in statistics.npz, and in refusals.jsonl for the model before any change


def labelled_deltas(specs: str | Sequence[str], option: str = "delta") -> dict[str, str]:
    """Changes by label: LABEL=PATH, or PATH under the last part of its own name; `option` is named in errors.

    Raises:
        UserError: two changes of one label, a label that cannot be used, or a path that does not exist.

    """
    deltas: dict[str, str] = {}
    for spec in [specs] if isinstance(specs, str) else specs:
        label, equals, path = spec.partition("=")
        if not equals or "/" in label or Path(spec).exists():
            label, path = Path(spec).name or spec, spec
        require(label not in deltas, option, "different labels (LABEL=PATH)", f"{label} twice")
        check_deltas({label: path}, option)
        deltas[label] = path
    return deltas


def check_deltas(deltas: Mapping[str, str], option: str = "delta") -> None:
    """Raise UserError for a label that cannot be used, or a path that does not exist."""
    for label, path in deltas.items():
        usable = re.fullmatch(r"[\w.+ -]+", label) is not None and label not in _TAKEN
        wanted = f"a label of letters, digits and . + - _, other than {' and '.join(_TAKEN)} (LABEL=PATH)"
        require(usable, option, wanted, repr(label))
        if not expanded(path).exists():
            raise UserError(
                f"--{option}: no such change of weights: {path}; expected a run folder of bridge.finetune, an "
                f"adapter's folder, a delta.safetensors, or a moved model's folder"
            )


def labelled_candidates(specs: str | Sequence[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Candidate sets by label: [LABEL=]SPEC, where SPEC is a NAME, NAME=FILE or FILE; files go by their stem.

    Args:
        specs: one of them, or several.
        known: those that have their labels already, which come first.

    Raises:
        UserError: two sets of one label, or a label that is none.

    """
    sets = dict(known or {})
    for text in [specs] if isinstance(specs, str) else specs:
        label, spec = _label_and_spec(text)
        usable = re.fullmatch(r"[\w.+ -]{1,60}", label) is not None
        require(usable, "candidates", "a label of letters, digits and . + - _ (LABEL=SET)", repr(label))
        require(label not in sets, "candidates", "different labels (LABEL=SET)", f"{label} twice")
        sets[label] = spec
    return sets


def _label_and_spec(text: str) -> tuple[str, str]:
    head, equals, rest = text.partition("=")
    if text in NAMED_SETS or (equals and head in NAMED_SETS):
        return head, text
    if equals and "/" not in head and not expanded(text).exists():
        return head, rest
    return Path(text).stem, text
