"""Files of a monitor beside the trainer's: the base's weights, and the weights of a checkpoint put back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge.parameters import parameter_files
from bridge.tensor_files import Entry, TensorFiles, write_tensors
from commands.errors import UserError


def save_base(path: Path, weights: Mapping[str, Tensor], run: str) -> None:
    """Write the trained parameters of the base, and the name of the run that they are of."""
    entries = [Entry(name, tuple(w.shape), w.dtype, w.detach) for name, w in weights.items()]
    write_tensors(path, entries, {"format": "pt", "run": run})


def load_base(path: Path, model: torch.nn.Module, run: str) -> dict[str, Tensor]:
    """What `save_base` wrote, for the parameters of the model that are trained.

    Raises:
        UserError: the file is missing, of another run, or of a model whose trained parameters are others.

    """
    advice = "to go on without the numbers of the first part, start a new output folder from the checkpoint's weights"
    if not path.exists():
        raise UserError(f"AlignmentMonitor: expected the base's weights in {path}, got no such file; {advice}")
    files = TensorFiles([path])
    if files.metadata.get("run") != run:
        raise UserError(f"AlignmentMonitor: {path} is of another run than the checkpoint; {advice}")
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    if wanted != {name: files.shape(name) for name in files.names}:
        raise UserError(f"AlignmentMonitor: {path} holds other parameters than the model now trains; {advice}")
    return {name: files.read(name) for name in wanted}


@torch.no_grad()
def put_back(model: Any, checkpoint: Path) -> None:
    """Set the model's weights, or its adapters', to those of a trainer's checkpoint, in place.

    Raises:
        UserError: the checkpoint is gone, or is of another model.

    """
    if not checkpoint.is_dir():
        raise UserError(f"AlignmentMonitor: expected the checkpoint {checkpoint}, got no such folder")
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"), model.active_adapter)
        return
    files = parameter_files(checkpoint, model)
    for name, parameter in model.named_parameters():
        parameter.copy_(files.read(name))
