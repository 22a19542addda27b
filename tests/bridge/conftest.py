from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from bridge.data.samples import Sample
from tests.in_process import Done, run_module
from tests.oracles.tiny_transformer import TinyTransformer


def random_samples(name: str, count: int, vocabulary: int, seed: int, longest: int = 9) -> list[Sample]:
    """Samples of different lengths, so that every batch of more than one holds padding."""
    draw = random.Random(seed)
    out = []
    for i in range(count):
        prompt, response = draw.randint(1, 4), draw.randint(1, longest - 4)
        ids = tuple(draw.randrange(vocabulary) for _ in range(prompt + response))
        out.append(Sample(name, f"{name}:{i}", ids, (0,) * prompt + (1,) * response, i))
    return out


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Matrices of tiny models are slower on two threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def command() -> Callable[..., Done]:
    """`python -m MODULE ARGUMENTS` in this process: gives its exit code, and what it printed."""
    return run_module


@pytest.fixture(scope="session")
def tiny() -> TinyTransformer:
    return TinyTransformer()


def tiny_llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=13, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval().requires_grad_(False)


def tiny_gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    config = GPT2Config(vocab_size=13, n_embd=8, n_layer=2, n_head=2, n_positions=32, initializer_range=0.4)
    return GPT2LMHeadModel(config).double().eval().requires_grad_(False)
