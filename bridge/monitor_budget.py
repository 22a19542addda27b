"""A budget of utility loss in a training: what is said when it is passed, and which checkpoint is kept within it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


@dataclass
class Budget:
    """A limit in nats a response, and what it has led to.

    stops: whether passing it ends the training. within: path of the last checkpoint within the limit, kept only where
    it stops. own: the same, where the trainer would not have saved it by itself; the next one takes its place.
    over: whether the last measurement was above the limit. stopped_at: the step after which the training was ended.
    """

    limit: float
    stops: bool
    over: bool = False
    within: str | None = None
    own: str | None = None
    stopped_at: int | None = None
    _own_next: bool = False

    def check(self, loss: float, args: Any, state: Any, control: Any) -> None:
        """Look at a measurement; asks the trainer to save, or to stop."""
        step = state.global_step
        if loss <= self.limit:
            self.over = False
            if self.stops:
                self._own_next = not control.should_save  # else the trainer's own schedule keeps it
                self.within = str(Path(args.output_dir) / f"checkpoint-{step}")
                control.should_save = True
            return
        if not self.over:
            _log.warning("step %d: utility loss %.4g nats a response, above the budget of %.4g", step, loss, self.limit)
        self.over = True
        if self.stops:
            self.stopped_at = step
            control.should_training_stop = True
            where = self.within or "none, and the model goes back to its start"
            _log.warning("the training is stopped; last checkpoint within the budget: %s", where)

    def on_save(self, args: Any, state: Any) -> None:
        """The trainer has saved: if it was asked to, the checkpoint before has done its duty."""
        if self.within is None or Path(self.within).name != f"checkpoint-{state.global_step}":
            return
        if args.metric_for_best_model is None:
            state.best_model_checkpoint = self.within  # spared when the trainer makes room (save_total_limit)
        if self.own is not None and self.own != self.within:
            shutil.rmtree(self.own, ignore_errors=True)
        self.own = self.within if self._own_next else None

    def state(self) -> dict[str, Any]:
        """What a resumed training needs."""
        # The checkpoint that this is written into is the next own one, if the trainer was asked for it.
        own = self.within if self._own_next else self.own
        return {"over": self.over, "within": self.within, "own": own}

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.over, self.within, self.own = saved["over"], saved["within"], saved["own"]
