"""What the numbers of one aic.json mean for this fine-tune, a line each."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.experiments.estimate_aic.result import AicResult, PlannedRun, WholeEstimate
from bridge.reports.numbers import against_chance, number, step
from theory.statistics import FisherKind


@dataclass(frozen=True)
class Line:
    """One row of the closing table: a quantity, its value, its interval, and a sentence."""

    name: str
    value: str
    interval: str
    meaning: str


_REGIMES = {
    "first-order": "the run ends well before the crossover: damage grows as t², set by the leak",
    "second-order": "the run ends well after the crossover: damage grows as t⁴, set by the onset coefficient",
    "mixed": "the run ends around the crossover: leak and acceleration both count",
    "outside": "the run leaves the window of the expansion: these predictions say how it starts, not how it ends",
}


BIASED = " †"  # after an interval that the bootstrap's own bias has moved off


def lines(result: AicResult) -> list[Line]:
    """The closing table of `bridge.estimate_aic`."""
    whole = result.whole_model
    return [*_spectrum_lines(result, whole), *_direction_lines(whole, result.fisher), *_time_lines(whole, result.plan)]


def _line(whole: WholeEstimate, key: str, name: str, meaning: str) -> Line:
    ends = whole.intervals.get(key)
    interval = f"{number(ends[0])} … {number(ends[1])}{BIASED if key in whole.biased else ''}" if ends else ""
    return Line(name, number(getattr(whole, key)), interval, meaning)


def _spectrum_lines(result: AicResult, whole: WholeEstimate) -> list[Line]:
    trace = sum(whole.eigenvalues)
    nulls, rank, count = whole.nulls, result.rank, result.num_samples
    kept = 1 - whole.tail / trace if trace else 0.0
    half = nulls.get("effective_rank_half")
    return [
        _line(
            whole, "sharpness", f"sharpness λ (d = {rank})",
            f"curvature of the skill in the weakest of its {rank} sharpest directions",
        ),
        _line(whole, "tail", "tail", f"curvature outside them; the top {rank} hold {kept:.0%} of the trace"),
        _line(
            whole, "effective_rank", "effective rank",
            f"of at most {count} that {count} samples can show; half of them show {number(half)}: "
            f"it has {'saturated' if half and whole.effective_rank < 1.25 * half else 'not saturated'}",
        ),
        Line(
            "split-half overlap", number(whole.split_half_overlap), "",
            "1 if two halves of the samples agree on the sharp directions, "
            f"{number(nulls.get('split_half_overlap_random'))} by chance",
        ),
        _line(
            whole, "mean_score_share", "mean score share",
            f"how much all scores agree; {number(nulls.get('mean_score_share_random'))} by sampling if their mean is 0",
        ),
    ]  # fmt: skip


def _direction_lines(whole: WholeEstimate, fisher: FisherKind) -> list[Line]:
    nulls, speed = whole.nulls, whole.velocity_norm
    share = whole.overlap / speed if speed else 0.0
    return [
        _line(
            whole, "overlap", "overlap ε",
            f"the part of the velocity in the sharp directions is {share:.1%} as long as the velocity, "
            f"{against_chance(whole.overlap, nulls.get('overlap_random'))}",
        ),
        _line(
            whole, "leak", "leak",
            f"speed at which the policy moves from the first step, "
            f"{against_chance(whole.leak, nulls.get('leak_random'))}",
        ),
        _line(
            whole, "leak_exact", "leak, exact over tokens",
            "the same from the output distributions, without the noise of the drawn tokens"
            if fisher == "sampled"
            else "the model's own, along the data's responses; the line above is that of the data's log-likelihood",
        ),
        _line(
            whole, "coupling", "coupling γ",
            "how fast the acceleration bends into the sharp directions (the paper's condition 3)",
        ),
        _line(
            whole, "onset_coefficient", "onset coefficient γ*",
            "root mean square of the second derivative: γ together with the model's own curvature, and leak²",
        ),
        _line(
            whole, "quartic_exact", "quartic part, exact",
            "what is left of it without leak², from the output distributions: the policy's own acceleration",
        ),
    ]  # fmt: skip


def _time_lines(whole: WholeEstimate, plan: PlannedRun | None) -> list[Line]:
    def in_steps(t: float | None) -> str:
        if t is None or plan is None:
            return ""
        rate, steps = plan.learning_rate, plan.steps
        return (
            f" (step {step(t, rate)} of {steps})"
            if t <= rate * steps
            else f" (step {step(t, rate)}; the run has {steps})"
        )

    per_response = "nats of KL per response"
    return [
        _line(
            whole, "crossover", "crossover t_c",
            f"2 leak / γ*; γ* is mostly leak² here, so read the exact crossover{in_steps(whole.crossover)}"
            if whole.mostly_leak
            else f"2 leak / γ*: before it damage grows as t², after it as t⁴{in_steps(whole.crossover)}",
        ),
        _line(
            whole, "crossover_exact", "crossover, exact",
            f"where the leak part, t², and the quartic part, t⁴, are equal{in_steps(whole.crossover_exact)}",
        ),
        Line(
            "window", number(whole.window), "",
            f"beyond it the second-order expansion is not to be trusted{in_steps(whole.window)}",
        ),
        Line("horizon", number(whole.horizon), "", "learning rate × steps of the planned fine-tune"),
        Line("regime", whole.regime, "", _REGIMES[whole.regime]),
        _line(
            whole, "utility_loss_at_horizon", "predicted utility loss",
            f"{per_response} at the horizon"
            + (", outside the window: an extrapolation, not a prediction" if whole.regime == "outside" else ""),
        ),
    ]  # fmt: skip
