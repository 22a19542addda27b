"""From the statistics of all modules to the result of `bridge.estimate_aic`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
from jaxtyping import Float, Int

from bridge.estimators.output_space import TokenMoments
from bridge.estimators.update import Update
from bridge.experiments.estimate_aic.result import (
    AicResult,
    BlockEstimate,
    Checks,
    LossAt,
    PlannedRun,
    WholeEstimate,
)
from bridge.experiments.estimate_aic.settings import Settings
from bridge.models.blocks import group_by_block
from theory import aic, onset
from theory.resampling import bootstrap_weights, percentile_interval
from theory.spectra import rank_by_energy, spectrum
from theory.statistics import ScoreStatistics

POINTS_PER_DECADE = 6
DECADES = (-2, 1.5)  # below and above the crossover; further up no expansion holds


# The paper is silent on d for a whole model. Ten leaves the bootstrap of lambda_d meaningful at N = 64, where a
# rank by energy would take nearly all of the few directions that the samples show.
DEFAULT_RANK = 10


def prediction_times(whole: ScoreStatistics, horizon: float) -> Float[np.ndarray, " T"]:
    """Times at which the utility loss is predicted: the decades around the crossover, and the horizon.

    The crossover is not known before the policy's second derivative is. Its two known parts, s.a and -leak^2 (the
    mean of l''), are near enough to place the grid.
    """
    first = onset.leak(whole)
    second = float(np.sqrt(whole.expectation(whole.acceleration**2) + first**4))
    centre = 2 * first / second if first > 0 and second > 0 else horizon
    steps = np.arange(DECADES[0] * POINTS_PER_DECADE, int(DECADES[1] * POINTS_PER_DECADE) + 1) / POINTS_PER_DECADE
    return np.unique(np.append(centre * 10.0**steps, horizon))


def choose_rank(whole: ScoreStatistics, settings: Settings) -> int:
    """The rank d: as asked for by number or by share of the trace, else DEFAULT_RANK."""
    if settings.rank is not None:
        return settings.rank
    if settings.energy is not None:
        return max(1, rank_by_energy(spectrum(whole).eigenvalues, settings.energy))
    return min(DEFAULT_RANK, whole.num_samples)


def assemble(
    model: str,
    modules: Mapping[str, ScoreStatistics],
    update: Update,
    moments: TokenMoments,
    times: Float[np.ndarray, " T"],
    groups: Int[np.ndarray, " N"],
    settings: Settings,
) -> AicResult:
    """The content of aic.json.

    Args:
        model: its name.
        modules: statistics by module name.
        update: the update path.
        moments: derivatives of the policy on the same samples.
        times: when the utility loss is predicted.
        groups: which samples share a prompt.
        settings: rank, horizon and resampling.

    """
    blocks_of = group_by_block(list(modules))
    layers = {block: whole_model({n: modules[n] for n in names}) for block, names in blocks_of.items()}
    curvature = moments.second - sum(stats.acceleration for stats in modules.values())
    whole = whole_model(modules).with_curvature(curvature)
    rank = choose_rank(whole, settings)
    everything = [whole, *layers.values(), *modules.values()]
    estimates = aic.estimate_many(everything, rank, groups=groups, resamples=settings.bootstrap, seed=settings.seed)
    members = [list(modules), *blocks_of.values(), *([name] for name in modules)]
    norms = [float(np.sqrt(sum(update.gradient_squared[n] for n in names))) for names in members]
    blocks = [_block(estimate, norm) for estimate, norm in zip(estimates[1:], norms[1:], strict=True)]
    return AicResult(
        model=model,
        fisher=whole.fisher,
        num_samples=whole.num_samples,
        rank=rank,
        finetuning_loss=update.loss,
        whole_model=_whole(estimates[0], norms[0], whole, moments, times, groups, settings),
        layers=dict(zip(layers, blocks[: len(layers)], strict=True)),
        blocks=dict(zip(modules, blocks[len(layers) :], strict=True)),
        checks=Checks(_disagreement(whole.velocity, moments.first)),
        plan=PlannedRun(settings.skill, settings.finetune, settings.learning_rate, settings.steps),
        squared_norms=whole.gram.diagonal().tolist(),
    )


def _block(estimate: aic.Estimate, gradient_norm: float) -> BlockEstimate:
    values = estimate.as_dict()
    kept = {field.name: values[field.name] for field in fields(BlockEstimate) if field.name in values}
    return BlockEstimate(**kept, gradient_norm=gradient_norm)


def whole_model(modules: Mapping[str, ScoreStatistics]) -> ScoreStatistics:
    """Statistics of all modules together; the curvature, which does not add, is absent."""
    first, *rest = modules.values()
    return sum(rest, start=first)


def _whole(
    estimate: aic.Estimate,
    gradient_norm: float,
    whole: ScoreStatistics,
    moments: TokenMoments,
    times: Float[np.ndarray, " T"],
    groups: Int[np.ndarray, " N"],
    settings: Settings,
) -> WholeEstimate:
    """The whole model's estimate with regime, predicted loss, and the numbers from the output space."""
    exact = moments.loss.mean(axis=0)
    at_horizon = int(np.argmin(np.abs(times - settings.horizon)))
    window = aic.expansion_window(whole)
    draws = bootstrap_weights(whole.sample_weights, settings.bootstrap, settings.seed, groups)
    resampled = {
        "leak_exact": np.sqrt(draws @ moments.leak_variance),
        "onset_exact": np.sqrt(draws @ moments.second**2),
        "quartic_exact": np.sqrt(draws @ moments.quartic_variance),
        "crossover_exact": 2 * np.sqrt(draws @ moments.leak_variance) / np.sqrt(draws @ moments.quartic_variance),
        "utility_loss_at_horizon": draws @ moments.loss[:, at_horizon],
    }
    intervals = {name: percentile_interval(v, 0.95) for name, v in resampled.items() if len(v)}
    values = estimate.as_dict()
    values["intervals"] |= {name: list(ends) for name, ends in intervals.items() if ends is not None}
    return WholeEstimate(
        **values,
        gradient_norm=gradient_norm,
        horizon=settings.horizon,
        window=window if np.isfinite(window) else None,
        regime=aic.regime(onset.leak(whole), onset.onset_coefficient(whole), settings.horizon, window),
        utility_loss_at_horizon=float(exact[at_horizon]),
        leak_exact=moments.leak(),
        onset_exact=moments.onset(),
        quartic_exact=moments.quartic(),
        crossover_exact=onset.crossover(moments.leak(), moments.quartic()),
        predicted_loss=_curve(times, onset.predicted_loss(whole, times).utility_loss),
        predicted_loss_exact=_curve(times, exact),
    )


def _curve(times: Float[np.ndarray, " T"], values: Float[np.ndarray, " T"]) -> list[LossAt]:
    return [LossAt(float(t), float(u) if np.isfinite(u) else None) for t, u in zip(times, values, strict=True)]


def _disagreement(backward: Float[np.ndarray, " N"], forward: Float[np.ndarray, " N"]) -> float:
    """Largest |s.v - l'| over its root mean square: two independent routes to the same derivative."""
    scale = float(np.sqrt(np.mean(backward**2)))
    return float(np.abs(backward - forward).max() / scale) if scale > 0 else 0.0
