"""One run of `bridge.onset`: from the options to the finished run folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bridge.data.encode import token_hash
from bridge.data.samples import Sample
from bridge.experiments.onset import report
from bridge.experiments.onset.assembly import Measured, assemble
from bridge.experiments.onset.prediction import Prediction, schedule_of
from bridge.experiments.onset.readings import readings
from bridge.experiments.onset.result import OnsetResult, SetName
from bridge.experiments.onset.settings import Settings
from bridge.experiments.onset.stages import Stages
from bridge.experiments.onset.steps import RealSteps
from bridge.experiments.session import Lent, MeasuringSession, write_samples
from bridge.training.pilot import PilotResult, check_length, pilot_result, run_pilot
from commands.progress import Progress
from commands.runs import Arrays, result_of
from commands.store import Folder, write_arrays

COMMAND = "bridge.onset"
_SETS_STREAM = 11  # a random stream of its own


def run(settings: Settings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None) -> OnsetResult:
    """Predict, take the steps, measure, write the run folder, print the closing table.

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
    skill_rows, finetune_rows = session.rows("skill", settings.skill), session.rows("finetune", settings.finetune)
    session.subject  # noqa: B018  # modules that do not exist are refused before rows that cannot be encoded
    skill = session.encode("skill", skill_rows, settings.rows_of_skill)
    finetune = session.encode("finetune", finetune_rows, settings.num_finetune)
    session.check_positions(finetune, skill, settings.max_new_tokens)
    if settings.pilot_steps:
        check_length(settings.pilot_steps, settings.plan.steps(len(finetune)))
    folder = session.open_folder(
        out,
        tokens=token_hash([*skill, *finetune]),
        skill_sha256=skill_rows.sha256,
        finetune_sha256=finetune_rows.sha256,
    )
    measure = partial(_measure, session, settings, skill, finetune, folder)
    result = result_of(folder, OnsetResult.read, measure, session.progress)
    if not quiet:
        report.print_result(result, folder)
    return result


def _measure(
    session: MeasuringSession,
    settings: Settings,
    skill: Sequence[Sample],
    finetune: list[Sample],
    folder: Folder,
) -> OnsetResult:
    """All stages from the samples to the finished folder."""
    sets = _divide(session.answered(skill, folder), len(skill), settings)
    session.probe(finetune)
    stages = (session, settings, sets, finetune, folder)
    measured = _stages(Prediction(*stages), RealSteps(*stages))
    result = assemble(measured, settings, session.loaded.dtype)
    result = replace(result, readings=readings(result))
    if not session.lent.in_memory:
        _write(result, measured, Stages(*stages))
    session.finish(folder)
    return result


def _divide(drawn: Sequence[Sample], rows: int, settings: Settings) -> dict[SetName, list[Sample]]:
    """The skill's samples divided at random by rows: those that are measured, and those whose overlap is removed."""
    order = np.random.default_rng([settings.seed, _SETS_STREAM]).permutation(rows)
    measured = set(order[: settings.num_skill].tolist())
    sets: dict[SetName, list[Sample]] = {"skill": []}
    for number, sample in enumerate(drawn):
        name: SetName = "skill" if number // settings.draws in measured else "probe"
        sets.setdefault(name, []).append(sample)
    return sets


def _stages(before: Prediction, steps: RealSteps) -> Measured:
    """Everything that is measured, in the order in which it is known."""
    folder, settings = before.folder, before.settings
    path = before.path_start()
    folder.note_progress()
    motion = before.motion(path.update)
    schedule = schedule_of(motion["skill"], settings)
    predicted = before.losses(path.update, schedule)
    leading = before.leading_curvature(path)
    floor = steps.floor()
    folder.note_progress()
    removed, loss, update_map, along_velocity = path.removed, path.update.loss, path.map, path.along_velocity
    del path  # two vectors of the size of the weights
    walked = steps.walk(update_map, schedule)
    folder.note_progress()
    return Measured(
        schedule=schedule,
        motion=motion,
        predicted=predicted,
        walked=walked,
        floor=floor,
        leading=leading,
        removed=removed,
        finetuning_loss=loss,
        along_velocity=along_velocity,
        groups={name: _groups(samples) for name, samples in steps.sets.items()},
        pilot=_pilot(steps) if settings.pilot_steps else None,
    )


def _groups(samples: Sequence[Sample]) -> np.ndarray:
    """Which samples share a prompt."""
    return np.unique([sample.group for sample in samples], return_inverse=True)[1]


def _pilot(stages: Stages) -> PilotResult:
    """The real optimiser's steps; a model that was lent is not trained itself, but its copy."""
    settings, subject, loaded = stages.settings, stages.subject, stages.session.loaded
    if stages.session.lent.loaded is not None:
        loaded = replace(loaded, model=copy.deepcopy(loaded.model))
    points, log = run_pilot(
        loaded,
        stages.finetune,
        subject.batches(stages.sets["skill"]),
        settings.plan,
        settings.pilot_steps,
        settings.full,
        subject.memory_bytes,
        stages.folder,
        stages.progress,
    )
    total = settings.plan.steps(len(stages.finetune))
    return pilot_result(points, log, settings.plan, settings.pilot_steps, total)


def _write(result: OnsetResult, measured: Measured, stages: Stages) -> None:
    path, session = stages.folder.path, stages.session
    parts = [*stages.sets.items(), ("finetune", stages.finetune)]
    write_samples(path / "samples.jsonl", [replace(s, set=name) for name, part in parts for s in part])
    write_arrays(path / "statistics.npz", _statistics(measured))
    result.write(path)
    texts = [str(session.loaded.tokenizer.decode(list(s.input_ids))) for s in stages.sets["skill"][:5]]
    report.write(result, stages.settings, texts, path)


def _statistics(measured: Measured) -> Arrays:
    """statistics.npz: what was measured on every sample, set by set, and the steps."""
    schedule = measured.schedule
    arrays: Arrays = {"times": schedule.times, "rates": schedule.rates, "ends": schedule.ends}
    for name, moments in measured.motion.items():
        arrays |= {f"{name}/base/{key}": values for key, values in moments.to_arrays().items() if key != "loss"}
        predicted = measured.predicted[name].steps.to_arrays()
        arrays |= {f"{name}/predicted/{key}": values for key, values in predicted.items()}
        arrays[f"{name}/floor/rounding"] = measured.floor[name].rounding
        arrays[f"{name}/floor/round trip"] = measured.floor[name].round_trip
        arrays[f"{name}/measured"] = measured.walked.losses[name]
    return arrays
