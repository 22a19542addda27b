"""Measure how harmful a model's responses are: a language model as judge, or refusals counted offline.

    python -m bridge.harmfulness --model smollm2-135m-refusal --prompts advbench --judge google/gemini-2.5-flash
    python -m bridge.harmfulness --rescore runs/harmfulness/A --judge openai/gpt-4o-mini --judge refusal

Writes a run folder: manifest.json, records.jsonl, harmfulness.json, report.html, and scores.png if a judge gave scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.decodings import DECODINGS
from bridge.judges import REFUSAL, Judge, read_judge
from bridge.judging import Limits
from bridge.models import resolve
from commands.cli import run_command
from commands.errors import UserError
from commands.options import at_least, command_of, require

MEMORY_ADVICE = "lower --batch-size first, then --max-new-tokens"
GENERATION: dict[str, Any] = {
    "model": "smollm2-135m-refusal",
    "delta": None,
    "prompts": "advbench",
    "num_prompts": 0,
    "preset": "aic",
    "max_new_tokens": None,
}
"""The options that decide the responses, and what they are unless given; --rescore takes none of them."""


@dataclass(frozen=True)
class Settings:
    """The options that decide a run's numbers; batch size decides their rounding only. `num_prompts` 0 is all.

    With `rescore`, the folder of an earlier run, the responses are that run's and so is what decided them: `model`,
    `delta`, `prompts`, `num_prompts`, `preset`, `max_new_tokens`, `dtype` and `device` are not used.
    """

    model: str
    delta: str | None
    prompts: str
    judge: tuple[str, ...]
    num_prompts: int
    preset: str
    max_new_tokens: int
    dtype: str | None
    device: str | None
    batch_size: int
    bootstrap: int
    seed: int
    skip_bad_rows: bool
    rescore: str | None = None

    def check(self) -> None:
        """Raise UserError for options that no run can have, and for a judge that cannot be asked from here."""
        check_preset(self.preset)
        at_least(0, self, "num_prompts", "seed", "bootstrap")
        at_least(1, self, "max_new_tokens", "batch_size")
        require(len(set(self.judge)) == len(self.judge), "judge", "different judges", ", ".join(self.judge))
        require(bool(self.judge), "judge", "at least one judge", "none")
        for judge in self.judges:
            judge.require_ready()
        if self.delta is not None:
            require(Path(self.delta).expanduser().exists(), "delta", "a change of weights that exists", self.delta)

    @property
    def judges(self) -> list[Judge]:
        """The judges by their names; UserError for a name that is none."""
        return [read_judge(name) for name in self.judge]


def check_preset(preset: str) -> None:
    """Raise UserError for a preset that there is none of."""
    require(preset in DECODINGS, "preset", f"one of {', '.join(DECODINGS)}", preset)


def check_limits(limits: Limits) -> None:
    """Raise UserError for limits that ask no judge."""
    at_least(1, limits, "attempts", "connections")
    at_least(0, limits, "give_up")
    for name in ("timeout", "backoff", "longest_wait"):
        value = getattr(limits, name)
        require(0 < value < float("inf"), name, "a positive number of seconds", value)


def make_settings(options: Mapping[str, Any]) -> tuple[Settings, Limits]:
    """Settings and limits from options by the names of `main`, checked; those of None have their defaults."""
    generation = {name: default if options[name] is None else options[name] for name, default in GENERATION.items()}
    check_preset(generation["preset"])
    if generation["max_new_tokens"] is None:
        generation["max_new_tokens"] = DECODINGS[generation["preset"]].max_new_tokens
    given = {field.name: options[field.name] for field in fields(Settings)} | generation
    settings = Settings(**given | {"judge": tuple(options["judge"] or [REFUSAL])})
    limits = Limits(**{field.name: options[field.name] for field in fields(Limits)})
    check_limits(limits)
    settings.check()
    return settings, limits


def main(
    model: Annotated[
        str | None,
        typer.Option(help="Alias, hub name, local folder, GGUF file, random:ALIAS. (default: smollm2-135m-refusal)"),
    ] = None,
    delta: Annotated[
        str | None,
        typer.Option(
            help="A change of the model's weights: a run folder of bridge.finetune, an adapter, a delta.safetensors, "
            "or the folder of the changed model."
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="advbench, another NAME, NAME=FILE or FILE.jsonl. (default: advbench)")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="google/MODEL, openai/MODEL (keys from the environment), or refusal: offline, a refusal rate and no "
            "harmfulness score; may be repeated. (default: refusal)"
        ),
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Prompts, drawn by the seed. (default: all)")] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"How responses are decoded: {', '.join(DECODINGS)}. (default: aic)")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest response. (default: preset)")] = None,
    rescore: Annotated[
        str | None, typer.Option(help="Judge the responses of this run folder again instead of generating.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts answered at a time.")] = 16,
    bootstrap: Annotated[int, typer.Option(help="Resamples for the interval of the mean; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the choice of prompts, of sampling, and of the resamples.")] = 0,
    attempts: Annotated[int, typer.Option(help="Requests to a judge for one item before it counts as failed.")] = 6,
    timeout: Annotated[float, typer.Option(help="Seconds that a judge may take for one request.")] = 120.0,
    backoff: Annotated[float, typer.Option(help="Seconds before the second request for an item; doubled.")] = 2.0,
    longest_wait: Annotated[float, typer.Option(help="Longest wait before a request, also by Retry-After.")] = 300.0,
    connections: Annotated[int, typer.Option(help="Requests to a judge at a time.")] = 16,
    give_up: Annotated[
        int, typer.Option(help="Items in a row without an answer that end the run; 0 to list them and go on.")
    ] = 20,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again about the failed items of a complete run.")
    ] = False,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/harmfulness/MODEL-HASH)")] = None,
) -> None:
    """Let MODEL answer prompts and let judges rate the answers from 1 (harmless) to 5 (fully harmful).

    Every prompt, response and verdict is kept. Items without a score are counted, and bound the mean from both sides.
    The same command again goes on with a run that was stopped, and asks nothing twice.
    """
    given = {
        "model": model, "delta": delta, "prompts": prompts, "num_prompts": num_prompts, "preset": preset,
        "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    named = {name: value for name, value in given.items() if value is not None}
    if rescore is not None and named:
        option = next(iter(named)).replace("_", "-")
        raise UserError(f"--{option}: expected none with --rescore, whose responses are there already")
    settings, limits = make_settings(
        {
            **given, "judge": judge, "dtype": dtype, "device": device, "batch_size": batch_size,
            "bootstrap": bootstrap, "seed": seed, "skip_bad_rows": skip_bad_rows, "rescore": rescore,
            "attempts": attempts, "timeout": timeout, "backoff": backoff, "longest_wait": longest_wait,
            "connections": connections, "give_up": give_up,
        }
    )  # fmt: skip
    if rescore is None:
        resolve(settings.model)
    from bridge.harmfulness_run import run  # torch takes a second or two: wrong input should not wait for it

    run(settings, out, limits=limits, retry_failed=retry_failed)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
