"""What `bridge.onset` knows before the first step: the path, its predicted damage, and until when to trust it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bridge.estimators import curvature
from bridge.estimators.batches import in_sample_order
from bridge.estimators.curvature import Direction
from bridge.estimators.first_order import first_order
from bridge.estimators.lanczos import Leading, leading_eigenvalue
from bridge.estimators.output_space import TokenMoments, measure_output_space
from bridge.estimators.probe import Probe
from bridge.estimators.scores import measure_products
from bridge.estimators.step_moments import StepMoments, measure_step_moments
from bridge.estimators.update import Start, Update, hessian_product, measure_velocity, require_finite
from bridge.estimators.update_maps import Diagonal, Identity, LowRank, Removal, UpdateMap, WithoutOverlap, draw_factors
from bridge.experiments.onset.assembly import Curve, Removed
from bridge.experiments.onset.result import SetName
from bridge.experiments.onset.settings import LARGEST_RATE, STEPS_TO_CROSSOVER, Settings
from bridge.experiments.onset.stages import Stages
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import Arrays, kept
from commands.store import Part, read_arrays, write_arrays
from theory import onset
from theory.descent import Schedule, steps_to
from theory.projection_coefficients import snapshot_projector

_CURVE_POINTS = 12  # of the drawn prediction, in the limit of small steps


@dataclass(frozen=True)
class PathStart:
    """The path before its first step."""

    update: Update
    map: UpdateMap
    start: Start
    removed: Removed | None

    @property
    def along_velocity(self) -> float:
        """v . a."""
        return float(sum(self.update.inner(name, "velocity", "acceleration") for name in self.update.velocity))


class Prediction(Stages):
    """The stages before the first step."""

    def path_start(self) -> PathStart:
        """Velocity and acceleration of the path, as `bridge.estimate_aic` has them but for the map in front."""
        settings, shared = self.settings, (self.folder, self.progress)
        rows = self.finetune
        start = measure_velocity(self.subject, rows, settings.optimizer, settings.adam_batch_size, *shared)
        scale = start.preconditioner
        update_map: UpdateMap = Identity() if scale is None else Diagonal(scale)
        removed = None
        if settings.method == "lora":
            update_map = self._low_rank()
            velocity = update_map.apply(start.velocity)
        elif settings.remove_overlap:
            velocity, update_map, removed = self._remove_overlap(start.velocity, update_map)
        else:
            velocity = start.velocity
        product = hessian_product(self.subject, rows, velocity, *shared)
        acceleration = curvature.times(-1.0, update_map.apply(product))
        require_finite("acceleration", acceleration)
        update = Update(velocity, acceleration, start.gradient_squared, start.loss)
        return PathStart(update, update_map, start, removed)

    def _low_rank(self) -> LowRank:
        plan, subject = self.settings.plan, self.subject
        transposed = {name: not isinstance(module, torch.nn.Linear) for name, module in subject.modules.items()}
        factors = draw_factors(subject.weights, transposed, plan.lora_rank, self.settings.seed)
        return LowRank(factors, plan.lora_alpha / plan.lora_rank, transposed)

    def _remove_overlap(self, velocity: Direction, inner: UpdateMap) -> tuple[Direction, UpdateMap, Removed]:
        """The velocity without the overlap, the map that keeps it away, and what was left of it on the same samples."""
        samples, part = self.sets["probe"], Part(self.folder, "probe")
        products = measure_products(self.subject, samples, {"velocity": velocity.get}, part, self.progress)
        gram = np.sum([arrays["gram"] for arrays in products.values()], axis=0)
        before = np.sum([arrays["velocity"] for arrays in products.values()], axis=0)
        probe = Probe(self.subject, samples)
        projector = snapshot_projector(gram, self.settings.rank, precision=probe.precision)
        removal = Removal(probe, projector)
        rest = removal.apply(velocity)
        after = probe.inner(rest.get)[0]
        squares = [sum(curvature.inner_product(d[name], d[name]) for name in d) for d in (velocity, rest)]
        removed = Removed(
            rank=projector.rank,
            samples=len(samples),
            condition=projector.condition,
            share=1 - squares[1] / squares[0] if squares[0] else 0.0,
            leak_before=float(np.sqrt(np.mean(before**2))),
            leak_after=float(np.sqrt(np.mean(after**2))),
            motion_before=self._leak_along(velocity),
        )
        return rest, WithoutOverlap(inner, removal), removed

    def _leak_along(self, velocity: Direction) -> dict[SetName, np.ndarray]:
        """Sums of Var(z') over the tokens of each sample of both sets, before the overlap was removed."""
        tangents = {f"{name}.weight": part for name, part in velocity.items()}

        def motion(name: SetName) -> Arrays:
            batches = self.subject.batches(self.sets[name])
            return in_sample_order([first_order(self.subject.model, tangents, batch) for batch in batches], batches)

        names = list(self.sets)
        files = [self.folder.checkpoint(f"leak-before-{name}.npz") for name in names]
        stage = "leak with the overlap"
        found = kept(names, motion, files, stage, self.progress, write=write_arrays, read=read_arrays)
        return {name: arrays["variance"] for name, arrays in found}

    def motion(self, update: Update) -> dict[SetName, TokenMoments]:
        """Leak, quartic part and onset coefficient on each set, by the estimator of `bridge.estimate_aic`."""
        unit = np.array([1.0])  # the loss at a time is asked for later, when the crossover is known
        return {
            name: measure_output_space(
                self.subject, samples, update, unit, Part(self.folder, f"motion-{name}"), self.progress
            )
            for name, samples in self.sets.items()
        }

    def losses(self, update: Update, schedule: Schedule) -> dict[SetName, Curve]:
        """Predicted loss at the schedule's times with its steps, and of the flow on a finer grid."""
        fine = np.geomspace(schedule.times[0] / 2, schedule.times[-1], _CURVE_POINTS)
        times = np.concatenate([schedule.times, fine])
        shares = np.concatenate([schedule.shares(), np.ones(_CURVE_POINTS)])
        count = len(schedule.times)
        curves: dict[SetName, Curve] = {}
        for name, samples in self.sets.items():
            part = Part(self.folder, f"predict-{name}")
            moments = measure_step_moments(self.subject, samples, update, times, shares, part, self.progress)
            arrays = moments.to_arrays()
            steps = StepMoments(**{key: values[:, :count] for key, values in arrays.items()})
            curves[name] = Curve(steps, fine, moments.loss[:, count:])
        return curves

    def leading_curvature(self, path: PathStart) -> Leading | None:
        """Leading curvature of the fine-tuning loss along the path, where it was asked for."""
        count = self.settings.curvature_iterations
        first = path.map.root(_gradient(path.start)) if count else None
        if first is None:
            return None

        def operator(step: int, vector: Direction) -> Direction:
            inside = path.map.root(vector)
            part = Part(self.folder, f"curvature-{step}")
            product = hessian_product(self.subject, self.finetune, inside or vector, part, Progress(quiet=True))
            part.discard()  # as large as the weights, and one each iteration
            return path.map.root(product) or product

        with self.progress.stage("leading curvature", count) as tick:
            return leading_eigenvalue(operator, first, count, self.folder.checkpoint("lanczos.safetensors"), tick)


def _gradient(start: Start) -> Direction:
    """g, from v = -g or v = -M g."""
    scale = start.preconditioner
    return {name: -part if scale is None else -part / scale[name] for name, part in start.velocity.items()}


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
