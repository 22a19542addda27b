"""Small real tokenizers with the chat templates that matter, built on the spot."""

from __future__ import annotations

from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set date = date_string if date_string is defined else strftime_now('%d %b %Y %H:%M:%S.%f') %}"
    "{% for message in messages %}{% if loop.first %}{{ bos_token + 'Today: ' + date + '\n' }}{% endif %}"
    "{{ '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system turns here') }}"
    "{% elif message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\n\n</think>\n\n' }}"
    "{{ message.content.lstrip('\n') }}{% else %}{{ message.content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# The line feed and the eos after the end-of-turn token, as Phi-3 renders them.
TWO_ENDS = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
NO_PREFIX = (
    "{{ messages | length }}{% for message in messages %}{{ message.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)
NO_END = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
UPPER = CHATML.replace("message['content']", "message['content'] | upper")
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "llama2": LLAMA2, "qwen3": QWEN3, "two_ends": TWO_ENDS}

_SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot_id|>"]
# How Llama 3 and Qwen cut text into words (GPT-2 and SmolLM2 cut before the last of several blanks).
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Text in which double line feeds and " answer" are common enough to become tokens of their own.
_CORPUS = ["the answer is here\n\nuser assistant system\n\n", "an answer, a prompt, hello there\n\n\n"] * 50


def byte_level(template: str | None, eos: str = "<|im_end|>", gpt2_words: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in Llama 3 and Qwen, or with gpt2_words as in GPT-2 and SmolLM2."""
    model = Tokenizer.from_str(_byte_level_model(gpt2_words))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


@cache
def _byte_level_model(gpt2_words: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2_words)
    tokenizer.pre_tokenizer = to_bytes if gpt2_words else pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=_SPECIAL)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    # As in Llama 3, the tokenizer itself adds <s> when asked for special tokens.
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    # <think> is one token but, as in Qwen3, not a special one.
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    return str(tokenizer.to_str())


def sentence_piece(template: str) -> PreTrainedTokenizerFast:
    """BPE with a blank put before every text, as in Llama 2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *_SPECIAL, *bytes_])
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


def word_level(template: str) -> PreTrainedTokenizerFast:
    """Whole words and single line feeds; anything unknown is <unk>."""
    words = [
        "<unk>",
        "\n",
        "system",
        "user",
        "assistant",
        "You",
        "are",
        "helpful",
        "two",
        "words",
        "yes",
        "no",
    ]
    vocabulary = {word: i for i, word in enumerate([*_SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[^ \n]+"), "removed", invert=True)
    tokenizer.add_special_tokens(_SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", unk_token="<unk>")
    fast.chat_template = template
    return fast
