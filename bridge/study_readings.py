"""What the numbers of a study.json say, in sentences: which predictor works, how well, and against what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.reading import number
from bridge.study_predictors import BY_KEY, STAGES, WHEN
from bridge.study_result import EVERY, OUTCOMES

Found = Mapping[str, Any]


def readings(found: Found) -> list[str]:
    """Sentences on the whole study, the most important first."""
    lines = [*_damage_lines(found)]
    for outcome, name in OUTCOMES.items():
        measured = found["correlations"][outcome][EVERY]
        if not measured and any(outcome in row["outcomes"] for row in found["rows"]):
            lines.append(f"Too few fine-tunes or sets with their {name} measured for a rank correlation.")
        lines += [line for stage in STAGES for line in _best_line(measured, stage, name)]
        lines += _count_lines(measured, name)
    return lines


def notes(found: Found) -> list[str]:
    """What a reader must know besides."""
    sets = len({row["set"] for row in found["rows"] if row["outcomes"]})
    lines = [
        f"ρ is Spearman's, τ Kendall's (tau-b). In parentheses: 95 % bootstrap intervals of {found['resamples']} "
        "resamples of whole sets, since fine-tunes on one set are not independent.",
        f"{sets} sets: with so few, such intervals are somewhat too narrow, and the best of many predictors looks "
        "better than it is.",
        "The best trivial predictor is chosen in hindsight, on the same fine-tunes and in the direction that suits it, "
        "among those known by the same time.",
        "What is known before training is of the full model's path under the optimiser used, at the run's learning "
        "rate × steps; LoRA's factors are not in it. After a pilot of LoRA the norm is that of its factors.",
    ]
    if found["refusals"] is not None:
        lines.append("Refusals are counted by their wording; that is no harmfulness score.")
    if found["left_out"]:
        lines.append(f"Left out, since the folder of the local files was not given: {', '.join(found['left_out'])}.")
    pending = sum(row["status"] == "pending" for row in found["rows"])
    if pending:
        lines.append(f"{pending} of {len(found['rows'])} fine-tunes are still to come.")
    for row in found["rows"]:
        label = f"{row['set']}, {row['method']}, seed {row['seed']}"
        lines += [f"{label}: {step} failed: {reason}" for step, reason in row["failures"].items()]
    return lines


def interval(ends: Sequence[float] | None) -> str:
    """An interval of correlations in parentheses, with a space before it; empty where there is none."""
    return "" if ends is None else f" ({ends[0]:+.2f} … {ends[1]:+.2f})"


def _damage_lines(found: Found) -> list[str]:
    rows = [row for row in found["rows"] if "utility_loss" in row["outcomes"]]
    if not rows:
        return ["No fine-tune has been measured."]
    losses = [row["outcomes"]["utility_loss"]["value"] for row in rows]
    text = (
        f"{len(rows)} fine-tunes of {found['model']} on {len({row['set'] for row in rows})} sets: the utility loss on "
        f"{found['skill']} lies between {number(min(losses))} and {number(max(losses))} nats a response"
    )
    refused = [row["outcomes"] for row in rows if "refusals" in row["outcomes"]]
    if refused:
        base = refused[0]["base_refusals"]["value"]
        rates = [each["refusals"]["value"] for each in refused]
        text += f"; {base:.0%} of the prompts were refused before, and {min(rates):.0%} to {max(rates):.0%} after"
    return [f"{text}."]


def _best_line(measured: Mapping[str, Any], stage: str, outcome: str) -> list[str]:
    """The predictor of a stage that ranks an outcome best, and whether it beats the best trivial one."""
    known = {k: v for k, v in measured.items() if BY_KEY[k].stage == stage and not BY_KEY[k].trivial}
    ranked = [k for k, v in known.items() if v["spearman"] is not None]
    if not ranked:
        return []
    best = max(ranked, key=lambda key: known[key]["spearman"])
    entry = known[best]
    text = f"{WHEN[stage].capitalize()}, of {len(ranked)} numbers “{BY_KEY[best].name}” ranks the {outcome} best: "
    text += f"ρ = {entry['spearman']:+.2f}{interval(entry['spearman_interval'])}."
    return [f"{text} {_against(entry)}"]


def _against(entry: Mapping[str, Any]) -> str:
    rival = entry["best_trivial"]
    if rival is None or rival["difference"] is None:
        return "There is no trivial predictor to compare it with."
    name = BY_KEY[rival["predictor"]].name
    read = ", read the other way round" if rival["sign"] < 0 else ""
    gap = f"the difference is {rival['difference']:+.2f}{interval(rival['interval'])}"
    if rival["interval"] is None:
        verdict = f"Beside the best trivial one, “{name}”{read},"
    elif rival["better"]:
        verdict = f"It beats the best trivial one, “{name}”{read}:"
    elif rival["interval"][1] < 0:
        verdict = f"The best trivial one, “{name}”{read}, beats it:"
    else:
        verdict = f"It is not shown to beat the best trivial one, “{name}”{read}:"
    return f"{verdict} {gap}."


def _count_lines(measured: Mapping[str, Any], outcome: str) -> list[str]:
    """How many of all predictors beat the trivial ones."""
    rivals = {k: v["best_trivial"] for k, v in measured.items() if v["best_trivial"] and v["best_trivial"]["interval"]}
    if not rivals:
        return []
    better = [BY_KEY[k].name for k, v in rivals.items() if v["better"]]
    names = f": {', '.join(better)}" if better else ""
    return [
        f"Over all fine-tunes, {len(better) or 'none'} of the {len(rivals)} numbers that are not trivial "
        f"{'is' if len(better) == 1 else 'are'} shown to rank the {outcome} better than the best trivial one known by "
        f"the same time{names}."
    ]
