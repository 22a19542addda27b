"""The closing table on the terminal, the pictures, and report.html, a self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge.experiments.estimate_aic.pictures import coupling, prediction, spectrum
from bridge.experiments.estimate_aic.readings import BIASED, lines
from bridge.experiments.estimate_aic.result import AicResult
from bridge.experiments.estimate_aic.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.numbers import number, set_name, step
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table
from commands.store import Folder

_LEADERS = 15
_HEADINGS = ("quantity", "value", "95 % interval", "what it means here")


def headline(result: AicResult) -> str:
    """One or two sentences that an engineer about to fine-tune wants first."""
    whole, plan = result.whole_model, result.plan
    window = whole.window
    if whole.crossover is None:
        return "The update neither moves the skill's policy nor accelerates it."

    def in_steps(t: float) -> str:
        return "" if plan is None else f"step {step(t, plan.learning_rate)}"

    if whole.leak == 0:
        start = "The update does not move the skill at first order: damage starts as t⁴."
    else:
        start = f"The skill starts to move with the first step, damage growing as t² (leak {number(whole.leak)})."
        turn = whole.crossover_exact or whole.crossover
        if window is not None and turn > window:
            start += " Acceleration does not take over while the expansion holds."
        else:
            start += f" Acceleration takes over at t = {number(turn)}{in_steps(turn) and ', ' + in_steps(turn)}."
    planned = "The planned steps" if plan is None else f"The planned {plan.steps} steps"
    if whole.regime == "outside" and window is not None:
        return (
            f"{start} {planned} reach t = {number(whole.horizon)}; an expansion at the start can "
            f"be trusted up to {number(window)}{in_steps(window) and f' ({in_steps(window)})'}. What happens after "
            f"that has to be measured along the run."
        )
    return (
        f"{start} After {planned[0].lower()}{planned[1:]} the predicted utility loss is "
        f"{number(whole.utility_loss_at_horizon)} nats of KL per response."
    )


@tables_of.register
def tables(result: AicResult) -> list[Table]:
    """The closing table, a row a quantity."""
    sets = "" if result.plan is None else f"{set_name(result.plan.finetune)} against {set_name(result.plan.skill)} "
    rows = [(line.name, line.value, line.interval, line.meaning) for line in lines(result)]
    return [Table(f"{result.model}: {sets}({result.fisher} Fisher)", _HEADINGS, rows, sentences=True)]


def readings(result: AicResult) -> list[str]:
    """What stands below the table."""
    mark = f"{BIASED.strip()} resampling few samples shifts this quantity: read the width, not the place"
    return [*([mark] if result.whole_model.biased else []), headline(result)]


def print_result(result: AicResult, folder: Folder) -> None:
    """Print the closing table to standard output, and where the report is."""
    print_tables(tables(result), readings(result))
    print(f"\n{folder.path / 'report.html'}")


@pictures_of.register
def pictures(result: AicResult) -> dict[str, bytes]:
    """The run's pictures by name, the prediction first."""
    return {"prediction": prediction(result), "spectrum": spectrum(result), "coupling": coupling(result)}


def write(result: AicResult, settings: Settings, responses: Sequence[str], folder: Path) -> None:
    """Write the pictures and report.html: everything in one file, model output escaped."""
    write_page(
        folder,
        "experiments/estimate_aic/report.html",
        pictures(result),
        model=result.model,
        settings=settings.identity(),
        result=result,
        headline=headline(result),
        table=tables(result)[0],
        biased=[name.replace("_", " ") for name in result.whole_model.biased],
        leaders=sorted(result.blocks.items(), key=lambda item: -item[1].leak)[:_LEADERS],
        responses=responses,
        n=number,
        set_name=set_name,
    )
