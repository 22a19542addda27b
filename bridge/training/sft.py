"""How `bridge.training.train` uses trl's SFTTrainer: its silence, its log, and checkpoints that count only if whole."""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import Module

from bridge.data.samples import Sample
from bridge.models.blocks import inner_model
from bridge.models.transformers_setup import quick_imports
from bridge.training.arguments import arguments
from bridge.training.hooks import OnStep, StepHook
from bridge.training.lent_model import given_back, quiet, without_dropout
from bridge.training.plan import Plan, TrainingLog, is_likelihood
from commands.errors import UserError, first_line
from commands.progress import Progress
from commands.store import write_json

with quick_imports():
    import datasets
    from peft import PeftModel
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

_SAVE_EVERY_SECONDS = 120.0
_SAVE_SHARE = 0.05  # of the time at most, where one checkpoint takes long
_WHOLE = "whole.json"  # written last: a checkpoint without it was being written when the process died
_STATE = "trainer_state.json"
_OPTIMIZERS, _SCHEDULES = ("adamw_torch", "sgd"), ("linear", "cosine", "constant")  # need nothing further


def run(
    model: PreTrainedModel | PeftModel,
    samples: Sequence[Sample],
    plan: Plan,
    folder: Path,
    progress: Progress,
    pad_id: int,
    on_step: OnStep | None,
    hook: StepHook | None,
    stage: str,
) -> TrainingLog:
    """What `bridge.training.train` does once its input is checked: the trainable model in place, and its log."""
    device = next(model.parameters()).device
    if device.type == "cuda" and device.index:
        raise UserError(f"--device {device}: training uses the first GPU; hide the others with CUDA_VISIBLE_DEVICES")
    whole = _last_whole(folder)
    if hook is not None and whole is not None:
        hook.load(whole)
    with quiet(), given_back(model, _checkpoints_activations(plan)), without_dropout(model):
        args = arguments(plan, folder, device)
        with _blaming(plan):
            trainer = _Trainer(
                model=model,
                args=args,
                train_dataset=datasets.Dataset.from_list([_example(sample) for sample in samples]),
                data_collator=DataCollatorForLanguageModeling(pad_token_id=pad_id),
                processing_class=_no_tokenizer(),
            )
        if whole is not None and _read(whole)["finished"]:
            trainer._load_from_checkpoint(str(whole))
            return _log(TrainerState.load_from_json(str(whole / _STATE)), _read(whole)["seconds"])
        done = 0 if whole is None else int(_read(whole)["step"])
        total = plan.steps(len(samples))
        with progress.stage(stage, total, done) as tick:
            steps = _Steps(trainer, progress, tick, on_step, 0.0 if whole is None else _read(whole)["seconds"], total)
            if hook is not None:
                trainer.add_callback(_Hooked(hook))  # before _Steps, which asks for a checkpoint of what it leaves
            trainer.add_callback(steps)
            with _blaming(plan, lambda: trainer.state.global_step == done):  # optimizers are made only now
                trainer.train(resume_from_checkpoint=None if whole is None else str(whole))
        return _log(trainer.state, steps.seconds())


@contextmanager
def _blaming(plan: Plan, at_start: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Libraries check some arguments late: what they raise before the first step is told as the user's error.

    Only where the user chose arguments: the presets' optimizers and schedules always start.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        chosen = plan.overrides or plan.optimizer not in _OPTIMIZERS or plan.scheduler not in _SCHEDULES
        if chosen and at_start():
            raise UserError(f"--set: training cannot start with these values: {first_line(error)}") from error
        raise


def _checkpoints_activations(plan: Plan) -> bool:
    return any(plan.overrides.get(f"{kind}_checkpointing") for kind in ("gradient", "activation"))


def _example(sample: Sample) -> dict[str, list[int]]:
    kept = zip(sample.input_ids, sample.response_mask, strict=True)
    return {"input_ids": list(sample.input_ids), "labels": [token if mask else -100 for token, mask in kept]}


def _no_tokenizer() -> PreTrainedTokenizerFast:
    """trl insists on a tokenizer; one without special tokens leaves those of the model's configuration alone."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"": 0}, unk_token="")))


def _log(state: TrainerState, seconds: float) -> TrainingLog:
    records = [entry for entry in state.log_history if "loss" in entry]
    return TrainingLog(
        losses=tuple(float(r["loss"]) for r in records),
        learning_rates=tuple(float(r["learning_rate"]) for r in records),
        gradient_norms=tuple(float(r["grad_norm"]) for r in records),
        epochs=tuple(float(r["epoch"]) for r in records),
        tokens=tuple(int(r["tokens"]) for r in records),
        response_tokens=tuple(int(r["response_tokens"]) for r in records),
        seconds=seconds,
        stopped=state.global_step < state.max_steps,
    )


class _Trainer(SFTTrainer):
    """trl's trainer, silent: exact losses of every step, nothing sent away, a stop at the first NaN."""

    model: PreTrainedModel | PeftModel
    args: SFTConfig

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.remove_callback(PrinterCallback)
        # The loss is a sum over tokens divided by the tokens of the whole batch, for every architecture.
        self.model_accepts_loss_kwargs = True
        self._step_loss, self._step_tokens, self._step_response = 0.0, 0, 0

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def create_model_card(self, *args: object, **options: object) -> None:
        """Checkpoints are scratch files and need no card."""

    def compute_loss(
        self, model: Module, inputs: dict[str, Tensor], return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:  # fmt: skip
        """On the CPU, the plain loss from the logits of response positions alone.

        trl's own computes every position, in chunks, twice: a quarter of the time of a small model.
        """
        if return_outputs or num_items_in_batch is None or not self._is_plain(inputs["input_ids"]):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        row, position = (labels != -100).nonzero(as_tuple=True)
        keep, column = torch.unique(position, return_inverse=True)
        given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        logits = model(**given, logits_to_keep=keep).logits[row, column]
        return torch.nn.functional.cross_entropy(logits, labels[row, position], reduction="sum") / num_items_in_batch

    def _is_plain(self, ids: Tensor) -> bool:
        return (
            ids.device.type == "cpu"
            and self.args.loss_type == "nll"
            and self.label_smoother is None
            and not self.aux_loss_enabled
            and "logits_to_keep" in inspect.signature(type(inner_model(self.model)).forward).parameters
        )

    def training_step(self, model: Module, inputs: dict[str, Tensor], *args: object, **options: object) -> Tensor:
        """One micro-batch forwards and backwards; returns its share of the batch's loss."""
        tokens, response = int(inputs["attention_mask"].sum()), int((inputs["labels"][:, 1:] != -100).sum())
        loss = super().training_step(model, inputs, *args, **options)
        self._require_number("loss", float(loss), self.state.global_step + 1)
        self._step_loss += float(loss)
        self._step_tokens += tokens
        self._step_response += response
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Record a step with its loss in double precision and its tokens."""
        if "loss" in logs:
            self._require_number("norm of the gradient", float(logs["grad_norm"]), self.state.global_step)
            logs |= {
                "loss": self._step_loss,
                "tokens": self._step_tokens,
                "response_tokens": self._step_response,
            }
            self._step_loss, self._step_tokens, self._step_response = 0.0, 0, 0
        super().log(logs, start_time)

    def _require_number(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"the {what} became {value} at step {step} of {self.state.max_steps}: lower --learning-rate "
                f"({self.args.learning_rate:g} now), add a warm-up (--set warmup_steps=10), or check the rows and model"
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Weights of a checkpoint; peft would else ask the hub whether the vocabulary has grown."""
        if isinstance(self.model, PeftModel):
            self.model.save_pretrained(str(output_dir), save_embedding_layers=False)
        else:
            super()._save(output_dir, state_dict)


class _Hooked(TrainerCallback):
    """A StepHook around every optimizer step, and its part of every checkpoint."""

    def __init__(self, hook: StepHook) -> None:
        self._hook = hook

    def on_step_begin(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        """Before the gradient: some optimizers move the weights while it is computed."""
        self._hook.before_step(state.global_step)

    def on_optimizer_step(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        """After the optimizer, before the schedule."""
        self._hook.after_step(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: object, **_: object) -> None:
        """Before `_Steps` makes the checkpoint whole."""
        self._hook.save(_checkpoint(args, state))


class _Steps(TrainerCallback):
    """After every step: the bar, the caller's on_step, and now and then a checkpoint."""

    def __init__(
        self,
        trainer: _Trainer,
        progress: Progress,
        tick: Callable[[], None],
        on_step: OnStep | None,
        seconds: float,
        total: int,
    ) -> None:
        self._trainer, self._progress, self._tick, self._on_step = trainer, progress, tick, on_step
        self._earlier, self._started = seconds, time.monotonic()
        self._saved_at, self._pause = time.monotonic(), _SAVE_EVERY_SECONDS
        self._lines = sorted({math.ceil(total * tenth / 10) for tenth in range(1, 11)})
        self._step_began = 0.0

    def seconds(self) -> float:
        """Seconds of training so far, those of killed processes that count included."""
        return self._earlier + time.monotonic() - self._started

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Ask on_step, and decide whether to save."""
        if self._on_step is not None:
            model = self._trainer.model.eval()
            with torch.random.fork_rng(), torch.no_grad():
                if self._on_step(state.global_step, model):
                    control.should_training_stop = True
        self._step_began = time.monotonic()
        control.should_save = self._step_began - self._saved_at > self._pause
        if not control.should_save:
            self._tick()

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict[str, float] | None = None, **_: object
    ) -> None:
        """Ten lines where no bar can be drawn."""
        if logs and "loss" in logs and state.global_step in self._lines and not sys.stderr.isatty():
            unit = " nats per token" if is_likelihood(vars(self._trainer.args)) else ""
            self._progress.say(f"step {state.global_step} of {state.max_steps}: loss {logs['loss']:.4g}{unit}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Make the checkpoint just written whole, then drop the others."""
        path = _checkpoint(args, state)
        for file in [*path.rglob("*"), path, path.parent]:
            _sync(file)
        finished = control.should_training_stop or state.global_step >= state.max_steps
        write_json(path / _WHOLE, {"step": state.global_step, "finished": finished, "seconds": self.seconds()})
        _sync(path)
        for other in path.parent.glob("checkpoint-*"):
            if other != path:
                shutil.rmtree(other)
        self._saved_at = time.monotonic()
        self._pause = max(_SAVE_EVERY_SECONDS, (self._saved_at - self._step_began) / _SAVE_SHARE)
        self._tick()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Whole(TypedDict):
    """What a checkpoint is: written by `_Steps`."""

    step: int
    finished: bool
    seconds: float


def _read(checkpoint: Path) -> _Whole:
    return json.loads((checkpoint / _WHOLE).read_text())


def _last_whole(folder: Path) -> Path | None:
    """The last checkpoint that is whole; all others are deleted."""
    found = sorted((p for p in folder.glob("checkpoint-*") if (p / _WHOLE).exists()), key=lambda p: _read(p)["step"])
    for path in folder.glob("checkpoint-*"):
        if path not in found[-1:]:
            shutil.rmtree(path)
    return found[-1] if found else None
