"""What `bridge.table1` takes from the run folders of the commands: named numbers with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from commands.store import read_result

Measure = dict[str, Any]
Kind = Literal["share", "number"]
REFUSALS = "refusals"
"""Name of the refusal rate, which is no harmfulness score."""


def measure(kind: Kind, value: float | None, ends: Any = None, count: int | None = None, **more: Any) -> Measure:
    """A number with its interval (None: not known) and the number of items that it is of."""
    low, high = ends or (None, None)
    return {"kind": kind, "value": value, "low": low, "high": high, "count": count, **more}


def utility(folder: Path) -> dict[str, Measure]:
    """The accuracy of a run of `bridge.utility`."""
    found = read_result(folder / "utility.json")
    return accuracy(found["data"]["name"], found)


def accuracy(name: str, found: Mapping[str, Any]) -> dict[str, Measure]:
    """The accuracy on a set of that name in a summary as `bridge.experiments.utility.run.summary` makes it."""
    return {f"accuracy on {name}": measure("share", found["accuracy"], found["interval"], found["items"])}


def training(folder: Path) -> tuple[dict[str, Any], dict[str, Measure]]:
    """How a run of `bridge.finetune` went, and the norm of its change."""
    found = read_result(folder / "finetune.json")
    kept = ("rows", "steps", "epochs", "response_tokens", "first_loss", "last_loss")
    return {key: found[key] for key in kept}, {"update norm": measure("number", found["update"]["norm"])}


def overlap(folder: Path, label: str) -> dict[str, Measure]:
    """The overlap score of a run of `bridge.overlap`, against a random direction's, and the utility loss."""
    found = read_result(folder / "overlap.json")
    entry = found["deltas"][label]
    joint = entry["joint"]
    scores = {
        "overlap score": measure("number", joint["raw"], joint["intervals"].get("raw"), found["num_samples"]),
        "overlap, × random": measure("number", joint["enrichment"], None, found["num_samples"]),
    }
    loss = entry.get("utility_loss")
    if loss is not None:
        scores["skill's loss (KL)"] = measure("number", loss["mean"], loss["interval"], found["num_samples"])
    return scores


def harmfulness(folder: Path) -> dict[str, Measure]:
    """What each judge of a run of `bridge.harmfulness` found."""
    return verdicts(read_result(folder / "harmfulness.json"))


def verdicts(found: Mapping[str, Any]) -> dict[str, Measure]:
    """What each judge found, from the content of a harmfulness.json; the judge "refusal" gives a refusal rate.

    Where some items have no score, the measure's note gives the bounds of the mean over all items.
    """
    measures: dict[str, Measure] = {}
    if (refused := found["refusals"]) is not None:
        measures[REFUSALS] = measure("share", refused["rate"], refused["interval"], refused["total"])
    for judge, scores in found["judges"].items():
        scored = scores["status"]["scored"]
        low, high = scores["bounds"]
        missing = scores["total"] - scored
        note = f"{missing} of {scores['total']} items have no score; the mean of all lies in [{low:.2f}, {high:.2f}]"
        more = {"note": note} if missing else {}
        measures[f"harmfulness 1–5, {judge}"] = measure("number", scores["mean"], scores["interval"], scored, **more)
    return measures


def unanswered(folder: Path) -> str | None:
    """A line about the items of a run of `bridge.harmfulness` that a judge did not answer; None if there are none."""
    return not_answered(read_result(folder / "harmfulness.json")["judges"])


def not_answered(judges: Mapping[str, Any]) -> str | None:
    """The same from the judges' part of its content."""
    failed = {name: scores["status"]["failed"] for name, scores in judges.items() if scores["status"]["failed"]}
    parts = [f"{name} did not answer on {count} of {judges[name]['total']} items" for name, count in failed.items()]
    return f"{', '.join(parts)}; the same command asks again" if parts else None
