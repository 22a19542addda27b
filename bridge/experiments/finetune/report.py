"""What people see of a run of `bridge.finetune`: the closing table, loss.png and report.html."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.experiments.finetune.defence_report import defence_lines, defence_picture
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import render_page
from bridge.training.plan import is_likelihood
from commands.store import write_atomically


def lines(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of the numbers that a person wants first."""
    update = found["update"]
    sets = ", ".join(f"{len(part['rows'])} of {part['name']}" for part in found["parts"])
    rows = [
        ("rows", str(found["rows"]), sets),
        ("steps", str(found["steps"]), f"{number(found['epochs'])} passes over the rows"),
        ("response tokens", f"{found['response_tokens']:,}", f"trained on, of {found['tokens']:,} tokens read"),
        ("first loss", number(found["first_loss"]), f"{_loss_unit(found)} of the first batch, before any step"),
        ("last loss", number(found["last_loss"]), "of the last batch, before its step"),
        ("update norm", number(update["norm"]), "Euclidean norm of the change of all weights"),
    ]
    rows += [
        (f"  in {kind}", f"{100 * share:.1f} %", "of the squared norm")
        for kind, share in update["shares"].items()
        if share or kind == "block linear modules"
    ]
    return rows + defence_lines(found.get("defence"))


def print_table(found: Mapping[str, Any]) -> None:
    """Print the closing table to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=escape(_title(found)), title_justify="left", show_edge=False)
    table.add_column("quantity", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it is")
    for name, value, meaning in lines(found):
        table.add_row(name, value, escape(meaning))
    console.print(table)


def print_paths(found: Mapping[str, Any], folder: Path) -> None:
    """Print where the results are, and the command that measures them."""
    print(f"\n{folder / ('adapter' if found['method'] == 'lora' else 'model')}\n{folder / 'report.html'}")
    print(f"next: {next_command(found, folder)}")


def next_command(found: Mapping[str, Any], folder: Path) -> str:
    """The command that scores the change against the skill."""
    return f"python -m bridge.overlap --model {shlex.quote(found['model'])} --delta {shlex.quote(str(folder))}"


def write(
    found: Mapping[str, Any],
    settings: Mapping[str, Any],
    sources: Mapping[str, str],
    texts: Sequence[str],
    folder: Path,
) -> None:
    """Write loss.png and report.html, and defence.png where there is a defence."""
    pictures = {"loss": loss_picture(found)}
    if found.get("defence"):
        pictures["defence"] = defence_picture(found["defence"])
    for name, picture in pictures.items():
        write_atomically(folder / f"{name}.png", picture)
    plan = {name: value for name, value in found["plan"].items() if name in sources} | {
        f"set {name}": value for name, value in found["plan"]["overrides"].items()
    }
    page = render_page(
        "experiments/finetune/report.html",
        pictures,
        title=_title(found),
        lines=lines(found),
        plan=[(name, value, sources[name]) for name, value in plan.items()],
        settings={name: value for name, value in settings.items() if name not in ("plan", "defence")}
        | {f"defence {name}": value for name, value in (settings.get("defence") or {}).items()},
        parts=found["parts"],
        likelihood=is_likelihood(found["plan"]["overrides"]),
        texts=texts,
        next_command=f"python -m bridge.overlap --model {shlex.quote(found['model'])} --delta DIR",
    )
    write_atomically(folder / "report.html", page)


def _title(found: Mapping[str, Any]) -> str:
    method = "LoRA" if found["method"] == "lora" else "full fine-tuning"
    return f"{found['model']} after {method} on {' + '.join(part['name'] for part in found['parts'])}"


def _loss_unit(found: Mapping[str, Any]) -> str:
    return "nats per response token" if is_likelihood(found["plan"]["overrides"]) else "objective that --set chose"


def loss_picture(found: Mapping[str, Any]) -> bytes:
    """loss.png: the loss of every step, its mean over each pass of the rows, and the learning rate."""
    losses, rates = np.array(found["losses"]), np.array(found["learning_rates"])
    steps = np.arange(1, len(losses) + 1)
    figure, axis = new_figure(1, 1, (8.0, 4.5))
    axis.plot(steps, losses, "o-", color=DARK, ms=3, lw=1.2, label="loss of the step's batch")
    length = max(1, round(len(losses) / max(found["epochs"], 1.0)))
    for first in range(0, len(losses), length):
        part = slice(first, first + length)
        label = "mean of one pass" if first == 0 else None
        axis.plot(steps[part][[0, -1]], [losses[part].mean()] * 2, color=MID, lw=2.5, label=label)
    axis.set(xlabel="step", ylabel=_loss_unit(found), ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    other = axis.twinx()
    other.plot(steps, rates, ":", color=LIGHT, lw=1.5, label="learning rate (right)")
    other.set(ylabel="learning rate", ylim=(0, None))
    handles = [*axis.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axis.legend(handles=handles, frameon=False, fontsize=8, loc="upper right")
    return png_of(figure)
