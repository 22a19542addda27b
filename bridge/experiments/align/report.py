"""What people see of a run of `bridge.align`: the closing table, its outcome, trajectory.png and report.html."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from bridge.experiments.align.counts import Answer, Count
from bridge.experiments.align.result import AlignResult, Rate
from bridge.experiments.align.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table
from commands.store import Folder

_SHOWN = 12  # answers of each kind in the report
_HEADINGS = ("step", "mean loss since", "unsafe refused", "95 % interval", "harmless refused", "95 % interval")


def share(rate: Rate) -> str:
    """A refusal rate as people read it: "54 of 60 (90 %)"."""
    return f"{rate.refused} of {rate.total} ({100 * rate.rate:.0f} %)"


def interval(rate: Rate) -> str:
    """Its 95 % interval: "80–95 %"."""
    return f"{100 * rate.low:.0f}–{100 * rate.high:.0f} %"


def describe(count: Count) -> str:
    """Both rates of a count in half a line."""
    unsafe, benign = Rate.of(count.unsafe), Rate.of(count.benign)
    return f"refuses {share(unsafe)} held-out unsafe prompts, {share(benign)} benign ones"


def title(result: AlignResult) -> str:
    """What was done."""
    method = "LoRA" if result.method == "lora" else "full fine-tuning"
    return f"{result.model} aligned to refuse, by {method} on {' + '.join(part.name for part in result.parts)}"


@tables_of.register
def tables(result: AlignResult) -> list[Table]:
    """The trajectory: step, loss, and both rates with their intervals."""
    rows = [
        (
            str(entry.step),
            "–" if entry.mean_loss is None else number(entry.mean_loss),
            share(entry.refusals),
            interval(entry.refusals),
            share(entry.benign),
            interval(entry.benign),
        )
        for entry in result.trajectory
    ]
    return [Table(title(result), _HEADINGS, rows, words=0)]


def headline(result: AlignResult) -> str:
    """The verdict, with numbers."""
    verdict, (wanted, allowed) = result.verdict, _wanted(result)
    unsafe, benign = verdict.refusals, verdict.benign
    numbers = (
        f"{share(unsafe)} held-out unsafe prompts and {share(benign)} harmless ones are refused "
        f"(95 % intervals {interval(unsafe)} and {interval(benign)})"
    )
    goal = f"wanted were at least {wanted} of {unsafe.total} and at most {allowed} of {benign.total}"
    if verdict.reached:
        return f"Reached after {verdict.step} steps: {numbers}; {goal}."
    passes = "one pass" if result.epochs == 1 else f"{number(result.epochs)} passes"
    return f"Not reached in {verdict.step} steps, {passes} over the rows: {numbers}; {goal}."


def _wanted(result: AlignResult) -> tuple[int, int]:
    """The least number of unsafe and the largest of harmless prompts to be refused."""
    goal, verdict = result.goal, result.verdict
    least = math.ceil(goal.target_refusals * verdict.refusals.total - 1e-9)
    return least, math.floor(goal.limit_benign * verdict.benign.total + 1e-9)


def advice(result: AlignResult) -> str:
    """What may help when the goal was not reached."""
    verdict, (wanted, allowed) = result.verdict, _wanted(result)
    too_few, too_many = verdict.refusals.refused < wanted, verdict.benign.refused > allowed
    if too_few and too_many:
        return "try more --epochs, or rows of more kinds on both sides"
    if too_few:
        return "try more --epochs, a higher --learning-rate, or a lower --benign-share"
    return "try a higher --benign-share with a larger and more varied --benign set, or a smaller --eval-every"


def print_result(result: AlignResult, folder: Folder, name: str | None) -> None:
    """Print the trajectory and the verdict; if the model was installed under a name, what to do with it."""
    print_tables(tables(result), width=140)
    print(f"\n{headline(result)}")
    if not result.verdict.reached:
        print(f"warning: the goal was not reached: {advice(result)}, and --replace")
    if name is not None:
        print(f"installed as {name}: every command takes --model {name}")
        print(f"{folder.path / 'model'}\n{folder.path / 'report.html'}")
        print(f"next: python -m bridge.finetune --model {shlex.quote(name)} --data arithmetic")


@pictures_of.register
def pictures(result: AlignResult) -> dict[str, bytes]:
    """The run's picture by its name."""
    return {"trajectory": trajectory_picture(result)}


def write(result: AlignResult, settings: Settings, last: Sequence[Answer], folder: Path) -> None:
    """Write trajectory.png and report.html, which shows some of the last answers."""
    options = {name: value for name, value in settings.identity().items() if name != "plan"}
    write_page(
        folder,
        "experiments/align/report.html",
        pictures(result),
        result=result,
        title=title(result),
        headline=headline(result),
        advice=None if result.verdict.reached else advice(result),
        table=tables(result)[0],
        wrong=[answer for answer in last if not answer.as_wanted],
        right=[
            [answer for answer in last if answer.set == kind and answer.as_wanted][:_SHOWN] for kind in result.heldout
        ],
        settings=options | result.plan.identity(),
        n=number,
    )


def trajectory_picture(result: AlignResult) -> bytes:
    """trajectory.png: both refusal rates with their intervals over the steps, and the loss."""
    entries = result.trajectory
    steps = np.array([entry.step for entry in entries])
    figure, (upper, lower) = new_figure(2, 1, (8.0, 6.5))
    looks = (
        ([entry.refusals for entry in entries], DARK, "o-", "unsafe prompts refused"),
        ([entry.benign for entry in entries], MID, "s--", "harmless prompts refused"),
    )
    for rates, color, style, label in looks:
        rate, low, high = 100 * np.array([(rate.rate, rate.low, rate.high) for rate in rates]).T
        upper.plot(steps, rate, style, color=color, ms=4, label=label)
        upper.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
    upper.axhline(100 * result.goal.target_refusals, color=DARK, lw=1, ls=":", label="wanted: at least")
    upper.axhline(100 * result.goal.limit_benign, color=MID, lw=1, ls=":", label="wanted: at most")
    upper.set(ylabel="% of held-out prompts", ylim=(-3, 103))
    upper.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    losses = np.array(result.losses)
    lower.plot(np.arange(1, len(losses) + 1), losses, color=LIGHT, lw=1, label="loss of the step's batch")
    middles = [((a.step + 1 + b.step) / 2, b.mean_loss) for a, b in pairwise(entries)]
    lower.plot(*zip(*middles, strict=True), "o-", color=DARK, ms=4, label="mean between two counts")
    lower.set(xlabel="step", ylabel="nats per response token", ylim=(0, None))
    lower.legend(frameon=False, fontsize=8)
    for axis in (upper, lower):
        axis.set_xlim(-0.5, len(losses) + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return png_of(figure)
