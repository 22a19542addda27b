"""The small steps that `bridge.onset` really takes, and the utility loss along them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from bridge.estimators.real_path import FullPath, LoraPath, RealPath, rounding_move
from bridge.estimators.update_maps import LowRank, UpdateMap
from bridge.estimators.utility_loss import measure_utility_loss
from bridge.experiments.onset.assembly import Floor, Walked
from bridge.experiments.onset.result import SetName
from bridge.experiments.onset.stages import Stages
from commands.progress import Progress
from commands.runs import Arrays, kept, numbered
from commands.store import Part, read_arrays, write_arrays
from theory.descent import Schedule


class RealSteps(Stages):
    """The stages from the first step on."""

    def floor(self) -> dict[SetName, Floor]:
        """Utility loss of a change at the rounding level, and of the base put back after it, on each set."""
        weights = self.subject.weights
        base = {name: weight.detach().clone() for name, weight in weights.items()}

        def restore() -> None:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(base[name])

        def there_and_back() -> None:
            rounding_move(weights, base, self.settings.seed)
            restore()

        moves: dict[str, Callable[[], None]] = {
            "rounding": partial(rounding_move, weights, base, self.settings.seed),
            "round trip": there_and_back,
        }
        floors: dict[SetName, Floor] = {}
        for name in self.sets:
            losses = self._losses(name, moves, restore, f"floor-{name}")
            floors[name] = Floor(losses["rounding"], losses["round trip"])
        return floors

    def walk(self, update: UpdateMap, schedule: Schedule) -> Walked:
        """Take the steps; at each of the schedule's times measure every set and the fine-tuning loss."""
        path = self._path(update)
        ends, rates = schedule.ends.tolist(), schedule.rates.tolist()

        def point(number: int) -> Arrays:
            with self.progress.stage("steps", ends[number] - path.done) as tick:
                path.walk(rates, ends[number], tick)
            return self._point(path, number)

        numbers = list(range(len(ends)))
        files = numbered(self.folder, numbers, "point-{}.npz")
        quiet = Progress(quiet=True)  # a point's own stages are shown
        points = [
            arrays for _, arrays in kept(numbers, point, files, "points", quiet, write=write_arrays, read=read_arrays)
        ]
        return Walked(
            losses={name: np.stack([arrays[name] for arrays in points], 1) for name in self.sets},
            finetuning_losses=[float(arrays["finetuning_loss"]) for arrays in points],
            distances=[float(arrays["distance"]) for arrays in points],
        )

    def _path(self, update: UpdateMap) -> RealPath:
        batches, file = self.subject.batches(self.finetune), self.folder.checkpoint("position.safetensors")
        if isinstance(update, LowRank):
            return LoraPath(self.subject, batches, file, update)
        return FullPath(self.subject, batches, file, update)

    def _point(self, path: RealPath, number: int) -> Arrays:
        """Everything that is measured at one time."""
        arrays = {"finetuning_loss": np.array(path.loss()), "distance": np.array(path.distance())}
        moved = f"{path.done} steps"
        for name in self.sets:
            arrays[name] = self._losses(name, {moved: path.place}, path.restore, f"point-{number}-{name}")[moved]
        return arrays

    def _losses(
        self, name: SetName, moves: dict[str, Callable[[], None]], restore: Callable[[], None], part: str
    ) -> dict[str, np.ndarray]:
        """By move the utility loss (N,) on one set."""
        subject = self.subject
        losses = measure_utility_loss(
            subject.model,
            subject.batches(self.sets[name]),
            moves,
            restore,
            subject.memory_bytes,
            Part(self.folder, part),
            self.progress,
        )
        return {move: values["utility_loss"] for move, values in losses.items()}
