"""What an onset.json says, in sentences and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.experiments.onset.result import DEPARTURES
from bridge.reports.numbers import number, set_name


def readings(result: Mapping[str, Any]) -> list[str]:
    """Sentences, the most important first."""
    main = result["sets"]["skill"]
    found = [_kinds(result, main), _bend(main), _acceleration(result), _agreement(main)]
    found += [_limit(result, main), _floor(result, main)]
    found += [_in_sample(result)] if "probe" in result["sets"] else []
    found += [*_removal(result), _runs(result), *_pilot(result["pilot"])]
    return [line for line in found if line]


def path_name(result: Mapping[str, Any]) -> str:
    """The path that was taken, for people."""
    kind = "gradient descent" if result["optimizer"] == "sgd" else "AdamW with frozen second moments"
    of = " on LoRA's factors" if result["method"] == "lora" else ""
    without = " with the overlap removed" if result["removed"] else ""
    return f"{kind}{of}{without}"


def _in_sample(result: Mapping[str, Any]) -> str:
    return f"On the very samples whose overlap was removed: {_lower(_kinds(result, result['sets']['probe']))}"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _kinds(result: Mapping[str, Any], main: Mapping[str, Any]) -> str:
    stretches = main["stretches"]
    if not stretches:
        return "Fewer than two measured losses stand clear of the floor of rounding: no exponent can be read."
    told = [_stretch(s, result["crossover"]) for s in stretches]
    kinds = {s["kind"] for s in stretches}
    name = stretches[0]["kind"]
    lead = f"Along {path_name(result)} the onset "
    if kinds == {"neither"}:
        return f"{lead}is neither quadratic nor quartic at every time {_which(main)}: {'; '.join(told)}."
    if len(kinds) == 1:
        return f"{lead}is {name} at every time {_which(main)}: {'; '.join(told)}."
    seen = " It is never quartic." if "quartic" not in kinds else ""
    start = f"starts {name}" if name != "neither" else "starts neither quadratic nor quartic"
    return f"{lead}{start}: {'; '.join(told)}.{seen}"


def _which(main: Mapping[str, Any]) -> str:
    return "measured" if all(p["above_floor"] for p in main["points"]) else "that can be read"


def _stretch(stretch: Mapping[str, Any], crossover: float) -> str:
    low, high = stretch["lowest"], stretch["highest"]
    exponents = f"exponent {low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"exponents {low:.2f} to {high:.2f}"
    start, end = stretch["start"], stretch["end"]
    if start == end:
        return f"{stretch['kind']} at t = {number(start)} ({start / crossover:.2g} t_c, {exponents})"
    span = f"{start / crossover:.2g} to {end / crossover:.2g} t_c"
    return f"{stretch['kind']} from t = {number(start)} to {number(end)} ({span}, {exponents})"


def _bend(main: Mapping[str, Any]) -> str:
    """What the part in t³ of the steps really taken says: its sign may change with their share of the acceleration."""
    parts = [(p["t"], p["cross_part"]) for p in main["points"] if p["cross_part"]]
    if not parts:
        return ""
    first = parts[0][1] > 0
    turned = [t for t, part in parts if (part > 0) != first]
    found = (
        f"The predicted part in t³ of these steps is {'positive' if first else 'negative'}: the damage first "
        f"{'runs ahead of' if first else 'lags behind'} the t² of its leak part"
    )
    return found + (f"; its sign changes at t = {number(turned[0])}." if turned else ".")


def _acceleration(result: Mapping[str, Any]) -> str:
    """Of the flow, from v · a at the base."""
    along = result["acceleration_along_velocity"]
    if not along:
        return ""
    if along < 0:
        return "At the base the flow's acceleration opposes its velocity (v·a < 0): the path slows down."
    return "At the base the flow's acceleration goes with its velocity (v·a > 0): the path speeds up."


def _agreement(main: Mapping[str, Any]) -> str:
    said = [
        f"{100 * abs(p['ratio'] - 1):.2g} % at {p['crossovers']:.2g} t_c"
        for p in main["points"]
        if p["ratio"] is not None and p["above_floor"]
    ]
    if not said:
        return ""
    return f"Measured and predicted loss differ by {', '.join(said)}; {_parting(main)}."


def _parting(main: Mapping[str, Any]) -> str:
    ten, two = main["validity"]["ten_percent"], main["validity"]["factor_two"]
    if ten is not None:
        twice = f" and by a factor of two at t = {number(two)}" if two is not None else ""
        return (
            f"they part by 10 % at t = {number(ten)} ({ten / main['crossover']:.2g} t_c){twice}: beyond, the "
            "expansion is not valid"
        )
    read = [p["ratio"] for p in main["points"] if p["ratio"] is not None and p["above_floor"]]
    if all(1 / DEPARTURES["ten_percent"] <= ratio <= DEPARTURES["ten_percent"] for ratio in read):
        return f"they stay within 10 % at every time {_which(main)}"
    return "it is more than 10 % at some of them, but no time is seen from which on it stays so"


def _limit(result: Mapping[str, Any], main: Mapping[str, Any]) -> str:
    found = result["curvature"]
    if found is None or found["limit"] is None:
        return ""
    first = f"2 / {number(found['value'])} = {number(found['limit'])} ({found['limit'] / main['crossover']:.2g} t_c)"
    warning = (
        " The small steps themselves are longer than that: they do not follow the flow."
        if result["largest_rate"] > found["limit"]
        else ""
    )
    return (
        f"Known before the first step: 2 / (leading curvature of the fine-tuning loss) is at most {first}, where an "
        f"expansion at the start cannot hold any more.{warning}"
    )


def _floor(result: Mapping[str, Any], main: Mapping[str, Any]) -> str:
    smallest = min(p["utility_loss"] for p in main["points"])
    below = sum(not p["above_floor"] for p in main["points"])
    floor = f"a loss of {main['floor']:.1e}" if main["floor"] else "no loss that differs from 0"
    trip = "exactly 0" if main["round_trip"] == 0 else f"{main['round_trip']:.1e}, which should be 0"
    lost = f" {below} of the points are too near to it to be read." if below else ""
    return (
        f"Rounding the weights once in {result['dtype']} alone makes {floor}; the smallest that was "
        f"measured is {smallest:.1e}. The model put back from its copy has a loss of {trip}.{lost}"
    )


def _removal(result: Mapping[str, Any]) -> list[str]:
    found = result["removed"]
    if found is None:
        return []
    lines = [
        f"Removing the overlap with {found['rank']} directions of {found['samples']} other samples took "
        f"{100 * found['share']:.2g} % of the update's square. On those samples the leak by the scores of their "
        f"tokens falls from {number(found['leak_before'])} to {number(found['leak_after'])}."
    ]
    there, others = found["left"]["probe"], found["left"]["skill"]
    if there["share"] is None or others["share"] is None:
        return lines
    lines.append(
        f"Of the exact leak, over the whole vocabulary, {_left(there)} is left on those samples and {_left(others)} "
        f"on the skill's other samples (its square, {100 * others['share'] ** 2:.0f} %, is left there of the damage "
        f"in t²)."
    )
    if found["difference"] is not None and found["difference"][0] > 0:
        lines.append(
            "So what is left on the samples that the directions are of understates what is left on others (the "
            "difference's 95 % interval lies above 0): orthogonality in the sample overstates orthogonality."
        )
    return lines


def _left(share: Mapping[str, Any]) -> str:
    interval = share["interval"]
    ends = "" if interval is None else f" (95 % interval: {100 * interval[0]:.0f} to {100 * interval[1]:.0f} %)"
    return f"{100 * share['share']:.0f} %{ends}"


def _runs(result: Mapping[str, Any]) -> str:
    told = [
        f"{run['learning_rate']:g} × {run['steps']} ends at {number(run['crossovers'])} t_c"
        + (f" ({run['place']})" if run["place"] else "")
        for run in result["realistic"]
    ]
    return f"Of usual runs at a constant rate, in the time of this path, {'; '.join(told)}."


def _pilot(pilot: Mapping[str, Any] | None) -> list[str]:
    if pilot is None:
        return []
    found = pilot["forecasts"]
    lead = f"{pilot['pilot_steps']} of {pilot['steps']} steps of the real optimiser ({pilot['optimizer']}) forecast"
    if not found:
        text = f"{lead} nothing: their learning rates are 0 (warm-up)."
        return [text] if pilot["happened"] is None else [f"{text} The full run did {number(pilot['happened'])}."]
    if "drifting power law" in found:
        law = found["drifting power law"]
        text = (
            f"{lead} a utility loss of {number(law['value'])} at the end (95 % interval: {number(law['low'])} to "
            f"{number(law['high'])}), by a power of the accumulated learning rate that is {law['exponent']:.2f} now "
            f"and may drift. Growth in proportion would give {number(found['proportional']['value'])}, with the square "
            f"{number(found['quadratic']['value'])}."
        )
    else:
        text = (
            f"{lead} a utility loss between {number(found['last']['value'])} and {number(found['quadratic']['value'])} "
            f"at the end (nothing further, and growth with the square); three points are needed for a fit."
        )
    if pilot["happened"] is None:
        return [text + " It was not compared with the full run (--full)."]
    best = min(found, key=lambda name: _apart(found[name]["ratio"]))
    ratios = ", ".join(f"{name} {number(f['ratio'])}" for name, f in found.items())
    return [
        text,
        f"The full run did {number(pilot['happened'])}. Forecast / what happened: {ratios}; nearest was “{best}”.",
    ]


def _apart(ratio: float | None) -> float:
    return max(ratio, 1 / ratio) if ratio else float("inf")


def title(result: Mapping[str, Any]) -> str:
    """What was measured."""
    return f"{result['model']}: {set_name(result['finetune'])} against {set_name(result['skill'])}, {path_name(result)}"


HEADINGS = ("t", "t / t_c", "steps", "measured", "95 % interval", "predicted", "leak", "cross", "quartic", "ratio",
            "exponent", "predicted", "fine-tuning loss")  # fmt: skip


def rows(part: Mapping[str, Any]) -> list[list[str]]:
    """The points of one set of samples, in the columns of HEADINGS."""
    return [
        [
            number(p["t"]),
            f"{p['crossovers']:.2g}",
            str(p["steps"]),
            number(p["utility_loss"], 4) + ("" if p["above_floor"] else " ‡"),
            " to ".join(number(end) for end in p["interval"]) if p["interval"] else "–",
            number(p["predicted"], 4),
            number(p["leak_part"]),
            number(p["cross_part"]),
            number(p["quartic_part"]),
            f"{p['ratio']:.4f}" if p["ratio"] is not None and p["above_floor"] else "–",
            "–" if p["exponent"] is None else f"{p['exponent']:.2f}",
            "–" if p["predicted_exponent"] is None else f"{p['predicted_exponent']:.2f}",
            f"{p['finetuning_loss']:.4f}",
        ]
        for p in part["points"]
    ]
