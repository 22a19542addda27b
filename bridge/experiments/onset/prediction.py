"""What `bridge.onset` knows before the first step: the path, its predicted damage, and until when to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bridge.data.samples import Sample
from bridge.estimators import curvature, output_space
from bridge.estimators import scores as measure
from bridge.estimators import update as estimators_update
from bridge.estimators.batches import in_sample_order
from bridge.estimators.curvature import Direction
from bridge.estimators.first_order import first_order
from bridge.estimators.lanczos import Leading, leading_eigenvalue
from bridge.estimators.output_space import TokenMoments
from bridge.estimators.overlap_removal import Removal
from bridge.estimators.probe import Probe
from bridge.estimators.step_moments import StepMoments, measure_step_moments
from bridge.estimators.theta import Subject
from bridge.estimators.update import Start, Update
from bridge.estimators.update_maps import Diagonal, Identity, LowRank, UpdateMap, WithoutOverlap, draw_factors
from bridge.experiments.onset.result import Curve, Removed
from bridge.experiments.onset.settings import LARGEST_RATE, STEPS_TO_CROSSOVER
from bridge.models.load import LoadedModel
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Part, RunFolder, read_arrays, write_arrays
from theory import onset
from theory.descent import Schedule, steps_to
from theory.projection_coefficients import snapshot_projector

if TYPE_CHECKING:
    from bridge.experiments.onset.settings import Settings

_CURVE_POINTS = 12  # of the drawn prediction, in the limit of small steps
MEASURED, PROBE = "skill", "probe"
"""Names of the two sets of samples: those on which the damage is measured, those whose overlap is removed."""


@dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    loaded: LoadedModel
    subject: Subject
    sets: dict[str, list[Sample]]  # the skill's samples, those of the removed directions apart
    finetune: list[Sample]
    settings: Settings
    folder: RunFolder
    progress: Progress


@dataclass(frozen=True)
class PathStart:
    """The path before its first step."""

    update: Update
    map: UpdateMap
    start: Start
    removed: Removed | None


def path_start(this: Run) -> PathStart:
    """Velocity and acceleration of the path, as `bridge.estimate_aic` has them but for the map in front."""
    settings, subject = this.settings, this.subject
    shared = (this.folder, this.progress)
    start = estimators_update.measure_velocity(
        subject, this.finetune, settings.optimizer, settings.adam_batch_size, *shared
    )
    scale = start.preconditioner
    update_map: UpdateMap = Identity() if scale is None else Diagonal(scale)
    removed = None
    if settings.method == "lora":
        update_map = _low_rank(this)
        velocity = update_map.apply(start.velocity)
    elif settings.remove_overlap:
        velocity, update_map, removed = _remove(this, start.velocity, update_map)
    else:
        velocity = start.velocity
    product = estimators_update.hessian_product(subject, this.finetune, velocity, *shared)
    acceleration = curvature.times(-1.0, update_map.apply(product))
    estimators_update.require_finite("acceleration", acceleration)
    return PathStart(Update(velocity, acceleration, start.gradient_squared, start.loss), update_map, start, removed)


def _low_rank(this: Run) -> LowRank:
    plan, weights = this.settings.plan, this.subject.weights
    transposed = {name: not isinstance(module, torch.nn.Linear) for name, module in this.subject.modules.items()}
    factors = draw_factors(weights, transposed, plan.lora_rank, this.settings.seed)
    return LowRank(factors, plan.lora_alpha / plan.lora_rank, transposed)


def _remove(this: Run, velocity: Direction, inner: UpdateMap) -> tuple[Direction, UpdateMap, Removed]:
    """The velocity without the overlap, the map that keeps it away, and what was left of it on the same samples."""
    samples, part = this.sets[PROBE], Part(this.folder, PROBE)
    products = measure.measure_products(this.subject, samples, {"velocity": velocity.get}, part, this.progress)
    gram = np.sum([arrays["gram"] for arrays in products.values()], axis=0)
    before = np.sum([arrays["velocity"] for arrays in products.values()], axis=0)
    watched = Probe(this.subject, samples)
    projector = snapshot_projector(gram, this.settings.rank, precision=watched.precision)
    removal = Removal(watched, projector)
    kept = removal.apply(velocity)
    after = watched.inner(kept.get)[0]
    squares = [sum(curvature.inner_product(d[name], d[name]) for name in d) for d in (velocity, kept)]
    found = Removed(
        rank=projector.rank,
        samples=len(samples),
        condition=projector.condition,
        share=1 - squares[1] / squares[0] if squares[0] else 0.0,
        leak_before=float(np.sqrt(np.mean(before**2))),
        leak_after=float(np.sqrt(np.mean(after**2))),
        motion_before=_leak_along(this, velocity),
    )
    return kept, WithoutOverlap(inner, removal), found


def _leak_along(this: Run, velocity: Direction) -> dict[str, np.ndarray]:
    """Sums of Var(z') over the tokens of each sample of both sets, before the overlap was removed."""
    tangents = {f"{name}.weight": part for name, part in velocity.items()}
    found = {}
    for name, samples in this.sets.items():
        path = this.folder.checkpoint(f"leak-before-{name}.npz")
        if not path.exists():
            batches = this.subject.batches(samples)
            parts = [first_order(this.subject.model, tangents, batch) for batch in batches]
            write_arrays(path, in_sample_order(parts, batches))
        found[name] = read_arrays(path)["variance"]
    return found


def measure_motion(this: Run, update: Update) -> dict[str, TokenMoments]:
    """Leak, quartic part and onset coefficient on each set of samples, by the estimator of `bridge.estimate_aic`."""
    unit = np.array([1.0])  # the loss at a time is asked for later, when the crossover is known
    return {
        name: output_space.measure_output_space(
            this.subject, samples, update, unit, Part(this.folder, f"motion-{name}"), this.progress
        )
        for name, samples in this.sets.items()
    }


def schedule_of(moments: TokenMoments, settings: Settings) -> Schedule:
    """Small steps to each of the times."""
    crossover = onset.crossover(moments.leak(), moments.quartic())
    if not crossover or not np.isfinite(crossover):
        raise UserError(
            f"--finetune: expected an update that moves the skill at first and second order, got a leak of "
            f"{moments.leak():.3g} and a quartic part of {moments.quartic():.3g}, which have no crossover to measure in"
        )
    largest = settings.learning_rate or min(LARGEST_RATE, crossover / STEPS_TO_CROSSOVER)
    times = np.array(settings.at) * crossover
    needed = float(times[-1] / largest)
    if needed > settings.max_steps:
        raise UserError(
            f"--max-steps: expected at least {np.ceil(needed):.0f}, the steps of {largest:.3g} to {settings.at[-1]:g} "
            f"crossovers (t = {times[-1]:.3g}), got {settings.max_steps}; or raise --learning-rate, or shorten --at"
        )
    return steps_to(times, largest)


def predict(this: Run, update: Update, schedule: Schedule) -> dict[str, Curve]:
    """Predicted loss at the schedule's times with its steps, and of the flow on a finer grid."""
    ends = schedule.times[0] / 2, schedule.times[-1]
    fine = np.geomspace(*ends, _CURVE_POINTS)
    times = np.concatenate([schedule.times, fine])
    shares = np.concatenate([schedule.shares(), np.ones(_CURVE_POINTS)])
    count = len(schedule.times)
    found = {}
    for name, samples in this.sets.items():
        moments = measure_step_moments(
            this.subject, samples, update, times, shares, Part(this.folder, f"predict-{name}"), this.progress
        )
        arrays = moments.to_arrays()
        steps = StepMoments(**{key: values[:, :count] for key, values in arrays.items()})
        found[name] = Curve(steps, fine, moments.loss[:, count:])
    return found


def leading_curvature(this: Run, direction: PathStart) -> Leading | None:
    """Leading curvature of the fine-tuning loss along the path, where it was asked for."""
    count = this.settings.curvature_iterations
    if not count:
        return None
    first = direction.map.root(_gradient(direction.start))
    if first is None:
        return None

    def operator(step: int, vector: Direction) -> Direction:
        inside = direction.map.root(vector)
        part = Part(this.folder, f"curvature-{step}")
        quiet = Progress(quiet=True)
        product = estimators_update.hessian_product(this.subject, this.finetune, inside or vector, part, quiet)
        part.checkpoint("hessian_product.safetensors").unlink()  # as large as the weights, and one each iteration
        return direction.map.root(product) or product

    path = this.folder.checkpoint("lanczos.safetensors")
    with this.progress.stage("leading curvature", count) as tick:
        return leading_eigenvalue(operator, first, count, path, tick)


def _gradient(start: Start) -> Direction:
    """g, from v = -g or v = -M g."""
    scale = start.preconditioner
    return {name: -part if scale is None else -part / scale[name] for name, part in start.velocity.items()}
