"""Parameters of a model on disk, by their names in the model: found, saved, subtracted, and moved."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bridge.deltas.tensor_files import Entry, TensorFiles, write_tensors
from bridge.deltas.weight_delta import DELTA_CONTENT, FullDelta, WeightDelta
from bridge.models.files import INDEX_FILE, read_json, weight_files
from commands.errors import UserError, first_line

_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # configuration, tokenizer, chat template
_NOT_COPIED = ("source.json",)  # says where the base's weights are from


def canonical_names(model: torch.nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the name that `model.named_parameters()` gives it (tied ones have several)."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def skeleton(folder: Path) -> torch.nn.Module:
    """The model of a folder without its weights, for the names, shapes and ties of its parameters.

    Raises UserError if transformers cannot build it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from bridge.models.transformers_setup import quiet_transformers

    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{folder} holds no causal language model: {first_line(error)}") from error
    return model


def parameter_files(folder: Path, model: torch.nn.Module) -> TensorFiles:
    """The weights of a model's folder under the names of `model.named_parameters()`, in the model's order.

    What the files hold besides (buffers, second names of tied weights) is left out.

    Raises:
        UserError: naming a parameter that the files lack or hold in another shape.

    """
    files = TensorFiles.of_folder(folder)
    stored: dict[str, str] = {}
    owner = _owner(model)
    for key in files.names:
        name = owner(key)
        if name is not None and (name not in stored or name == key):
            stored[name] = key
    for name, parameter in model.named_parameters():
        if name not in stored:
            raise UserError(f"{folder}: expected weights of the model's parameter {name}, got none of that name")
        _check_shape(str(folder), name, files.shape(stored[name]), parameter)
    return files.renamed({name: stored[name] for name, _ in model.named_parameters()})


def _owner(model: torch.nn.Module) -> Callable[[str], str | None]:
    """Finds the parameter that a stored tensor holds: files of a bare trunk leave out the name of the trunk."""
    names = canonical_names(model)
    prefix = getattr(model, "base_model_prefix", "")
    return lambda key: names.get(key, names.get(f"{prefix}.{key}"))


def _check_shape(label: str, name: str, found: tuple[int, ...], parameter: Tensor) -> None:
    if found != tuple(parameter.shape):
        raise UserError(f"{label}: expected {name} of shape {list(parameter.shape)}, got {list(found)}")


def check_fits(delta: WeightDelta, model: torch.nn.Module) -> None:
    """Raise UserError, naming the parameter, unless every part of a change fits the model's parameter of that name."""
    parameters = dict(model.named_parameters())
    names = canonical_names(model)
    for name in delta.names:
        if name not in names:
            near = get_close_matches(name, parameters, n=1, cutoff=0.0)
            raise UserError(
                f"{delta.label} does not fit the model: it moves {name}, which the model does not have (its names "
                f"look like {near[0]})"
            )
        if name not in parameters:
            raise UserError(
                f"{delta.label} does not fit the model: it moves {name}, which is tied to {names[name]} there, so that "
                f"one cannot move without the other"
            )
        if delta.shape(name) != tuple(parameters[name].shape):
            raise UserError(
                f"{delta.label} does not fit the model: expected {name} of shape {list(parameters[name].shape)}, got "
                f"{list(delta.shape(name))}"
            )
    delta.check_layout(model)


def save_snapshot(path: Path, model: torch.nn.Module) -> None:
    """Write a model's parameters as they are, tied ones once, so that they can be restored or subtracted later."""
    write_tensors(path, [_entry(name, p, p.dtype, p.detach) for name, p in model.named_parameters()], {"format": "pt"})


def _entry(name: str, like: Tensor, dtype: torch.dtype, make: Callable[[], Tensor]) -> Entry:
    return Entry(name, tuple(like.shape), dtype, make)


def write_full_delta(
    path: Path, model_now: torch.nn.Module, base: TensorFiles, metadata: Mapping[str, str] | None = None
) -> FullDelta:
    """Write the change from a base to a model: now minus base, subtracted in float64, stored as float32.

    Parameters that did not move are left out and counted in the metadata ("unchanged"); tied ones come once.

    Args:
        path: the file.
        model_now: the moved model.
        base: the base's parameters by name (`save_snapshot`, `parameter_files`).
        metadata: kept in the file; "base_sha256", the base's `weights_hash`, is what readers check.

    Raises:
        UserError: the base lacks a parameter or has it in another shape, or the change is not finite.

    """
    check_base(model_now, base)
    parameters = dict(model_now.named_parameters())
    moved = {name: p for name, p in parameters.items() if not torch.equal(_double(p), _double(base.read(name)))}

    def change(name: str) -> Tensor:
        found = _double(moved[name]).sub_(_double(base.read(name))).float()
        if not found.isfinite().all():
            raise UserError(
                f"expected a finite change of the weights, got NaN or infinity in {name}: training diverged"
            )
        return found

    about = {
        **(metadata or {}),
        "format": "pt",
        "content": DELTA_CONTENT,
        "unchanged": str(len(parameters) - len(moved)),
    }
    write_tensors(path, [_entry(name, p, torch.float32, partial(change, name)) for name, p in moved.items()], about)
    return FullDelta(path)


def _double(tensor: Tensor) -> Tensor:
    """A copy in float64 on the CPU."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def check_base(model: torch.nn.Module, base: TensorFiles) -> None:
    """Raise UserError unless files hold every parameter of the model in its shape."""
    label = str(base.paths[0])
    for name, parameter in model.named_parameters():
        if name not in base:
            raise UserError(f"{label}: expected the base's weights of {name}, got none of that name")
        _check_shape(label, name, base.shape(name), parameter)


@torch.no_grad()
def set_weights(
    model: torch.nn.Module, base: TensorFiles, delta: WeightDelta | None = None, scale: float = 1.0
) -> None:
    """Set every parameter, in place, to base + scale * change, summed in float64 and rounded to its dtype.

    Without a change, or at scale 0, the base's own bits are restored. Tied weights stay tied.

    Args:
        model: the model, on any device.
        base: the base's parameters by name (`save_snapshot`, `parameter_files`).
        delta: the change.
        scale: its factor.

    Raises:
        UserError: base or change do not fit the model; nothing has been changed then.

    """
    check_base(model, base)
    if delta is not None:
        check_fits(delta, model)
    for name, parameter in model.named_parameters():
        parameter.copy_(_moved(base.read(name), delta, name, scale))


def _moved(base: Tensor, delta: WeightDelta | None, name: str | None, scale: float) -> Tensor:
    """Base + scale * change of one parameter in the base's dtype or, where that would round twice, in float64."""
    if delta is None or name is None or scale == 0 or not delta.moves(name):
        return base
    return base.double() + scale * delta.dense(name, torch.float64)  # not in place: a change may be held in memory


def write_moved_model(base_folder: Path, delta: WeightDelta, scale: float, out_folder: Path) -> None:
    """Write a model's folder with the change merged in, file by file and tensor by tensor.

    Every weight is base + scale * change in float64, rounded to the dtype in which the base is stored. The
    configuration, the tokenizer and its chat template are copied. The folder appears whole or not at all.

    Raises:
        UserError: the folder is there already, the base cannot be read, or the change does not fit it.

    """
    if out_folder.exists():
        raise UserError(f"expected a new folder, got {out_folder}, which exists; choose another or delete it")
    model = skeleton(base_folder)
    check_fits(delta, model)
    parameter_files(base_folder, model)
    building = out_folder.with_name(f".{out_folder.name}.partial")
    shutil.rmtree(building, ignore_errors=True)  # a killed run's
    try:
        building.mkdir(parents=True)
        _copy_settings(base_folder, building)
        for path in weight_files(base_folder):
            _write_moved_file(path, building / path.name, delta, scale, _owner(model))
        building.rename(out_folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_moved_file(
    path: Path, out: Path, delta: WeightDelta, scale: float, owner: Callable[[str], str | None]
) -> None:
    files = TensorFiles([path])

    def make(key: str) -> Tensor:
        return _moved(files.read(key), delta, owner(key), scale).to(files.dtype(key))

    entries = [Entry(key, files.shape(key), files.dtype(key), partial(make, key)) for key in files.names]
    write_tensors(out, entries, files.metadata)


def _copy_settings(base_folder: Path, out: Path) -> None:
    for path in _settings(base_folder):
        shutil.copyfile(path, out / path.name)
        with (out / path.name).open("rb") as file:
            os.fsync(file.fileno())


def _settings(folder: Path) -> Iterable[Path]:
    """Files beside the weights that a model needs; an index only where the weights are those that it names."""
    for path in sorted(folder.iterdir()):
        wanted = path.suffix in _COPIED and not path.name.startswith(".") and path.name not in _NOT_COPIED
        foreign = path.name.endswith(".index.json") and not (path.name == INDEX_FILE and _uses_index(folder))
        if wanted and path.is_file() and not foreign:
            yield path


def _uses_index(folder: Path) -> bool:
    named = set(read_json(folder / INDEX_FILE).get("weight_map", {}).values())
    return {path.name for path in weight_files(folder)} == named
