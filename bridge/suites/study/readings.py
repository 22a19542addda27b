"""What the numbers of a study.json say, in sentences: which predictor works, how well, and against what."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from bridge.reports.numbers import number
from bridge.suites.study.predictors import BY_KEY, WHEN, Stage
from bridge.suites.study.result import (
    OUTCOMES,
    POOLED,
    WITHIN,
    Contest,
    Correlations,
    Interval,
    Rival,
    StudyResult,
    StudyRow,
)

NAMES = {"lora": "LoRA", "full": "full"}
"""Methods as people read them."""


def readings(result: StudyResult) -> list[str]:
    """Sentences on the whole study, the most important first; what is pooled over the methods comes last."""
    lines = [*_damage_lines(result)]
    for outcome, name in OUTCOMES.items():
        if not any(row.is_measured(outcome) for row in result.rows):
            continue
        groups, contests = result.correlations[outcome], result.contests[outcome]
        if not groups[WITHIN]:
            lines.append(f"Too few fine-tunes or sets with their {name} measured for a rank correlation.")
            continue
        lines += [_best_line(stage, entry, name, groups) for stage, entry in contests[WITHIN].items()]
        lines += [_method_line(method, contests[method], name) for method in contests if method != WITHIN]
        lines += _count_lines(groups[WITHIN], name)
    return lines + _pooled_lines(result)


def notes(result: StudyResult) -> list[str]:
    """What a reader must know besides."""
    sets = len({row.set for row in result.rows if row.outcomes.known()})
    lines = [
        f"ρ is Spearman's, τ Kendall's (tau-b). In parentheses: 95 % bootstrap intervals of {result.resamples} "
        f"resamples of whole sets (here {sets}), since fine-tunes on one set are not independent.",
        "The best of many predictors looks better than it is: its interval knows nothing of the choice.",
        "The best trivial predictor is chosen in hindsight, on the same fine-tunes and in the direction that suits it, "
        "among those known by the same time.",
        "What is known before training is of the path of all weights under the optimiser used; LoRA's factors are not "
        "in it, and a LoRA fine-tune has no predicted loss. After a pilot of LoRA the norm is that of its factors.",
    ]
    if len({row.method for row in result.rows}) > 1:
        lines.insert(1, _WITHIN_NOTE)
    lines += _size_lines(result)
    if result.refusals is not None:
        lines.append("Refusals are counted by their wording; that is no harmfulness score.")
    if result.left_out:
        lines.append(f"Left out, since the folder of the local files was not given: {', '.join(result.left_out)}.")
    for row in result.rows:
        label = f"{row.set}, {row.method}, seed {row.seed}"
        lines += [f"{label}: {step} failed: {reason}" for step, reason in row.failures.items()]
    return lines


_WITHIN_NOTE = (
    "Within methods: a fine-tune is ranked among those by its own method only, and the ranks of all methods are "
    "correlated together. Where LoRA and full fine-tuning differ in the damage they do, any number that tells them "
    "apart ranks well pooled over the methods."
)


def interval(ends: Interval | None) -> str:
    """An interval of correlations in parentheses, with a space before it; empty where there is none."""
    return "" if ends is None else f" ({ends[0]:+.2f} … {ends[1]:+.2f})"


_MISSING = {"pending": "still to come", "failed": "failed", "done": "without a value"}


def _damage_lines(result: StudyResult) -> list[str]:
    measured = [row for row in result.rows if row.is_measured("utility_loss")]
    others = [row.status for row in result.rows if not row.is_measured("utility_loss")]
    missing = ", ".join(f"{others.count(status)} {text}" for status, text in _MISSING.items() if status in others)
    share = f"{len(measured)} of {len(result.rows)} fine-tunes are measured ({missing})" if missing else ""
    if not measured:
        return [f"No fine-tune has been measured{f' ({missing})' if missing else ''}."]
    losses, sets = [row.damage("utility_loss") for row in measured], len({row.set for row in measured})
    text = (
        f"{_count(len(measured), 'fine-tune')} of {result.model} on {_count(sets, 'set')}: the utility loss on "
        f"{result.skill} lies between {number(min(losses))} and {number(max(losses))} nats a response"
    )
    return [*([f"{share}: what follows is of these alone."] if share else []), f"{text}{_refused(measured)}."]


def _refused(measured: list[StudyRow]) -> str:
    """Say how many prompts were refused before and after, where that was counted."""
    rates = [row.outcomes.refusals.value for row in measured if row.outcomes.refusals is not None]
    known = [rate for rate in rates if rate is not None]
    base = next((row.outcomes.base_refusals for row in measured if row.outcomes.base_refusals is not None), None)
    if not known or base is None:
        return ""
    return f"; {base.value:.0%} of the prompts were refused before, and {min(known):.0%} to {max(known):.0%} after"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# ------------------------------------------------------------------------------------------------ who ranks best


def _best_line(stage: Stage, entry: Contest, outcome: str, groups: Mapping[str, Correlations]) -> str:
    """The predictor of a time that ranks an outcome best within methods, if one is shown to rank it at all."""
    many, name = len(entry.predictors), BY_KEY[entry.best].name
    where = f"the {outcome}{' among fine-tunes by the same method' if POOLED in groups else ''}"
    rho = f"ρ = {entry.spearman:+.2f}{interval(entry.spearman_interval)}"
    which = f"({entry.count} of {entry.of} fine-tunes)"
    when, shown = WHEN[stage].capitalize(), [f"“{BY_KEY[key].name}”" for key in entry.shown_to_rank]
    if entry.best in entry.shown_to_rank:
        among, best = ("", "") if many == 1 else (f" of {many} numbers", " best")
        text = f"{when},{among} “{name}” ranks {where}{best}: {rho} {which}. {_against(entry.best_trivial)}"
    else:
        text = f"{when}, none of {many} numbers is shown to rank {where} {which}: the highest is “{name}”, {rho}."
        if many == 1:
            text = f"{when}, “{name}” is not shown to rank {where} {which}: {rho}."
        elif shown:
            text = (
                f"{when}, {' and '.join(shown)} of {many} numbers {'is' if len(shown) == 1 else 'are'} shown to rank "
            )
            text += f"{where} {which}, and “{name}”, which ranks it best, is not: {rho}."
        rival = entry.best_trivial
        text += f" {_against(rival)}" if rival is not None and rival.worse else ""
    return " ".join([text, *_absent(entry, groups[WITHIN])])


def _absent(entry: Contest, measured: Correlations) -> list[str]:
    """Those known on too few fine-tunes to be compared with the others."""
    known = {key: measured[key] for key in entry.absent if key in measured and measured[key].spearman is not None}
    return [
        f"“{BY_KEY[key].name}” is known of {found.count} of {entry.of} fine-tunes only and not compared: "
        f"ρ = {found.spearman:+.2f}{interval(found.spearman_interval)} there."
        for key, found in known.items()
    ]


def _against(rival: Rival | None) -> str:
    if rival is None or rival.difference is None:
        return "There is no trivial predictor to compare it with."
    name = BY_KEY[rival.predictor].name
    read = ", read the other way round" if rival.sign < 0 else ""
    gap = f"the difference is {rival.difference:+.2f}{interval(rival.interval)}"
    if rival.interval is None:
        verdict = f"Beside the best trivial one, “{name}”{read},"
    elif rival.better:
        verdict = f"It beats the best trivial one, “{name}”{read}:"
    elif rival.worse:
        verdict = f"The best trivial one, “{name}”{read}, beats it:"
    else:
        verdict = f"It is not shown to beat the best trivial one, “{name}”{read}:"
    return f"{verdict} {gap}."


_NONE = "none is shown to rank it, the highest is "


def _method_line(method: str, stages: Mapping[Stage, Contest], outcome: str) -> str:
    """The best predictor of every time among the fine-tunes by one method."""
    name = NAMES.get(method, method)
    if not stages:
        return f"By {name} fine-tuning alone there are too few fine-tunes with their {outcome} measured."
    told = []
    for stage, entry in stages.items():
        rho = f"“{BY_KEY[entry.best].name}”, ρ = {entry.spearman:+.2f}{interval(entry.spearman_interval)}"
        shown, beats = entry.best in entry.shown_to_rank, entry.best_trivial is not None and entry.best_trivial.better
        hedge = "" if shown else "the highest, not shown to rank it, " if entry.shown_to_rank else _NONE
        told.append(
            f"{WHEN[stage]}: {hedge}{rho} ({entry.count} of {entry.of} fine-tunes)"
            f"{', and it beats the best trivial one' if shown and beats else ''}"
        )
    return f"{outcome.capitalize()} by {name} fine-tuning alone, {'; '.join(told)}."


def _count_lines(measured: Correlations, outcome: str) -> list[str]:
    """Say how many of all predictors beat the trivial ones."""
    rivals = {k: v.best_trivial for k, v in measured.items() if v.best_trivial and v.best_trivial.interval}
    if not rivals:
        return []
    most = max(v.count for v in measured.values())
    few = {k: f" (on {v.count})" if v.count < most else "" for k, v in measured.items()}
    better = [f"{BY_KEY[k].name}{few[k]}" for k, v in rivals.items() if v.better]
    names = f": {', '.join(better)}" if better else ""
    return [
        f"{len(better) or 'None'} of the {_count(len(rivals), 'number')} that are not trivial "
        f"{'is' if len(better) < 2 else 'are'} shown to rank the {outcome} better than the best trivial one known by "
        f"the same time, each on the fine-tunes that it is known of{names}."
    ]


# ------------------------------------------------------------------------------------------------ pooled, and sizes


def _pooled_lines(result: StudyResult) -> list[str]:
    """What pooling the methods would say, beside a number that can only tell the methods apart."""
    found = (_pooled_line(result.correlations[outcome], name) for outcome, name in OUTCOMES.items())
    return [line for line in found if line is not None]


def _pooled_line(groups: Mapping[str, Correlations], name: str) -> str | None:
    known = {key: v for key, v in groups.get(POOLED, {}).items() if v.spearman is not None}
    most = max((v.count for v in known.values()), default=0)
    pooled = {key: abs(v.spearman) for key, v in known.items() if v.spearman is not None and v.count == most}
    if not pooled:
        return None
    within = groups[WITHIN]
    marks = [key for key in pooled if key not in within or within[key].spearman is None]
    best = max(pooled, key=lambda key: pooled[key])
    text = f"Pooled over the methods, whose difference then counts as well, |ρ| with the {name} is up to "
    text += f"{pooled[best]:.2f} ({most} fine-tunes), by “{BY_KEY[best].name}”"
    if best in marks:
        text += ", which is the same for all fine-tunes by one method"
    elif marks:
        mark = max(marks, key=lambda key: pooled[key])
        text += f"; “{BY_KEY[mark].name}”, the same for all fine-tunes by one method, has {pooled[mark]:.2f}"
    return f"{text}."


def _size_lines(result: StudyResult) -> list[str]:
    """Say how far the predicted losses are from the measured ones, where they are compared at all."""
    rows = [row for row in result.rows if row.has("predicted_loss", "utility_loss")]
    ratios = sorted(
        row.predictor("predicted_loss") / row.damage("utility_loss") for row in rows if row.damage("utility_loss") > 0
    )
    if not ratios:
        return []
    ends = [crossovers for row in rows if (crossovers := _crossovers(row)) is not None]
    beyond, middle = sum(each > 1 for each in ends), statistics.median(ratios)
    text = f"{_count(len(rows), 'fine-tune')} with a predicted utility loss"
    if ends:
        text += (
            f": {beyond} of {len(ends)} end beyond the estimate's crossover 2 leak / γ* (in the median at "
            f"{number(statistics.median(ends))} of it), where the expansion at the base need not hold"
        )
    text += f". Predicted over measured is {number(middle)} in the median ({number(ratios[0])} to {number(ratios[-1])})"
    far = not 0.5 <= middle <= 2 or beyond > len(ends) / 2
    return [f"{text}: only the order of these predictions can mean anything, not their size." if far else f"{text}."]


def _crossovers(row: StudyRow) -> float | None:
    """The end of a fine-tune in units of the crossover of its own estimate; None where that is not known."""
    leak, onset, end = (row.predictors.get(key) for key in ("leak", "gamma_star", "rate_steps"))
    return None if not leak or onset is None or end is None else end * onset / (2 * leak)
