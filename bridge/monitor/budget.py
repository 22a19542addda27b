"""A budget of utility loss in a training: what is said when it is passed, and which weights are kept within it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from bridge.models.transformers_setup import quick_imports
from bridge.monitor.files import keep_weights

with quick_imports():
    from transformers import TrainerControl
    from transformers.utils import PushToHubMixin

_log = logging.getLogger(__name__)


@dataclass
class Budget:
    """A limit in nats a response, and what it has led to.

    The weights within the limit are kept in a folder of the monitor's own: a trainer decides by itself whether it saves
    a checkpoint that a callback asks for (save_strategy="best" does not), and clears its own away (save_total_limit).

    stops: whether passing it ends the training. within: folder of the last weights within the limit, kept only where
    it stops. over: whether the last measurement was above the limit. stopped_at: the step after which the training was
    ended.
    """

    limit: float
    stops: bool
    over: bool = False
    within: str | None = None
    stopped_at: int | None = None

    def check(self, loss: float, step: int, control: TrainerControl) -> bool:
        """Look at a measurement; ask the trainer to stop where it has to; whether its weights are to be kept."""
        if loss <= self.limit:
            self.over = False
            return self.stops
        if not self.over:
            _log.warning("step %d: utility loss %.4g nats a response, above the budget of %.4g", step, loss, self.limit)
        self.over = True
        if self.stops:
            self.stopped_at = step
            control.should_training_stop = True
            where = self.within or "none, and the model goes back to its start"
            _log.warning("the training is stopped; last weights within the budget: %s", where)
        return False

    def keep(
        self, folder: Path, step: int, model: torch.nn.Module, *others: PushToHubMixin | None, writes: bool = True
    ) -> None:
        """Keep the model and what else a folder of it has; those kept before are deleted.

        writes: False in the processes that leave the files to the first one.
        """
        place = folder / f"step-{step}"
        if writes:
            keep_weights(place, model, *others)
        self.within = str(place)

    def state(self) -> dict[str, bool | str | None]:
        """What a resumed training needs."""
        return {"over": self.over, "within": self.within}

    def take_over(self, over: bool, within: str | None) -> None:
        """Go on from what `state` gave: weights that later steps have replaced are none."""
        self.over, self.within = over, within if within and Path(within).is_dir() else None
