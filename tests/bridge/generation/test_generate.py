"""Texts that models answer with: against step-by-step decoding without batches, padding or caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bridge.data.chat import ChatFormat
from bridge.data.rows import Row
from bridge.generation import generate
from bridge.generation.decodings import Decoding
from bridge.generation.generate import Response, generate_texts
from bridge.generation.sampling import stream
from bridge.models.load import LoadedModel, load_model
from commands.errors import UserError
from tests.bridge.support.tiny_runs import save_chat_model

QUESTIONS = [
    "how?",
    "what is this then, my friend?",
    "a",
    "why do birds sing so early?",
    "no",
    "hm, and who are you?",
]
NEW = 7


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(save_chat_model(tmp_path_factory.mktemp("model"), "llama")), device="cpu")


@pytest.fixture(scope="module")
def chat(loaded: LoadedModel) -> ChatFormat:
    return ChatFormat(loaded.tokenizer)


PROMPTS = [Row(({"role": "user", "content": q},), "here", k + 1) for k, q in enumerate(QUESTIONS)]


def log_probabilities(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0, -1].double(), 0).numpy()


def greedy_by_hand(model: Any, ids: list[int], ends: tuple[int, ...]) -> tuple[int, ...]:
    out: list[int] = []
    while len(out) < NEW and not (out and out[-1] in ends):
        out.append(int(log_probabilities(model, ids + out).argmax()))
    return tuple(out)


def run(loaded: LoadedModel, chat: ChatFormat, **options: Any) -> list[Response]:
    return generate_texts(loaded, chat, PROMPTS, **{"max_new_tokens": NEW, "batch_size": 4, **options})


def test_greedy_is_the_likeliest_token_each_time(loaded: LoadedModel, chat: ChatFormat) -> None:
    expected = [greedy_by_hand(loaded.model, chat.prompt_ids(row), chat.end_token_ids) for row in PROMPTS]
    for size in (1, 2, 5, 16):
        found = run(loaded, chat, batch_size=size)
        assert [r.token_ids for r in found] == expected
    assert [r.text for r in found] == [loaded.tokenizer.decode(list(e), skip_special_tokens=True) for e in expected]
    assert len(set(expected)) > 1


def test_finished_says_whether_the_turn_was_ended(loaded: LoadedModel, chat: ChatFormat) -> None:
    sampled = Decoding(greedy=False, temperature=3.0)
    found = generate_texts(loaded, chat, PROMPTS * 40, max_new_tokens=20, batch_size=240, decoding=sampled)
    assert {r.finished for r in found} == {True, False}
    for response in found:
        assert response.finished == (response.token_ids[-1] in chat.end_token_ids)
        assert response.finished or len(response.token_ids) == 20
        assert "</s>" not in response.text


def reshaped(logp: np.ndarray, how: Decoding) -> np.ndarray:
    """The distribution that a decoding draws from, by its definition, one token at a time."""
    p = np.exp(logp / how.temperature)
    p /= p.sum()
    if how.top_k:
        p = np.where(p >= np.sort(p)[-how.top_k], p, 0)
        p /= p.sum()
    if how.top_p < 1:
        kept = np.zeros(len(p), dtype=bool)
        for k in np.argsort(-p):
            if p[kept].sum() >= how.top_p:
                break
            kept[k] = True
        p = np.where(kept, p, 0)
        p /= p.sum()
    return np.where(p >= how.min_p * p.max(), p, 0) / p[p >= how.min_p * p.max()].sum()


@pytest.mark.parametrize(
    "how",
    [
        Decoding(greedy=False, seed=3),
        Decoding(greedy=False, temperature=2.5),
        Decoding(greedy=False, temperature=4.0, top_k=9),
        Decoding(greedy=False, temperature=4.0, top_p=0.4),
        Decoding(greedy=False, temperature=4.0, min_p=0.3),
        Decoding(greedy=False, temperature=4.0, top_k=30, top_p=0.9, min_p=0.05, seed=1),
    ],
)
def test_a_sampled_token_is_the_quantile_of_its_distribution(
    loaded: LoadedModel, chat: ChatFormat, how: Decoding
) -> None:
    for place, (row, found) in enumerate(zip(PROMPTS, run(loaded, chat, decoding=how), strict=True)):
        uniforms = stream(how.seed, place, 0)
        ids = chat.prompt_ids(row)
        for token in found.token_ids:
            cumulative = reshaped(log_probabilities(loaded.model, ids), how).cumsum()
            assert token == np.searchsorted(cumulative, uniforms.random() * cumulative[-1], side="right")
            ids = [*ids, token]


def test_sampled_answers_depend_on_the_seed_and_not_on_the_batch(loaded: LoadedModel, chat: ChatFormat) -> None:
    how = Decoding(greedy=False, temperature=2.0)
    first = run(loaded, chat, decoding=how)
    assert run(loaded, chat, decoding=how, batch_size=1) == first
    assert run(loaded, chat, decoding=Decoding(greedy=False, temperature=2.0, seed=1)) != first


def test_given_answers_are_left_out(loaded: LoadedModel, chat: ChatFormat) -> None:
    answered = [Row((*row.messages, {"role": "assistant", "content": "yes"}), "here", row.line) for row in PROMPTS]
    assert generate_texts(loaded, chat, answered, max_new_tokens=NEW) == run(loaded, chat)


def test_another_model_such_as_an_adapted_one(loaded: LoadedModel, chat: ChatFormat, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    other = load_model(str(save_chat_model(tmp_path / "other", "llama")), device="cpu")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(other.model, config).eval()
    expected = [greedy_by_hand(adapted, chat.prompt_ids(row), chat.end_token_ids) for row in PROMPTS]
    found = run(loaded, chat, model=adapted)
    assert [r.token_ids for r in found] == expected
    assert found != run(loaded, chat)


def test_finished_batches_are_kept_and_not_computed_again(
    loaded: LoadedModel, chat: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tmp_path / "step-8"
    calls = []
    answer = generate._answer

    def counted(*arguments: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments[4])
        return answer(*arguments)

    monkeypatch.setattr(generate, "_answer", counted)
    with pytest.raises(KeyboardInterrupt):
        run(loaded, chat, batch_size=2, checkpoint=name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-8-0.json", "step-8-1.json"]
    monkeypatch.setattr(generate, "_answer", answer)
    kept = tmp_path / "step-8-0.json"
    text = json.loads(kept.read_text())
    kept.write_text(json.dumps([[7, 8], *text[1:]]))  # to see that it is read
    found = run(loaded, chat, batch_size=2, checkpoint=name)
    plain = run(loaded, chat, batch_size=2)
    first = calls[0][0]
    assert found[first].token_ids == (7, 8)
    assert [r for k, r in enumerate(found) if k != first] == [r for k, r in enumerate(plain) if k != first]


def test_progress_counts_the_batches(
    loaded: LoadedModel, chat: ChatFormat, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from commands.progress import Progress

    for _ in range(2):
        run(loaded, chat, batch_size=2, progress=Progress(), stage="answers", checkpoint=tmp_path / "x")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("answers: ")
    assert lines[1].endswith("3 of 3 resumed")


def test_no_prompts_no_answers(loaded: LoadedModel, chat: ChatFormat) -> None:
    assert generate_texts(loaded, chat, []) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens: expected a whole number from 1, got 0"),
        ({"batch_size": 0}, "--batch-size"),
        ({"max_new_tokens": 40}, r"here, line 2: the prompt takes [0-9]+ tokens of the 64 positions"),
        ({"decoding": Decoding(temperature=2.0)}, "decoding is greedy"),
        ({"decoding": Decoding(greedy=False, temperature=0.0)}, "--temperature: expected a positive number, got 0"),
        ({"decoding": Decoding(greedy=False, top_k=-1)}, "--top-k"),
        ({"decoding": Decoding(greedy=False, top_p=0.0)}, "--top-p"),
        ({"decoding": Decoding(greedy=False, min_p=1.5)}, "--min-p"),
        ({"decoding": Decoding(greedy=False, seed=-1)}, "--seed"),
    ],
)
def test_refusals(loaded: LoadedModel, chat: ChatFormat, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(loaded, chat, **options)


@pytest.mark.parametrize("how", [Decoding(), Decoding(greedy=False)])
def test_a_broken_model_is_an_error(tmp_path: Path, chat: ChatFormat, how: Decoding) -> None:
    def spoil(model: Any) -> None:
        model.model.norm.weight[0] = float("nan")

    broken = load_model(str(save_chat_model(tmp_path / "broken", "llama", spoil)), device="cpu")
    with pytest.raises(UserError, match="expected finite logits"):
        run(broken, chat, decoding=how)
