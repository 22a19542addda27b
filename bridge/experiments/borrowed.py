"""A model that a caller has in memory, as the commands take one, and given back as it was."""

from __future__ import annotations

import copy
import hashlib
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bridge.deltas.parameters import parameter_files
from bridge.estimators.probe import measuring
from bridge.models.files import weight_files
from bridge.models.hub import cached_snapshot
from bridge.models.load import LoadedModel, hash_folder
from bridge.models.loading import prepare
from bridge.models.names import resolve
from commands.errors import UserError, first_line

_ATTENTION = ("eager", "sdpa")  # what has second derivatives


@contextmanager
def borrowed(model: Any, tokenizer: Any) -> Iterator[LoadedModel]:
    """The model in evaluation mode, as `bridge.models.load.load_model` would give it.

    At the end it has its mode, `requires_grad`, hooks, gradients, generation settings and attention again. A PeftModel
    is measured as its adapter makes it: on a copy, the adapter merged.

    Args:
        model: a causal language model of transformers, or a PeftModel of one; compiled or not.
        tokenizer: its tokenizer, a fast one; a copy of it is used.

    Raises:
        UserError: the model is on several devices, or partly on none; an adapter that cannot be merged.

    """
    name, inner = name_of(model), uncompiled(model)
    _require_one_device(inner)
    if hasattr(inner, "peft_config"):
        inner = _merged(inner)
    with ExitStack() as stack:
        stack.enter_context(_plain_calls(inner))
        stack.enter_context(_second_derivatives(inner))
        stack.enter_context(_outputs(inner))
        stack.enter_context(measuring(inner))
        tokenizer = copy.deepcopy(tokenizer)
        prepare(inner, tokenizer)
        dtype = str(inner.dtype).removeprefix("torch.")
        yield LoadedModel(
            inner, tokenizer, name, f"in memory, {name}", dtype, str(inner.device), partial(_hash, inner, name), True
        )


def copied(loaded: LoadedModel) -> LoadedModel:
    """The same with weights of its own, for what moves them."""
    return LoadedModel(
        copy.deepcopy(loaded.model), loaded.tokenizer, loaded.name, loaded.source, loaded.dtype, loaded.device,
        lambda: loaded.weights_hash, loaded.in_memory,
    )  # fmt: skip


def require_usable(model: Any, tokenizer: Any) -> None:
    """Raise UserError for what is no causal language model of transformers or peft, or no fast tokenizer of one."""
    inner = uncompiled(model)
    if not isinstance(inner, torch.nn.Module) or not hasattr(inner, "get_input_embeddings"):
        raise UserError(
            f"model: expected a name, or a causal language model of transformers or peft, got {type(model).__name__}"
        )
    head = getattr(inner, "get_output_embeddings", None)
    if head is None or head() is None:
        raise UserError(
            f"model: expected a causal language model, got {type(inner).__name__}, which has no output layer"
        )
    if getattr(inner, "is_quantized", False):
        raise UserError("model: expected weights that are not quantised, which can be moved and differentiated")
    if not getattr(tokenizer, "is_fast", False):
        got = "none" if tokenizer is None else type(tokenizer).__name__
        raise UserError(f"tokenizer: expected the fast tokenizer of the model in memory, got {got}")


def uncompiled(model: Any) -> Any:
    """The model itself inside what `torch.compile` made of it."""
    return getattr(model, "_orig_mod", model)


def name_of(model: Any) -> str:
    """What results call a model: where it was loaded from, or its class; with the names of its adapters."""
    inner = uncompiled(model)
    name = str(getattr(inner, "name_or_path", "") or type(inner).__name__)
    if not hasattr(inner, "peft_config"):
        return name
    active = inner.active_adapters
    return f"{name} with adapter {', '.join(active() if callable(active) else active)}"


def fingerprint(model: Any) -> str:
    """What tells quickly whether weights have moved: sums of the bits in their rows and in their columns, hashed."""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        whole = parameter.detach().reshape(parameter.shape[0] if parameter.ndim else 1, -1)
        numbers = whole.view(bits[whole.element_size()])
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        for axis in (0, 1):
            digest.update(numbers.sum(axis, dtype=torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()


def _merged(model: Any) -> Any:
    """A copy of a PeftModel, its adapters merged into the weights."""
    if not hasattr(model, "merge_and_unload"):
        raise UserError(f"model: expected an adapter that can be merged, got {type(model).__name__}")
    try:
        return copy.deepcopy(model).merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:  # prompts and prefixes are no change of weights
        raise UserError(f"model: expected an adapter that can be merged: {first_line(error)}") from error


def _require_one_device(model: Any) -> None:
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) != 1 or "meta" in devices:
        raise UserError(
            f"model: expected one device for the whole model, got {', '.join(sorted(devices))}: load it without "
            "device_map, or with device_map={'': 0}"
        )


def _hash(model: Any, name: str) -> str:
    """Hash of the files that the model was loaded from, if its weights are still theirs; else of the weights."""
    try:
        folder = _folder_of(name)
        if folder is not None and _equal(model, parameter_files(folder, model)):
            return hash_folder(folder)
    except UserError:
        pass  # no name of a model, or the files are of another one
    digest = hashlib.sha256()
    for key, parameter in model.named_parameters():
        digest.update(f"{key} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _folder_of(name: str) -> Path | None:
    """The folder of safetensors files that a name means, if they are on this machine."""
    source = resolve(name)
    if source.kind == "hub":
        return cached_snapshot(source.location)
    folder = Path(source.location)
    return folder if source.kind in ("default", "folder") and weight_files(folder) else None


def _equal(model: Any, files: Any) -> bool:
    return all(
        torch.equal(parameter.detach().cpu(), files.read(name).to(parameter.dtype))
        for name, parameter in model.named_parameters()
    )


@contextmanager
def undisturbed() -> Iterator[None]:
    """The process's random generators are put back, and torch does not warn of what it calls itself."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _plain_calls(model: Any) -> Iterator[None]:
    """No module's call is compiled, and no hook asks the embeddings' output for gradients."""
    compiled = [(m, m._compiled_call_impl) for m in model.modules() if getattr(m, "_compiled_call_impl", None)]
    hooked = [(m._forward_hooks, dict(m._forward_hooks)) for m in model.modules() if m._forward_hooks]
    for module, _ in compiled:
        module._compiled_call_impl = None
    for hooks, before in hooked:
        for key, hook in before.items():
            if "make_inputs_require_grad" in getattr(hook, "__qualname__", ""):  # of transformers, peft and trl
                del hooks[key]
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
        for hooks, before in hooked:
            hooks.clear()
            hooks.update(before)


@contextmanager
def _second_derivatives(model: Any) -> Iterator[None]:
    """Attention that can be differentiated twice."""
    if model.config._attn_implementation in _ATTENTION:
        yield
        return
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        for config, given in before:
            config._attn_implementation_internal = given


@contextmanager
def _outputs(model: Any) -> Iterator[None]:
    """Outputs as load_model's models give them; settings of generation may be replaced inside."""
    generation, config = model.generation_config, model.config
    usual = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
    before = {name: getattr(config, name) for name in usual if hasattr(config, name)}
    try:
        for name in before:
            setattr(config, name, usual[name])
        yield
    finally:
        model.generation_config = generation
        for name, value in before.items():
            setattr(config, name, value)
