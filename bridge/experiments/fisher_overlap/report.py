"""The tables, the sentences and the page of `bridge.fisher_overlap`, from its result alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge.experiments.fisher_overlap.pictures import MEANS, blocks, energies, overlaps, relative, title_of
from bridge.experiments.fisher_overlap.result import CENTRINGS, DISTINCT, LEAST_CEILING, SHARED, at, not_excluded, weak
from bridge.reports.numbers import number, set_name
from bridge.reports.pages import render_page
from commands.store import write_atomically

HEADINGS = (
    "skills", "mean scores", "overlap", "across halves", "within first", "within second", "floor", "relative",
    "95 % interval", "p", "verdict",
)  # fmt: skip


def print_table(result: dict[str, Any]) -> None:
    """Print the closing table to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=190)
    title = f"{result['model']}: overlap of the top {result['rank']} directions ({result['fisher']} Fisher)"
    table = Table(title=escape(title), title_justify="left", show_edge=False)
    for name in HEADINGS:
        table.add_column(name, justify="left" if name in ("skills", "mean scores", "verdict") else "right")
    for row in rows(result):
        table.add_row(*map(escape, row))
    console.print(table)
    for line in readings(result):
        console.print(escape(line))


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows as text, two a pair: with the mean scores, and without them."""
    out: list[tuple[str, ...]] = []
    for pair in result["pairs"]:
        for centring in CENTRINGS:
            found = at(pair[centring], result["rank"])
            out.append(
                (
                    title_of(pair),
                    MEANS[centring],
                    number(found["overlap"]),
                    number(found["cross"]),
                    number(found["own_a"]),
                    number(found["own_b"]),
                    number(found["floor"]),
                    number(found["relative"]),
                    _interval(found, "relative"),
                    number(found.get("p_value")),
                    pair[centring]["verdict"],
                )
            )
    return out


ENERGY_HEADINGS = (
    "Fisher trace of", "in the top d of", "mean scores", "share", "in its own held-out top d", "in a random space",
    "relative", "95 % interval",
)  # fmt: skip


def energy_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """How much of one skill's Fisher trace lies in another's subspace, as text; four rows a pair."""
    out: list[tuple[str, ...]] = []
    for pair in result["pairs"]:
        for centring in CENTRINGS:
            found = at(pair[centring], result["rank"])
            for of, inside in (("b", "a"), ("a", "b")):
                key = f"{of}_in_{inside}"
                out.append(
                    (
                        set_name(pair[of]),
                        set_name(pair[inside]),
                        MEANS[centring],
                        f"{found[key]:.2%}",
                        f"{found[f'{of}_in_{of}']:.2%}",
                        number(found[f"random_in_{inside}"]),
                        number(found[f"relative_{key}"]),
                        _interval(found, f"relative_{key}"),
                    )
                )
    return out


RANK_HEADINGS = (
    "skills", "mean scores", "share of the trace", "directions", "overlap, all samples", "across", "within the first",
    "within the second", "by chance", "relative overlap", "95 % interval",
)  # fmt: skip


def rank_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The overlaps at the ranks that hold a share of each skill's trace, as text."""
    out: list[tuple[str, ...]] = []
    for pair in result["pairs"]:
        for centring in CENTRINGS:
            for k, share in enumerate(result["energies"]):
                found = {name: values[k] for name, values in pair[centring]["at_energy"].items()}
                names = ("overlap", "cross", "own_a", "own_b", "random", "relative")
                out.append(
                    (
                        title_of(pair),
                        MEANS[centring],
                        f"{share:.0%}",
                        f"{found['rank_a']}, {found['rank_b']}",
                        *(number(found[name]) for name in names),
                        _interval(found, "relative"),
                    )
                )
    return out


def _interval(found: dict[str, Any], name: str) -> str:
    low, high = found[f"{name}_low"], found[f"{name}_high"]
    return "" if low is None or high is None else f"{number(low)} … {number(high)}"


# ---------------------------------------------------------------------------------------------- sentences


def readings(result: dict[str, Any]) -> list[str]:
    """Sentences on what the numbers say, and on what they cannot say."""
    lines = [_pair_reading(pair, result) for pair in result["pairs"]]
    few = min(skill["num_samples"] for skill in result["skills"].values())
    lines.append(
        f"{few} samples of a skill show at most {few} of the {result['num_parameters']} directions of θ, and half of "
        f"them {few // 2}: these overlaps are of what so few samples show, compared at equal numbers."
    )
    return lines


def _pair_reading(pair: dict[str, Any], result: dict[str, Any]) -> str:
    rank = result["rank"]
    found = {centring: at(pair[centring], rank) for centring in CENTRINGS}
    plain, centred = (_verdict(pair[centring], rank) for centring in CENTRINGS)
    text = f"{title_of(pair)}: {plain}: {_shares(found['uncentred'], rank)}"
    if plain == centred:
        text += f"; the same holds without the mean scores ({_relative(found['centred'])})."
    else:
        text += f". Without the mean scores: {centred}: {_shares(found['centred'], rank)}."
    p = found["uncentred"].get("p_value")
    if p is not None:
        above = found["uncentred"]["exchanged"]
        text += f" With the labels exchanged at random the overlap would be {number(above)} (p = {number(p)}): " + (
            "the two skills' samples are not exchangeable." if p <= 0.05 else "no difference of the two shows."
        )
    if pair["shared_prompts"]:
        text += f" The two skills share {pair['shared_prompts']} prompts, which makes them look alike."
    return text


def _relative(found: dict[str, Any]) -> str:
    if found["relative"] is None:
        return "no ceiling above the floor"
    return f"relative overlap {number(found['relative'])}, {_interval(found, 'relative')}"


def _shares(found: dict[str, Any], rank: int) -> str:
    """The numbers that a verdict rests on."""
    across = f"their halves share {found['cross']:.1%} of the top {rank} directions"
    within = f"where two halves of one skill share {found['own_a']:.1%} and {found['own_b']:.1%}"
    return f"{across}, {within} ({_relative(found)})"


def _verdict(entry: dict[str, Any], rank: int) -> str:
    """The verdict as a clause, with its reason where it is open."""
    found, left = at(entry, rank), not_excluded(entry, rank)
    if len(left) == 1:
        return {
            "distinct": "distinct subspaces",
            "shared": "one and the same subspace, as far as these samples tell",
            "partly shared": "partly shared subspaces",
        }[left[0]]
    if weak(found):
        why = "a skill hardly finds its own directions again"
    elif found["relative_low"] is None:
        why = "no interval could be found"
    else:
        why = f"the interval allows for {', '.join(left[:-1])} and {left[-1]} subspaces"
    return f"undetermined at this number of samples, since {why}"


def write(result: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """Write the pictures and report.html."""
    drawn = {
        "overlap": overlaps(result),
        "relative": relative(result),
        "energy": energies(result),
        "blocks": blocks(result),
    }
    for name, png in drawn.items():
        write_atomically(folder / f"{name}.png", png)
    page = render_page(
        "experiments/fisher_overlap/report.html",
        drawn,
        result=result,
        settings=settings,
        headings=HEADINGS,
        rows=rows(result),
        energy_headings=ENERGY_HEADINGS,
        energy_rows=energy_rows(result),
        rank_headings=RANK_HEADINGS,
        rank_rows=rank_rows(result),
        readings=readings(result),
        skills={set_name(name): skill for name, skill in result["skills"].items()},
        limits={"ceiling": LEAST_CEILING, "distinct": DISTINCT, "shared": SHARED},
        means=MEANS,
        titles=[title_of(pair) for pair in result["pairs"]],
        number=number,
    )
    write_atomically(folder / "report.html", page)
