"""The monitor where things are short or many: time, memory, precision, processes, devices, odd rows."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from transformers import TrainerCallback

import bridge.monitor.callback
from bridge.monitor import AlignmentMonitor, skill
from bridge.monitor import schedule as monitor_schedule
from bridge.monitor.processes import of_first_process
from bridge.monitor.schedule import Clock, Schedule
from bridge.monitor.skill import WatchedSkill
from commands.errors import UserError
from tests.bridge.conftest import random_samples
from tests.bridge.support import monitored
from tests.bridge.support.tiny_models import VOCABULARY


class Ticks(TrainerCallback):
    """A clock by which every step of the training takes a second, and nothing else any time."""

    seconds = 0.0

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.seconds += 1.0


def test_all_steps_are_on_the_clock_when_the_cost_of_the_next_is_weighed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, asked, decide = Ticks(), [], Schedule.measures_subspaces

    def recorded(self: Schedule, step: int, done: int, clock: Clock) -> bool:
        asked.append((step, done, clock.training))
        return decide(self, step, done, clock)

    monkeypatch.setattr(monitor_schedule, "_now", lambda device: ticks.seconds)
    monkeypatch.setattr(Schedule, "measures_subspaces", recorded)
    monitored.train(tmp_path, monitored.model(), [ticks, monitored.monitor(subspaces_every=None)])
    assert asked == [(2, 1, 1.0), (4, 3, 3.0), (6, 5, 5.0)]


def test_a_model_in_bfloat16_has_its_whole_subspace() -> None:
    samples = random_samples("skill", 16, VOCABULARY, 5)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        subject = monitored.model().to(torch.bfloat16).to(dtype).requires_grad_(True)
        watched = WatchedSkill(subject, samples, fill_id=0, batch_size=16, rank=None)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in subject.parameters():
                noise = torch.randn(parameter.shape, generator=draw) * 0.2 * parameter.float().abs().mean()
                parameter.add_(noise.to(torch.bfloat16).to(dtype))
                parameter.copy_(parameter.to(torch.bfloat16))
        watched.keep_step()
        found[dtype] = watched.subspaces()
        assert round(found[dtype].random_base * watched.num_weights) == 16
    rough, fine = found[torch.bfloat16], found[torch.float32]
    assert rough.share_base == pytest.approx(fine.share_base, rel=0.1)
    assert rough.share_current == pytest.approx(fine.share_current, rel=0.1)


def test_rows_may_have_columns_that_json_has_not(tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "when": datetime.date(2026, 1, 1)} for prompt in monitored.PROMPTS]
    monitor = AlignmentMonitor(rows, num_probe=4, max_new_tokens=5)
    monitored.train(tmp_path, monitored.model(), [monitor], save_strategy="steps", save_steps=3)
    kept = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    [entry] = kept["stateful_callbacks"]["AlignmentMonitor"]
    assert entry["args"]["skill"][0] == {"messages": [{"role": "user", "content": monitored.PROMPTS[0]}]}
    with pytest.raises(UserError, match="skill, row 2: "):
        AlignmentMonitor(["how?", {"text": "?"}])


def test_a_measurement_without_memory_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damage, subspaces, calls = WatchedSkill.damage, WatchedSkill.subspaces, iter(range(10))

    def short(measure: Any) -> Any:
        def call(self: WatchedSkill) -> Any:
            if next(calls) in (1, 3):  # 0 is the base, 1 the loss after step 2, 3 the subspaces after step 4
                raise torch.OutOfMemoryError
            return measure(self)

        return call

    monkeypatch.setattr(WatchedSkill, "damage", short(damage))
    monkeypatch.setattr(WatchedSkill, "subspaces", short(subspaces))
    monitor = monitored.monitor(max_utility_loss=1e9, on_budget="stop")
    monitored.train(tmp_path, monitored.model(), [monitor])
    assert [point["step"] for point in monitor.history] == [4, 6]
    assert ["leak" in point for point in monitor.history] == [False, True]
    assert monitor.stopped_at is None
    assert "step 2 is not measured: out of memory" in caplog.text


def test_the_first_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noted(value: Any) -> Any:
        asked.append(type(value).__name__)
        return value

    monkeypatch.setattr(bridge.monitor.callback, "of_first_process", noted)
    monitored.train(tmp_path, monitored.model(), [monitored.monitor()])
    assert asked == ["list", "Damage", "Damage", "Damage", "Damage"]


def test_what_the_first_process_found_is_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_first_process(3) == 3
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        assert of_first_process({"a": [1.5]}) == {"a": [1.5]}
        sent: list[int] = []

        def broadcast(kept: list[Any], src: int) -> None:
            sent.append(src)
            kept[0] = "the first one's"

        monkeypatch.setattr(distributed, "broadcast_object_list", broadcast)
        assert of_first_process("mine") == "the first one's"
        assert sent == [0]
    finally:
        distributed.destroy_process_group()


def test_models_that_are_spread_or_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = random_samples("skill", 2, VOCABULARY, 5)
    spread = monitored.model().requires_grad_(True)
    spread.model.norm.weight = torch.nn.Parameter(torch.empty(1, device="meta"), requires_grad=False)
    with pytest.raises(UserError, match="expected a model on one device, got parts on cpu, meta"):
        WatchedSkill(spread, samples, fill_id=0, batch_size=2, rank=None)

    def stacked(*_: Any, **__: Any) -> None:
        raise UserError("--modules: expected projections that are linear modules")

    monkeypatch.setattr(skill, "trained_subject", stacked)
    with pytest.raises(UserError, match=r"AlignmentMonitor: .* with subspaces_every=0 the utility loss alone"):
        WatchedSkill(monitored.model().requires_grad_(True), samples, fill_id=0, batch_size=2, rank=None)
    WatchedSkill(monitored.model().requires_grad_(True), samples, fill_id=0, batch_size=2, rank=None, subspaces=False)
