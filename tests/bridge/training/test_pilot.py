"""Pilot steps are the beginning of the real run, and what is measured along them is what the weights do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bridge.data.samples import Sample
from bridge.estimators.batches import make_batches
from bridge.models.load import LoadedModel, load_model
from bridge.training.pilot import PilotPoint, check_length, measured_steps, run_pilot
from bridge.training.plan import Plan, TrainingLog
from bridge.training.train import train, with_lora
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder
from tests.bridge.conftest import random_samples
from tests.bridge.support.tiny_runs import make_workplace

SKILL = random_samples("skill", 4, 250, seed=0)
FINETUNE = random_samples("finetune", 5, 250, seed=1)
PLANS = {
    "full": Plan("full", 3e-3, epochs=3.0, batch_size=2, micro_batch_size=1),
    "lora": Plan("lora", 2e-2, epochs=3.0, batch_size=2, micro_batch_size=1, lora_rank=2, lora_dropout=0.1),
}
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("pilot"), "llama")


def load(place: Path) -> LoadedModel:
    return load_model(str(place / "model"), dtype="float64", device="cpu")


def pilot(place: Path, out: Path, method: str, full: bool) -> tuple[list[PilotPoint], TrainingLog]:
    loaded = load(place)
    folder = RunFolder(out, "test", {})
    skill = make_batches(SKILL, 3, 0, "cpu")
    found = run_pilot(loaded, FINETUNE, skill, PLANS[method], 3, full, 10**8, folder, QUIET)
    folder.close()
    return found


def divergence(base: torch.nn.Module, moved: torch.nn.Module, sample: Sample) -> float:
    """Sum over the response tokens of KL(base, moved), one unpadded sample at a time, as it is defined."""
    ids = torch.tensor([sample.input_ids])
    with torch.no_grad():
        p, q = (torch.log_softmax(model(input_ids=ids).logits[0].double(), -1) for model in (base, moved))
    places = [t - 1 for t, on in enumerate(sample.response_mask) if on]
    return float((p.exp() * (p - q))[places].sum())


def test_the_steps_that_are_measured() -> None:
    assert measured_steps(4, 100, full=False) == [1, 2, 3, 4]
    assert measured_steps(20, 100, full=False) == [*range(1, 11), 12, 15, 19, 20]
    later = [step for step in measured_steps(4, 100, full=True) if step > 4]
    assert later == sorted(set(later))
    assert later[-1] == 100
    assert len(later) == 6
    assert measured_steps(2, 3, full=True) == [1, 2, 3]


def test_the_full_run_must_go_on_after_the_pilot() -> None:
    check_length(2, 3)
    with pytest.raises(UserError, match="--pilot-steps: expected fewer than 3"):
        check_length(3, 3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_pilot_is_the_beginning_of_the_full_run(place: Path, tmp_path: Path, method: str) -> None:
    short, short_log = pilot(place, tmp_path / "short", method, full=False)
    long, long_log = pilot(place, tmp_path / "long", method, full=True)
    assert [p.step for p in short] == [1, 2, 3]
    assert long[-1].step == 9
    assert (short_log.steps, short_log.stopped) == (3, True)
    assert (long_log.steps, long_log.stopped) == (9, False)
    for mine, other in zip(short, long, strict=False):
        assert np.array_equal(mine.losses, other.losses)
        assert replace(mine, losses=other.losses) == other
    assert [p.accumulated for p in long] == np.cumsum(long_log.learning_rates)[[p.step - 1 for p in long]].tolist()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_measured_is_the_loss_of_an_undisturbed_training(place: Path, tmp_path: Path, method: str) -> None:
    points, _ = pilot(place, tmp_path / "pilot", method, full=False)
    base, loaded = load(place).model, load(place)
    model = with_lora(loaded.model, PLANS[method]) if method == "lora" else loaded.model
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    folder = RunFolder(tmp_path / "plain", "test", {})
    train(model, FINETUNE, PLANS[method], folder, QUIET, pad_id=0, on_step=lambda step, _: step >= 3)
    folder.close()
    moved = [float((p - start[name]).square().sum()) for name, p in model.named_parameters()]
    assert points[-1].displacement == pytest.approx(sum(moved) ** 0.5, rel=1e-12)
    for sample, found in zip(SKILL, points[-1].losses, strict=True):
        assert found == pytest.approx(divergence(base, model, sample), rel=1e-4)  # norms are float32 inside
    assert points[-1].losses.mean() > 1e-4
