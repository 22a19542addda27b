"""What the result of `bridge.onset` says, in sentences."""

from __future__ import annotations

from bridge.experiments.onset.result import TEN_PERCENT, Interval, OnsetResult, SetOnset
from bridge.reports.numbers import number, set_name
from bridge.training.pilot import DRIFTING, PilotResult
from theory.local_slopes import Stretch


def readings(result: OnsetResult) -> list[str]:
    """Sentences, the most important first."""
    main = result.main
    lines = [_kinds(result, main), _bend(main), _acceleration(result), _agreement(result)]
    lines += [_limit(result), _floor(result)]
    lines += [_in_sample(result)] if "probe" in result.sets else []
    lines += [*_removal(result), _runs(result), *_pilot(result.pilot)]
    return [line for line in lines if line]


def path_name(result: OnsetResult) -> str:
    """The path that was taken, for people."""
    kind = "gradient descent" if result.optimizer == "sgd" else "AdamW with frozen second moments"
    of = " on LoRA's factors" if result.method == "lora" else ""
    without = " with the overlap removed" if result.removed else ""
    return f"{kind}{of}{without}"


def _in_sample(result: OnsetResult) -> str:
    return f"On the very samples whose overlap was removed: {_lower(_kinds(result, result.sets['probe']))}"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _kinds(result: OnsetResult, main: SetOnset) -> str:
    stretches = main.stretches
    if not stretches:
        return "Fewer than two measured losses stand clear of the floor of rounding: no exponent can be read."
    told = [_stretch(stretch, result.crossover) for stretch in stretches]
    kinds = {stretch.kind for stretch in stretches}
    name = stretches[0].kind
    lead = f"Along {path_name(result)} the onset "
    if kinds == {"neither"}:
        return f"{lead}is neither quadratic nor quartic at every time {_which(main)}: {'; '.join(told)}."
    if len(kinds) == 1:
        return f"{lead}is {name} at every time {_which(main)}: {'; '.join(told)}."
    seen = " It is never quartic." if "quartic" not in kinds else ""
    start = f"starts {name}" if name != "neither" else "starts neither quadratic nor quartic"
    return f"{lead}{start}: {'; '.join(told)}.{seen}"


def _which(main: SetOnset) -> str:
    return "measured" if all(point.above_floor for point in main.points) else "that can be read"


def _stretch(stretch: Stretch, crossover: float) -> str:
    low, high = stretch.lowest, stretch.highest
    exponents = f"exponent {low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"exponents {low:.2f} to {high:.2f}"
    start, end = stretch.start, stretch.end
    if start == end:
        return f"{stretch.kind} at t = {number(start)} ({start / crossover:.2g} t_c, {exponents})"
    span = f"{start / crossover:.2g} to {end / crossover:.2g} t_c"
    return f"{stretch.kind} from t = {number(start)} to {number(end)} ({span}, {exponents})"


def _bend(main: SetOnset) -> str:
    """What the part in t³ of the steps really taken says: its sign may change with their share of the acceleration."""
    parts = [(point.t, point.cross_part) for point in main.points if point.cross_part]
    if not parts:
        return ""
    first = parts[0][1] > 0
    turned = [t for t, part in parts if (part > 0) != first]
    sentence = (
        f"The predicted part in t³ of these steps is {'positive' if first else 'negative'}: the damage first "
        f"{'runs ahead of' if first else 'lags behind'} the t² of its leak part"
    )
    return sentence + (f"; its sign changes at t = {number(turned[0])}." if turned else ".")


def _acceleration(result: OnsetResult) -> str:
    """Say whether the flow slows down, from v · a at the base."""
    along = result.acceleration_along_velocity
    if not along:
        return ""
    if along < 0:
        return "At the base the flow's acceleration opposes its velocity (v·a < 0): the path slows down."
    return "At the base the flow's acceleration goes with its velocity (v·a > 0): the path speeds up."


def _agreement(result: OnsetResult) -> str:
    said = [
        f"{100 * abs(point.ratio - 1):.2g} % at {point.crossovers:.2g} t_c"
        for point in result.main.points
        if point.ratio is not None and point.above_floor
    ]
    if not said:
        return ""
    return f"Measured and predicted loss differ by {', '.join(said)}; {_parting(result)}."


def _parting(result: OnsetResult) -> str:
    main = result.main
    ten, two = main.validity.ten_percent, main.validity.factor_two
    if ten is not None:
        twice = f" and by a factor of two at t = {number(two)}" if two is not None else ""
        return (
            f"they part by 10 % at t = {number(ten)} ({ten / result.crossover:.2g} t_c){twice}: beyond, the "
            "expansion is not valid"
        )
    read = [point.ratio for point in main.points if point.ratio is not None and point.above_floor]
    if all(1 / TEN_PERCENT <= ratio <= TEN_PERCENT for ratio in read):
        return f"they stay within 10 % at every time {_which(main)}"
    return "it is more than 10 % at some of them, but no time is seen from which on it stays so"


def _limit(result: OnsetResult) -> str:
    curvature = result.curvature
    if curvature is None or curvature.limit is None:
        return ""
    limit = f"{number(curvature.limit)} ({curvature.limit / result.crossover:.2g} t_c)"
    warning = (
        " The small steps themselves are longer than that: they do not follow the flow."
        if result.largest_rate > curvature.limit
        else ""
    )
    return (
        f"Known before the first step: 2 / (leading curvature of the fine-tuning loss) is at most 2 / "
        f"{number(curvature.value)} = {limit}, where an expansion at the start cannot hold any more.{warning}"
    )


def _floor(result: OnsetResult) -> str:
    main = result.main
    smallest = min(point.utility_loss for point in main.points)
    below = sum(not point.above_floor for point in main.points)
    floor = f"a loss of {main.floor:.1e}" if main.floor else "no loss that differs from 0"
    trip = "exactly 0" if main.round_trip == 0 else f"{main.round_trip:.1e}, which should be 0"
    lost = f" {below} of the points are too near to it to be read." if below else ""
    return (
        f"Rounding the weights once in {result.dtype} alone makes {floor}; the smallest that was "
        f"measured is {smallest:.1e}. The model put back from its copy has a loss of {trip}.{lost}"
    )


def _removal(result: OnsetResult) -> list[str]:
    removed = result.removed
    if removed is None:
        return []
    lines = [
        f"Removing the overlap with {removed.rank} directions of {removed.samples} other samples took "
        f"{100 * removed.share:.2g} % of the update's square. On those samples the leak by the scores of their "
        f"tokens falls from {number(removed.leak_before)} to {number(removed.leak_after)}."
    ]
    there, others = removed.left["probe"], removed.left["skill"]
    if there.share is None or others.share is None:
        return lines
    lines.append(
        f"Of the exact leak, over the whole vocabulary, {_left(there.share, there.interval)} is left on those samples "
        f"and {_left(others.share, others.interval)} on the skill's other samples (its square, "
        f"{100 * others.share**2:.0f} %, is left there of the damage in t²)."
    )
    if removed.difference is not None and removed.difference[0] > 0:
        lines.append(
            "So what is left on the samples that the directions are of understates what is left on others (the "
            "difference's 95 % interval lies above 0): orthogonality in the sample overstates orthogonality."
        )
    return lines


def _left(share: float, interval: Interval | None) -> str:
    ends = "" if interval is None else f" (95 % interval: {100 * interval[0]:.0f} to {100 * interval[1]:.0f} %)"
    return f"{100 * share:.0f} %{ends}"


def _runs(result: OnsetResult) -> str:
    told = [
        f"{run.learning_rate:g} × {run.steps} ends at {number(run.crossovers)} t_c"
        + (f" ({run.place})" if run.place else "")
        for run in result.realistic
    ]
    return f"Of usual runs at a constant rate, in the time of this path, {'; '.join(told)}."


def _pilot(pilot: PilotResult | None) -> list[str]:
    if pilot is None:
        return []
    end, lead = pilot.forecasts, f"{pilot.pilot_steps} of {pilot.steps} steps of the real optimiser ({pilot.optimizer})"
    if not end:
        text = f"{lead} forecast nothing: their learning rates are 0 (warm-up)."
        return [text] if pilot.happened is None else [f"{text} The full run did {number(pilot.happened)}."]
    if DRIFTING in end:
        law = end[DRIFTING]
        text = (
            f"{lead} forecast a utility loss of {number(law.value)} at the end (95 % interval: {number(law.low)} to "
            f"{number(law.high)}), by a power of the accumulated learning rate that is {law.exponent:.2f} now "
            f"and may drift. Growth in proportion would give {number(end['proportional'].value)}, with the square "
            f"{number(end['quadratic'].value)}."
        )
    else:
        text = (
            f"{lead} forecast a utility loss between {number(end['last'].value)} and {number(end['quadratic'].value)} "
            f"at the end (nothing further, and growth with the square); three points are needed for a fit."
        )
    if pilot.happened is None:
        return [text + " It was not compared with the full run (--full)."]
    best = min(end, key=lambda name: _apart(end[name].ratio))
    ratios = ", ".join(f"{name} {number(forecast.ratio)}" for name, forecast in end.items())
    return [
        text,
        f"The full run did {number(pilot.happened)}. Forecast / what happened: {ratios}; nearest was “{best}”.",
    ]


def _apart(ratio: float | None) -> float:
    return max(ratio, 1 / ratio) if ratio else float("inf")


def title(result: OnsetResult) -> str:
    """What was measured."""
    return f"{result.model}: {set_name(result.finetune)} against {set_name(result.skill)}, {path_name(result)}"
