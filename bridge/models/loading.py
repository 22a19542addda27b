"""What `bridge.models.load` does with torch and transformers: imports, weights, tokenizer, device.

Nothing here is imported from them before it is needed.
"""

from __future__ import annotations

import gc
import importlib.util
import io
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.models.files import read_json
from bridge.models.transformers_setup import quick_imports, quiet_transformers
from commands.errors import UserError, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def import_architecture(path: Path) -> None:
    """Import what loading the model of a folder (or a GGUF file) will need from transformers."""
    import transformers

    names = ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"]
    if path.is_dir():
        names += read_json(path / "config.json").get("architectures") or []
    for name in names:
        getattr(transformers, name, None)


def choose_device(name: str | None) -> str:
    """The device of a name; None and auto are the first GPU where there is one, else the CPU.

    Raises UserError if the name asks for a GPU that is not there.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None or name == "auto":
        return "cuda:0" if count else "cpu"
    if name == "cpu":
        return name
    if count == 0:
        seen = f"PyTorch {torch.__version__} sees no CUDA GPU"
        raise UserError(f"--device {name}: {seen}; use --device cpu or --device auto")
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise UserError(f"--device {name}: the GPUs here are cuda:0 to cuda:{count - 1}; use one of them")
    return f"cuda:{index}"


def load_weights(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder on the CPU; UserError unless its weights are just those of its config.json."""
    from transformers import AutoModelForCausalLM

    safe = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True, **safe
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{folder} holds no causal language model that transformers can load: {first_line(error)}"
        ) from error
    model, found = loaded
    _check_keys(folder, found)
    return model


def read_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file: its model, de-quantised to float32 on the CPU, and its tokenizer.

    Raises UserError if a package that this needs is missing, or the file cannot be read or lacks weights.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{path.name} is a GGUF file, which needs: pip install {' '.join(missing)}")
    with quick_imports():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    where = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        # Its progress bar heeds no setting, so it is caught.
        with quiet_transformers(), redirect_stderr(io.StringIO()):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, dtype=torch.float32, output_loading_info=True, **where
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as a GGUF model: {first_line(error)}") from error
    found_model, found = loaded
    _check_keys(path, found)
    config = found_model.config
    # The numbers are float32 now: a model that still calls itself quantised refuses to be saved.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with quiet_transformers():
        model = type(found_model)(config)
    model.load_state_dict(found_model.state_dict())
    return model.float(), tokenizer


def _check_keys(path: Path, found: dict[str, Any]) -> None:
    """UserError if weights are missing, unexpected or of another shape (tied weights are not missing)."""
    mismatched = {item[0] if isinstance(item, tuple) else item for item in found["mismatched_keys"]}
    kinds = {
        "missing": set(found["missing_keys"]) - mismatched,
        "unexpected": set(found["unexpected_keys"]),
        "of another shape": mismatched,
    }
    faults = [f"{kind}: {_some(keys)}" for kind, keys in kinds.items() if keys]
    if faults or found.get("error_msgs"):
        details = "; ".join([*faults, *map(str, found.get("error_msgs", []))])
        raise UserError(f"the weights in {path} do not fit its configuration ({details}); fetch or save it again")


def _some(keys: set[str], shown: int = 4) -> str:
    names = sorted(keys)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; UserError if it cannot be loaded or cannot tell its tokens' offsets."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in {folder} is a slow one: a tokenizer.json beside it is needed")
    return tokenizer


def random_fields(architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The configuration of a model with random weights: an architecture with room for the tokenizer."""
    return {
        **architecture,
        "vocab_size": max(architecture["vocab_size"], len(tokenizer)),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build_random(fields: dict[str, Any], dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """A model with random weights on the CPU, the same for the same seed; the global generator is kept."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**fields)
    with quiet_transformers():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def prepare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Evaluation mode, no gradients, plain sampling, a padding token; returns the model.

    Raises UserError if neither the tokenizer nor the model has an end-of-text token.
    """
    from transformers import GenerationConfig

    model.eval().requires_grad_(False)
    given = model.generation_config
    named = (given.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id)
    ends = next((end for end in named if end is not None), None)
    if ends is None:
        raise UserError("the tokenizer names no end-of-text token, nor does the model: set its eos_token")
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        first_end = ends[0] if isinstance(ends, list) else ends
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(first_end)
    # All that shapes the distribution is named, because generate() fills what is not with top_k = 50.
    plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    begin = given.bos_token_id if given.bos_token_id is not None else tokenizer.bos_token_id
    model.generation_config = GenerationConfig(
        **plain, bos_token_id=begin, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    return model


def place(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """Move the model to the device; UserError if it does not fit there."""
    import torch

    try:
        return model.to(device)  # type: ignore[arg-type]  # as seen through a wrapper of transformers'
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the model does not fit into {device}: try --dtype bfloat16, a smaller model, or --device cpu"
        ) from error


def free_memory() -> None:
    """Give back what models that nothing refers to any more hold, on the GPU too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
