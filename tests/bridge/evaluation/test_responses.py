"""Answers as records: each prompt's own, whatever shares its batch, and kept when a run dies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.data.chat import ChatFormat
from bridge.data.rows import Row, question
from bridge.evaluation.answering import answer_prompts, prompt_ids
from bridge.evaluation.records import Record
from bridge.generation.decodings import Decoding
from bridge.generation.generate import generate_texts
from bridge.models.load import LoadedModel, load_model
from commands.errors import UserError
from commands.progress import Progress
from tests.bridge.support.tiny_runs import save_chat_model

SAMPLED = Decoding(greedy=False, temperature=0.7, top_k=20, top_p=0.8, seed=3)
NEW = 8


class Kept:
    """Checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(save_chat_model(tmp_path_factory.mktemp("model"), "llama")), device="cpu")


def rows(*texts: str) -> list[Row]:
    return [Row(({"role": "user", "content": text},), "here", line) for line, text in enumerate(texts, start=3)]


ROWS = rows("how?", "do xx?", "why do that", "a", "what is this now")


def answer(loaded: LoadedModel, folder: Path, these: list[Row] = ROWS, **options: Any) -> list[Record]:
    given: dict[str, Any] = {"decoding": SAMPLED, "max_new_tokens": NEW, "batch_size": 2, "name": "set"} | options
    folder.mkdir(exist_ok=True)
    return answer_prompts(loaded, these, folder=Kept(folder), progress=Progress(quiet=True), **given)


def test_records_hold_what_was_asked_and_answered(loaded: LoadedModel, tmp_path: Path) -> None:
    found = answer(loaded, tmp_path, decoding=Decoding())
    chat = ChatFormat(loaded.tokenizer)
    alone = [generate_texts(loaded, chat, [row], max_new_tokens=NEW)[0] for row in ROWS]
    for record, row, text in zip(found, ROWS, alone, strict=True):
        assert record.item == f"set:{row.line}"
        assert record.prompt == row.messages[0]["content"]
        assert record.prompt_tokens == len(chat.prompt_ids(row))
        assert (record.response, record.response_tokens) == (text.text, len(text.token_ids))
        assert record.finished == text.finished
        assert record.latency > 0
        assert (record.status, record.judge, record.score) == ("generated", "", None)


def test_a_sampled_answer_depends_on_seed_and_line_alone(loaded: LoadedModel, tmp_path: Path) -> None:
    texts = [record.response for record in answer(loaded, tmp_path / "a")]
    assert len(set(texts)) > 1
    assert [r.response for r in answer(loaded, tmp_path / "b", batch_size=5)] == texts
    assert [r.response for r in answer(loaded, tmp_path / "c", ROWS[2:])] == texts[2:]
    other = replace(SAMPLED, seed=4)
    assert [r.response for r in answer(loaded, tmp_path / "d", decoding=other)] != texts
    same = [replace(ROWS[0], line=line) for line in (1, 2)]
    assert len({r.response for r in answer(loaded, tmp_path / "e", same)}) == 2


def test_what_was_answered_before_a_death_is_not_answered_again(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = answer(loaded, tmp_path / "whole")
    asked: list[list[int]] = []
    original = generate_texts

    def dies_in_the_second_batch(*given: Any, **options: Any) -> Any:
        asked.append(options["places"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(*given, **options)

    monkeypatch.setattr("bridge.evaluation.answering.generate_texts", dies_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        answer(loaded, tmp_path / "died")
    found = answer(loaded, tmp_path / "died")
    assert [replace(r, latency=0.0) for r in found] == [replace(r, latency=0.0) for r in wanted]
    assert len(asked) == 4
    assert asked[1] == asked[2]
    assert sorted(asked[0] + asked[2] + asked[3]) == [row.line for row in ROWS]


def test_earlier_turns_belong_to_the_prompt(loaded: LoadedModel, tmp_path: Path) -> None:
    turns = [("system", "be"), ("user", "q"), ("assistant", "a"), ("user", "now?")]
    row = Row(tuple({"role": role, "content": text} for role, text in turns), "here", 1)  # type: ignore[typeddict-item]
    record = answer(loaded, tmp_path, [row])[0]
    assert question(row) == record.prompt == "[system]\nbe\n\n[user]\nq\n\n[assistant]\na\n\n[user]\nnow?"
    answered = replace(row, messages=(*row.messages, {"role": "assistant", "content": "x"}))
    assert question(answered) == record.prompt
    assert (
        record.prompt_tokens == len(prompt_ids(loaded, [row], NEW)[0]) > len(prompt_ids(loaded, rows("now?"), NEW)[0])
    )


def test_what_cannot_be_answered_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"here, line 3: the prompt takes .* leaves no room"):
        prompt_ids(loaded, rows("x" * 60), NEW)
    with pytest.raises(UserError, match="--batch-size"):
        answer(loaded, tmp_path, batch_size=0)
    with pytest.raises(UserError, match="--max-new-tokens"):
        answer(loaded, tmp_path, max_new_tokens=0)
    with pytest.raises(ValueError, match="different lines"):
        answer(loaded, tmp_path, [ROWS[0], ROWS[0]])
    assert answer(loaded, tmp_path, []) == []
