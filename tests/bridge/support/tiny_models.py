"""Folders of tiny random models with a tiny tokenizer, in the format that transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 300


def tiny_tokenizer() -> Any:
    """Every byte is a token; ids 0 and 1 are the special tokens <s> and </s>; there is no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_llama_model(tied: bool = True) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    config = LlamaConfig(**shape, **ids, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return LlamaForCausalLM(config)


def tiny_gpt2_model() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return GPT2LMHeadModel(config)


def save_model(model: Any, folder: Path, **options: Any) -> Path:
    """Write the model and the tiny tokenizer into the folder."""
    model.save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder
