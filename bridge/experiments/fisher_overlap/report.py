"""The tables, the sentences and the page of `bridge.fisher_overlap`, from its result alone."""

from __future__ import annotations

from pathlib import Path

from bridge.experiments.fisher_overlap.pictures import blocks, energies, overlaps, relative, title_of
from bridge.experiments.fisher_overlap.result import (
    DISTINCT,
    LEAST_CEILING,
    SHARED,
    FisherOverlapResult,
    Pair,
    Point,
    is_weak,
    not_excluded,
)
from bridge.experiments.fisher_overlap.settings import Settings
from bridge.reports.console import print_tables
from bridge.reports.numbers import number, set_name
from bridge.reports.pages import write_page
from bridge.reports.results import pictures_of, tables_of
from bridge.reports.tables import Table
from commands.store import Folder


def print_result(result: FisherOverlapResult, folder: Folder) -> None:
    """Print the closing table to standard output, and where the report is."""
    print_tables([closing_table(result)], readings(result), width=190)
    print(f"\n{folder.path / 'report.html'}")


@tables_of.register
def tables(result: FisherOverlapResult) -> list[Table]:
    """The closing table, shares of the Fisher traces, and overlaps at the ranks that hold a share of the trace."""
    return [closing_table(result), energy_table(result), *([rank_table(result)] if result.energies else [])]


HEADINGS = (
    "skills", "mean scores", "overlap", "across halves", "within first", "within second", "floor", "relative",
    "95 % interval", "p", "verdict",
)  # fmt: skip


def closing_table(result: FisherOverlapResult) -> Table:
    """The overlaps at the rank of the verdict, two rows a pair: with the mean scores, and without them."""
    rows = []
    for pair in result.pairs:
        for mean, overlap in pair.by_mean.items():
            point = overlap.at(result.rank)
            shown = (point.overlap, point.cross, point.own_a, point.own_b, point.floor, point.relative)
            interval = _interval(point.relative_low, point.relative_high)
            cells = (title_of(pair), mean, *map(number, shown), interval, number(point.p_value), overlap.verdict)
            rows.append(cells)
    caption = f"{result.model}: overlap of the top {result.rank} directions ({result.fisher} Fisher)"
    return Table(caption, HEADINGS, rows, words=2, sentences=True)


ENERGY_HEADINGS = (
    "Fisher trace of", "in the top d of", "mean scores", "share", "in its own held-out top d", "in a random space",
    "relative", "95 % interval",
)  # fmt: skip


def energy_table(result: FisherOverlapResult) -> Table:
    """Table of the shares of one skill's Fisher trace in another's subspace, four rows a pair."""
    rows = []
    for pair in result.pairs:
        a, b = set_name(pair.a), set_name(pair.b)
        for mean, overlap in pair.by_mean.items():
            at = overlap.at(result.rank)
            interval = _interval(at.relative_b_in_a_low, at.relative_b_in_a_high)
            shares = (f"{at.b_in_a:.2%}", f"{at.b_in_b:.2%}", number(at.random_in_a), number(at.relative_b_in_a))
            rows.append((b, a, mean, *shares, interval))
            interval = _interval(at.relative_a_in_b_low, at.relative_a_in_b_high)
            shares = (f"{at.a_in_b:.2%}", f"{at.a_in_a:.2%}", number(at.random_in_b), number(at.relative_a_in_b))
            rows.append((a, b, mean, *shares, interval))
    caption = f"{result.model}: shares of the Fisher traces in the top {result.rank} directions"
    return Table(caption, ENERGY_HEADINGS, rows, words=3)


RANK_HEADINGS = (
    "skills", "mean scores", "share of the trace", "directions", "overlap, all samples", "across", "within the first",
    "within the second", "by chance", "relative overlap", "95 % interval",
)  # fmt: skip


def rank_table(result: FisherOverlapResult) -> Table:
    """The overlaps at the ranks that hold a share of each skill's trace."""
    rows = []
    for pair in result.pairs:
        for mean, overlap in pair.by_mean.items():
            for k, share in enumerate(result.energies):
                at = overlap.at_share(k)
                shown = (at.overlap, at.cross, at.own_a, at.own_b, at.random, at.relative)
                ranks, interval = f"{at.rank_a}, {at.rank_b}", _interval(at.relative_low, at.relative_high)
                rows.append((title_of(pair), mean, f"{share:.0%}", ranks, *map(number, shown), interval))
    return Table(f"{result.model}: overlaps at shares of the traces", RANK_HEADINGS, rows, words=2)


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number(low)} … {number(high)}"


# ---------------------------------------------------------------------------------------------- sentences


def readings(result: FisherOverlapResult) -> list[str]:
    """Sentences on what the numbers say, and on what they cannot say."""
    few = min(skill.num_samples for skill in result.skills.values())
    return [
        *(pair_reading(pair, result.rank) for pair in result.pairs),
        f"{few} samples of a skill show at most {few} of the {result.num_parameters} directions of θ, and half of "
        f"them {few // 2}: these overlaps are of what so few samples show, compared at equal numbers.",
    ]


def pair_reading(pair: Pair, rank: int) -> str:
    """What a pair's numbers at a rank say."""
    uncentred, centred = pair.uncentred.at(rank), pair.centred.at(rank)
    plain, without = _verdict(uncentred), _verdict(centred)
    text = f"{title_of(pair)}: {plain}: {_shares(uncentred, rank)}"
    if plain == without:
        text += f"; the same holds without the mean scores ({_relative(centred)})."
    else:
        text += f". Without the mean scores: {without}: {_shares(centred, rank)}."
    p = uncentred.p_value
    if p is not None:
        above = number(uncentred.exchanged)
        text += f" With the labels exchanged at random the overlap would be {above} (p = {number(p)}): " + (
            "the two skills' samples are not exchangeable." if p <= 0.05 else "no difference of the two shows."
        )
    if pair.shared_prompts:
        text += f" The two skills share {pair.shared_prompts} prompts, which makes them look alike."
    return text


def _relative(at: Point) -> str:
    if at.relative is None:
        return "no ceiling above the floor"
    return f"relative overlap {number(at.relative)}, {_interval(at.relative_low, at.relative_high)}"


def _shares(at: Point, rank: int) -> str:
    """The numbers that a verdict rests on."""
    across = f"their halves share {at.cross:.1%} of the top {rank} directions"
    within = f"where two halves of one skill share {at.own_a:.1%} and {at.own_b:.1%}"
    return f"{across}, {within} ({_relative(at)})"


def _verdict(at: Point) -> str:
    """The verdict as a clause, with its reason where it is open."""
    left = not_excluded(at)
    if len(left) == 1:
        return {
            "distinct": "distinct subspaces",
            "shared": "one and the same subspace, as far as these samples tell",
            "partly shared": "partly shared subspaces",
        }[left[0]]
    if is_weak(at):
        why = "a skill hardly finds its own directions again"
    elif at.relative_low is None:
        why = "no interval could be found"
    else:
        why = f"the interval allows for {', '.join(left[:-1])} and {left[-1]} subspaces"
    return f"undetermined at this number of samples, since {why}"


# ------------------------------------------------------------------------------------------ pictures, page


@pictures_of.register
def pictures(result: FisherOverlapResult) -> dict[str, bytes]:
    """The run's pictures by name."""
    return {
        "overlap": overlaps(result),
        "relative": relative(result),
        "energy": energies(result),
        "blocks": blocks(result),
    }


def write(result: FisherOverlapResult, settings: Settings, folder: Path) -> None:
    """Write the pictures and report.html."""
    write_page(
        folder,
        "experiments/fisher_overlap/report.html",
        pictures(result),
        result=result,
        settings=settings.identity(),
        table=closing_table(result),
        energy_table=energy_table(result),
        rank_table=rank_table(result),
        readings=readings(result),
        skills={set_name(name): skill for name, skill in result.skills.items()},
        limits={"ceiling": LEAST_CEILING, "distinct": DISTINCT, "shared": SHARED},
        title_of=title_of,
        number=number,
    )
