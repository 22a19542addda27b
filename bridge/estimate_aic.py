"""Measure the alignment instability condition of a model under a planned fine-tune.

    python -m bridge.estimate_aic --model qwen3-1.7b --skill refusals --finetune gsm8k

Writes a run folder: manifest.json, samples.jsonl, statistics.npz, aic.json, spectrum.png, coupling.png,
prediction.png and report.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bridge.cli import run_command
from bridge.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from bridge.data import ChatFormat, RowSet, Sample
    from bridge.measure import Subject
    from bridge.models import LoadedModel
    from bridge.progress import Progress
    from bridge.result import Question
    from bridge.store import RunFolder
    from theory.statistics import ScoreStatistics

COMMAND = "bridge.estimate_aic"


@dataclass(frozen=True)
class Settings:
    """The options of one run; `out`, `quiet` and `memory` aside, each of them can change the numbers."""

    model: str
    skill: str
    finetune: str
    num_skill: int
    num_finetune: int
    fisher: Literal["sampled", "empirical"]
    draws: int
    max_new_tokens: int
    rank: int | None
    energy: float
    modules: str | None
    optimizer: Literal["sgd", "adamw"]
    adam_batch_size: int
    learning_rate: float
    steps: int
    dtype: str | None
    device: str | None
    batch_size: int
    memory: float
    max_length: int
    bootstrap: int
    seed: int
    skip_bad_rows: bool

    @property
    def num_samples(self) -> int:
        """N: rows of the skill times draws."""
        return self.num_skill * self.draws

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        for name in ("num_skill", "num_finetune", "draws", "max_new_tokens", "adam_batch_size", "steps", "batch_size"):
            _require(getattr(self, name) >= 1, name, "a whole number from 1", getattr(self, name))
        _require(self.max_length >= 2, "max_length", "at least 2 tokens", self.max_length)
        _require(0 < self.energy <= 1, "energy", "a share of the trace in (0, 1]", self.energy)
        _require(0 < self.learning_rate < float("inf"), "learning_rate", "a positive number", self.learning_rate)
        _require(0 < self.memory < float("inf"), "memory", "a positive number of GiB", self.memory)
        _require(self.bootstrap >= 0, "bootstrap", "0 or more resamples", self.bootstrap)
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        if self.fisher == "empirical":
            _require(self.draws == 1, "draws", "1 with --fisher empirical (its responses are the data's)", self.draws)
        if self.rank is not None:
            wanted = f"1 to {self.num_samples}, the number of samples (rows × draws): F has no more directions"
            _require(1 <= self.rank <= self.num_samples, "rank", wanted, self.rank)


def _require(holds: bool, option: str, wanted: str, got: object) -> None:
    if not holds:
        raise UserError(f"--{option.replace('_', '-')}: expected {wanted}, got {got}")


# ----------------------------------------------------------------------------------------------- the run


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Measure, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    from bridge import models
    from bridge.data import ChatFormat, load_rows
    from bridge.progress import Progress
    from bridge.store import RunFolder, short_hash

    settings.check()
    progress = Progress(quiet)
    models.resolve(settings.model)
    rows = {name: load_rows(getattr(settings, name), skip_bad_rows=settings.skip_bad_rows) for name in ("skill", "finetune")}
    loaded = models.load(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )
    subject = _subject(loaded, settings)
    chat = ChatFormat(loaded.tokenizer)
    skill, finetune = (_encode(rows[name], chat, settings, f"num_{name}") for name in ("skill", "finetune"))
    identity = asdict(settings) | {
        "dtype": loaded.dtype,
        "device": loaded.device,
        "threads": _threads(loaded.device),
        "weights_sha256": loaded.weights_hash,
        "skill_sha256": rows["skill"].sha256,
        "finetune_sha256": rows["finetune"].sha256,
    }
    name = settings.model.strip("/").replace("/", "--").replace(":", "-")
    folder = RunFolder(
        out or Path("runs") / "estimate_aic" / f"{name[-60:]}-{short_hash(identity)}", COMMAND, identity
    )
    try:
        if not folder.complete:
            if settings.fisher == "sampled":
                skill = _draw(loaded, chat, skill, settings, folder, progress)
            _measure(loaded, subject, skill, finetune, settings, folder, progress)
        result = json.loads((folder.path / "aic.json").read_text())
    finally:
        folder.close()
    if not quiet:
        from bridge.report import print_table

        print_table(result, asdict(settings))
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _subject(loaded: LoadedModel, settings: Settings) -> Subject:
    from bridge.measure import Subject
    from bridge.taps import select_modules

    return Subject(
        model=loaded.model,
        modules=select_modules(loaded.model, settings.modules),
        pad_id=int(loaded.tokenizer.pad_token_id),
        batch_size=settings.batch_size,
        memory_bytes=int(settings.memory * 2**30),
    )


def _threads(device: str) -> int | None:
    """Threads decide the order of the CPU's sums, and so the last digits."""
    import torch

    return torch.get_num_threads() if device == "cpu" else None


def _encode(rows: RowSet, chat: ChatFormat, settings: Settings, count: str) -> list[Sample]:
    from bridge.data import encode_rows

    try:
        encoded = encode_rows(
            rows, chat, getattr(settings, count), settings.max_length, settings.seed, settings.skip_bad_rows
        )
    except UserError as error:
        raise UserError(f"--{count.removeprefix('num_')}: {error}") from error
    for line in encoded.skipped:
        typer.echo(f"left out: {line}", err=True)
    return list(encoded.samples)


def _draw(
    loaded: LoadedModel,
    chat: ChatFormat,
    samples: Sequence[Sample],
    settings: Settings,
    folder: RunFolder,
    progress: Progress,
) -> list[Sample]:
    """Replace every sample's response by the model's own, `draws` times a prompt."""
    from bridge.data import with_response
    from bridge.sampling import draw_responses, stream
    from bridge.store import write_json

    wanted = [(row, draw) for row in range(len(samples)) for draw in range(settings.draws)]
    size = 4 * settings.batch_size  # no backward pass: longer batches than elsewhere
    groups = [wanted[k : k + size] for k in range(0, len(wanted), size)]
    files = [folder.checkpoint(f"responses-{k}.json") for k in range(len(groups))]
    out: list[Sample] = []
    with progress.stage("responses of the model", len(groups), sum(f.exists() for f in files)) as tick:
        for group, file in zip(groups, files, strict=True):
            if not file.exists():
                drawn = draw_responses(
                    loaded.model,
                    [samples[row].prompt_ids for row, _ in group],
                    [stream(settings.seed, row, draw) for row, draw in group],
                    max_new_tokens=settings.max_new_tokens,
                    end_token_ids=chat.end_token_ids,
                    pad_id=int(loaded.tokenizer.pad_token_id),
                )
                write_json(file, drawn)
                tick()
            for (row, draw), response in zip(group, json.loads(file.read_text()), strict=True):
                base = samples[row]
                room = settings.max_length - len(base.prompt_ids)
                label = base.id if settings.draws == 1 else f"{base.id}#{draw + 1}"
                out.append(
                    with_response(
                        base.prompt_ids, response[:room], set_name=base.set, sample_id=label, group=base.group
                    )
                )
    return out


def _measure(
    loaded: LoadedModel,
    subject: Subject,
    skill: Sequence[Sample],
    finetune: Sequence[Sample],
    settings: Settings,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """All stages from the samples to the finished folder."""
    import numpy as np

    from bridge import measure, result
    from bridge.store import write_atomically, write_json

    lines = [replace(s, set=name).to_json() for name, part in (("skill", skill), ("finetune", finetune)) for s in part]
    write_atomically(folder.path / "samples.jsonl", ("\n".join(lines) + "\n").encode())
    update = measure.measure_update(
        subject, finetune, settings.optimizer, settings.adam_batch_size, folder, progress
    )
    folder.note_progress()
    modules = measure.measure_scores(subject, skill, update, settings.fisher, folder, progress)
    folder.note_progress()
    question = result.Question(
        rank=settings.rank,
        energy=settings.energy,
        horizon=settings.learning_rate * settings.steps,
        resamples=settings.bootstrap,
        seed=settings.seed,
    )
    times = result.prediction_times(result.whole_model(modules), question.horizon)
    moments = measure.measure_output_space(subject, skill, update, times, folder, progress)
    groups = np.unique([s.group for s in skill], return_inverse=True)[1]
    with progress.stage("intervals", 1):
        found = {"model": settings.model, **result.assemble(modules, update, moments, times, groups, question)}
    _write_statistics(folder, modules, update.gradient_squared, moments.to_arrays(), times)
    write_json(folder.path / "aic.json", found)
    _write_report(loaded, found, result.whole_model(modules), skill, settings, folder)
    folder.finish(device_name=_device_name(loaded.device), stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})


def _write_statistics(
    folder: RunFolder,
    modules: Mapping[str, ScoreStatistics],
    gradient_squared: Mapping[str, float],
    moments: Mapping[str, np.ndarray],
    times: np.ndarray,
) -> None:
    """statistics.npz: every module's statistics under its name, and the policy's under `output_space`."""
    import numpy as np

    from bridge.store import write_arrays

    arrays = {f"output_space/{name}": values for name, values in moments.items()} | {"output_space/times": times}
    for name, stats in modules.items():
        arrays |= stats.to_arrays(f"{name}/")
        arrays[f"{name}/gradient_squared"] = np.float64(gradient_squared[name])
    write_arrays(folder.path / "statistics.npz", arrays)


def _write_report(
    loaded: LoadedModel,
    found: dict[str, Any],
    whole: ScoreStatistics,
    skill: Sequence[Sample],
    settings: Settings,
    folder: RunFolder,
) -> None:
    from bridge import pictures, report
    from bridge.store import library_versions, write_atomically

    drawn = {
        "spectrum": pictures.spectrum(found, whole.gram.diagonal()),
        "coupling": pictures.coupling(found),
        "prediction": pictures.prediction(found, settings.learning_rate),
    }
    for name, png in drawn.items():
        write_atomically(folder.path / f"{name}.png", png)
    texts = [loaded.tokenizer.decode(list(sample.input_ids)) for sample in skill[:5]]
    page = report.render(found, asdict(settings), library_versions(), drawn, texts)
    write_atomically(folder.path / "report.html", page)


def _device_name(device: str) -> str:
    import platform

    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"


# ------------------------------------------------------------------------------------------- command line


def main(
    model: Annotated[str, typer.Option(help="Alias, hub name, local folder, GGUF file, or random:ALIAS.")] = "smollm2-135m",
    skill: Annotated[str, typer.Option(help="What to protect: refusals, or FILE.jsonl.")] = "refusals",
    finetune: Annotated[str, typer.Option(help="What to train on: benign, gsm8k, gsm8k=FILE, or FILE.jsonl.")] = "benign",
    num_skill: Annotated[int, typer.Option(help="Rows of the skill.")] = 64,
    num_finetune: Annotated[int, typer.Option(help="Rows of the fine-tuning set.")] = 64,
    fisher: Annotated[
        Literal["sampled", "empirical"],
        typer.Option(help="Responses drawn from the model (what the theory means), or the data's."),
    ] = "sampled",
    draws: Annotated[int, typer.Option(help="Responses drawn at each prompt (sampled Fisher).")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response drawn.")] = 64,
    rank: Annotated[int | None, typer.Option(help="d, the number of sharp directions.")] = None,
    energy: Annotated[float | None, typer.Option(help="d as the share of the trace it holds. (default: 0.9)")] = None,
    modules: Annotated[str | None, typer.Option(help="Regular expression for the linear modules that make up theta. (default: all in the blocks)")] = None,
    optimizer: Annotated[Literal["sgd", "adamw"], typer.Option(help="Gradient flow, or AdamW's preconditioned flow.")] = "sgd",
    adam_batch_size: Annotated[int, typer.Option(help="Rows in a batch of AdamW, whose gradients' squares scale it.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Of the planned fine-tune.")] = 1e-4,
    steps: Annotated[int, typer.Option(help="Of the planned fine-tune; t = learning rate × steps.")] = 100,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: float32)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N. (default: the GPU if there is one)")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows computed at a time.")] = 4,
    memory: Annotated[float, typer.Option(help="GiB for what is kept between passes.")] = 4.0,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are cut on the right.")] = 512,
    bootstrap: Annotated[int, typer.Option(help="Resamples for the intervals; 0 for none.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the choice of rows, the draws and the resamples.")] = 0,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows and say so.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: runs/estimate_aic/MODEL-HASH)")] = None,
) -> None:
    """Measure the alignment instability condition of MODEL before it is fine-tuned.

    How sharp is the skill (sharpness, tail, effective rank), how much of the update lies in its sharp
    directions (overlap, leak), how fast it bends into them (coupling, onset coefficient), and what that does
    to the skill by the end of the run (crossover, regime, predicted utility loss). The same command again goes
    on with a run that was stopped.
    """
    if rank is not None and energy is not None:
        raise UserError("--rank and --energy: expected one of them, got both; leave one out")
    run(
        Settings(
            model=model, skill=skill, finetune=finetune, num_skill=num_skill, num_finetune=num_finetune,
            fisher=fisher, draws=draws, max_new_tokens=max_new_tokens, rank=rank,
            energy=0.9 if energy is None else energy, modules=modules, optimizer=optimizer,
            adam_batch_size=adam_batch_size, learning_rate=learning_rate, steps=steps, dtype=dtype, device=device,
            batch_size=batch_size, memory=memory, max_length=max_length, bootstrap=bootstrap, seed=seed,
            skip_bad_rows=skip_bad_rows,
        ),
        out,
    )  # fmt: skip


def _app() -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    return app


if __name__ == "__main__":
    run_command(_app())
