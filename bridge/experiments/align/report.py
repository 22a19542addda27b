"""What people see of a run of `bridge.align`: the closing table, its outcome, trajectory.png and report.html."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bridge.experiments.align.counts import BENIGN, Count, rate_record
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import render_page
from commands.store import write_atomically

_SHOWN = 12  # answers of each kind in the report


def share(rate: Mapping[str, Any]) -> str:
    """A refusal rate as people read it: "54 of 60 (90 %)"."""
    return f"{rate['refused']} of {rate['total']} ({100 * rate['rate']:.0f} %)"


def interval(rate: Mapping[str, Any]) -> str:
    """Its 95 % interval: "80–95 %"."""
    return f"{100 * rate['low']:.0f}–{100 * rate['high']:.0f} %"


def describe(count: Count) -> str:
    """Both rates of a count in half a line."""
    unsafe, benign = rate_record(count.unsafe), rate_record(count.benign)
    return f"refuses {share(unsafe)} held-out unsafe prompts, {share(benign)} benign ones"


def print_table(found: Mapping[str, Any]) -> None:
    """Print the trajectory to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=escape(title(found)), title_justify="left", show_edge=False)
    for name in ("step", "mean loss since", "unsafe refused", "95 % interval", "benign refused", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(found):
        table.add_row(*row)
    console.print(table)


def title(found: Mapping[str, Any]) -> str:
    """What was done."""
    method = "LoRA" if found["method"] == "lora" else "full fine-tuning"
    return f"{found['model']} aligned to refuse, by {method} on {' + '.join(part['name'] for part in found['parts'])}"


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The trajectory as text: step, loss, and both rates with their intervals."""
    return [
        (
            str(entry["step"]),
            "–" if entry["mean_loss"] is None else number(entry["mean_loss"]),
            share(entry["refusals"]),
            interval(entry["refusals"]),
            share(entry["benign"]),
            interval(entry["benign"]),
        )
        for entry in found["trajectory"]
    ]


def headline(found: Mapping[str, Any]) -> str:
    """The verdict, with numbers."""
    verdict, (wanted, allowed) = found["verdict"], _wanted(found)
    unsafe, benign = verdict["refusals"], verdict["benign"]
    numbers = (
        f"{share(unsafe)} held-out unsafe prompts and {share(benign)} harmless ones are refused "
        f"(95 % intervals {interval(unsafe)} and {interval(benign)})"
    )
    goal = f"wanted were at least {wanted} of {unsafe['total']} and at most {allowed} of {benign['total']}"
    if verdict["reached"]:
        return f"Reached after {verdict['step']} steps: {numbers}; {goal}."
    passes = "one pass" if found["epochs"] == 1 else f"{number(found['epochs'])} passes"
    return f"Not reached in {verdict['step']} steps, {passes} over the rows: {numbers}; {goal}."


def _wanted(found: Mapping[str, Any]) -> tuple[int, int]:
    """The least number of unsafe and the largest of harmless prompts to be refused."""
    goal, verdict = found["goal"], found["verdict"]
    least = math.ceil(goal["target_refusals"] * verdict["refusals"]["total"] - 1e-9)
    return least, math.floor(goal["limit_benign"] * verdict["benign"]["total"] + 1e-9)


def advice(found: Mapping[str, Any]) -> str:
    """What may help when the goal was not reached."""
    verdict, (wanted, allowed) = found["verdict"], _wanted(found)
    too_few, too_many = verdict["refusals"]["refused"] < wanted, verdict[BENIGN]["refused"] > allowed
    if too_few and too_many:
        return "try more --epochs, or rows of more kinds on both sides"
    if too_few:
        return "try more --epochs, a higher --learning-rate, or a lower --benign-share"
    return "try a higher --benign-share with a larger and more varied --benign set, or a smaller --eval-every"


def print_outcome(found: Mapping[str, Any], folder: Path, name: str) -> None:
    """Print the verdict, where the results are, and what to do next."""
    print(f"\n{headline(found)}")
    if not found["verdict"]["reached"]:
        print(f"warning: the goal was not reached: {advice(found)}, and --replace")
    print(f"installed as {name}: every command takes --model {name}")
    print(f"{folder / 'model'}\n{folder / 'report.html'}")
    print(f"next: python -m bridge.finetune --model {shlex.quote(name)} --data arithmetic")


def write(found: Mapping[str, Any], settings: Mapping[str, Any], counts: Sequence[Count], folder: Path) -> None:
    """Write trajectory.png and report.html."""
    picture = trajectory_picture(found)
    write_atomically(folder / "trajectory.png", picture)
    last = counts[-1].answers
    page = render_page(
        "experiments/align/report.html",
        {"trajectory": picture},
        title=title(found),
        headline=headline(found),
        advice=None if found["verdict"]["reached"] else advice(found),
        rows=rows(found),
        parts=found["parts"],
        heldout=found["heldout"],
        wrong=[a for a in last if a["refused"] == (a["set"] == BENIGN)],
        right=[[a for a in last if a["set"] == name and a["refused"] == (name != BENIGN)][:_SHOWN]
               for name in found["heldout"]],
        update=found["update"]["norm"],
        settings={name: value for name, value in settings.items() if name != "plan"} | dict(settings["plan"]),
        n=number,
    )  # fmt: skip
    write_atomically(folder / "report.html", page)


def trajectory_picture(found: Mapping[str, Any]) -> bytes:
    """trajectory.png: both refusal rates with their intervals over the steps, and the loss."""
    entries = found["trajectory"]
    steps = np.array([entry["step"] for entry in entries])
    figure, (upper, lower) = new_figure(2, 1, (8.0, 6.5))
    looks = (("refusals", DARK, "o-", "unsafe prompts refused"), ("benign", MID, "s--", "harmless prompts refused"))
    for key, color, style, label in looks:
        rate, low, high = (100 * np.array([entry[key][part] for entry in entries]) for part in ("rate", "low", "high"))
        upper.plot(steps, rate, style, color=color, ms=4, label=label)
        upper.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
    upper.axhline(100 * found["goal"]["target_refusals"], color=DARK, lw=1, ls=":", label="wanted: at least")
    upper.axhline(100 * found["goal"]["limit_benign"], color=MID, lw=1, ls=":", label="wanted: at most")
    upper.set(ylabel="% of held-out prompts", ylim=(-3, 103))
    upper.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    losses = np.array(found["losses"])
    lower.plot(np.arange(1, len(losses) + 1), losses, color=LIGHT, lw=1, label="loss of the step's batch")
    middles = [((a["step"] + 1 + b["step"]) / 2, b["mean_loss"]) for a, b in pairwise(entries)]
    lower.plot(*zip(*middles, strict=True), "o-", color=DARK, ms=4, label="mean between two counts")
    lower.set(xlabel="step", ylabel="nats per response token", ylim=(0, None))
    lower.legend(frameon=False, fontsize=8)
    for axis in (upper, lower):
        axis.set_xlim(-0.5, len(losses) + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return png_of(figure)
