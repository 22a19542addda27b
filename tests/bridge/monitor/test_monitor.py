"""The monitor in trainers: what it logs against brute force, and that it changes nothing."""

from __future__ import annotations

import inspect
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, ExportableState

import bridge.monitor.callback
from bridge.estimators.taps import select_modules
from bridge.monitor import AlignmentMonitor
from bridge.monitor.arguments import check_arguments
from bridge.monitor.rows import Drawn, skill_samples
from bridge.monitor.schedule import Clock, Schedule, default_interval, remaining_learning_rate
from bridge.monitor.skill import WatchedSkill
from commands.errors import UserError
from tests.bridge.conftest import random_samples
from tests.bridge.support import monitored
from tests.bridge.support.tiny_runs import save_chat_model, write_rows
from tests.oracles.brute_force import BruteForce
from tests.oracles.tiny_transformer import TinyTransformer

SAMPLES = random_samples("skill", 5, 13, 5)
STEPS, RATE = 3, 0.1

# ----------------------------------------------------------------------------------------- what it measures


class Exact:
    """A training of a float64 transformer by random steps, watched as in a trainer, and brute force of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        monkeypatch.setattr(bridge.monitor.callback, "skill_samples", lambda *_: SAMPLES)
        self.model = TinyTransformer()
        names = list(select_modules(self.model))
        for name in names:
            self.model.get_submodule(name).weight.requires_grad_(True)
        self.oracle, self.path = BruteForce(self.model, names), [self.theta(names)]
        monitor = AlignmentMonitor(every=1, subspaces_every=1, **options)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
        handler = CallbackHandler(
            [DefaultFlowCallback(), monitor], self.model, monitored.tokenizer(), optimizer, schedule
        )
        args = TrainingArguments(str(folder), use_cpu=True, report_to="none", save_strategy="no")
        self.state, control = TrainerState(max_steps=STEPS, logging_steps=100), TrainerControl()
        draw = torch.Generator().manual_seed(0)
        handler.on_train_begin(args, self.state, control)
        for step in range(STEPS):
            handler.on_step_begin(args, self.state, control)
            for parameter in trained:
                parameter.grad = 0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
            optimizer.step()
            handler.on_optimizer_step(args, self.state, control)
            schedule.step()
            self.path.append(self.theta(names))
            self.state.global_step = step + 1
            handler.on_step_end(args, self.state, control)
            if control.should_log:
                logs = {"loss": 1.0}
                self.state.log_history.append({**logs, "step": step + 1})
                handler.on_log(args, self.state, control, logs)
        handler.on_train_end(args, self.state, control)

    def theta(self, names: list[str]) -> torch.Tensor:
        return torch.cat([self.model.get_submodule(name).weight.detach().flatten() for name in names]).clone()

    def scores(self, theta: torch.Tensor) -> torch.Tensor:
        at, self.oracle.theta = self.oracle.theta, theta
        found = self.oracle.scores(SAMPLES)
        self.oracle.theta = at
        return found


@pytest.mark.parametrize(("rank", "batch_size"), [(None, None), (2, None), (2, 2)])
def test_what_is_logged_is_brute_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int | None, batch_size: int | None
) -> None:
    exact = Exact(tmp_path, monkeypatch, rank=rank, batch_size=batch_size)
    base, number = exact.path[0], len(exact.path[0])

    def share(scores: torch.Tensor, update: torch.Tensor) -> float:
        top = torch.linalg.svd(scores, full_matrices=False)[2][:rank]
        return float((top @ update).square().sum() / update.square().sum())

    assert [entry["step"] for entry in exact.state.log_history] == [1, 2, 3]
    for entry, before, now in zip(exact.state.log_history, exact.path, exact.path[1:], strict=False):
        scores, step = exact.scores(now), now - before
        expected = {
            "utility_loss": exact.oracle.utility_loss(now, SAMPLES),
            "share_base": share(exact.scores(base), now - base),
            "share_base_random": (rank or 5) / number,
            "share_current": share(scores, now - base),
            "share_current_random": (rank or 5) / number,
            "update_norm": float((now - base).norm()),
            "leak": float((scores @ step).square().mean().sqrt()),
            "leak_random": float(step.norm() * (scores.square().sum() / 5 / number).sqrt()),
            "step_norm": float(step.norm()),
        }
        for name, value in expected.items():
            assert entry[f"alignment/{name}"] == pytest.approx(value, rel=1e-9), name
        assert entry["alignment/utility_loss"] > 1e-4


def test_the_utility_loss_sees_embeddings_too() -> None:
    """Theta is a part of what is trained; the loss is that of the whole model."""
    model = TinyTransformer().requires_grad_(True)
    watched = WatchedSkill(model, SAMPLES, fill_id=0, batch_size=5, rank=None)
    oracle = BruteForce(model, ["embed_tokens", "lm_head"])
    moved = oracle.theta + 0.05 * torch.randn(oracle.theta.shape, generator=torch.Generator().manual_seed(1)).double()
    expected = oracle.utility_loss(moved, SAMPLES)
    for name, part in oracle.unflatten(moved).items():
        model.get_submodule(name).weight.data.copy_(part)
    assert watched.damage().mean == pytest.approx(expected, rel=1e-9)
    assert expected > 1e-3
    found = watched.subspaces()
    assert found.update_norm == 0
    assert found.share_base is None
    assert found.share_current is None
    assert found.leak is None
    with watched.at_base():
        assert watched.damage().mean == 0


def test_logits_in_bfloat16_cost_their_rounding() -> None:
    model = TinyTransformer().requires_grad_(True)
    watched = WatchedSkill(model, SAMPLES, fill_id=0, batch_size=2, rank=None, logits_dtype=torch.bfloat16)
    assert 0 < watched.damage().mean < 1e-3
    tokens = sum(sum(sample.response_mask) for sample in SAMPLES)
    assert watched.logits_bytes == 2 * 13 * tokens
    assert watched.weights_bytes == 8 * sum(p.numel() for p in model.parameters())


# ----------------------------------------------------------------------------------------- changes nothing


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "logging_steps": 1},
        {"gradient_checkpointing": True, "bf16": True},
    ],
    ids=["plain", "accumulated", "checkpointing-bf16"],
)
def test_the_same_weights_to_the_last_bit(tmp_path: Path, lora: bool, options: dict[str, Any]) -> None:
    after = []
    watching = monitored.monitor(batch_size=None if options else 3, max_utility_loss=1e3, on_budget="stop")
    for callbacks in ([], [watching]):
        subject = monitored.model(lora)
        monitored.train(tmp_path / "run", subject, callbacks, **options)
        after.append((monitored.weights(subject), torch.random.get_rng_state()))
        assert subject.training
    for weights, state in after[1:]:
        assert monitored.same(weights, after[0][0])
        assert torch.equal(state, after[0][1])
    assert callbacks[0].history[-1]["utility_loss"] > 0


class Reporter(TrainerCallback):
    """What TensorBoard or wandb would get: it comes before the user's callbacks."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, set[str]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen.append((state.global_step, {name for name in logs if "/" in name}))


def test_reporters_and_history_get_the_values_of_the_step(tmp_path: Path) -> None:
    reporter, first = Reporter(), monitored.monitor(subspaces_every=4)
    second = monitored.monitor(subspaces_every=0, every=3, prefix="other", seed=2)
    trainer = monitored.train(tmp_path, monitored.model(), [first, second], reporters=[reporter])
    logged = {step: names for step, names in reporter.seen if names}
    assert sorted(logged) == [2, 3, 4, 6]
    assert logged[3] == {"other/utility_loss", "other/utility_loss_error", "other/overhead"}
    assert {"alignment/leak", "alignment/share_base", "alignment/share_current_random"} <= logged[4]
    assert "alignment/leak" not in logged[2]
    assert {"alignment/leak", "other/utility_loss"} <= logged[6]
    history = {e["step"]: {name for name in e if "/" in name} for e in trainer.state.log_history if "loss" in e}
    assert history == logged
    assert [point["step"] for point in first.history] == [2, 4, 6]
    assert "train_loss" in trainer.state.log_history[-1]
    assert not any("/" in name for name in trainer.state.log_history[-1])
    assert [c for c in trainer.callback_handler.callbacks if type(c).__name__ == "LogWriter"] == []


def test_a_forecast_from_the_third_point_on(tmp_path: Path) -> None:
    monitor = monitored.monitor(every=1, subspaces_every=0)
    monitored.train(tmp_path, monitored.model(), [monitor])
    forecasts = [point.get("forecast") for point in monitor.history]
    assert [value is not None for value in forecasts] == [False, False, True, True, True, False]
    end = monitor.history[-1]["utility_loss"]
    late = monitor.history[-2]
    assert late["forecast_low"] < end < late["forecast_high"]
    rates = [2e-3 * (1 - k / monitored.STEPS) for k in range(monitored.STEPS)]
    assert [p["accumulated_learning_rate"] for p in monitor.history] == pytest.approx(np.cumsum(rates))


def test_broken_logits_are_told_and_end_nothing(tmp_path: Path) -> None:
    monitor = monitored.monitor(every=1, subspaces_every=1)
    monitored.train(tmp_path, monitored.model(), [Break(after=3), monitor], max_grad_norm=0.0)
    assert [np.isfinite(point["utility_loss"]) for point in monitor.history] == [True, True] + [False] * 4
    assert "leak" not in monitor.history[-1]


# ----------------------------------------------------------------------------------------- resuming

TIMES = ("overhead",)


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in point.items() if name not in TIMES} for point in history]


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_training_logs_what_a_whole_one_does(tmp_path: Path, lora: bool) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    whole, cut = monitored.monitor(every=1), monitored.monitor(every=1)
    subject = monitored.model(lora)
    monitored.train(tmp_path / "whole", subject, [whole], **options)

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 4

    monitored.train(tmp_path / "cut", monitored.model(lora), [cut, Stop()], **options)
    assert [point["step"] for point in cut.history] == [1, 2, 3, 4]
    again, resumed = monitored.model(lora), monitored.monitor(every=1)
    checkpoint = str(tmp_path / "cut" / "checkpoint-3")
    monitored.train(tmp_path / "cut", again, [resumed], resume=checkpoint, **options)
    assert without_times(resumed.history) == without_times(whole.history)
    assert monitored.same(monitored.weights(again), monitored.weights(subject))
    trainer = monitored.train(
        tmp_path / "cut", monitored.model(lora), [monitored.monitor(every=1)], resume=checkpoint,
        restore_callback_states_from_checkpoint=True, **options,
    )  # fmt: skip
    restored = next(c for c in trainer.callback_handler.callbacks if isinstance(c, AlignmentMonitor))
    assert without_times(restored.history) == without_times(whole.history)


def test_what_cannot_be_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    monitored.train(tmp_path, monitored.model(), [monitored.monitor()], **options)
    checkpoint = str(tmp_path / "checkpoint-3")
    with pytest.raises(UserError, match="seed='0', expected the same, got '1'"):
        monitored.train(tmp_path, monitored.model(), [monitored.monitor(seed=1)], resume=checkpoint, **options)
    (tmp_path / "alignment-monitor" / "base.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        monitored.train(tmp_path, monitored.model(), [monitored.monitor()], resume=checkpoint, **options)
    other = monitored.monitor(prefix="late")
    with caplog.at_level(logging.WARNING):
        monitored.train(tmp_path, monitored.model(), [other], resume=checkpoint, **options)
    assert "without this monitor" in caplog.text
    assert [point["step"] for point in other.history] == [4, 6]


# ----------------------------------------------------------------------------------------- budget


class Remember(TrainerCallback):
    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.weights[state.global_step] = monitored.weights(model)


@pytest.mark.parametrize("lora", [False, True])
def test_a_budget_stops_the_training_and_the_last_weights_within_it_are_put_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lora: bool
) -> None:
    free = monitored.monitor(every=1, subspaces_every=0)
    remember = Remember()
    monitored.train(tmp_path / "free", monitored.model(lora), [free, remember])
    losses = [point["utility_loss"] for point in free.history]
    budget = (losses[2] + losses[3]) / 2
    assert losses[2] < budget < losses[3]
    subject = monitored.model(lora)
    monitor = monitored.monitor(every=1, subspaces_every=0, max_utility_loss=budget, on_budget="stop")
    with caplog.at_level(logging.WARNING):
        trainer = monitored.train(tmp_path / "run", subject, [monitor])
    assert trainer.state.global_step == monitor.stopped_at == 4
    kept = tmp_path / "run" / "alignment-monitor" / "within"
    assert monitor.within_budget == str(kept / "step-3")
    assert [path.name for path in kept.iterdir()] == ["step-3"]
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert (kept / "step-3" / "tokenizer_config.json").exists()
    assert monitored.same(monitored.weights(subject), remember.weights[3])
    assert "above the budget" in caplog.text
    assert "put back" in caplog.text
    fresh = monitored.model(lora)
    monitor.restore(fresh)
    assert monitored.same(monitored.weights(fresh), remember.weights[3])
    low = monitored.monitor(every=2, max_utility_loss=losses[0] / 2, on_budget="stop")
    start = monitored.model(lora)
    monitored.train(tmp_path / "low", start, [low])
    assert low.stopped_at == 2
    assert monitored.same(monitored.weights(start), monitored.weights(monitored.model(lora)))
    with pytest.raises(UserError, match="no weights within the budget"):
        low.restore(start)


class Break(TrainerCallback):
    """The model is broken after a step."""

    def __init__(self, after: int) -> None:
        self._after = after

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self._after - 1:
            with torch.no_grad():
                [p for p in model.parameters() if p.requires_grad][-1].fill_(float("nan"))


def stopping(**options: Any) -> AlignmentMonitor:
    return monitored.monitor(**{"max_utility_loss": 1e3, "on_budget": "stop", "subspaces_every": 0} | options)


def test_the_trainers_own_checkpoints_stay(tmp_path: Path) -> None:
    """Also where both would save after the same step: 4 steps an epoch."""
    monitored.train(tmp_path, monitored.model(), [stopping(every=4)], save_strategy="epoch", max_steps=12)
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]


@pytest.mark.parametrize(
    "options",
    [
        {"save_strategy": "best", "metric_for_best_model": "loss"},
        {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "load_best_model_at_end": True},
        {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1},
    ],
    ids=["best", "best-at-end", "limit"],
)
def test_the_weights_within_the_budget_outlive_the_trainers_own(tmp_path: Path, options: dict[str, Any]) -> None:
    """However the trainer decides what it saves and what it clears away."""
    monitor, remember, subject = stopping(every=2), Remember(), monitored.model()
    more = {} if len(options) == 3 else {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": monitored.rows(2)}
    monitored.train(tmp_path, subject, [Break(after=5), monitor, remember], max_grad_norm=0.0, **options, **more)
    assert monitor.stopped_at == 6
    assert Path(str(monitor.within_budget)).name == "step-4"
    assert monitored.same(monitored.weights(subject), remember.weights[4])


@pytest.mark.parametrize(("damage", "lora"), [("gone", False), ("unreadable", False), ("unreadable", True)])
def test_weights_that_cannot_be_put_back_end_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, lora: bool
) -> None:
    name = "adapter_model.safetensors" if lora else "model.safetensors"

    class Lose(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                file = tmp_path / "alignment-monitor" / "within" / "step-2" / name
                shutil.rmtree(file.parent) if damage == "gone" else file.write_bytes(b"no tensors")

    monitor, subject = stopping(), monitored.model(lora)
    with caplog.at_level(logging.WARNING):
        monitored.train(tmp_path, subject, [Break(after=4), monitor, Lose()], max_grad_norm=0.0)
    assert monitor.stopped_at == 4
    assert monitor.within_budget is None
    assert "cannot be put back" in caplog.text
    assert "those of its start again" in caplog.text
    assert monitored.same(monitored.weights(subject), monitored.weights(monitored.model(lora)))


def test_a_resumed_budget_keeps_what_later_steps_had_replaced(tmp_path: Path) -> None:
    """The checkpoint knows step 2; its training went on to step 6, and the weights of step 2 are gone."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    monitored.train(tmp_path, monitored.model(), [stopping()], **options)
    assert [path.name for path in (tmp_path / "alignment-monitor" / "within").iterdir()] == ["step-6"]
    again, remember, subject = stopping(), Remember(), monitored.model()
    checkpoint = str(tmp_path / "checkpoint-3")
    monitored.train(
        tmp_path, subject, [Break(after=4), again, remember], resume=checkpoint, max_grad_norm=0.0, **options
    )
    assert again.stopped_at == 4
    assert Path(str(again.within_budget)).name == "step-3"
    saved = load_file(checkpoint + "/model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in monitored.weights(subject).items())


def test_a_checkpoint_holds_each_monitor_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}

    def both() -> list[AlignmentMonitor]:
        return [monitored.monitor(every=1, subspaces_every=0, prefix=prefix) for prefix in ("one", "two")]

    def held(step: int) -> list[tuple[str, int]]:
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        entries = state["stateful_callbacks"]["AlignmentMonitor"]
        return [(entry["args"]["prefix"], len(entry["attributes"]["_saved"]["history"])) for entry in entries]

    whole = both()
    trainer = monitored.train(tmp_path, monitored.model(), whole, **options)
    assert [held(step) for step in (1, 4, 6)] == [[("one", n), ("two", n)] for n in (1, 4, 6)]
    assert len(trainer.state.stateful_callbacks["AlignmentMonitor"]) == 2
    for restores in (False, True):
        trainer = monitored.train(
            tmp_path, monitored.model(), both(), resume=str(tmp_path / "checkpoint-4"),
            restore_callback_states_from_checkpoint=restores, **options,
        )  # fmt: skip
        resumed = [c for c in trainer.callback_handler.callbacks if isinstance(c, AlignmentMonitor)]
        assert [without_times(m.history) for m in resumed] == [without_times(m.history) for m in whole]
        assert held(6) == [("one", 6), ("two", 6)]


def test_a_budget_that_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = monitored.monitor(max_utility_loss=1e-9)
    with caplog.at_level(logging.WARNING):
        trainer = monitored.train(tmp_path, monitored.model(), [monitor])
    assert caplog.text.count("above the budget of 1e-09") == 1
    assert trainer.state.global_step == monitored.STEPS
    assert monitor.stopped_at is None
    assert not list(tmp_path.glob("checkpoint-*"))


# ----------------------------------------------------------------------------------------- what it is given


def test_the_probe(tmp_path: Path) -> None:
    subject, tokenizer = monitored.model(), monitored.tokenizer()
    drawn = skill_samples(subject, tokenizer, Drawn(monitored.PROMPTS, 3, "model", 5, 0))
    assert len(drawn) == 3
    assert all(1 <= len(sample.response_ids) <= 5 for sample in drawn)
    assert drawn == skill_samples(subject, tokenizer, Drawn(monitored.PROMPTS, 3, "model", 5, 0))
    assert drawn != skill_samples(subject, tokenizer, Drawn(monitored.PROMPTS, 3, "model", 5, 1))
    rows = [{"prompt": "how?", "completion": "no"}, {"messages": [{"role": "user", "content": "x"}] * 1}]
    own = skill_samples(subject, tokenizer, Drawn(rows[:1], 9, "rows", 5, 0))
    assert tokenizer.decode(own[0].response_ids) == "no</s>"
    path = write_rows(tmp_path / "rows.jsonl", [("how?", "no"), ("and?", "never")])
    assert len(skill_samples(subject, tokenizer, Drawn(Path(path), 9, "rows", 5, 0))) == 2
    for skill, responses, words in (
        (rows, "rows", "row 2: the conversation ends in a user turn"),
        (["how?"], "rows", "no answer"),
        ([], "model", "at least one row"),
        (["x" * 61], "model", "within the 64 positions"),
        ("nonsense-name", "model", "nonsense-name"),
    ):
        with pytest.raises(UserError, match=words):
            skill_samples(subject, tokenizer, Drawn(skill, 9, responses, 5, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every: expected a whole number from 1, got 0"),
        ({"every": True}, "every: expected a whole number from 1, got True"),
        ({"max_utility_loss": "1"}, "positive number of nats, got '1'"),
        ({"max_utility_loss": float("nan")}, "positive number of nats"),
        ({"max_overhead": "x"}, "max_overhead: expected a positive share, got 'x'"),
        ({"prefix": ""}, "prefix: expected a name"),
        ({"prefix": "../other"}, "prefix: expected a name"),
        ({"num_probe": None}, "num_probe"),
        ({"subspaces_every": -1}, "subspaces_every"),
        ({"responses": "mine"}, "'model' or 'rows'"),
        ({"on_budget": "stop"}, "a budget with"),
        ({"max_utility_loss": -1.0}, "positive number of nats"),
        ({"max_overhead": 0}, "max_overhead"),
        ({"logits_dtype": "int8"}, "bfloat16"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], words: str) -> None:
    parameters = inspect.signature(AlignmentMonitor).parameters
    given = {name: parameter.default for name, parameter in parameters.items()}
    with pytest.raises(UserError, match=words):
        check_arguments(given | options)


def test_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(UserError, match="every: expected a whole number from 1, got 0"):
        AlignmentMonitor(every=0)


def test_trainings_that_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the tokenizer with tokenizer="):
        monitored.train(tmp_path, monitored.model(), [monitored.monitor()], processing_class=False)
    given = monitored.monitor(tokenizer=monitored.tokenizer())
    monitored.train(tmp_path, monitored.model(), [given], processing_class=False)
    assert len(given.history) == 3
    subject = monitored.model().requires_grad_(False)
    with pytest.raises(UserError, match="got none"):
        WatchedSkill(subject, SAMPLES, fill_id=0, batch_size=5, rank=None)
    subject.lm_head.weight.requires_grad_(True)
    with pytest.raises(UserError, match="linear module of the blocks"):
        WatchedSkill(subject, SAMPLES, fill_id=0, batch_size=5, rank=None)
    assert WatchedSkill(subject, SAMPLES, fill_id=0, batch_size=5, rank=None, subspaces=False).damage().mean == 0
    subject.lm_head.weight.data = torch.empty(0)
    with pytest.raises(UserError, match="sharded"):
        WatchedSkill(subject, SAMPLES, fill_id=0, batch_size=5, rank=None)
    assert issubclass(AlignmentMonitor, ExportableState)


# ----------------------------------------------------------------------------------------- schedule


def test_the_subspaces_are_measured_as_often_as_time_allows() -> None:
    assert [default_interval(steps) for steps in (1, 8, 39, 400, 10**6)] == [1, 1, 5, 50, 50]

    def steps_measured(max_overhead: float, cost: float) -> tuple[list[int], float]:
        clock, schedule, found = Clock(own=1.0), Schedule(39, 5, None, max_overhead, loss_seconds=[0.2]), []
        for step in range(1, 40):
            measures = schedule.measures_subspaces(step, step - 1, clock)
            clock.training += 1.0
            if schedule.measures(step):
                clock.own += 0.2
                if measures:
                    clock.own += cost
                    schedule.subspaces_seconds.append(cost)
                    schedule.subspaces_done += 1
                    found.append(step)
        return found, clock.own / clock.training

    # Before the first one has been timed it is taken for ten measurements of the loss: 2 s.
    assert steps_measured(0.05, 1.0)[0] == []
    assert steps_measured(0.14, 1.0)[0] == [39]
    assert steps_measured(0.2, 1.0) == ([20, 25, 30, 35, 39], pytest.approx(7.6 / 39))
    assert steps_measured(1.0, 1.0)[0] == [5, 10, 15, 20, 25, 30, 35, 39]
    fixed = Schedule(39, 5, 12, 0.1)
    steps = []
    for step in range(1, 40):
        if fixed.measures_subspaces(step, step - 1, Clock()):
            steps.append(step)
            fixed.last_subspaces = step
    assert steps == [15, 25, 39]
    never = Schedule(39, 5, 0, 0.1)
    assert not any(never.measures_subspaces(step, step - 1, Clock()) for step in range(1, 40))


def test_learning_rates_to_come() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    linear = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    assert remaining_learning_rate(linear, 1, 4) == pytest.approx(0.5 * (0.75 + 0.5 + 0.25))
    assert remaining_learning_rate(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), 1, 4) is None


# ----------------------------------------------------------------------------------------- the docs' script


def test_the_script_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(bridge.monitor.__file__).parents[2] / "docs" / "monitor.md").read_text()
    script = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert script is not None
    lines = [line for line in script.group(1).splitlines() if line.strip()]
    assert len(lines) <= 10
    save_chat_model(tmp_path / "my-model", "llama")
    write_rows(tmp_path / "my-rows.jsonl", [(f"do {'a' * k}", "ok" + "z" * k) for k in range(6)])
    write_rows(tmp_path / "refusals.jsonl", [(f"how {'x' * k}?", "no") for k in range(5)])
    assert '"refusals"' in script.group(1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    monkeypatch.setattr("trl.SFTTrainer._send_telemetry", lambda self: None)
    short = script.group(1).replace('"refusals"', '"./refusals.jsonl"')  # the tiny model has 64 positions
    short = short.replace('SFTConfig("my-run"', 'SFTConfig("my-run", use_cpu=True')
    exec(compile(short, "docs/monitor.md", "exec"), names)
    history = names["monitor"].history
    assert history[-1]["step"] == names["trainer"].state.max_steps == 3
    assert history[-1]["utility_loss"] > 0
    assert (tmp_path / "my-run" / "final" / "model.safetensors").exists()
