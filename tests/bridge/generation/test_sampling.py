"""Responses drawn from the model: their distribution, their ends, and what they must not depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from bridge.generation import sampling
from bridge.generation.sampling import draw_responses, stream
from commands.errors import UserError
from tests.bridge.conftest import tiny_gpt2, tiny_llama

VOCABULARY = 13
PROMPT, LONGER = [5, 2], [3, 1, 4, 1, 5, 9, 2, 6]
DRAWS = 8000
FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return tiny_gpt2()


def draw(model: Any, prompts: list[list[int]], rows: list[int], length: int = 6, ends: tuple[int, ...] = ()) -> Any:
    streams = [stream(0, row, 0) for row in rows]
    return draw_responses(model, prompts, streams, max_new_tokens=length, end_token_ids=ends, pad_id=0)


# ---- the distribution


def two_token_probabilities(model: Any) -> np.ndarray:
    """p(y1) p(y2 | y1) after PROMPT, (V, V), from plain forward passes without padding."""
    with torch.no_grad():
        first = torch.softmax(model(torch.tensor([PROMPT])).logits[0, -1].double(), 0)
        following = torch.tensor([[*PROMPT, y] for y in range(VOCABULARY)])
        second = torch.softmax(model(following).logits[:, -1].double(), 1)
    return (first[:, None] * second).numpy()


def surprise(model: Any) -> float:
    """Chi-square p-value of DRAWS two-token responses; every batch also holds a longer prompt, so rows are padded."""
    prompts = [PROMPT] * DRAWS + [LONGER]
    drawn = np.array(draw(model, prompts, list(range(DRAWS + 1)), length=2)[:DRAWS])
    counts = np.zeros((VOCABULARY, VOCABULARY))
    np.add.at(counts, (drawn[:, 0], drawn[:, 1]), 1)
    expected = two_token_probabilities(model) * DRAWS
    kept = expected >= 5
    observed = np.append(counts[kept], counts[~kept].sum())
    wanted = np.append(expected[kept], expected[~kept].sum())
    assert len(wanted) > 30
    return float(chi2.sf(((observed - wanted) ** 2 / wanted).sum(), len(wanted) - 1))


def test_drawn_tokens_follow_the_softmax(gpt2: Any) -> None:
    assert surprise(gpt2) > FALSE_ALARM


def hotter(scores: Tensor) -> Tensor:
    return scores / 1.2


def top_k(scores: Tensor) -> Tensor:
    return scores.masked_fill(scores < scores.topk(10, 1).values[:, -1:], -torch.inf)


def shifted(scores: Tensor) -> Tensor:
    """Every token taken for its neighbour."""
    return scores.roll(1, 1)


@pytest.mark.parametrize("wrong", [hotter, top_k, shifted])
def test_the_same_test_rejects_another_distribution(gpt2: Any, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    """Temperature 1.2, top-k 10 of 13, and shifted tokens must all fail it: it has the power it needs."""

    class Mutant(sampling._InverseTransform):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return super().__call__(input_ids, wrong(scores))

    monkeypatch.setattr(sampling, "_InverseTransform", Mutant)
    assert surprise(gpt2) < FALSE_ALARM / 100


class FixedStream(np.random.Generator):
    def __init__(self, value: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.value = value

    def random(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.5, 1 - 2**-53])
def test_impossible_tokens_are_never_drawn(uniform: float, dtype: torch.dtype) -> None:
    """Not at the ends of the unit interval either, where a quantile meets tokens of probability zero."""
    possible = [2, 3, 7]
    scores = torch.full((50, 9), -torch.inf, dtype=dtype)
    scores[:, possible] = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).to(dtype) * 4
    processor = sampling._InverseTransform([FixedStream(uniform)] * 50)
    out = processor(torch.zeros(50, 1, dtype=torch.long), scores)
    assert (torch.isfinite(out).sum(1) == 1).all()
    tokens = out.argmax(1)
    assert set(tokens.tolist()) <= set(possible)
    if uniform in (0.0, 1 - 2**-53):
        assert set(tokens.tolist()) == {possible[0] if uniform == 0.0 else possible[-1]}


def test_the_draw_is_the_quantile_of_the_uniform() -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    near = 1e-9  # what a softmax in less than float64 would not resolve
    ends = [(0.1 - near, 0), (0.1 + near, 1), (0.3 - near, 1), (0.3 + near, 2), (0.6 - near, 2), (0.6 + near, 3)]
    for uniform, token in [(0.0, 0), *ends, (0.99, 3)]:
        processor = sampling._InverseTransform([FixedStream(uniform)])
        assert int(processor(torch.zeros(1, 1), p.log()).argmax()) == token


# ---- what it must not depend on


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_a_response_does_not_depend_on_its_batch(build: Any) -> None:
    model = build()
    source = np.random.default_rng(1)
    prompts = [source.integers(0, VOCABULARY, size).tolist() for size in (1, 9, 3, 3, 14, 2, 6)]
    rows = list(range(len(prompts)))
    together = draw(model, prompts, rows, ends=(4,))
    alone = [draw(model, [prompts[row]], [row], ends=(4,))[0] for row in rows]
    backwards = draw(model, prompts[::-1], rows[::-1], ends=(4,))[::-1]
    assert together == alone
    assert together == backwards
    assert len({len(response) for response in together}) > 1  # rows end at different steps


def test_neither_torchs_nor_numpys_generator_matters_or_moves(gpt2: Any) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    first = draw(gpt2, [PROMPT, LONGER], [0, 1])
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert draw(gpt2, [PROMPT, LONGER], [0, 1]) == first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_the_models_own_settings_do_not_matter(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """generate() fills what is left open from the model: its greedy or narrowed habits must not come through."""
    plain = draw(gpt2, [PROMPT] * 40, list(range(40)))
    for name, value in {"top_k": 1, "top_p": 0.01, "temperature": 0.01, "do_sample": True, "max_length": 4}.items():
        monkeypatch.setattr(gpt2.generation_config, name, value)
    assert draw(gpt2, [PROMPT] * 40, list(range(40))) == plain


def test_streams_differ_by_seed_row_and_draw() -> None:
    keys = [(seed, row, number) for seed in range(3) for row in range(3) for number in range(3)]
    assert len({stream(*key).random() for key in keys}) == len(keys)
    assert stream(1, 2, 3).random() == stream(1, 2, 3).random()


# ---- where a response ends


def test_a_response_ends_with_its_first_end_token_or_at_the_limit(gpt2: Any) -> None:
    ends, length = (4, 7), 9
    drawn = draw(gpt2, [PROMPT] * 100 + [LONGER] * 100, list(range(200)), length, ends)
    ended = [response for response in drawn if response[-1] in ends]
    cut = [response for response in drawn if response[-1] not in ends]
    assert len(ended) > 20
    assert len(cut) > 20
    assert all(1 <= len(response) <= length for response in ended)
    assert all(len(response) == length for response in cut)
    assert not any(token in ends for response in drawn for token in response[:-1])
    assert {response[-1] for response in ended} == set(ends)


def test_ends_only_cut_what_would_be_drawn_without_them(gpt2: Any) -> None:
    rows = list(range(30))
    free = draw(gpt2, [PROMPT] * 30, rows)
    for whole, response in zip(free, draw(gpt2, [PROMPT] * 30, rows, ends=(4, 7)), strict=True):
        stop = next((k for k, token in enumerate(whole) if token in (4, 7)), len(whole) - 1)
        assert response == whole[: stop + 1]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_limit_is_kept(gpt2: Any, length: int) -> None:
    assert [len(r) for r in draw(gpt2, [PROMPT, LONGER], [0, 1], length)] == [length, length]


def test_the_padding_token_does_not_matter_and_may_be_drawn(gpt2: Any) -> None:
    """Models whose padding is their end token draw it as any other."""
    arguments = {"max_new_tokens": 6, "end_token_ids": [4]}
    for_pad = [
        draw_responses(gpt2, [PROMPT, LONGER], [stream(0, r, 0) for r in (0, 1)], pad_id=pad, **arguments)
        for pad in (0, 4, 12)
    ]
    assert for_pad[0] == for_pad[1] == for_pad[2]
    assert any(0 in response for response in draw(gpt2, [PROMPT] * 50, list(range(50))))


# ---- broken models


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = value
    with pytest.raises(UserError, match="expected finite logits"):
        draw(model, [PROMPT], [0])
