"""The closing table on the terminal, and report.html, a self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.reading import Line, lines, number

_TEMPLATES = Path(__file__).with_name("templates")
_LEADERS = 15
_SHOWN_RESPONSES = 5


def headline(result: dict[str, Any], settings: dict[str, Any]) -> str:
    """One or two sentences that an engineer about to fine-tune wants first."""
    whole = result["whole_model"]
    turn = whole["crossover"]
    start = (
        "The update moves neither the skill's policy nor bends towards it."
        if turn is None
        else f"The skill starts to move from the first step (leak {number(whole['leak'])}); "
        f"acceleration takes over at t = {number(turn)}, step {number(turn / settings['learning_rate'])}."
        if whole["leak"] > 0
        else "The update does not move the skill at first order; damage starts as t⁴."
    )
    if whole["regime"] == "outside":
        return (
            f"{start} The planned {settings['steps']} steps reach t = {number(whole['horizon'])}, beyond the window "
            f"in which an expansion at the start can be trusted ({number(whole['window'])}): what the run does to "
            f"the skill has to be measured along it."
        )
    return (
        f"{start} After the planned {settings['steps']} steps the predicted utility loss is "
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
    title = f"{settings['model']}: {settings['finetune']} against {settings['skill']} ({result['fisher']} Fisher)"
    table = Table(title=escape(title), title_justify="left", show_edge=False)
    table.add_column("quantity", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("what it means here")
    for line in lines(result, settings):
        table.add_row(line.name, line.value, line.interval, escape(line.meaning))
    console.print(table)
    console.print(escape(headline(result, settings)))


def render(
    result: dict[str, Any],
    settings: dict[str, Any],
    versions: Mapping[str, str],
    pictures: Mapping[str, bytes],
    responses: Sequence[str],
) -> bytes:
    """report.html: everything in one file, model output escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    whole = result["whole_model"]
    leaders = sorted(result["blocks"].items(), key=lambda item: -item[1]["leak"])[:_LEADERS]
    table: list[Line] = lines(result, settings)
    page = environment.get_template("estimate_aic.html").render(
        model=result["model"],
        settings=settings,
        result=result,
        versions={"transformers": "–", "torch": "–", "alignment-collapse": "–"} | dict(versions),
        headline=headline(result, settings),
        lines=table,
        biased=_biased(whole),
        pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
        leaders=leaders,
        responses=responses[:_SHOWN_RESPONSES],
        n=number,
    )
    return page.encode()


def _biased(whole: dict[str, Any]) -> list[str]:
    """Quantities whose bootstrap bias is more than half their interval's width."""
    out = []
    for name, (low, high) in whole["intervals"].items():
        bias = whole["bootstrap_bias"].get(name)
        if bias is not None and high > low and abs(bias) > (high - low) / 2:
            out.append(name.replace("_", " "))
    return out
