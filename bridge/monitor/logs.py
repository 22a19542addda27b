"""How a callback puts values of its own into a trainer's logs.

A trainer makes its logs itself, appends them to its history, and hands them to its callbacks: first to those that
report (TensorBoard, wandb), then to the user's, which are given no trainer. So a monitor asks for logs at the steps
where it has values, and has somebody stand before the reporters who adds them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from bridge.models.transformers_setup import quick_imports

with quick_imports():
    from transformers import TrainerCallback, TrainerControl, TrainerState
    from transformers.trainer_callback import CallbackHandler


class LogWriter(TrainerCallback):
    """Adds values to the logs of the step that they belong to, once."""

    def __init__(self) -> None:
        self._pending: tuple[int, dict[str, float]] | None = None

    def write(self, step: int, values: Mapping[str, float], control: TrainerControl) -> None:
        """Keep values for the logs of a step, and ask the trainer for these."""
        self._pending = (step, dict(values))
        control.should_log = True

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict[str, float] | None = None, **_: object
    ) -> None:
        """The trainer's logs have been made: into what is reported of them, and into the history."""
        if self._pending is None or logs is None or self._pending[0] != state.global_step:
            return
        values, self._pending = self._pending[1], None
        logs.update(values)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(values)

    def stand_before_reporters(self, beside: TrainerCallback) -> None:
        """Go to the front of the callbacks that are being called and hold the one given; nothing if there are none."""
        handler = _handler_of(beside)
        if handler is not None and self not in handler.callbacks:
            handler.callbacks = [self, *handler.callbacks]  # a new list: the old one is being walked

    def leave(self) -> None:
        """Go out of the callbacks that are being called."""
        handler = _handler_of(self)
        if handler is not None:
            handler.callbacks = [callback for callback in handler.callbacks if callback is not self]


def _handler_of(callback: TrainerCallback) -> CallbackHandler | None:
    """The callbacks that are being called now, if they hold this one."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, CallbackHandler) and callback in owner.callbacks:
            return owner
        frame = frame.f_back
    return None
