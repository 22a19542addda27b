"""One run of `bridge.estimate_aic`: from the options to the finished run folder."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bridge.data.encode import token_hash
from bridge.data.samples import Sample
from bridge.estimators.output_space import measure_output_space
from bridge.estimators.scores import measure_scores
from bridge.estimators.update import measure_update
from bridge.experiments.estimate_aic import report
from bridge.experiments.estimate_aic.assembly import assemble, prediction_times, whole_model
from bridge.experiments.estimate_aic.result import AicResult
from bridge.experiments.estimate_aic.settings import Settings
from bridge.experiments.session import Lent, MeasuringSession, write_samples
from commands.progress import Progress
from commands.runs import result_of
from commands.store import Folder, write_arrays
from theory.statistics import ScoreStatistics

COMMAND = "bridge.estimate_aic"


def run(settings: Settings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None) -> AicResult:
    """Measure, write the run folder, print the closing table.

    Args:
        settings: the options.
        out: the run folder; None for one in runs/.
        quiet: print nothing.
        lent: what is in memory already.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    session = MeasuringSession(COMMAND, settings, Progress(quiet), lent)
    rows = {name: session.rows(name, getattr(settings, name)) for name in ("skill", "finetune")}
    session.subject  # noqa: B018  # modules that do not exist are refused before rows that cannot be encoded
    skill = session.encode("skill", rows["skill"], settings.num_skill)
    finetune = session.encode("finetune", rows["finetune"], settings.num_finetune)
    sampled = settings.fisher == "sampled"
    whole = finetune if sampled else [*skill, *finetune]
    session.check_positions(whole, skill if sampled else [], settings.max_new_tokens)
    folder = session.open_folder(
        out,
        tokens=token_hash([*skill, *finetune]),
        skill_sha256=rows["skill"].sha256,
        finetune_sha256=rows["finetune"].sha256,
    )
    measure = partial(_measure, session, settings, skill, finetune, folder)
    found = result_of(folder, AicResult.read, measure, session.progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def _measure(
    session: MeasuringSession,
    settings: Settings,
    skill: Sequence[Sample],
    finetune: Sequence[Sample],
    folder: Folder,
) -> AicResult:
    """All stages from the samples to the finished folder."""
    if settings.fisher == "sampled":
        skill = session.answered(skill, folder)
    subject, progress = session.subject, session.progress
    session.probe(finetune)
    if not session.lent.in_memory:
        parts = (("skill", skill), ("finetune", finetune))
        write_samples(folder.path / "samples.jsonl", [replace(s, set=name) for name, part in parts for s in part])
    update = measure_update(subject, finetune, settings.optimizer, settings.adam_batch_size, folder, progress)
    folder.note_progress()
    modules = measure_scores(subject, skill, update, settings.fisher, folder, progress)
    folder.note_progress()
    times = prediction_times(whole_model(modules), settings.horizon)
    moments = measure_output_space(subject, skill, update, times, folder, progress)
    groups = np.unique([s.group for s in skill], return_inverse=True)[1]
    with progress.stage("intervals", 1):
        found = assemble(settings.model, modules, update, moments, times, groups, settings)
    if not session.lent.in_memory:
        _write_statistics(folder.path, modules, update.gradient_squared, moments.to_arrays(), times)
        found.write(folder.path)
        texts = [str(session.loaded.tokenizer.decode(list(sample.input_ids))) for sample in skill[:5]]
        report.write(found, settings, texts, folder.path)
        session.finish(folder, device_name=_device_name(session.loaded.device))
    return found


def _write_statistics(
    folder: Path,
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
    write_arrays(folder / "statistics.npz", arrays)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
