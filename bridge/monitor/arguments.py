"""What the arguments of a monitor can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path

from commands.errors import UserError


def check_arguments(given: Mapping[str, object]) -> None:
    """Raise UserError, naming the argument, for values that no monitor can have."""
    whole = {"num_probe": 1, "max_new_tokens": 1, "seed": 0}
    whole |= {
        name: low
        for name, low in {"every": 1, "subspaces_every": 0, "rank": 1, "batch_size": 1}.items()
        if given[name] is not None
    }
    budget, stops = given["max_utility_loss"], given["on_budget"] == "stop"
    wanted: list[tuple[bool, str, str]] = [
        (_is_whole(given[name], low), name, f"a whole number from {low}") for name, low in whole.items()
    ]
    wanted += [
        (given["responses"] in ("model", "rows"), "responses", "'model' or 'rows'"),
        (given["on_budget"] in ("warn", "stop"), "on_budget", "'warn' or 'stop'"),
        (given["logits_dtype"] in (None, "float32", "bfloat16"), "logits_dtype", "'float32' or 'bfloat16'"),
        (budget is None or _is_positive(budget), "max_utility_loss", "a positive number of nats"),
        (budget is not None or not stops, "max_utility_loss", "a budget with on_budget='stop'"),
        (_is_positive(given["max_overhead"]), "max_overhead", "a positive share"),
        (_names_a_folder(given["prefix"]), "prefix", "a name, such as 'alignment'"),
    ]
    for holds, name, expected in wanted:
        if not holds:
            raise UserError(f"AlignmentMonitor: {name}: expected {expected}, got {given[name]!r}")


def _is_whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_positive(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def _names_a_folder(prefix: object) -> bool:
    """Whether files of that name lie inside the folder that they are put into."""
    if not isinstance(prefix, str) or not prefix:
        return False
    return not Path(prefix).is_absolute() and ".." not in Path(prefix).parts
