"""A model that a caller has in memory, as the commands take one, and given back as it was."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from bridge.deltas.parameters import parameter_files
from bridge.estimators.probe import measuring
from bridge.models.files import weight_files
from bridge.models.load import LoadedModel, hash_folder
from bridge.models.loading import prepare
from bridge.models.names import resolve
from commands.errors import UserError

_ATTENTION = ("eager", "sdpa")  # what has second derivatives


@contextmanager
def borrowed(model: Any, tokenizer: Any) -> Iterator[LoadedModel]:
    """The model in evaluation mode, as `bridge.models.load.load_model` would give it.

    At the end it has its mode, `requires_grad`, hooks, gradients, generation settings and attention again, and the
    process its random numbers. A PeftModel is measured as its adapter makes it: on a copy, the adapter merged.

    Args:
        model: a causal language model of transformers, or a PeftModel of one; compiled or not.
        tokenizer: its tokenizer, a fast one; a copy of it is used.

    Raises:
        UserError: the model is on several devices, or partly on none.

    """
    inner = _uncompiled(model)
    _require_one_device(inner)
    if hasattr(inner, "peft_config"):
        inner = copy.deepcopy(inner).merge_and_unload()
    name = _name_of(inner)
    with ExitStack() as stack:
        stack.enter_context(_random_numbers())
        stack.enter_context(_plain_calls(inner))
        stack.enter_context(_second_derivatives(inner))
        stack.enter_context(_generation(inner))
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


def _uncompiled(model: Any) -> Any:
    """The model itself inside what `torch.compile` made of it."""
    return getattr(model, "_orig_mod", model)


def _name_of(model: Any) -> str:
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


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
        source = resolve(name)
    except UserError:
        source = None
    if source is not None and source.kind in ("default", "folder"):
        from pathlib import Path

        folder = Path(source.location)
        if weight_files(folder) and _equal(model, parameter_files(folder, model)):
            return hash_folder(folder)
    digest = hashlib.sha256()
    for key, parameter in model.named_parameters():
        digest.update(f"{key} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _equal(model: Any, files: Any) -> bool:
    return all(
        torch.equal(parameter.detach().cpu(), files.read(name).to(parameter.dtype))
        for name, parameter in model.named_parameters()
    )


@contextmanager
def _random_numbers() -> Iterator[None]:
    """The process's generators are put back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _plain_calls(model: Any) -> Iterator[None]:
    """No module's call is compiled, and no hook asks the embeddings' output for gradients."""
    compiled = [(m, m._compiled_call_impl) for m in model.modules() if getattr(m, "_compiled_call_impl", None)]
    hooks = model.get_input_embeddings()._forward_hooks
    asking: dict[int, Callable[..., Any]] = {
        key: hook for key, hook in hooks.items() if "make_inputs_require_grads" in getattr(hook, "__qualname__", "")
    }
    before = dict(hooks)
    for module, _ in compiled:
        module._compiled_call_impl = None
    for key in asking:
        del hooks[key]
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
        hooks.clear()
        hooks.update(before)


@contextmanager
def _second_derivatives(model: Any) -> Iterator[None]:
    """Attention that can be differentiated twice."""
    given = model.config._attn_implementation
    if given in _ATTENTION:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(given)


@contextmanager
def _generation(model: Any) -> Iterator[None]:
    given = model.generation_config
    try:
        yield
    finally:
        model.generation_config = given
