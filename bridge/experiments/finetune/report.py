"""What people see of a run of `bridge.finetune`: the closing table, loss.png and report.html."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bridge.experiments.finetune.defence_report import defence_lines, defence_picture
from bridge.experiments.finetune.result import FinetuneResult
from bridge.experiments.finetune.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table
from bridge.training.plan import is_likelihood
from bridge.training.presets import sources
from commands.store import Folder


def print_result(result: FinetuneResult, folder: Folder) -> None:
    """Print the closing table to standard output, where the results are, and the command that measures them."""
    print_tables(tables(result), width=140)
    print(f"\n{folder.path / ('adapter' if result.method == 'lora' else 'model')}\n{folder.path / 'report.html'}")
    print(f"next: {next_command(result, str(folder.path))}")


def next_command(result: FinetuneResult, folder: str) -> str:
    """The command that scores the change against the skill."""
    return f"python -m bridge.overlap --model {shlex.quote(result.model)} --delta {shlex.quote(folder)}"


@tables_of.register
def tables(result: FinetuneResult) -> list[Table]:
    """The closing table, a row a quantity."""
    return [Table(title(result), ("quantity", "value", "what it is"), lines(result), sentences=True)]


def title(result: FinetuneResult) -> str:
    """What was done."""
    method = "LoRA" if result.method == "lora" else "full fine-tuning"
    return f"{result.model} after {method} on {' + '.join(part.name for part in result.parts)}"


def lines(result: FinetuneResult) -> list[tuple[str, str, str]]:
    """Name, value and meaning of the numbers that a person wants first."""
    sets = ", ".join(f"{len(part.rows)} of {part.name}" for part in result.parts)
    rows = [
        ("rows", str(result.rows), sets),
        ("steps", str(result.steps), f"{number(result.epochs)} passes over the rows"),
        ("response tokens", f"{result.response_tokens:,}", f"trained on, of {result.tokens:,} tokens read"),
        ("first loss", number(result.first_loss), f"{_loss_unit(result)} of the first batch, before any step"),
        ("last loss", number(result.last_loss), "of the last batch, before its step"),
        ("update norm", number(result.update.norm), "Euclidean norm of the change of all weights"),
    ]
    rows += [
        (f"  in {kind}", f"{100 * share:.1f} %", "of the squared norm")
        for kind, share in result.update.shares.items()
        if share or kind == "block linear modules"
    ]
    return rows + defence_lines(result.defence)


def _loss_unit(result: FinetuneResult) -> str:
    return "nats per response token" if is_likelihood(result.plan.overrides) else "objective that --set chose"


@pictures_of.register
def pictures(result: FinetuneResult) -> dict[str, bytes]:
    """The run's pictures by name: the loss, and the defence where there is one."""
    defence = {} if result.defence is None else {"defence": defence_picture(result.defence)}
    return {"loss": loss_picture(result), **defence}


def write(result: FinetuneResult, settings: Settings, texts: Sequence[str], folder: Path) -> None:
    """Write the pictures and report.html, which shows some rows as the model reads them."""
    where_from = sources(settings.preset, result.plan)
    plan = {name: value for name, value in result.plan.identity().items() if name in where_from}
    plan |= {f"set {name}": value for name, value in result.plan.overrides.items()}
    options, plans = settings.identity(), ("plan", "defence")
    shown = {name: value for name, value in options.items() if name not in plans}
    if settings.defence is not None:
        shown |= {f"defence {name}": value for name, value in vars(settings.defence).items()}
    write_page(
        folder,
        "experiments/finetune/report.html",
        pictures(result),
        result=result,
        title=title(result),
        table=tables(result)[0],
        plan=[(name, value, where_from[name]) for name, value in plan.items()],
        settings=shown,
        likelihood=is_likelihood(result.plan.overrides),
        texts=texts,
        next_command=next_command(result, "DIR"),
    )


def loss_picture(result: FinetuneResult) -> bytes:
    """loss.png: the loss of every step, its mean over each pass of the rows, and the learning rate."""
    losses, rates = np.array(result.losses), np.array(result.learning_rates)
    steps = np.arange(1, len(losses) + 1)
    figure, axis = new_figure(1, 1, (8.0, 4.5))
    axis.plot(steps, losses, "o-", color=DARK, ms=3, lw=1.2, label="loss of the step's batch")
    length = max(1, round(len(losses) / max(result.epochs, 1.0)))
    for first in range(0, len(losses), length):
        part = slice(first, first + length)
        label = "mean of one pass" if first == 0 else None
        axis.plot(steps[part][[0, -1]], [losses[part].mean()] * 2, color=MID, lw=2.5, label=label)
    axis.set(xlabel="step", ylabel=_loss_unit(result), ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    other = axis.twinx()
    other.plot(steps, rates, ":", color=LIGHT, lw=1.5, label="learning rate (right)")
    other.set(ylabel="learning rate", ylim=(0, None))
    handles = [*axis.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axis.legend(handles=handles, frameon=False, fontsize=8, loc="upper right")
    return png_of(figure)
