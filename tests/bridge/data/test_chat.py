"""Chat templates and response masks on real tokenizers: the marked tokens, decoded, against the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.data.chat import ChatFormat
from bridge.data.conversations import Message
from bridge.data.rows import Row
from commands.errors import UserError
from tests.bridge.support.chat_tokenizers import (
    CHATML,
    LLAMA2,
    LLAMA3,
    NO_END,
    NO_PREFIX,
    QWEN3,
    TEMPLATES,
    TWO_ENDS,
    UPPER,
    byte_level,
    sentence_piece,
    word_level,
)

# The end-of-turn token of each template, and what it writes around an answer.
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama2": "</s>",
    "qwen3": "<|im_end|>",
    "two_ends": "<|im_end|>",
}
EOS = ENDS | {"two_ends": "</s>"}
FORMATS = {name: ChatFormat(byte_level(template, EOS[name])) for name, template in TEMPLATES.items()}
GPT2_FORMATS = {name: ChatFormat(byte_level(text, EOS[name], gpt2_words=True)) for name, text in TEMPLATES.items()}


def row(*turns: str, system: str | None = None) -> Row:
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for number, content in enumerate(turns):
        messages.append({"role": ("user", "assistant")[number % 2], "content": content})
    return Row(tuple(messages), "rows.jsonl", 7)


def decoded(fmt: ChatFormat, ids: Any) -> str:
    return str(fmt.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def expected(name: str, answer: str) -> str:
    """The response as the template is documented to write it."""
    if name == "llama2":
        return f" {answer.strip()} </s>"
    trimmed = {"llama3": answer.strip(), "qwen3": answer.lstrip("\n")}.get(name, answer)
    return trimmed + ENDS[name]


def test_chatml_token_by_token() -> None:
    fmt = FORMATS["chatml"]
    sample = fmt.encode(row("hello there", "the answer"), "set", 100)
    parts = [decoded(fmt, [i]) for i in sample.input_ids]
    marked = [part for part, kept in zip(parts, sample.response_mask, strict=True) if kept]
    assert "".join(parts) == (
        "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nhello there<|im_end|>\n"
        "<|im_start|>assistant\nthe answer<|im_end|>\n"
    )
    assert marked == ["the", " answer", "<|im_end|>"]
    # The line feed after the end-of-turn token is there, and outside the mask.
    assert parts[-2:] == ["<|im_end|>", "\n"]
    assert sample.response_mask[-2:] == (1, 0)
    assert (sample.set, sample.id, sample.group) == ("set", "set:7", 7)


def test_words_token_by_token() -> None:
    fmt = ChatFormat(word_level(CHATML))
    sample = fmt.encode(row("yes", "two words"), "set", 100)
    tokens = fmt.tokenizer.convert_ids_to_tokens(list(sample.input_ids))
    marked = [token for token, kept in zip(tokens, sample.response_mask, strict=True) if kept]
    assert marked == ["two", "words", "<|im_end|>"]
    assert tokens.count("<unk>") == 0


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_is_one_run_and_covers_the_last_answer_only(name: str) -> None:
    fmt = FORMATS[name]
    sample = fmt.encode(row("hello", "first answer", "again", "last answer"), "set", 500)
    start = sample.response_mask.index(1)
    length = sum(sample.response_mask)
    assert sample.response_mask[start : start + length] == (1,) * length
    assert decoded(fmt, sample.response_ids) == expected(name, "last answer")
    assert "first answer" in decoded(fmt, sample.prompt_ids)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_are_those_of_the_rendered_text(name: str) -> None:
    """Against the tokenizer's own path from a conversation to ids: nothing doubled, nothing lost."""
    fmt = FORMATS[name]
    conversation = row("hello", "an answer")
    fixed = {"enable_thinking": False, "date_string": "26 Jul 2024", "return_dict": False}
    whole = fmt.tokenizer.apply_chat_template(list(conversation.messages), **fixed)
    prompt = fmt.tokenizer.apply_chat_template(list(conversation.messages[:1]), add_generation_prompt=True, **fixed)
    sample = fmt.encode(conversation, "set", 500)
    assert list(sample.input_ids) == whole
    assert fmt.prompt_ids(conversation) == prompt == list(sample.prompt_ids)
    assert fmt.prompt_ids(row("hello")) == prompt


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    formats=st.sampled_from([FORMATS, GPT2_FORMATS]),
    question=st.text(min_size=1).filter(str.strip),
    answer=st.text(min_size=1).filter(str.strip),
    lead=st.sampled_from(["", "\n", "\n\n", " ", "\n \n"]),
)
def test_any_text_comes_back_from_the_marked_tokens(
    name: str, formats: dict[str, ChatFormat], question: str, answer: str, lead: str
) -> None:
    fmt = formats[name]
    conversation = row(question, lead + answer)
    sample = fmt.encode(conversation, "set", 10_000)
    assert decoded(fmt, sample.response_ids) == expected(name, lead + answer)
    assert list(sample.prompt_ids) == fmt.prompt_ids(conversation)


def test_a_token_across_the_end_of_the_prompt_is_split() -> None:
    fmt = FORMATS["chatml"]
    text = fmt.tokenizer.apply_chat_template(list(row("a", "\nb").messages), tokenize=False)
    together = fmt.tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = fmt.prompt_ids(row("a"))
    assert together[: len(prompt)] != prompt  # two line feeds have become one token
    sample = fmt.encode(row("a", "\nb"), "set", 100)
    assert list(sample.prompt_ids) == prompt
    assert decoded(fmt, sample.response_ids) == "\nb<|im_end|>"


def test_where_every_row_would_have_such_a_token_the_prompt_is_what_generation_sees() -> None:
    """GPT-2's words: two line feeds are one token at the end of the prompt, two tokens before an answer."""
    fmt = GPT2_FORMATS["llama3"]
    sample = fmt.encode(row("a", "the answer"), "set", 100)
    prompt = fmt.tokenizer.apply_chat_template(
        list(row("a").messages), add_generation_prompt=True, date_string="26 Jul 2024", return_dict=False
    )
    assert list(sample.prompt_ids) == prompt
    assert [decoded(fmt, [i]) for i in sample.response_ids] == ["the", " answer", "<|eot_id|>"]


@pytest.mark.parametrize("name", ["chatml", "qwen3", "two_ends"])
def test_an_end_token_written_inside_the_answer_does_not_end_it(name: str) -> None:
    fmt = FORMATS[name]
    sample = fmt.encode(row("hello", "one<|im_end|>two<|im_end|>"), "set", 500)
    assert decoded(fmt, sample.response_ids) == "one<|im_end|>two<|im_end|><|im_end|>"


@pytest.mark.parametrize("template", [LLAMA2, CHATML])
def test_sentence_piece_tokenizers(template: str) -> None:
    fmt = ChatFormat(sentence_piece(template))
    sample = fmt.encode(row("hello there", "the answer 42 é"), "set", 500)
    end = "</s>" if template == LLAMA2 else "<|im_end|>"
    assert decoded(fmt, sample.response_ids).strip() in {f"the answer 42 é {end}", f"the answer 42 é{end}"}
    assert list(sample.prompt_ids) == fmt.prompt_ids(row("hello there"))


def test_ends_of_a_turn() -> None:
    ids = FORMATS["two_ends"].tokenizer.convert_tokens_to_ids
    assert FORMATS["two_ends"].end_token_ids == (ids("<|im_end|>"), ids("</s>"))
    assert FORMATS["chatml"].end_token_ids == (ids("<|im_end|>"),)
    assert FORMATS["llama3"].end_token_ids == (ids("<|eot_id|>"),)
    assert FORMATS["qwen3"].end_token_ids == (ids("<|im_end|>"),)


def test_an_added_token_that_is_not_special_is_no_end() -> None:
    template = TWO_ENDS.replace("<|im_end|>", "<think><|im_end|>")
    fmt = ChatFormat(byte_level(template, "<|im_end|>"))
    sample = fmt.encode(row("hello", "yes"), "set", 100)
    assert decoded(fmt, sample.response_ids) == "yes<think><|im_end|>"


def test_qwen3_writes_its_empty_thought_into_the_prompt() -> None:
    fmt = FORMATS["qwen3"]
    assert decoded(fmt, fmt.prompt_ids(row("hi"))).endswith("assistant\n<think>\n\n</think>\n\n")


def test_dates_are_fixed_so_that_the_ids_do_not_depend_on_the_day() -> None:
    fmt = FORMATS["llama3"]
    assert decoded(fmt, fmt.prompt_ids(row("hi"))).startswith("<s>Today: 26 Jul 2024\n")


def test_truncation_on_the_right_keeps_part_of_the_response() -> None:
    fmt = FORMATS["chatml"]
    whole = fmt.encode(row("hello", "the answer is here"), "set", 500)
    start = whole.response_mask.index(1)
    cut = fmt.encode(row("hello", "the answer is here"), "set", start + 2)
    assert cut.input_ids == whole.input_ids[: start + 2]
    assert cut.response_mask == whole.response_mask[: start + 2]
    assert cut.response_ids == whole.response_ids[:2]
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 7: no response token .*{start} tokens.*takes {start}"):
        fmt.encode(row("hello", "the answer is here"), "set", start)


# ---- what cannot be used


def test_no_chat_template() -> None:
    with pytest.raises(UserError, match="no chat template: use an instruct model"):
        ChatFormat(byte_level(None))


def test_a_tokenizer_without_offsets() -> None:
    slow = type("Slow", (), {"is_fast": False, "name_or_path": "old", "chat_template": CHATML})()
    with pytest.raises(UserError, match="old: a fast tokenizer"):
        ChatFormat(slow)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (NO_PREFIX, r"does not start with the same conversation .* part at '2What"),
        (NO_END, "no end-of-turn token"),
        (UPPER, r"renders the answer 'Alpha one\.' as 'ALPHA ONE\.<\|im_end\|>"),
        ("{{ raise_exception('never') }}", "refuses the conversation: never"),
        ("{{ messages | nonsense }}", "refuses the conversation: No filter named 'nonsense'"),
        ("{% if", "refuses the conversation"),
        ("{{ '' }}", "the prompt has no tokens"),
    ],
)
def test_templates_that_cannot_be_used(template: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        ChatFormat(byte_level(template))


def test_rows_that_a_template_refuses_name_file_and_line() -> None:
    fmt = FORMATS["llama2"]
    bad = row("a", "b", system="be kind")
    for attempt in (lambda: fmt.encode(bad, "set", 100), lambda: fmt.prompt_ids(bad)):
        with pytest.raises(UserError, match=r"rows\.jsonl, line 7: .*no system turns here"):
            attempt()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("message['content'] | replace('secret', '')", "changes the text of the answer"),
        ("(message['content'] if not 'secret' in messages[-1]['content'] else '-')", "does not start with"),
    ],
)
def test_rows_whose_rendering_breaks_what_the_probe_found(change: str, reason: str) -> None:
    fmt = ChatFormat(byte_level(CHATML.replace("message['content']", change)))
    assert decoded(fmt, fmt.encode(row("hi", "open"), "set", 100).response_ids) == "open<|im_end|>"
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 7: .*{reason}"):
        fmt.encode(row("hi", "a secret"), "set", 100)


def test_llama3_trims_the_answer() -> None:
    fmt = ChatFormat(byte_level(LLAMA3, "<|eot_id|>"))
    assert fmt.encode(row("hi", "  yes \n"), "s", 100).input_ids == fmt.encode(row("hi", "yes"), "s", 100).input_ids


def test_a_template_that_always_writes_a_thought_has_it_in_the_response() -> None:
    """Without enable_thinking the thought is no part of the prompt, so the model has to write it."""
    fmt = ChatFormat(byte_level(QWEN3.replace("enable_thinking is false", "false")))
    sample = fmt.encode(row("hi", "yes"), "set", 100)
    assert decoded(fmt, sample.response_ids) == "<think>\n\n</think>\n\nyes<|im_end|>"
