"""Fine-tuning from loaded weights to files: the training, the change of the weights, and the moved model."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn import Module

from bridge.data.samples import Sample
from bridge.models.load import LoadedModel
from bridge.training.hooks import OnStep, StepHook
from bridge.training.plan import Plan, TrainingLog, UpdateSummary
from bridge.training.train import train, with_lora
from commands.progress import Progress
from commands.store import Folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bridge.deltas.weight_delta import WeightDelta

MakeHook = Callable[[Module], StepHook]
"""Makes what stands around the optimizer's steps, of the model as it is trained: with its adapters, for LoRA."""

DELTA_FILES = {"full": "delta.safetensors", "lora": "adapter"}


@dataclass(frozen=True)
class Tuned:
    """What a fine-tune gave: the model (with its adapters, for LoRA), the log, and the change of the weights."""

    model: PreTrainedModel | PeftModel
    log: TrainingLog
    delta: WeightDelta


def tune(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    plan: Plan,
    folder: Folder,
    progress: Progress,
    on_step: OnStep | None = None,
    make_hook: MakeHook | None = None,
) -> Tuned:
    """Fine-tune the loaded model in place and write the change of its weights into the folder, with its delta.json.

    LoRA writes adapter/, full fine-tuning delta.safetensors and model/. With the same folder again it goes on where
    a killed process stopped. `on_step`, the hook that `make_hook` makes, and errors as of `bridge.training.train`.
    """
    from bridge.deltas.open import write_record

    tuned = (_tune_lora if plan.method == "lora" else _tune_full)(
        loaded, samples, plan, folder, progress, on_step, make_hook
    )
    write_record(folder.path, tuned.delta, DELTA_FILES[plan.method], loaded.name, loaded.weights_hash)
    return tuned


def _tune_lora(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    plan: Plan,
    folder: Folder,
    progress: Progress,
    on_step: OnStep | None,
    make_hook: MakeHook | None,
) -> Tuned:
    from bridge.deltas.lora import LoraDelta

    adapted = with_lora(loaded.model, plan, base_name=loaded.name)
    log = _train(adapted, loaded, samples, plan, folder, progress, on_step, make_hook)

    def fill(place: Path) -> None:
        adapted.save_pretrained(str(place), save_embedding_layers=False)
        (place / "README.md").unlink(missing_ok=True)  # a model card with blanks
        config = json.loads((place / "adapter_config.json").read_text())
        config["target_modules"] = sorted(config["target_modules"])  # peft's order differs from process to process
        (place / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    write_folder(folder.path / "adapter", folder.checkpoint("adapter"), fill)
    return Tuned(adapted, log, LoraDelta(folder.path / "adapter"))


def _tune_full(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    plan: Plan,
    folder: Folder,
    progress: Progress,
    on_step: OnStep | None,
    make_hook: MakeHook | None,
) -> Tuned:
    from bridge.deltas.parameters import save_snapshot, write_full_delta
    from bridge.deltas.tensor_files import TensorFiles
    from bridge.deltas.weight_delta import FullDelta

    snapshot = folder.checkpoint("base.safetensors")
    if not snapshot.exists():
        save_snapshot(snapshot, loaded.model)
    log = _train(loaded.model, loaded, samples, plan, folder, progress, on_step, make_hook)
    path = folder.path / DELTA_FILES["full"]
    with progress.stage("change of the weights", 1):
        write_full_delta(path, loaded.model, TensorFiles([snapshot]), {"base_sha256": loaded.weights_hash})
    write_model(loaded.model, loaded.tokenizer, folder, progress)
    return Tuned(loaded.model, log, FullDelta(path))


def _train(
    model: PreTrainedModel | PeftModel,
    loaded: LoadedModel,
    samples: Sequence[Sample],
    plan: Plan,
    folder: Folder,
    progress: Progress,
    on_step: OnStep | None,
    make_hook: MakeHook | None,
) -> TrainingLog:
    pad_id = int(loaded.tokenizer.pad_token_id)
    hook = None if make_hook is None else make_hook(model)
    log = train(model, samples, plan, folder, progress, pad_id=pad_id, on_step=on_step, hook=hook)
    folder.note_progress()
    return log


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Folder, progress: Progress) -> None:
    """Write model/ of a run folder: what `load_model` takes, tokenizer and chat template included."""

    def fill(place: Path) -> None:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)

    with progress.stage("model", 1):
        write_folder(folder.path / "model", folder.checkpoint("model"), fill)


def write_folder(path: Path, temporary: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder through a temporary one on the same disk, so that it is never seen half-written."""
    from bridge.models.transformers_setup import quiet_transformers

    for place in (temporary, path):
        if place.exists():
            shutil.rmtree(place)
    temporary.mkdir(parents=True)
    with quiet_transformers():
        fill(temporary)
    for file in (*temporary.iterdir(), temporary):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    temporary.rename(path)


def parameter_kinds(model: PreTrainedModel) -> dict[str, str]:
    """What each parameter is: a linear module of the blocks, an embedding (the output layer too), a norm, or other."""
    from bridge.estimators.taps import linear_modules, select_modules

    blocks = {f"{name}.weight" for name in select_modules(model)}
    ends = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
    linear = {f"{name}.weight" for name in linear_modules(model)}
    kinds: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        if name in blocks:
            kinds[name] = "block linear modules"
        elif id(parameter) in ends or (parameter.ndim == 2 and name not in linear):
            kinds[name] = "embeddings"
        elif parameter.ndim == 1 and "norm" in type(model.get_submodule(name.rpartition(".")[0])).__name__.lower():
            kinds[name] = "norms"
        else:
            kinds[name] = "others"
    return kinds


def update_summary(delta: WeightDelta, kinds: Mapping[str, str]) -> UpdateSummary:
    """Norm of the change, and the share of its square in each kind of parameter, by the kind of every parameter."""
    squares = {name: delta.squared_norm(name) for name in delta.names}
    total = math.fsum(squares.values())
    shares = {
        kind: math.fsum(value for name, value in squares.items() if kinds[name] == kind) / total if total else 0.0
        for kind in dict.fromkeys(kinds.values())
    }
    return UpdateSummary(
        norm=math.sqrt(total),
        squared_norm=total,
        shares=shares,
        moved_parameters=len(squares),
        parameters=len(kinds),
        norms={name: math.sqrt(value) for name, value in squares.items()},
    )
