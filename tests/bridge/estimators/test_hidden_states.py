"""Hidden states of the last token: by the mask, whatever the padding and the batch, as transformers gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bridge.data.chat import ChatFormat
from bridge.data.rows import load_prompts
from bridge.estimators import hidden_states
from bridge.estimators.hidden_states import decoder_blocks, last_positions, last_token_states, states_of
from bridge.models.load import load_model
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Part, RunFolder
from tests.bridge.conftest import tiny_gpt2, tiny_llama
from tests.oracles.activations import prompt_states, tiny_transformer_states
from tests.oracles.tiny_transformer import TinyTransformer

ROWS = [[3, 5, 7, 2, 9, 4], [1, 8], [11], [6, 6, 2, 12, 10]]
MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
NORMS = {"gpt2": lambda model: model.transformer.ln_f, "llama": lambda model: model.model.norm}


def padded(rows: list[list[int]], side: str, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        blank = longest - len(row)
        ids.append([pad] * blank + row if side == "left" else row + [pad] * blank)
        mask.append([0] * blank + [1] * len(row) if side == "left" else [1] * len(row) + [0] * blank)
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_states_are_those_of_one_row_at_a_time(name: str, side: str) -> None:
    model = MODELS[name]()
    found = last_token_states(model, *padded(ROWS, side)).numpy()
    wanted = np.stack([prompt_states(model, row) for row in ROWS])
    assert found.shape == wanted.shape == (4, 3, 8)
    # transformers' Llama turns its rotary tables in float32, and left padding shifts the positions they start from
    near = 1e-10 if name == "gpt2" or side == "right" else 1e-6
    assert found[:, :-1] == pytest.approx(wanted[:, :-1], abs=near)
    normed = NORMS[name](model)(torch.from_numpy(found[:, -1])).numpy()
    assert normed == pytest.approx(wanted[:, -1], abs=near)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_states_are_those_of_one_row_at_a_time_in_float32(name: str, side: str) -> None:
    model = MODELS[name]().float()
    found = last_token_states(model, *padded(ROWS, side))
    assert found.dtype == torch.float32
    wanted = np.stack([prompt_states(model, row) for row in ROWS])
    assert found.numpy()[:, :-1] == pytest.approx(wanted[:, :-1], abs=1e-5)


def test_states_of_a_strict_float64_model() -> None:
    model = TinyTransformer(layers=3)
    found = last_token_states(model, *padded(ROWS, "right")).numpy()
    wanted = np.stack([tiny_transformer_states(model, row) for row in ROWS])
    assert found.dtype == np.float64
    assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_the_padding_does_not_matter(side: str) -> None:
    model = tiny_gpt2()
    first, second = (last_token_states(model, *padded(ROWS, side, pad)) for pad in (0, 7))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_last_positions_follow_the_mask() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert last_positions(mask).tolist() == [1, 3, 2, 3, 0]
    with pytest.raises(ValueError, match="padding alone"):
        last_positions(torch.tensor([[1, 0], [0, 0]]))


def test_half_precision_is_kept_as_float32() -> None:
    found = last_token_states(tiny_llama().bfloat16(), *padded(ROWS, "right"))
    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())


def test_blocks_are_the_longest_numbered_list() -> None:
    def towers(*sizes: int) -> torch.nn.Module:
        lists = {f"tower{k}": torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(n)) for k, n in enumerate(sizes)}
        return torch.nn.ModuleDict(lists)

    assert [len(decoder_blocks(towers(*sizes))) for sizes in ((2, 5), (12, 3))] == [5, 12]
    model = tiny_llama()
    assert decoder_blocks(model) == list(model.model.layers)
    with pytest.raises(UserError, match="numbered blocks"):
        decoder_blocks(torch.nn.Linear(2, 2))


def test_a_block_that_runs_twice_is_refused() -> None:
    class Twice(TinyTransformer):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            super().forward(*args, **kwargs)
            return super().forward(*args, **kwargs)

    with pytest.raises(UserError, match="expected blocks that run once, got 2 states of layer 0"):
        last_token_states(Twice(), *padded(ROWS, "right"))


def test_hooks_do_not_stay() -> None:
    model = tiny_gpt2()
    last_token_states(model, *padded(ROWS, "right"))
    with pytest.raises(IndexError):
        last_token_states(model, torch.tensor([[99]]), torch.tensor([[1]]))
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


# ------------------------------------------------------------------------------------------------ many rows


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run", "test", {})


def measured(folder: RunFolder, part: str, size: int, model: Any = None) -> np.ndarray:
    return states_of(
        model or tiny_gpt2(), ROWS * 3, pad_id=0, batch_size=size, folder=Part(folder, part), progress=Progress(True)
    )


def test_rows_come_back_in_their_order_whatever_the_batches(folder: RunFolder) -> None:
    model = tiny_gpt2()
    wanted = np.stack([prompt_states(model, row) for row in ROWS * 3], axis=1)[:-1]
    for size in (1, 5, 100):
        found = measured(folder, f"batches-of-{size}", size, model)
        assert found.shape == (3, 12, 8)
        assert found[:-1] == pytest.approx(wanted, abs=1e-10)


def test_finished_batches_are_not_computed_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, calls = hidden_states.last_token_states, []

    def counted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(hidden_states, "last_token_states", counted)
    with pytest.raises(KeyboardInterrupt):
        measured(folder, "part", 4)
    again = measured(folder, "part", 4)
    assert len(calls) == 4
    assert np.array_equal(again, measured(folder, "whole", 4))


def test_states_that_are_no_numbers_are_refused(folder: RunFolder) -> None:
    model = tiny_gpt2()
    model.transformer.h[1].mlp.c_proj.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="finite hidden states, got nan or inf from layer 2 on: use --dtype float32"):
        measured(folder, "part", 4, model)


@pytest.mark.real_model
def test_states_of_the_real_model(folder: RunFolder) -> None:
    loaded = load_model("smollm2-135m", device="cpu")
    chat = ChatFormat(loaded.tokenizer)
    ids = [chat.prompt_ids(row) for row in load_prompts("refusals-heldout").rows[:4]]
    ids[1] = ids[1][:7]
    found = states_of(loaded.model, ids, pad_id=0, batch_size=3, folder=Part(folder, "real"), progress=Progress(True))
    assert found.shape == (31, 4, 576)
    for k, row in enumerate(ids):
        wanted = prompt_states(loaded.model, row)[:-1]
        error = np.linalg.norm(found[:-1, k] - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert error.max() < 1e-5
