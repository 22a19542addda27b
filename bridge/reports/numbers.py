"""Numbers and names as people read them."""

from __future__ import annotations

from pathlib import Path


def set_name(spec: str) -> str:
    """A set as a person calls it: the name of NAME or NAME=FILE, or the file's own name."""
    name, given, _ = spec.partition("=")
    return name if given else Path(spec).name


def number(value: float | None, digits: int = 3) -> str:
    """A number as a person reads it; a dash where there is none."""
    if value is None:
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def step(t: float, rate: float) -> str:
    """The step at which a fine-tune reaches time t: a whole number from the first step on."""
    return number(float(round(t / rate)) if t >= rate else t / rate)


def against_chance(value: float, chance: float | None) -> str:
    """Say how many times a random direction's value a value is."""
    return f"{number(value / chance)} times a random direction's" if chance else "a random direction's is 0"
