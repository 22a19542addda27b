"""Fine-tune a model on a set of conversations, by LoRA or in full, and keep exactly what changed.

    python -m bridge.finetune --model smollm2-135m --data gsm8k --method lora

Writes a run folder: manifest.json, samples.jsonl, adapter/ (LoRA) or model/ and delta.safetensors (full), delta.json,
finetune.json, loss.png and report.html. With a defence, --defend, also skill.jsonl and defence.png: every update is
projected off the directions that a skill is sensitive to (`bridge.defend`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bridge.defence_plan import DefencePlan, Kind, make_defence
from bridge.models import resolve
from bridge.presets import DEFAULT_PRESET, PRESETS, describe, make_plan
from bridge.training import Plan
from commands.cli import run_command
from commands.errors import UserError
from commands.options import at_least, command_of, require

MEMORY_ADVICE = "lower --micro-batch-size or --max-length, take --method lora, or add --set gradient_checkpointing=true"


@dataclass(frozen=True)
class Settings:
    """What decides a run's numbers: model, rows and plan, and a defence if there is one. `rows` 0 is all rows."""

    model: str
    data: str
    rows: int
    mix: str | None
    share: float
    max_length: int
    preset: str
    plan: Plan
    dtype: str | None
    device: str | None
    skip_bad_rows: bool
    defence: DefencePlan | None = None

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        at_least(0, self, "rows")
        at_least(2, self, "max_length")
        require(0 <= self.share < 1, "share", "a share of the rows in [0, 1)", self.share)
        require((self.share > 0) == (self.mix is not None), "share", "--mix and --share together", "one of them")
        if self.dtype not in (None, "float32", "float64"):
            raise UserError(
                f"--dtype: expected float32 or float64, the dtype of the trained weights, got {self.dtype}; "
                "for speed on a GPU use --set bf16=true, which computes in bfloat16 and keeps float32 weights"
            )
        self.plan.check()
        if self.defence is not None:
            self.defence.check()


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE strings as a dictionary; values are read as JSON where they are, else as text.

    Raises:
        UserError: without "=", or a name given twice.

    """
    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UserError(f"--set: expected NAME=VALUE, got {item!r}")
        if name in found:
            raise UserError(f"--set: {name} is given twice")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
        try:
            json.dumps(found[name], allow_nan=False)
        except ValueError:
            raise UserError(f"--set {name}: expected finite numbers, got {text}") from None
    return found


_TRAINING = (
    "learning_rate", "epochs", "max_steps", "batch_size", "micro_batch_size", "lora_rank", "lora_alpha",
    "lora_dropout", "lora_targets", "seed",
)  # fmt: skip
_DEFENCE = (
    "refresh", "rank", "max_utility_loss", "num_skill", "held_out", "max_new_tokens", "measure_every",
)  # fmt: skip


def make_settings(options: Mapping[str, Any]) -> Settings:
    """Settings from options by the names of `main`, checked; UserError for options that no run can have."""
    given = {name: options[name] for name in _TRAINING}
    defence = {name: options[name] for name in _DEFENCE}
    settings = Settings(
        plan=make_plan(options["preset"], options["method"], given, parse_overrides(options["override"] or [])),
        defence=make_defence(
            options["defend"], options["skill"], **defence, batch_size=options["probe_batch_size"],
            memory=options["probe_memory"],
        ),
        **{field.name: options[field.name] for field in fields(Settings) if field.name not in ("plan", "defence")},
    )  # fmt: skip
    settings.check()
    return settings


# ------------------------------------------------------------------------------------------- command line


def main(
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m",
    data: Annotated[str, typer.Option(help="What to train on: a set's NAME, NAME=FILE, or FILE.jsonl.")] = "benign",
    method: Annotated[Literal["lora", "full"], typer.Option(help="Low-rank adapters, or all weights.")] = "lora",
    rows: Annotated[int, typer.Option(help="Rows to train on, drawn by the seed; 0 for all.")] = 100,
    mix: Annotated[str | None, typer.Option(help="A second set to mix in.")] = None,
    share: Annotated[float, typer.Option(help="Share of --rows that is of the second set.")] = 0.0,
    preset: Annotated[str, typer.Option(help=f"Defaults of what follows: {', '.join(PRESETS)}.")] = DEFAULT_PRESET,
    learning_rate: Annotated[float | None, typer.Option(help="Highest of the schedule. (default: preset)")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows. (default: preset)")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of one step. (default: preset)")] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Rows computed at a time: memory only. (default: a divisor up to 4)")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Rank of the adapters. (default: preset)")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Scale is alpha / rank. (default: preset)")] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="Before the adapters. (default: preset)")] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(help="Regular expression for the modules that get an adapter. (default: all in the blocks)"),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are cut on the right.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the rows, their order, and the adapters' start.")] = 0,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of any field of TrainingArguments; may be repeated."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the weights: float32 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. (default: the GPU if there is one)")] = None,
    defend: Annotated[
        Kind, typer.Option(help="Project each update off what the skill is sensitive to: at the base, or tracked.")
    ] = "none",
    refresh: Annotated[
        int | None, typer.Option(help="Steps between two subspaces of tracked and budget. (default: 1)")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="d, the directions that are projected out. (default: all of the probe)")
    ] = None,
    max_utility_loss: Annotated[
        float | None, typer.Option(help="Of --defend budget, in nats a response of the probe.")
    ] = None,
    skill: Annotated[
        str | None,
        typer.Option(help="What to defend: refusals, or FILE.jsonl; with --defend none, to measure only."),
    ] = None,
    num_skill: Annotated[
        int | None, typer.Option(help="Responses of the model that make the defence's probe. (default: 48)")
    ] = None,
    held_out: Annotated[
        int | None, typer.Option(help="Further responses, on which the defence is judged. (default: 48)")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest of these responses. (default: 32)")] = None,
    measure_every: Annotated[
        int | None,
        typer.Option(help="Steps between two measurements of the probe's utility loss. (default: 5; budget: 1)"),
    ] = None,
    probe_batch_size: Annotated[
        int | None, typer.Option(help="Responses of the probe computed at a time. (default: 4)")
    ] = None,
    probe_memory: Annotated[
        float | None, typer.Option(help="GiB for what the probe keeps between passes. (default: 2)")
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/finetune/MODEL-HASH)")] = None,
    show_preset: Annotated[
        str | None, typer.Option(help="Print a preset's values with their sources, and end.")
    ] = None,
) -> None:
    """Fine-tune MODEL on DATA and write the change of its weights.

    The loss covers the response tokens only. The weights are trained in float32, whatever the model was stored in.
    The same command again goes on with a run that was stopped, and gives the same weights to the last bit.

    --defend keeps a skill: static projects every update off the sensitive subspace of the base, tracked off that of
    the weights at the last refresh, budget only as much as keeps the measured utility loss within
    --max-utility-loss. While a defence or --skill is given, full fine-tuning trains the linear modules of the blocks
    alone: embeddings, norms and biases are frozen.
    """
    given = dict(locals())  # every option by its name
    if show_preset is not None:
        print(describe(show_preset))
        return
    settings = make_settings(given)
    resolve(model)
    from bridge.finetune_run import run  # torch takes a second or two to import: wrong input should not wait for it

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
