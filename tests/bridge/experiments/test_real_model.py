"""The real default model on a handful of rows: what is predicted before a step against what a step does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bridge.data.chat import ChatFormat
from bridge.data.encode import encode_rows
from bridge.data.rows import load_rows
from bridge.data.samples import with_response
from bridge.estimators import output_space, taps
from bridge.estimators import scores as measure
from bridge.estimators import theta as estimators_theta
from bridge.estimators import update as estimators_update
from bridge.estimators.batches import Batch, response_logits, sum_by_row
from bridge.experiments.estimate_aic import assembly
from bridge.generation.sampling import draw_responses, stream
from bridge.models.load import LoadedModel, load_model
from commands.progress import Progress
from commands.store import RunFolder

pytestmark = pytest.mark.real_model
ROWS = 2


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("smollm2-135m")


def test_theta_is_the_210_projections_of_the_30_blocks(loaded: LoadedModel) -> None:
    modules = taps.select_modules(loaded.model)
    assert len(modules) == 210
    assert sum(m.weight.numel() for m in modules.values()) == 106_168_320


def test_masks_are_the_answer_and_its_end_of_turn(loaded: LoadedModel) -> None:
    chat, rows = ChatFormat(loaded.tokenizer), load_rows("refusals")
    for row, sample in zip(rows.rows[:20], encode_rows(rows, chat, None, 512, 0).samples[:20], strict=True):
        text = loaded.tokenizer.decode(sample.response_ids)
        assert text == row.messages[-1]["content"] + "<|im_end|>"
        assert loaded.tokenizer.decode(sample.prompt_ids).endswith("<|im_start|>assistant\n")


def token_kl(model: torch.nn.Module, batch: Batch, base: torch.Tensor) -> torch.Tensor:
    """KL(base, moved) summed over the response tokens of each row, in its stable form."""
    d = torch.log_softmax(response_logits(model, batch).double(), -1) - base
    return sum_by_row((base.exp() * (torch.expm1(d) - d)).sum(1), batch)


@torch.no_grad()
def test_prediction_against_the_moved_model(loaded: LoadedModel, tmp_path: Path) -> None:
    chat = ChatFormat(loaded.tokenizer)
    skill, finetune = (list(encode_rows(load_rows(s), chat, ROWS, 256, 0).samples) for s in ("refusals", "benign"))
    drawn = draw_responses(
        loaded.model,
        [s.prompt_ids for s in skill],
        [stream(0, row, 0) for row in range(ROWS)],
        max_new_tokens=16,
        end_token_ids=chat.end_token_ids,
        pad_id=int(loaded.tokenizer.pad_token_id),
    )
    skill = [
        with_response(s.prompt_ids, y, set_name=s.set, sample_id=s.id, group=s.group)
        for s, y in zip(skill, drawn, strict=True)
    ]
    modules = taps.select_modules(loaded.model)
    subject = estimators_theta.Subject(loaded.model, modules, int(loaded.tokenizer.pad_token_id), 1, 2**31)
    folder, quiet = RunFolder(tmp_path / "run", "test", {}), Progress(quiet=True)
    update = estimators_update.measure_update(subject, finetune, "sgd", 8, folder, quiet)
    statistics = measure.measure_scores(subject, skill, update, "sampled", folder, quiet)
    times = np.array([3e-4, 1e-3])
    moments = output_space.measure_output_space(subject, skill, update, times, folder, quiet)
    folder.close()

    # Forward mode and the backward pass are two routes to l'; the whole is the sum of 210 modules.
    whole = assembly.whole_model(statistics)
    np.testing.assert_allclose(whole.velocity, moments.first, atol=1e-3 * np.abs(moments.first).max())
    assert np.linalg.eigvalsh(whole.gram).min() > 0

    batches = subject.batches(skill)
    base = [torch.log_softmax(response_logits(loaded.model, b).double(), -1) for b in batches]
    saved = {name: weight.clone() for name, weight in subject.weights.items()}
    for k, t in enumerate(times):
        for name, weight in subject.weights.items():
            weight.copy_(saved[name] + t * update.velocity[name] + t**2 / 2 * update.acceleration[name])
        measured = sum(float(token_kl(loaded.model, b, z).sum()) for b, z in zip(batches, base, strict=True)) / ROWS
        assert measured == pytest.approx(moments.loss[:, k].mean(), rel=2e-2)
    for name, weight in subject.weights.items():
        weight.copy_(saved[name])
