"""Chat templates: conversations to token ids, with the response tokens of the last assistant turn marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge.data.conversations import Message
from bridge.data.rows import Row
from bridge.data.samples import Sample
from commands.errors import UserError

# Variables that templates read. Without the first, Qwen3 renders a last answer (with an empty <think> block)
# that does not continue its own generation prompt; without the second, Llama 3 writes today's date.
_TEMPLATE_VARIABLES = {"enable_thinking": False, "date_string": "26 Jul 2024"}
# Two answers without a common first or last character: what their renderings share is the template's.
_PROBE_QUESTION = "What is it?"
_PROBE_ANSWERS = ("Alpha one.", "Omega two!")


class ChatFormat:
    """A tokenizer with its chat template, probed for what a response mask relies on.

    The template must have the prefix property: a conversation renders as the same conversation without its
    last answer and with the generation prompt, followed by the response (text around the answer that the
    template adds, the answer, and an end-of-turn token). Both are checked at construction on a short
    conversation and again on every row. Special tokens written out in a row's text are read as such, as
    they are when generating.

    `end_token_ids` are the ids that end a turn: the template's end-of-turn token, then the tokenizer's eos.
    Raises UserError if the tokenizer is not a fast one of Hugging Face, has no chat template, or the
    template lacks one of these properties.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(f"{self._name}: a fast tokenizer (tokenizer.json) is needed to place the mask")
        if not tokenizer.chat_template:
            raise UserError(
                f"{self._name} has no chat template: use an instruct model, "
                "or add a chat_template.jinja to a local folder of the model"
            )
        try:
            self._lead, self._tail = self._probe_text()
            self._end_id = self._probe_end_token()
        except ValueError as error:
            raise UserError(f"the chat template of {self._name} cannot be used: {error}") from None
        eos = tokenizer.eos_token_id
        self.end_token_ids: tuple[int, ...] = tuple(
            dict.fromkeys([self._end_id] if eos is None else [self._end_id, eos])
        )

    def prompt_ids(self, row: Row) -> list[int]:
        """Ids of the conversation up to and including the generation prompt, its last answer left out."""
        try:
            return self._prompt(row.messages)[1]
        except ValueError as error:
            raise row.error(str(error)) from None

    def encode(self, row: Row, set_name: str, max_length: int) -> Sample:
        """The row as a sample of at most max_length tokens, cut on the right.

        The mask covers what follows the generation prompt up to and including the end-of-turn token:
        earlier answers and what a template writes after that token are outside. The conversation is
        tokenised as a whole; if a token would straddle the end of the prompt (say two line feeds in one
        token), prompt and response are tokenised apart, since that is the prompt a model answers to.

        Raises UserError, with file and line, if the template does not render the row as `ChatFormat`
        requires or if max_length leaves no response token.
        """
        try:
            ids, start, end = self._response_span(row.messages)
        except ValueError as error:
            raise row.error(str(error)) from None
        if start >= max_length:
            raise row.error(
                f"no response token is left within the maximal length of {max_length} tokens, "
                f"since the prompt alone takes {start}: raise the length or drop the row"
            )
        mask = [int(start <= position < end) for position in range(len(ids))]
        name = f"{set_name}:{row.line}"
        return Sample(set_name, name, tuple(ids[:max_length]), tuple(mask[:max_length]), row.line)

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                    **_TEMPLATE_VARIABLES,
                )
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from None

    def _tokenise(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        # The template has written the bos token if there is one: adding special tokens would double it.
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]

    def _prompt(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        context = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        text = self._render(context, generation_prompt=True)
        ids, _ = self._tokenise(text)
        if not ids:
            raise ValueError("the prompt has no tokens")
        return text, ids

    def _response(self, messages: Sequence[Message], prompt: str) -> str:
        """What the template renders after the generation prompt."""
        text = self._render(messages, generation_prompt=False)
        if not text.startswith(prompt):
            shared = _common_prefix(text, prompt)
            raise ValueError(
                "a conversation does not start with the same conversation cut before its last answer "
                f"plus the generation prompt (they part at {text[shared : shared + 20]!r} "
                f"against {prompt[shared : shared + 20]!r})"
            )
        return text[len(prompt) :]

    def _probe_text(self) -> tuple[str, str]:
        """What the template writes before and after the text of a last answer."""
        responses: list[str] = []
        for answer in _PROBE_ANSWERS:
            messages: list[Message] = [
                {"role": "user", "content": _PROBE_QUESTION},
                {"role": "assistant", "content": answer},
            ]
            responses.append(self._response(messages, self._prompt(messages)[0]))
        first, second = responses
        lead = first[: _common_prefix(first, second)]
        tail = first[len(first) - _common_prefix(first[::-1], second[::-1]) :]
        for answer, response in zip(_PROBE_ANSWERS, responses, strict=True):
            if response != lead + answer + tail:
                raise ValueError(f"it renders the answer {answer!r} as {response!r}")
        return lead, tail

    def _probe_end_token(self) -> int:
        """The first special token after an answer."""
        answer_end = len(self._lead) + len(_PROBE_ANSWERS[0])
        ids, offsets = self._tokenise(self._lead + _PROBE_ANSWERS[0] + self._tail)
        after = [token for token, (_, end) in zip(ids, offsets, strict=True) if end > answer_end]
        special = {*self.tokenizer.all_special_ids}
        special |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        for token in after:
            if token in special:
                return token
        raise ValueError("no end-of-turn token follows the answer, so a model could not learn to stop")

    def _response_span(self, messages: Sequence[Message]) -> tuple[list[int], int, int]:
        """Ids of the conversation, and the first and one past the last position of its response tokens."""
        prompt, prompt_ids = self._prompt(messages)
        response = self._response(messages, prompt)
        answer_end = len(response) - len(self._tail)
        answer = response[len(self._lead) : answer_end]
        # Templates may strip the answer, so blanks at its ends may differ; nothing else may.
        if response != self._lead + answer + self._tail or answer.strip() != messages[-1]["content"].strip():
            raise ValueError("the chat template changes the text of the answer")
        ids, offsets = self._tokenise(prompt + response)
        start = len(prompt_ids)
        if ids[:start] == prompt_ids:
            ends = [end - len(prompt) for _, end in offsets[start:]]
        else:
            together = ids
            response_ids, offsets = self._tokenise(response)
            ids, ends = prompt_ids + response_ids, [end for _, end in offsets]
            if self.tokenizer.decode(ids) != self.tokenizer.decode(together):
                raise ValueError("the answer cannot be tokenised apart from its prompt")
        for position, end in enumerate(ends, start):
            if ids[position] == self._end_id and end > answer_end:
                return ids, start, position + 1
        raise ValueError("no end-of-turn token follows the answer")


def _common_prefix(first: str, second: str) -> int:
    """Number of characters that both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
