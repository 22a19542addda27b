"""LoRA adapters in peft's format as changes of weights, without peft.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685): dW = (alpha / r) B A. With
`use_rslora` the scale is alpha / sqrt(r) (Kalajdzievski, arXiv 2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bridge.deltas.factors import Factors
from bridge.deltas.tensor_files import TensorFiles
from bridge.deltas.weight_delta import Kind, WeightDelta
from bridge.models.files import read_json
from commands.errors import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
Value = TypeVar("Value")
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")

# Settings under which an adapter is more than, or something else than, B A added to weights that stayed as they were.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "trained biases",
    "modules_to_save": "whole modules trained beside the adapter",
    "trainable_token_indices": "trained rows of the embedding",
    "target_parameters": "adapters of parameters that are no module's weight",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activation by tokens",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal factors",
    "arrow_config": "routing",
    "kasa_config": "KaSA",
    "monteclora_config": "Monte Carlo factors",
}
_MOVED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")  # they start from a base whose weights they change


class LoraDelta(WeightDelta):
    """The change that an adapter's folder (adapter_config.json, adapter_model.safetensors) makes of its base."""

    kind: Kind = "lora"

    def __init__(self, folder: Path, model: torch.nn.Module | None = None, base_sha256: str | None = None) -> None:
        """Read the configuration and the header of the weights.

        Args:
            folder: the adapter's folder.
            model: the base model, which tells the order of the modules and which of them store (in, out); without it
                the modules come in natural order and the configuration's `fan_in_fan_out` is believed.
            base_sha256: `weights_hash` of the base, where known.

        Raises:
            UserError: a file is missing or broken, or the adapter is not plain LoRA of linear modules.

        """
        self.label, self.base_sha256 = str(folder), base_sha256
        self.config = _read_config(folder)
        self._files = _weights(folder)
        self._pairs = _pair(self.label, self._files)
        self._conv1d = _conv1d_modules(model)
        for module in self._pairs:
            self._check_rank(module)
        self.names = tuple(f"{module}.weight" for module in _ordered(self._pairs, model))

    def scale(self, module: str) -> float:
        """What the product B A of a module is multiplied with."""
        rank, alpha = self._rank_and_alpha(module)
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def _rank_and_alpha(self, module: str) -> tuple[int, float]:
        rank, alpha = (
            _by_pattern(self.label, self.config.get(f"{kind}_pattern") or {}, module, self.config.get(key))
            for kind, key in (("rank", "r"), ("alpha", "lora_alpha"))
        )
        if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
            raise UserError(
                f"{self.label}: expected a rank of at least 1 and a number alpha, got r = {rank!r} and "
                f"alpha = {alpha!r} for {module}"
            )
        return rank, float(alpha)

    def stored_transposed(self, module: str) -> bool:
        """Whether the module is taken to store its weight as (in, out), as GPT-2's Conv1D does."""
        known = self._conv1d.get(module)
        return bool(self.config.get("fan_in_fan_out")) if known is None else known

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight's change, in the layout of the weight."""
        module = name.removesuffix(".weight")
        left, right = (self._files.shape(self._pairs[module][factor]) for factor in "BA")
        shape = left[0], right[1]
        return shape[::-1] if self.stored_transposed(module) else shape

    def factors(self, name: str) -> Factors | None:
        """A weight's change as factors in float64, the scale in the one that comes from B; None if it stays."""
        module = name.removesuffix(".weight")
        if module not in self._pairs or not name.endswith(".weight"):
            return None
        a, b = (self._read(module, factor).double() for factor in "AB")
        b = b * self.scale(module)
        return Factors(a.T, b.T) if self.stored_transposed(module) else Factors(b, a)

    def check_layout(self, model: torch.nn.Module) -> None:
        """Raise UserError unless every module of the model stores its weight as is assumed here.

        A square weight of Conv1D fits both ways round: only the module's type tells which is right.
        """
        for module, transposed in _conv1d_modules(model).items():
            if module in self._pairs and self.stored_transposed(module) != transposed:
                layout = "(in, out)" if transposed else "(out, in)"
                raise UserError(
                    f"{self.label} does not fit the model: {module} stores its weight as {layout}, and {CONFIG_FILE} "
                    f"says otherwise; open the adapter together with its base"
                )

    def _exact(self, name: str) -> Tensor:
        factors = self.factors(name)
        if factors is None:
            raise KeyError(name)
        return factors.dense()

    def _read(self, module: str, factor: str) -> Tensor:
        found = self._files.read(self._pairs[module][factor])
        if not found.isfinite().all():
            raise UserError(
                f"{self.label}: expected a finite change, got NaN or infinity in lora_{factor} of {module}; was the "
                f"training's loss finite?"
            )
        return found

    def _check_rank(self, module: str) -> None:
        wanted, _ = self._rank_and_alpha(module)
        a, b = (self._files.shape(self._pairs[module][factor]) for factor in "AB")
        if len(a) != 2 or len(b) != 2:
            raise UserError(f"{self.label}: expected factors of a linear module, got {list(a)}, {list(b)} for {module}")
        if a[0] != wanted or b[1] != wanted:
            raise UserError(
                f"{self.label}: expected rank {wanted} for {module}, as {CONFIG_FILE} says, got lora_A {list(a)} and "
                f"lora_B {list(b)}"
            )


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} holds no {CONFIG_FILE}: expected an adapter's folder as peft writes it")
    config = read_json(folder / CONFIG_FILE)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder}: expected a LoRA adapter, got one of type {config.get('peft_type')}; merge it first")
    faults = [what for key, what in _UNSUPPORTED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        faults.append("trained biases")
    if str(config.get("init_lora_weights")).startswith(_MOVED_BASES):
        faults.append(f"a base changed by init_lora_weights={config['init_lora_weights']}")
    if faults:
        raise UserError(
            f"{folder}: expected plain LoRA, got an adapter with {', '.join(faults)}; merge it into its base "
            f"(merge_and_unload) and give that folder"
        )
    return config


def _weights(folder: Path) -> TensorFiles:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = " (adapter_model.bin is a pickle, which can run any code and is not read)"
        there = pickled if (folder / "adapter_model.bin").is_file() else ""
        raise UserError(f"{folder} holds no {WEIGHTS_FILE}{there}: save the adapter again with save_pretrained")
    return TensorFiles([path])


def _pair(label: str, files: TensorFiles) -> dict[str, dict[str, str]]:
    """Names of the stored factors "A" and "B" by module."""
    pairs: dict[str, dict[str, str]] = {}
    for key in files.names:
        found = _KEY.fullmatch(key)
        if not found:
            raise UserError(f"{label}: expected factors of linear modules only (…lora_A.weight), got {key}")
        pairs.setdefault(found["module"], {})[found["factor"]] = key
    for module, pair in pairs.items():
        if len(pair) < 2:
            raise UserError(f"{label}: expected lora_A and lora_B of {module}, got lora_{''.join(pair)} alone")
    if not pairs:
        raise UserError(f"{label}: expected factors of at least one module, got none")
    return pairs


def _conv1d_modules(model: torch.nn.Module | None) -> dict[str, bool]:
    modules = model.named_modules() if model is not None else []
    return {name: type(module).__name__ == "Conv1D" for name, module in modules}


def _by_pattern(label: str, patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """The value of the first pattern that matches the end of a module's name, by peft's rule (get_pattern_key)."""
    for pattern, value in patterns.items():
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise UserError(f"{label}: expected regular expressions as patterns, got {pattern!r} ({error})") from error
        if found:
            return value
    return patterns.get(module, default)


def _ordered(pairs: Mapping[str, object], model: torch.nn.Module | None) -> list[str]:
    """The model's order where it is known; else by name, numbers as numbers."""

    def natural(module: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in module.split(".")]

    place = {name: k for k, name in enumerate(dict(model.named_modules()))} if model is not None else {}
    return sorted(pairs, key=lambda module: (place.get(module, len(place)), natural(module)))
