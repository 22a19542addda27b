"""The alignment instability condition (AIC) of a skill along an update path, estimated with intervals.

Definitions 3.4 and 5.1 of "The Geometry of Alignment Collapse": with P the projector on the top-d eigenspace
of the Fisher matrix F, (1) ``lambda_d >= lambda`` and the eigenvalues beyond d sum to at most epsilon, (2)
``|P v| <= epsilon``, (3) ``|F^(1/2) P a| >= gamma``. Beside these stand the leak and the onset coefficient,
which set the utility loss itself (see :mod:`theory.onset`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from theory import onset as law
from theory.functionals import weighted_functionals
from theory.nulls import null_values
from theory.resampling import bootstrap_weights, percentile_interval
from theory.spectra import check_rank, spectrum, split_half
from theory.statistics import FisherKind, Scalar, ScoreStatistics

Regime = Literal["first-order", "second-order", "mixed", "outside"]


@dataclass(frozen=True)
class Estimate:
    """The AIC quantities of one skill, path and parameter block.

    Attributes:
        fisher: which Fisher the samples stand for.
        num_samples: N.
        dimension: n, the number of parameters.
        rank: d, as asked for.
        numerical_rank: directions above rounding; the projector has min(d, numerical_rank) of them.
        eigenvalues: of F, descending, N of them.
        sharpness: ``lambda_d``.
        tail: sum of the eigenvalues after d.
        gap: ``lambda_d - lambda_{d+1}``; where it is zero the projector is ambiguous.
        overlap: ``|P v|`` (``|P g|`` under gradient flow).
        coupling: gamma, ``|F^(1/2) P a|``.
        leak: ``sqrt(v^T F v)``.
        velocity_norm: ``|v|``.
        acceleration_norm: ``|a|``.
        effective_rank: participation ratio of the eigenvalues.
        split_half_overlap: mode subspace overlap of random halves; None for fewer than two groups.
        mean_score_share: ``|E s|^2 / tr F``.
        onset_coefficient: gamma_*, or None without curvature.
        crossover: ``2 leak / gamma_*``; None without curvature, or if both vanish.
        correlation: of l' and l''; None without curvature, or if either vanishes.
        nulls: reference values, see :func:`theory.nulls.null_values`.
        intervals: percentile bootstrap intervals (low, high) by name.
        bootstrap_bias: mean over the resamples minus the estimate, by name; where it is comparable with the
            interval's width the interval must not be read as one for the population value.
    """

    fisher: FisherKind
    num_samples: int
    dimension: int
    rank: int
    numerical_rank: int
    eigenvalues: list[float]
    sharpness: float
    tail: float
    gap: float
    overlap: float
    coupling: float
    leak: float
    velocity_norm: float
    acceleration_norm: float
    effective_rank: float
    split_half_overlap: float | None
    mean_score_share: float
    onset_coefficient: float | None
    crossover: float | None
    correlation: float | None
    nulls: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    bootstrap_bias: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; numbers that are infinite or undefined become None."""
        return _jsonable(asdict(self))


def estimate(
    stats: ScoreStatistics,
    rank: int,
    *,
    groups: Int[np.ndarray, " M"] | None = None,
    resamples: int = 200,
    level: Scalar = 0.95,
    splits: int = 10,
    seed: int = 0,
) -> Estimate:
    """Estimate the AIC quantities with percentile bootstrap intervals.

    The intervals describe the spread over samples of the estimator at this N. What depends on eigenvectors
    or on pairs of samples (``sharpness``, ``tail``, ``overlap``, ``coupling``, ``effective_rank``,
    ``mean_score_share``) is biased at small N; resamples, which repeat samples, are biased once more, so such
    an interval can lie wholly to one side of its estimate (``bootstrap_bias`` says by how much). ``leak`` and
    ``onset_coefficient`` are root mean squares and nearly free of it. For an exact Fisher there is nothing to
    resample unless groups are prompts: pass ``resamples=0``.

    Args:
        stats: statistics of N samples.
        rank: d, in 1..N. Directions beyond the numerical rank take no part, and sharpness is then 0.
        groups: group number of each sample; samples of a group (draws at one prompt) are resampled together.
        resamples: bootstrap resamples; 0 for no intervals.
        level: confidence level of the intervals.
        splits: random splits for the split-half numbers.
        seed: of every random draw.

    Raises:
        ValueError: if an argument does not fit, or the Gram matrix has a negative eigenvalue.
    """
    return estimate_many(
        [stats], rank, groups=groups, resamples=resamples, level=level, splits=splits, seed=seed, threads=1
    )[0]


def estimate_many(
    blocks: Sequence[ScoreStatistics],
    rank: int | Sequence[int],
    *,
    groups: Int[np.ndarray, " M"] | None = None,
    resamples: int = 200,
    level: Scalar = 0.95,
    splits: int = 10,
    seed: int = 0,
    threads: int = 2,
) -> list[Estimate]:
    """:func:`estimate` for many parameter blocks of the same samples, with the same resamples for all.

    Args:
        blocks: statistics of the blocks; their sample weights must agree.
        rank: one rank for all blocks, or one for each.
        groups: as in :func:`estimate`, like all other arguments.
        resamples: bootstrap resamples.
        level: confidence level.
        splits: random splits.
        seed: of every random draw.
        threads: blocks worked on at a time; the results do not depend on it.

    Raises:
        ValueError: as :func:`estimate`, or if the blocks are not of the same samples.
    """
    if not blocks:
        return []
    ranks = [rank] * len(blocks) if isinstance(rank, int) else list(rank)
    if len(ranks) != len(blocks):
        raise ValueError(f"expected one rank for each of the {len(blocks)} blocks, got {len(ranks)}")
    base = blocks[0].sample_weights
    jobs = list(zip(blocks, ranks, strict=True))
    for block, d in jobs:
        check_rank(d, block.num_samples)
        if not np.array_equal(block.sample_weights, base):
            raise ValueError("blocks share resamples, so they must have the same samples and sample weights")
    draws = bootstrap_weights(base, resamples, seed, groups)

    def one(block: ScoreStatistics, d: int) -> Estimate:
        return _estimate(block, d, draws, groups, float(level), splits, seed)

    if threads <= 1:
        return [one(block, d) for block, d in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, blocks, ranks))


def _estimate(
    stats: ScoreStatistics,
    rank: int,
    draws: Float[np.ndarray, "R N"],
    groups: Int[np.ndarray, " M"] | None,
    level: float,
    splits: int,
    seed: int,
) -> Estimate:
    whole = spectrum(stats)
    halves = split_half(stats, rank, splits, seed, groups)
    here = {k: float(v[0]) for k, v in weighted_functionals(stats, stats.sample_weights[None], rank).items()}
    resampled = weighted_functionals(stats, draws, rank) if len(draws) else {}
    intervals = {name: percentile_interval(values, level) for name, values in resampled.items()}
    moves = stats.curvature is not None
    return Estimate(
        fisher=stats.fisher,
        num_samples=stats.num_samples,
        dimension=stats.dimension,
        rank=rank,
        numerical_rank=whole.numerical_rank,
        eigenvalues=whole.eigenvalues.tolist(),
        sharpness=here["sharpness"],
        tail=here["tail"],
        gap=whole.gap(rank),
        overlap=here["overlap"],
        coupling=here["coupling"],
        leak=here["leak"],
        velocity_norm=stats.velocity_norm,
        acceleration_norm=stats.acceleration_norm,
        effective_rank=here["effective_rank"],
        split_half_overlap=None if halves is None else halves.overlap,
        mean_score_share=here["mean_score_share"],
        onset_coefficient=here.get("onset_coefficient"),
        crossover=law.crossover(here["leak"], here["onset_coefficient"]) if moves else None,
        correlation=law.correlation(stats) if moves else None,
        nulls=null_values(stats, whole.eigenvalues, min(rank, whole.numerical_rank), halves, seed),
        intervals={name: ends for name, ends in intervals.items() if ends is not None},
        bootstrap_bias={name: float(np.mean(v)) - here[name] for name, v in resampled.items() if np.isfinite(v).all()},
    )


def regime(leak: Scalar, onset: Scalar, horizon: Scalar, window: Scalar) -> Regime:
    """Which order sets the utility loss at the end of a run.

    ``"outside"`` if the horizon is beyond the window in which the expansion holds; otherwise, with the
    crossover t_c, ``"first-order"`` below ``t_c/3``, where the quartic part ``gamma_*^2 t^4/8`` is less than
    1/9 of the leak part ``leak^2 t^2/2``; ``"second-order"`` above ``3 t_c``, where it is more than nine
    times the leak part; and ``"mixed"`` between, where both count. With ``leak = onset = 0`` both parts are
    zero and neither exceeds the other: ``"mixed"``.

    Args:
        leak: root mean square of l'.
        onset: gamma_*, root mean square of l''.
        horizon: the time of interest, learning rate x steps.
        window: largest time of the expansion, see :func:`expansion_window`.

    Raises:
        ValueError: if an argument is negative or not a number.
    """
    for name, value in (("horizon", horizon), ("window", window)):
        if not value >= 0:
            raise ValueError(f"{name} must be a time that is not negative, got {value}")
    turn = law.crossover(leak, onset)
    if horizon > window:
        return "outside"
    if turn is None:
        return "mixed"
    if horizon < turn / 3:
        return "first-order"
    return "second-order" if horizon > 3 * turn else "mixed"


def expansion_window(stats: ScoreStatistics) -> float:
    """The time up to which a second-order expansion of the path and of the log-probabilities is plausible.

    The smaller of ``|v|/|a|``, in which the acceleration changes the velocity by its own size, and the time
    at which ``leak t + gamma_* t^2/2 = 1``, when log-probabilities have moved by about one nat. A scale, not
    a bound. Infinite if nothing moves (``a = 0`` and no leak or onset coefficient).

    Raises:
        ValueError: if the statistics have no curvature.
    """
    first, second = law.leak(stats), law.onset_coefficient(stats)
    reach = first + math.sqrt(first**2 + 2 * second)  # the quadratic's root is 2 / reach, cancellation-free
    nat = 2 / reach if reach > 0 else math.inf
    turn = stats.velocity_norm / stats.acceleration_norm if stats.acceleration_norm > 0 else math.inf
    return min(nat, turn)


@dataclass(frozen=True)
class Condition:
    """One inequality of the AIC.

    Attributes:
        number: of the condition in Definition 3.4 (1, 2 or 3).
        name: of the quantity in :class:`Estimate`.
        holds: whether it is met.
        value: what was estimated.
        threshold: what it was compared with.
        relation: ``">="`` or ``"<="``, value against threshold.
    """

    number: int
    name: str
    holds: bool
    value: float
    threshold: float
    relation: Literal[">=", "<="]


@dataclass(frozen=True)
class Verdict:
    """Whether the AIC holds for given thresholds.

    Attributes:
        holds: all three conditions are met.
        conditions: sharpness and tail (condition 1), overlap (2), coupling (3).
    """

    holds: bool
    conditions: tuple[Condition, ...]

    def condition(self, number: int) -> bool:
        """Whether condition 1, 2 or 3 is met.

        Raises:
            ValueError: for another number.
        """
        parts = [c.holds for c in self.conditions if c.number == number]
        if not parts:
            raise ValueError(f"the AIC has conditions 1, 2 and 3, got {number}")
        return all(parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return _jsonable(asdict(self))


def aic_verdict(
    subject: Estimate | ScoreStatistics, *, d: int, sharpness: Scalar, coupling: Scalar, overlap: Scalar
) -> Verdict:
    """Does the AIC hold with these thresholds (Definitions 3.4 and 5.1)?

    The paper compares the one number epsilon with two units: the tail, an eigenvalue sum (condition 1), and
    ``|P v|``, a gradient norm (condition 2). Small values of both still allow a leak of up to
    ``sqrt(lambda_1 epsilon^2 + epsilon |v|^2)``; the leak itself is in the estimate.

    Args:
        subject: an estimate of rank d, or statistics to estimate from.
        d: rank of the projector.
        sharpness: lambda, the least allowed ``lambda_d``.
        coupling: gamma, the least allowed ``|F^(1/2) P a|``.
        overlap: epsilon, the largest allowed tail and the largest allowed ``|P v|``.

    Raises:
        ValueError: if a threshold is negative or not a number, or d does not fit the subject.
    """
    for name, value in (("sharpness", sharpness), ("coupling", coupling), ("overlap", overlap)):
        if not value >= 0:
            raise ValueError(f"the threshold {name} must be a number that is not negative, got {value}")
    if isinstance(subject, Estimate):
        if subject.rank != d:
            raise ValueError(
                f"the estimate is of rank {subject.rank}, not {d}: estimate again with rank={d}, or ask for "
                f"d={subject.rank}"
            )
        values = {name: getattr(subject, name) for name in ("sharpness", "tail", "overlap", "coupling")}
    else:
        batch = weighted_functionals(subject, subject.sample_weights[None], d)
        values = {name: float(value[0]) for name, value in batch.items()}
    conditions = (
        _at_least(1, "sharpness", values["sharpness"], sharpness),
        _at_most(1, "tail", values["tail"], overlap),
        _at_most(2, "overlap", values["overlap"], overlap),
        _at_least(3, "coupling", values["coupling"], coupling),
    )
    return Verdict(all(c.holds for c in conditions), conditions)


def _at_least(number: int, name: str, value: float, threshold: Scalar) -> Condition:
    return Condition(number, name, bool(value >= threshold), value, float(threshold), ">=")


def _at_most(number: int, name: str, value: float, threshold: Scalar) -> Condition:
    return Condition(number, name, bool(value <= threshold), value, float(threshold), "<=")


def _jsonable(value: Any) -> Any:
    """Replace numbers that JSON cannot hold by None, tuples by lists, at every depth."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
