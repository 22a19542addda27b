"""`AlignmentMonitor`: a callback of transformers' Trainer, and of those built on it, that watches a skill.

    from bridge.monitor import AlignmentMonitor
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, callbacks=[AlignmentMonitor("refusals")])

Every few steps the utility loss on a small probe of the skill, where the update lies, the leak of the last step, and a
forecast for the end of the training go into the trainer's own logs, as `alignment/...`: into its history, onto the
screen, and to whatever it reports to. The training is not changed: it gives the same weights, to the last bit, as
without the monitor. docs/monitor.md says what the numbers mean.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import Module
from torch.optim import Optimizer

from bridge.data.samples import Sample
from bridge.models.transformers_setup import quick_imports
from bridge.monitor.arguments import check_arguments
from bridge.monitor.budget import Budget
from bridge.monitor.files import load_base, put_back, save_base
from bridge.monitor.logs import LogWriter
from bridge.monitor.processes import of_first_process
from bridge.monitor.rows import Drawn, Responses, Skill, pad_id, plain_skill, skill_samples
from bridge.monitor.schedule import Clock, Schedule, default_interval, remaining_learning_rate
from bridge.monitor.skill import WatchedSkill
from commands.errors import UserError
from theory.damage_forecast import forecast_end

with quick_imports():
    from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments
    from transformers.trainer_callback import ExportableState, TrainerCallback, TrainerControl, TrainerState

Processing = PreTrainedTokenizerBase | ProcessorMixin
OnBudget = Literal["warn", "stop"]
_log = logging.getLogger(__name__)


class AlignmentMonitor(TrainerCallback, ExportableState):
    """Watches a skill while a model is trained.

    Attributes:
        history: one dict a measurement: "step", "accumulated_learning_rate", and the values logged after it, without
            the prefix.
    """

    def __init__(
        self,
        skill: Skill = "refusals",
        *,
        every: int | None = None,
        subspaces_every: int | None = None,
        num_probe: int = 16,
        max_new_tokens: int = 16,
        responses: Responses = "model",
        rank: int | None = None,
        max_utility_loss: float | None = None,
        on_budget: OnBudget = "warn",
        max_overhead: float = 0.14,
        batch_size: int | None = None,
        logits_dtype: str | None = None,
        seed: int = 0,
        prefix: str = "alignment",
        tokenizer: Processing | None = None,
        model: Module | None = None,
    ) -> None:
        """Choose what is watched, and how often.

        Args:
            skill: name of a set, path of a file, or rows: prompts, or mappings with "messages" or "prompt".
            every: steps between two measurements of the utility loss; None for an eighth of the training, at most 50.
                The last step is always measured.
            subspaces_every: the same of shares and leak, which take longer; 0 for never; None for as often, evenly
                spread, as keeps the monitor within `max_overhead`.
            num_probe: rows of the skill, chosen at random by the seed; one response each.
            max_new_tokens: responses are cut there.
            responses: "model" draws them from the model when the training begins; "rows" takes the rows' own.
            rank: d of the sensitive subspaces; None for all directions that the probe has.
            max_utility_loss: the budget, in nats a response; None for none.
            on_budget: "warn" says when it is passed; "stop" also ends the training there, having kept the weights of
                the last measured step within the budget, and puts these back into the model.
            max_overhead: what `subspaces_every=None` aims at: own seconds for each second of the training.
            batch_size: rows computed at a time; None for all, which is fastest.
            logits_dtype: "float32" or "bfloat16", in which the base's logits are kept; None for that of the model,
                but float32 at least.
            seed: of the choice of rows and of the responses.
            prefix: of the names in the logs; monitors of several skills need different ones.
            tokenizer: needed only where the trainer has none (`processing_class`).
            model: the model to watch, where it is not the trainer's.

        Raises:
            UserError: for a value that makes no sense.

        """
        options: dict[str, Any] = {
            "every": every, "subspaces_every": subspaces_every, "num_probe": num_probe,
            "max_new_tokens": max_new_tokens, "responses": responses, "rank": rank,
            "max_utility_loss": max_utility_loss, "on_budget": on_budget, "max_overhead": max_overhead,
            "batch_size": batch_size, "logits_dtype": logits_dtype, "seed": seed, "prefix": prefix,
        }  # fmt: skip
        check_arguments(options)
        self._settings = {"skill": plain_skill(skill, responses), **options}
        self._drawn = Drawn(self._settings["skill"], num_probe, responses, max_new_tokens, seed)
        self._limit, self._stops, self._prefix = max_utility_loss, on_budget == "stop", prefix
        self._tokenizer, self._given_model = tokenizer, model
        self._saved: dict[str, Any] | None = None  # set by a trainer that restores its callbacks
        self._writer = LogWriter()
        self._forget()

    def _forget(self) -> None:
        self.history: list[dict[str, float]] = []
        self._run, self._clock = os.urandom(8).hex(), Clock()
        self._samples: list[Sample] = []
        self._accumulated, self._begun_at, self._subspaces_at = 0.0, 0, 0
        self._end: float | None = None
        self._watched: WatchedSkill | None = None
        self._schedule: Schedule | None = None
        self._budget = None if self._limit is None else Budget(float(self._limit), self._stops)

    @property
    def stopped_at(self) -> int | None:
        """The step at which the budget ended the training, or None."""
        return None if self._budget is None else self._budget.stopped_at

    @property
    def within_budget(self) -> str | None:
        """Folder of the last weights that were within the budget (`on_budget="stop"`), or None."""
        return None if self._budget is None else self._budget.within

    # ------------------------------------------------------------------------------------- training

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Module | None = None,
        processing_class: Processing | None = None, lr_scheduler: object = None, **_: object,
    ) -> None:  # fmt: skip
        """Draw the probe's responses and keep the base, or go on with those of the checkpoint."""
        model = self._model_of(model)
        saved = self._saved_state(state)
        self._forget()
        with self._clock.stopped(_device_of(model)):
            if saved is not None:
                self._take_over(saved)
            self._schedule = self._make_schedule(state.max_steps, saved)
            self._watch(model, processing_class, None if saved is None else self._base_path(args), state)
            left = remaining_learning_rate(lr_scheduler, state.global_step, state.max_steps)
            self._end = None if left is None else self._accumulated + left
            began = time.monotonic()
            damage = of_first_process(self._watching.damage())
            self._planned.loss_seconds.append(time.monotonic() - began)
            if saved is not None and self._budget is not None and damage.mean <= self._budget.limit:
                self._check_budget(damage.mean, args, state, control, model, processing_class)
            if state.is_world_process_zero and str(getattr(args.save_strategy, "value", args.save_strategy)) != "no":
                self._save_base(args)
        self._writer.stand_before_reporters(self)
        others = [entry for entry in self._entries(state) if entry["args"]["prefix"] != self._prefix]
        _callbacks_of(state)[type(self).__name__] = others  # a list: the trainer adds to it when it saves

    def on_step_begin(
        self, args: object, state: TrainerState, control: object, model: Module | None = None, **_: object
    ) -> None:
        """Keep theta where the leak of the step will be measured."""
        step, done = state.global_step + 1, state.global_step - self._begun_at
        if not self._planned.measures(step):
            return
        with self._clock.stopped(_device_of(self._model_of(model))):  # the time of the last step counts from here on
            if self._planned.measures_subspaces(step, done, self._clock):
                self._subspaces_at = step
                self._watching.keep_step()

    def on_optimizer_step(  # type: ignore[override]  # an optimizer is always given
        self, args: object, state: object, control: object, *, optimizer: Optimizer, **_: object
    ) -> None:
        """The learning rate of the step, before the schedule moves on."""
        self._accumulated += float(optimizer.param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Module | None = None,
        processing_class: Processing | None = None, **_: object,
    ) -> None:  # fmt: skip
        """Measure, ask the trainer to log, and look at the budget."""
        step = state.global_step
        if not self._planned.measures(step):
            return
        model = self._model_of(model)
        with self._clock.stopped(_device_of(model)):
            try:
                values = self._measure(step)
            except torch.OutOfMemoryError:
                _log.warning("step %d is not measured: out of memory; a smaller batch_size takes less", step)
                return
            values |= self._forecast(values["utility_loss"], state)
        overhead = self._clock.overhead
        values |= {} if overhead is None else {"overhead": overhead}
        self.history.append({"step": step, "accumulated_learning_rate": self._accumulated} | values)
        self._writer.write(step, {f"{self._prefix}/{name}": value for name, value in values.items()}, control)
        with self._clock.stopped(_device_of(model)):
            self._check_budget(values["utility_loss"], args, state, control, model, processing_class)

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict[str, float] | None = None, **_: object
    ) -> None:
        """Where no place before the reporters was found: at least into the history and onto the screen."""
        self._writer.on_log(args, state, control, logs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: object, **_: object) -> None:
        """See that a resumed training will find the base."""
        _callbacks_of(state)[type(self).__name__] = []  # has been written; the trainer would only add to it
        if state.is_world_process_zero:
            self._save_base(args)

    def on_train_end(
        self, args: object, state: TrainerState, control: object, model: Module | None = None, **_: object
    ) -> None:
        """After a stop for the budget, put back the weights that were within it; let go of the base."""
        if self.stopped_at is not None:
            self._restore_or_base(self._model_of(model))
        _callbacks_of(state)[type(self).__name__] = [*self._entries(state), self.state()]
        self._writer.leave()
        self._watched = None

    def restore(self, model: Module) -> None:
        """Set a model's weights to the last that were within the budget.

        Happens by itself when a budget ends the training: then, if there are none, to those of the base.

        Args:
            model: the trainer's.

        Raises:
            UserError: no such weights are there, and the training is over, so that the base is gone as well.

        """
        if self.within_budget is not None:
            put_back(model, Path(self.within_budget))
            _log.warning("the weights within the budget were put back from %s", self.within_budget)
            return
        if self._watched is None:
            raise UserError("AlignmentMonitor: no weights within the budget were kept: load the model anew")
        with torch.no_grad():
            for name, parameter in self._watched.trained.items():
                parameter.copy_(self._watched.base[name])
        _log.warning("no measured step was within the budget: the model's weights are those of its start again")

    def _restore_or_base(self, model: Module) -> None:
        """`restore` where nothing may end in an error, which would cost the user what follows the training."""
        try:
            self.restore(model)
        except (UserError, OSError, RuntimeError, ValueError, KeyError) as error:
            _log.warning("the weights within the budget cannot be put back: %s", error)
            if self._budget is not None:
                self._budget.within = None
            self.restore(model)

    def _check_budget(
        self, loss: float, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Module,
        processing_class: Processing | None,
    ) -> None:  # fmt: skip
        if self._budget is not None and self._budget.check(loss, state.global_step, control):
            folder, writes = self._folder(args) / "within", state.is_world_process_zero
            self._budget.keep(folder, state.global_step, model, processing_class, writes=writes)

    # ------------------------------------------------------------------------------------ beginning

    def _model_of(self, model: Module | None) -> Module:
        found = model if self._given_model is None else self._given_model
        if found is None:
            raise UserError("AlignmentMonitor: the trainer gives no model: give one with model=")
        return found

    @property
    def _watching(self) -> WatchedSkill:
        if self._watched is None:
            raise ValueError("the training has not begun yet")
        return self._watched

    @property
    def _planned(self) -> Schedule:
        if self._schedule is None:
            raise ValueError("the training has not begun yet")
        return self._schedule

    def _watch(
        self, model: Module, processing_class: Processing | None, base: Path | None, state: TrainerState
    ) -> None:
        given = processing_class if self._tokenizer is None else self._tokenizer
        tokenizer = getattr(given, "tokenizer", None) if isinstance(given, ProcessorMixin) else given
        if tokenizer is None:
            raise UserError("AlignmentMonitor: the trainer has no processing_class: give the tokenizer with tokenizer=")
        if not self._samples:
            self._samples = of_first_process(skill_samples(model, tokenizer, self._drawn))
            self._begun_at = state.global_step
            if state.global_step > 0:
                _log.warning("the checkpoint was made without this monitor: its weights are taken for the base")
        kept = self._settings["logits_dtype"]
        self._watched = WatchedSkill(
            model,
            self._samples,
            fill_id=pad_id(tokenizer),
            batch_size=self._settings["batch_size"] or len(self._samples),
            rank=None if self._settings["rank"] is None else min(self._settings["rank"], len(self._samples)),
            subspaces=self._settings["subspaces_every"] != 0,
            logits_dtype=None if kept is None else getattr(torch, kept),
            base=None if base is None else load_base(base, model, self._run),
        )
        _log.info(
            "%s: %d responses, %d response tokens; %.1f MiB of logits on the CPU, %.1f MiB of weights kept",
            self._prefix, len(self._samples), sum(sum(s.response_mask) for s in self._samples),
            self._watched.logits_bytes / 2**20, self._watched.weights_bytes / 2**20,
        )  # fmt: skip

    def _make_schedule(self, max_steps: int, saved: Mapping[str, Any] | None) -> Schedule:
        every = self._settings["every"] or default_interval(max_steps)
        schedule = Schedule(max_steps, every, self._settings["subspaces_every"], self._settings["max_overhead"])
        for name, value in ({} if saved is None else saved["schedule"]).items():
            setattr(schedule, name, value)
        return schedule

    # ------------------------------------------------------------------------------------ measuring

    def _measure(self, step: int) -> dict[str, float]:
        began = time.monotonic()
        damage = of_first_process(self._watching.damage())  # they must all stop, or none
        self._planned.loss_seconds.append(time.monotonic() - began)
        values = {"utility_loss": damage.mean}
        if math.isfinite(damage.error):
            values["utility_loss_error"] = damage.error
        if self._subspaces_at == step and math.isfinite(damage.mean):
            values |= self._measure_subspaces(step)
        return values

    def _measure_subspaces(self, step: int) -> dict[str, float]:
        began = time.monotonic()
        try:
            found = self._watching.subspaces()
        except (UserError, torch.OutOfMemoryError) as error:  # a probe must not end somebody's training
            _log.warning("shares and leak after step %d are left out: %s", step, error)
            return {}
        schedule = self._planned
        schedule.subspaces_seconds.append(time.monotonic() - began)
        schedule.subspaces_done += 1
        schedule.last_subspaces = step
        named = {
            "share_base": found.share_base, "share_base_random": found.random_base,
            "share_current": found.share_current, "share_current_random": found.random_current,
            "update_norm": found.update_norm, "leak": found.leak, "leak_random": found.leak_random,
            "step_norm": found.step_norm,
        }  # fmt: skip
        return {name: value for name, value in named.items() if value is not None}

    def _forecast(self, loss: float, state: TrainerState) -> dict[str, float]:
        """The end's utility loss, but at the end; nothing before there are three measurements that can be used."""
        step = state.global_step
        if step >= state.max_steps:
            return {}
        points = [(point["accumulated_learning_rate"], point["utility_loss"]) for point in self.history]
        accumulated, losses = np.array([*points, (self._accumulated, loss)], dtype=np.float64).T
        end = self._end
        if end is None:  # the schedule is no function of the step: the mean rate so far is taken to stay
            end = self._accumulated * (state.max_steps - self._begun_at) / (step - self._begun_at)
        found = forecast_end(accumulated, losses, max(end, self._accumulated))
        if found is None:
            return {}
        return {"forecast": found.value, "forecast_low": found.low, "forecast_high": found.high}

    # ---------------------------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, object]:
        """What a checkpoint of the trainer keeps of the monitor (`trainer_state.json`)."""
        return {"args": self._settings, "attributes": {"_saved": self._now()}}

    def _now(self) -> dict[str, object]:
        schedule = self._schedule
        kept = ("loss_seconds", "subspaces_seconds", "subspaces_done", "last_subspaces")
        return {
            "run": self._run,
            "samples": [sample.to_json() for sample in self._samples],
            "history": list(self.history),
            "accumulated": self._accumulated,
            "begun_at": self._begun_at,
            "clock": [self._clock.own, self._clock.training],
            "schedule": {} if schedule is None else {name: getattr(schedule, name) for name in kept},
            "budget": None if self._budget is None else self._budget.state(),
        }

    def _saved_state(self, state: TrainerState) -> dict[str, Any] | None:
        """This monitor's part of the checkpoint that the trainer resumes from, if any."""
        if state.global_step == 0:
            return None
        entries = [entry for entry in self._entries(state) if entry["args"]["prefix"] == self._prefix]
        if not entries or not entries[-1]["attributes"]["_saved"]["samples"]:
            return None
        mine = json.loads(json.dumps(self._settings))
        for name in ("skill", "num_probe", "max_new_tokens", "responses", "seed"):
            before = entries[-1]["args"][name]
            if before != mine[name]:
                raise UserError(
                    f"AlignmentMonitor: the checkpoint's monitor had {name}={str(before)[:60]!r}, expected the same, "
                    f"got {str(mine[name])[:60]!r}"
                )
        saved: dict[str, Any] = entries[-1]["attributes"]["_saved"]
        return saved

    def _entries(self, state: TrainerState) -> list[dict[str, Any]]:
        """What the trainer's state holds of monitors."""
        found = _callbacks_of(state).get(type(self).__name__, [])
        return list(found) if isinstance(found, list) else [found]

    def _take_over(self, saved: Mapping[str, Any]) -> None:
        self._run, self._samples = saved["run"], [Sample.from_json(line) for line in saved["samples"]]
        self.history = [dict(point) for point in saved["history"]]
        self._accumulated, self._begun_at = saved["accumulated"], saved["begun_at"]
        self._clock.own, self._clock.training = self._clock.own + saved["clock"][0], saved["clock"][1]
        if self._budget is not None and saved["budget"] is not None:
            self._budget.take_over(**saved["budget"])

    def _folder(self, args: TrainingArguments) -> Path:
        return Path(args.output_dir or ".") / f"{self._prefix}-monitor"

    def _base_path(self, args: TrainingArguments) -> Path:
        return self._folder(args) / "base.safetensors"

    def _save_base(self, args: TrainingArguments) -> None:
        path = self._base_path(args)
        if not (path.exists() and self._saved_run(path) == self._run):
            save_base(path, self._watching.base, self._run)

    @staticmethod
    def _saved_run(path: Path) -> str | None:
        from bridge.deltas.tensor_files import TensorFiles

        return TensorFiles([path]).metadata.get("run")


def _callbacks_of(state: TrainerState) -> dict[str, Any]:
    return vars(state)["stateful_callbacks"]  # declared a list, but a dict


def _device_of(model: Module) -> torch.device:
    return next(model.parameters()).device
