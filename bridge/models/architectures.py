"""The names a model can be asked for by, and the shapes of their architectures.

The shapes are those of each model's public `config.json`. With them `random:<alias>` builds a model of
the right size without any download of its weights. A base model and its instruct version share one shape
(at most their `max_position_embeddings` differ, which no weight depends on).
"""

from __future__ import annotations

from typing import Any

DEFAULT_ALIAS = "smollm2-135m"
"""The alias of the model that needs no hub (see `bridge.models.default`)."""

HUB_NAMES: dict[str, str] = {
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-1.7b-base": "Qwen/Qwen3-1.7B-Base",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-1b-base": "meta-llama/Llama-3.2-1B",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.2-3b-base": "meta-llama/Llama-3.2-3B",
    "llama-2-7b": "meta-llama/Llama-2-7b-chat-hf",
    "llama-2-7b-base": "meta-llama/Llama-2-7b-hf",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5-1.5b-base": "Qwen/Qwen2.5-1.5B",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5-3b-base": "Qwen/Qwen2.5-3B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5-7b-base": "Qwen/Qwen2.5-7B",
}
"""Alias -> name on the hub. A bare alias is the instruct (chat) model, `-base` the model before it."""

ALIASES: tuple[str, ...] = (DEFAULT_ALIAS, *HUB_NAMES)


def _rope(theta: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **scaling}


_LLAMA_3_ROPE = _rope(
    500000.0,
    rope_type="llama3",
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)

_LLAMA_3_2 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "intermediate_size": 8192,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": _LLAMA_3_ROPE,
    "tie_word_embeddings": True,
}

_QWEN_2_5 = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": _rope(1000000.0),
    "tie_word_embeddings": True,
}

_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _rope(100000.0),
        "tie_word_embeddings": True,
    },
    "qwen3-1.7b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": _rope(1000000.0),
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        **_LLAMA_3_2,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
    },
    "llama-3.2-3b": {**_LLAMA_3_2, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24},
    "llama-2-7b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _rope(10000.0),
        "tie_word_embeddings": False,
    },
    "qwen2.5-1.5b": {
        **_QWEN_2_5,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
    },
    "qwen2.5-3b": {
        **_QWEN_2_5,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
    },
    "qwen2.5-7b": {
        **_QWEN_2_5,
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}


def architecture(alias: str) -> dict[str, Any]:
    """The fields of a model's configuration, `model_type` among them (KeyError: no such alias)."""
    return dict(_ARCHITECTURES[alias.removesuffix("-base")])
