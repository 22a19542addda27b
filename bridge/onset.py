"""How the damage of a fine-tune sets in: predicted before the first step, measured along small real ones.

    python -m bridge.onset --model smollm2-135m-refusal --finetune gsm8k --optimizer sgd

Writes a run folder: manifest.json, samples.jsonl, onset.json, onset.png, pilot.png (with --pilot-steps) and
report.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.experiments.onset.settings import (
    LARGEST_RATE,
    REALISTIC,
    STEPS_TO_CROSSOVER,
    Settings,
    parse_runs,
    parse_times,
)
from bridge.models.names import resolve
from bridge.training.presets import DEFAULT_PRESET, PRESETS, make_plan
from commands.cli import run_command
from commands.options import command_of

MEMORY_ADVICE = "lower --batch-size first, then --memory or --max-length"


# ------------------------------------------------------------------------------------------- command line


def main(
    model: Annotated[
        str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")
    ] = "smollm2-135m-refusal",
    skill: Annotated[str, typer.Option(help="What to protect: refusals, or FILE.jsonl.")] = "refusals",
    finetune: Annotated[
        str, typer.Option(help="What to train on: benign, gsm8k, gsm8k=FILE, or FILE.jsonl.")
    ] = "benign",
    num_skill: Annotated[int, typer.Option(help="Rows of the skill on which the damage is measured.")] = 64,
    num_finetune: Annotated[int, typer.Option(help="Rows of the fine-tuning set: the full batch.")] = 64,
    draws: Annotated[int, typer.Option(help="Responses drawn from the model at each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response drawn.")] = 64,
    modules: Annotated[
        str | None,
        typer.Option(help="Regular expression for the linear modules that move. (default: all in the blocks)"),
    ] = None,
    optimizer: Annotated[
        Literal["sgd", "adamw"], typer.Option(help="Gradient descent, or AdamW with its second moments frozen.")
    ] = "sgd",
    method: Annotated[
        Literal["full", "lora"], typer.Option(help="All selected weights, or LoRA's factors (and the pilot's method).")
    ] = "full",
    adam_batch_size: Annotated[
        int, typer.Option(help="Rows in a batch of AdamW, whose gradients' squares scale it.")
    ] = 8,
    remove_overlap: Annotated[
        bool,
        typer.Option("--remove-overlap", help="Project every update off the skill's directions at the base."),
    ] = False,
    num_probe: Annotated[
        int, typer.Option(help="Rows of the skill, others than --num-skill, whose directions are removed.")
    ] = 64,
    rank: Annotated[int | None, typer.Option(help="d, how many of them. (default: all that the samples show)")] = None,
    at: Annotated[str, typer.Option(help="When to measure, as fractions of the crossover.")] = "0.03,0.1,0.3,0.6,1,2",
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Largest of the small steps. "
            f"(default: {LARGEST_RATE:g}, or 1/{STEPS_TO_CROSSOVER} of the crossover if that is less)"
        ),
    ] = None,
    max_steps: Annotated[int, typer.Option(help="Refuse more small steps than this.")] = 1000,
    curvature_iterations: Annotated[
        int, typer.Option(help="Lanczos iterations for the leading curvature, two gradients each; 0 for none.")
    ] = 6,
    realistic: Annotated[
        str | None,
        typer.Option(
            help="Runs to place on the time axis, as RATExSTEPS. "
            f"(default: {REALISTIC['sgd']}, or {REALISTIC['adamw']} for adamw)"
        ),
    ] = None,
    pilot_steps: Annotated[
        int, typer.Option(help="Steps of the real optimiser from which the end of its run is forecast; 0 for none.")
    ] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="Run the real optimiser to its end, and compare the forecast.")
    ] = False,
    preset: Annotated[
        str, typer.Option(help=f"Of the real optimiser, as in bridge.finetune: {', '.join(PRESETS)}.")
    ] = DEFAULT_PRESET,
    pilot_learning_rate: Annotated[float | None, typer.Option(help="Its learning rate. (default: preset)")] = None,
    pilot_epochs: Annotated[float | None, typer.Option(help="Its passes over the rows. (default: preset)")] = None,
    pilot_batch_size: Annotated[int | None, typer.Option(help="Its rows of one step. (default: preset)")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Rank of LoRA's factors. (default: preset)")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Scale is alpha / rank. (default: preset)")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows computed at a time.")] = 4,
    memory: Annotated[float, typer.Option(help="GiB for what is kept between passes.")] = 4.0,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are cut on the right.")] = 512,
    bootstrap: Annotated[int, typer.Option(help="Resamples for the intervals; 0 for none.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the choice of rows, the draws and the resamples.")] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/onset/MODEL-HASH)")] = None,
) -> None:
    """Watch the damage of a fine-tune set in, beside its prediction.

    Before the first step the utility loss is predicted from derivatives at MODEL alone: a leak part that grows as
    t², a quartic part, and what is between. Then small steps of gradient descent are really taken, and the utility
    loss is measured along them. Is the onset quadratic, quartic or neither, and until when does the prediction hold?
    Beyond that, --pilot-steps of the real optimiser forecast the end of its run. The same command again goes on with
    a run that was stopped.
    """
    given = {
        "learning_rate": pilot_learning_rate, "epochs": pilot_epochs, "batch_size": pilot_batch_size,
        "lora_rank": lora_rank, "lora_alpha": lora_alpha, "lora_targets": modules, "seed": seed,
    }  # fmt: skip
    settings = Settings(
        model=model, skill=skill, finetune=finetune, num_skill=num_skill, num_finetune=num_finetune, draws=draws,
        max_new_tokens=max_new_tokens, modules=modules, optimizer=optimizer, method=method,
        adam_batch_size=adam_batch_size, remove_overlap=remove_overlap, num_probe=num_probe, rank=rank,
        at=parse_times(at), learning_rate=learning_rate, max_steps=max_steps,
        curvature_iterations=curvature_iterations, realistic=parse_runs(realistic or REALISTIC[optimizer]),
        pilot_steps=pilot_steps, full=full, preset=preset, plan=make_plan(preset, method, given, {}), dtype=dtype,
        device=device, batch_size=batch_size, memory=memory, max_length=max_length, bootstrap=bootstrap, seed=seed,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    settings.check()
    resolve(model)
    from bridge.experiments.onset.run import (
        run,  # torch takes a second or two to import: wrong input should not wait for it
    )

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main), MEMORY_ADVICE)
