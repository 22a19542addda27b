"""What may act in every step of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

OnStep = Callable[[int, "PreTrainedModel | PeftModel"], bool]
"""Called after a step with the number of steps done and the model; True ends the training."""


@runtime_checkable
class StepHook(Protocol):
    """Something that stands around every optimizer step of a training and may change what the step did.

    While it is there, only its `trained` parameters are trained. What it needs to go on after a kill it saves into
    each checkpoint.
    """

    @property
    def trained(self) -> Sequence[torch.nn.Parameter]:
        """The parameters that may move; of a LoRA model, some of its adapters'."""
        ...

    def before_step(self, done: int) -> None:
        """Called with the number of steps done, before the gradient of the next one is computed."""
        ...

    def after_step(self, done: int) -> None:
        """Called with the same number when the optimizer has moved the weights."""
        ...

    def save(self, folder: Path) -> None:
        """Write what decides the rest of the training into a checkpoint's folder."""
        ...

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote."""
        ...
