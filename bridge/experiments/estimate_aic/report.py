"""The closing table on the terminal, and report.html, a self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.experiments.estimate_aic.readings import BIASED, Line, biased, lines
from bridge.reports.numbers import number, set_name, step
from bridge.reports.pages import render_page

_LEADERS = 15
_SHOWN_RESPONSES = 5


def headline(result: dict[str, Any], settings: dict[str, Any]) -> str:
    """One or two sentences that an engineer about to fine-tune wants first."""
    whole = result["whole_model"]
    rate, steps, window = settings["learning_rate"], settings["steps"], whole["window"]
    if whole["crossover"] is None:
        return "The update neither moves the skill's policy nor accelerates it."
    if whole["leak"] == 0:
        start = "The update does not move the skill at first order: damage starts as t⁴."
    else:
        start = f"The skill starts to move with the first step, damage growing as t² (leak {number(whole['leak'])})."
        turn = whole["crossover_exact"] or whole["crossover"]
        if window is not None and turn > window:
            start += " Acceleration does not take over while the expansion holds."
        else:
            start += f" Acceleration takes over at t = {number(turn)}, step {step(turn, rate)}."
    if whole["regime"] == "outside":
        return (
            f"{start} The planned {steps} steps reach t = {number(whole['horizon'])}; an expansion at the start can "
            f"be trusted up to {number(window)} (step {step(window, rate)}). What happens after that has to be "
            f"measured along the run."
        )
    return (
        f"{start} After the planned {steps} steps the predicted utility loss is "
        f"{number(whole['utility_loss_at_horizon'])} nats of KL per response."
    )


def print_table(result: dict[str, Any], settings: dict[str, Any]) -> None:
    """Print the closing table to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    sets = f"{set_name(settings['finetune'])} against {set_name(settings['skill'])}"
    title = f"{settings['model']}: {sets} ({result['fisher']} Fisher)"
    table = Table(title=escape(title), title_justify="left", show_edge=False)
    table.add_column("quantity", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("what it means here")
    for line in lines(result, settings):
        table.add_row(line.name, line.value, line.interval, escape(line.meaning))
    console.print(table)
    if biased(result["whole_model"]):
        console.print(f"{BIASED.strip()} resampling few samples shifts this quantity: read the width, not the place")
    console.print(escape(headline(result, settings)))


def render(
    result: dict[str, Any],
    settings: dict[str, Any],
    pictures: Mapping[str, bytes],
    responses: Sequence[str],
) -> bytes:
    """report.html: everything in one file, model output escaped."""
    whole = result["whole_model"]
    leaders = sorted(result["blocks"].items(), key=lambda item: -item[1]["leak"])[:_LEADERS]
    table: list[Line] = lines(result, settings)
    return render_page(
        "experiments/estimate_aic/report.html",
        pictures,
        model=result["model"],
        settings=settings,
        result=result,
        headline=headline(result, settings),
        lines=table,
        biased=[name.replace("_", " ") for name in biased(whole)],
        leaders=leaders,
        responses=responses[:_SHOWN_RESPONSES],
        n=number,
        set_name=set_name,
    )
