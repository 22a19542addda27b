"""One run of `bridge.estimate_aic`: from the options to the finished run folder."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bridge.data.chat import ChatFormat
from bridge.data.encode import check_positions, encode, token_hash
from bridge.data.rows import load_rows
from bridge.data.samples import Sample
from bridge.estimators import output_space
from bridge.estimators import scores as measure
from bridge.estimators import update as estimators_update
from bridge.estimators.taps import probe
from bridge.estimators.theta import Subject, subject_of
from bridge.experiments.estimate_aic import pictures, report, result
from bridge.generation.drawing import Drawing, draw_samples
from bridge.models.identity import model_identity, positions_of, run_name
from bridge.models.load import LoadedModel, load_model
from commands.progress import Progress
from commands.runs import result_of
from commands.store import RunFolder, short_hash, write_arrays, write_atomically, write_json
from theory.statistics import ScoreStatistics

if TYPE_CHECKING:
    from bridge.experiments.estimate_aic.settings import Settings

COMMAND = "bridge.estimate_aic"


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Measure, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    rows = {
        name: load_rows(getattr(settings, name), skip_bad_rows=settings.skip_bad_rows) for name in ("skill", "finetune")
    }
    loaded = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )
    subject = subject_of(loaded, settings.modules, settings.batch_size, settings.memory)
    chat = ChatFormat(loaded.tokenizer)
    skill, finetune = (
        encode(
            f"--{name}",
            rows[name],
            chat,
            count=getattr(settings, f"num_{name}"),
            max_length=settings.max_length,
            seed=settings.seed,
            skip_bad_rows=settings.skip_bad_rows,
            progress=progress,
        )
        for name in ("skill", "finetune")
    )
    sampled = settings.fisher == "sampled"
    whole = finetune if sampled else [*skill, *finetune]
    check_positions(positions_of(loaded), whole, skill if sampled else [], settings.max_new_tokens)
    identity = asdict(settings) | {
        **model_identity(loaded),
        "tokens": token_hash([*skill, *finetune]),
        "end_token_ids": list(chat.end_token_ids),
        "skill_sha256": rows["skill"].sha256,
        "finetune_sha256": rows["finetune"].sha256,
    }
    default = Path("runs") / "estimate_aic" / f"{run_name(settings.model)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)

    def measured() -> None:
        how = Drawing.of(settings)
        samples = draw_samples(loaded, chat, skill, how, folder, progress) if sampled else skill
        _measure(loaded, subject, samples, finetune, settings, folder, progress)

    found = result_of(folder, "aic.json", measured, progress)
    if not quiet:
        report.print_table(found, asdict(settings))
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


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
    lines = [replace(s, set=name).to_json() for name, part in (("skill", skill), ("finetune", finetune)) for s in part]
    write_atomically(folder.path / "samples.jsonl", ("\n".join(lines) + "\n").encode())
    probe(subject.model, subject.modules, subject.batches(finetune[:1])[0])
    update = estimators_update.measure_update(
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
    moments = output_space.measure_output_space(subject, skill, update, times, folder, progress)
    groups = np.unique([s.group for s in skill], return_inverse=True)[1]
    with progress.stage("intervals", 1):
        found = {
            "model": settings.model,
            **result.assemble(modules, update, moments, times, groups, question),
        }
    _write_statistics(folder, modules, update.gradient_squared, moments.to_arrays(), times)
    write_json(folder.path / "aic.json", found)
    _write_report(loaded, found, result.whole_model(modules), skill, settings, folder)
    folder.finish(
        device_name=_device_name(loaded.device),
        stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()},
    )


def _write_statistics(
    folder: RunFolder,
    modules: Mapping[str, ScoreStatistics],
    gradient_squared: Mapping[str, float],
    moments: Mapping[str, np.ndarray],
    times: np.ndarray,
) -> None:
    """statistics.npz: every module's statistics under its name, and the policy's under `output_space`."""
    arrays = {f"output_space/{name}": values for name, values in moments.items()} | {"output_space/times": times}
    for name, stats in modules.items():
        arrays |= stats.to_arrays(f"{name}/")
        arrays[f"{name}/gradient_squared"] = np.array(gradient_squared[name])
    write_arrays(folder.path / "statistics.npz", arrays)


def _write_report(
    loaded: LoadedModel,
    found: dict[str, Any],
    whole: ScoreStatistics,
    skill: Sequence[Sample],
    settings: Settings,
    folder: RunFolder,
) -> None:
    drawn = {
        "spectrum": pictures.spectrum(found, whole.gram.diagonal()),
        "coupling": pictures.coupling(found),
        "prediction": pictures.prediction(found, settings.learning_rate),
    }
    for name, png in drawn.items():
        write_atomically(folder.path / f"{name}.png", png)
    texts = [str(loaded.tokenizer.decode(list(sample.input_ids))) for sample in skill[:5]]
    page = report.render(found, asdict(settings), drawn, texts)
    write_atomically(folder.path / "report.html", page)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
