"""The parameters theta: the weights of some linear modules of a model, and how to compute on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bridge.data.samples import Sample
from bridge.estimators import taps
from bridge.estimators.batches import Batch, make_batches

if TYPE_CHECKING:
    from bridge.models.load import LoadedModel


@dataclass(frozen=True)
class Subject:
    """A model, the linear modules whose weights are theta, and how to compute on them."""

    model: torch.nn.Module
    modules: dict[str, torch.nn.Module]
    pad_id: int
    batch_size: int
    memory_bytes: int

    @property
    def weights(self) -> dict[str, Tensor]:
        """The selected weight matrices by module name."""
        return {name: module.get_parameter("weight") for name, module in self.modules.items()}

    @property
    def device(self) -> torch.device:
        """Where the selected weights are."""
        return next(iter(self.weights.values())).device

    @property
    def chunk_bytes(self) -> int:
        """Most bytes of one module's scores that may stand in memory at once."""
        # Small pieces stay near a CPU's caches, and in memory that its allocator keeps; a GPU wants large ones.
        return min(self.memory_bytes // 8, 2**25 if self.device.type == "cpu" else 2**30)

    def batches(self, samples: Sequence[Sample]) -> list[Batch]:
        """The samples in batches on the device."""
        return make_batches(samples, self.batch_size, self.pad_id, self.device)


def subject_of(loaded: LoadedModel, modules: str | None, batch_size: int, memory: float) -> Subject:
    """The subject that a command's options ask for.

    Args:
        loaded: the model.
        modules: regular expression for the linear modules that make up theta; None for all of the blocks.
        batch_size: samples computed at a time.
        memory: what scores may take, in GiB.

    Raises:
        UserError: no linear module matches, or the model has none that can be used.

    """
    return Subject(
        model=loaded.model,
        modules=taps.select_modules(loaded.model, modules),
        pad_id=int(loaded.tokenizer.pad_token_id),
        batch_size=batch_size,
        memory_bytes=int(memory * 2**30),
    )


@contextmanager
def differentiable(subject: Subject) -> Iterator[None]:
    """Within the context the selected weights take gradients."""
    weights = subject.weights.values()
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
