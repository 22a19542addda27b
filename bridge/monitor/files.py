"""Files of a monitor beside the trainer's: the base's weights, and weights that are kept and put back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import PushToHubMixin

from bridge.deltas.parameters import parameter_files
from bridge.deltas.tensor_files import Entry, TensorFiles, write_tensors
from bridge.models.files import SINGLE_FILE
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


def keep_weights(folder: Path, model: torch.nn.Module, *others: PushToHubMixin | None) -> None:
    """Save a model, or its adapters, and for instance its tokenizer in a folder; its siblings are deleted after that.

    The folder appears when it is whole: whatever ends the process, one of them can be read.
    """
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if isinstance(model, PushToHubMixin):
        model.save_pretrained(unfinished)
    else:
        entries = [Entry(name, tuple(p.shape), p.dtype, p.detach) for name, p in model.named_parameters()]
        write_tensors(unfinished / SINGLE_FILE, entries, {"format": "pt"})
    for other in others:
        if other is not None:
            other.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    for sibling in folder.parent.iterdir():
        if sibling != folder:
            shutil.rmtree(sibling, ignore_errors=True)


@torch.no_grad()
def put_back(model: torch.nn.Module, folder: Path) -> None:
    """Set the model's weights, or its adapters', to those that `keep_weights` saved, in place.

    Raises:
        UserError: the folder is gone, cannot be read, or is of another model.

    """
    if not folder.is_dir():
        raise UserError(f"AlignmentMonitor: expected weights in {folder}, got no such folder")
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        name: str = getattr(model, "active_adapter", "default")
        place = folder / name if (folder / name).is_dir() else folder  # where adapters of other names are saved
        try:
            found = load_peft_weights(str(place), device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"AlignmentMonitor: expected the weights of adapters in {place}, got {error}") from None
        set_peft_model_state_dict(model, found, name)
        return
    files = parameter_files(folder, model)
    for name, parameter in model.named_parameters():
        parameter.copy_(files.read(name))
