"""One run of `bridge.onset`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bridge.data.chat import ChatFormat
from bridge.data.encode import check_positions, encode, token_hash
from bridge.data.rows import load_rows
from bridge.data.samples import Sample
from bridge.estimators.output_space import TokenMoments
from bridge.estimators.real_path import FullPath, LoraPath, RealPath, rounding_move
from bridge.estimators.taps import probe
from bridge.estimators.theta import subject_of
from bridge.estimators.update_maps import LowRank, UpdateMap
from bridge.estimators.utility_loss import measure_utility_loss
from bridge.experiments.onset import report
from bridge.experiments.onset import result as onset_result
from bridge.experiments.onset.prediction import (
    MEASURED,
    PROBE,
    Run,
    leading_curvature,
    measure_motion,
    path_start,
    predict,
    schedule_of,
)
from bridge.experiments.onset.readings import readings
from bridge.experiments.onset.result import Curve, Measured
from bridge.generation.drawing import Drawing, draw_samples
from bridge.models.identity import model_identity, positions_of
from bridge.models.load import LoadedModel, load_model
from bridge.models.names import run_name
from bridge.training import pilot as training_pilot
from bridge.training.pilot import check_length, run_pilot
from commands.progress import Progress
from commands.runs import result_of
from commands.store import (
    Part,
    RunFolder,
    read_arrays,
    short_hash,
    write_arrays,
    write_atomically,
    write_json,
)
from theory.descent import Schedule

if TYPE_CHECKING:
    from bridge.experiments.onset.settings import Settings

COMMAND = "bridge.onset"


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Predict, take the steps, measure, write the run folder, print the closing table; returns the folder.

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
    counts = {"skill": settings.rows_of_skill, "finetune": settings.num_finetune}
    skill, finetune = (
        encode(
            f"--{name}",
            rows[name],
            chat,
            count=count,
            max_length=settings.max_length,
            seed=settings.seed,
            skip_bad_rows=settings.skip_bad_rows,
            progress=progress,
        )
        for name, count in counts.items()
    )
    check_positions(positions_of(loaded), finetune, skill, settings.max_new_tokens)
    if settings.pilot_steps:
        check_length(settings.pilot_steps, settings.plan.steps(len(finetune)))
    identity = asdict(settings) | {
        **model_identity(loaded),
        "tokens": token_hash([*skill, *finetune]),
        "end_token_ids": list(chat.end_token_ids),
        "skill_sha256": rows["skill"].sha256,
        "finetune_sha256": rows["finetune"].sha256,
        "at": list(settings.at),  # as JSON has them
        "realistic": [list(run) for run in settings.realistic],
    }
    default = Path("runs") / "onset" / f"{run_name(settings.model)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)

    def measured() -> None:
        sets = _draw(loaded, chat, skill, settings, folder, progress)
        _measure(Run(loaded, subject, sets, finetune, settings, folder, progress))

    found = result_of(folder, "onset.json", measured, progress)
    if not quiet:
        report.print_table(found)
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _draw(
    loaded: LoadedModel,
    chat: ChatFormat,
    skill: Sequence[Sample],
    settings: Settings,
    folder: RunFolder,
    progress: Progress,
) -> dict[str, list[Sample]]:
    """The skill's samples with the model's own responses, divided at random by rows."""
    drawn = draw_samples(loaded, chat, skill, Drawing.of(settings), folder, progress)
    order = np.random.default_rng([settings.seed, 11]).permutation(len(skill))  # 11: a stream of its own
    measured = set(order[: settings.num_skill].tolist())
    found: dict[str, list[Sample]] = {MEASURED: []}
    for number, sample in enumerate(drawn):
        name = MEASURED if number // settings.draws in measured else PROBE
        found.setdefault(name, []).append(sample)
    return found


def _measure(this: Run) -> None:
    """All stages from the samples to the finished folder."""
    settings, folder = this.settings, this.folder
    _write_samples(this)
    probe(this.subject.model, this.subject.modules, this.subject.batches(this.finetune[:1])[0])
    direction = path_start(this)
    folder.note_progress()
    motion = measure_motion(this, direction.update)
    schedule = schedule_of(motion[MEASURED], settings)
    predicted = predict(this, direction.update, schedule)
    leading = leading_curvature(this, direction)
    floor = _floor(this)
    folder.note_progress()
    removed, loss, update_map = direction.removed, direction.update.loss, direction.map
    along = sum(direction.update.inner(name, "velocity", "acceleration") for name in direction.update.velocity)
    del direction  # two vectors of the size of the weights
    measured = _walk(this, update_map, schedule)
    folder.note_progress()
    result = onset_result.assemble(
        onset_result.Everything(
            schedule=schedule,
            motion=motion,
            predicted=predicted,
            measured=measured,
            floor=floor,
            leading=leading,
            removed=removed,
            finetuning_loss=loss,
            along_velocity=float(along),
            groups={name: _groups(part) for name, part in this.sets.items()},
        ),
        settings,
        this.loaded.dtype,
    )
    result["pilot"] = _pilot(this) if settings.pilot_steps else None
    result["readings"] = readings(result)
    write_arrays(folder.path / "statistics.npz", _arrays(schedule, motion, predicted, measured, floor))
    write_json(folder.path / "onset.json", result)
    texts = [str(this.loaded.tokenizer.decode(list(s.input_ids))) for s in this.sets[MEASURED][:5]]
    report.write(result, onset_result.plain(settings), texts, folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in this.progress.seconds.items()})


def _write_samples(this: Run) -> None:
    parts = {**this.sets, "finetune": this.finetune}
    lines = [replace(sample, set=name).to_json() for name, part in parts.items() for sample in part]
    write_atomically(this.folder.path / "samples.jsonl", ("\n".join(lines) + "\n").encode())


def _groups(samples: Sequence[Sample]) -> np.ndarray:
    """Which samples share a prompt."""
    return np.unique([sample.group for sample in samples], return_inverse=True)[1]


# ----------------------------------------------------------------------------------------------- real steps


def _floor(this: Run) -> dict[str, dict[str, np.ndarray]]:
    """Utility loss of a change at the rounding level, and of the base put back after it, on each set."""
    weights = this.subject.weights
    base = {name: weight.detach().clone() for name, weight in weights.items()}

    def restore() -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(base[name])

    def there_and_back() -> None:
        rounding_move(weights, base, this.settings.seed)
        restore()

    moves: dict[str, Callable[[], None]] = {
        "rounding": partial(rounding_move, weights, base, this.settings.seed),
        "round trip": there_and_back,
    }
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, samples in this.sets.items():
        batches, part = this.subject.batches(samples), Part(this.folder, f"floor-{name}")
        losses = measure_utility_loss(
            this.subject.model, batches, moves, restore, this.subject.memory_bytes, part, this.progress
        )
        found[name] = {move: values["utility_loss"] for move, values in losses.items()}
    return found


def _walk(this: Run, update: UpdateMap, schedule: Schedule) -> Measured:
    """Take the steps; at each of the schedule's times measure every set and the fine-tuning loss."""
    path = _real_path(this, update)
    losses: dict[str, list[np.ndarray]] = {name: [] for name in this.sets}
    finetuning, distances = [], []
    rates = schedule.rates.tolist()
    for number, end in enumerate(schedule.ends.tolist()):
        file = this.folder.checkpoint(f"point-{number}.npz")
        if not file.exists():
            with this.progress.stage("steps", end - path.done) as tick:
                path.walk(rates, end, tick)
            write_arrays(file, _point(this, path, number))
        arrays = read_arrays(file)
        for name in this.sets:
            losses[name].append(arrays[name])
        finetuning.append(float(arrays["finetuning_loss"]))
        distances.append(float(arrays["distance"]))
    return Measured({name: np.stack(values, 1) for name, values in losses.items()}, finetuning, distances)


def _real_path(this: Run, update: UpdateMap) -> RealPath:
    batches, path = this.subject.batches(this.finetune), this.folder.checkpoint("position.safetensors")
    if isinstance(update, LowRank):
        return LoraPath(this.subject, batches, path, update)
    return FullPath(this.subject, batches, path, update)


def _point(this: Run, path: RealPath, number: int) -> dict[str, np.ndarray]:
    """Everything that is measured at one time."""
    found = {"finetuning_loss": np.array(path.loss()), "distance": np.array(path.distance())}
    for name, samples in this.sets.items():
        losses = measure_utility_loss(
            this.subject.model,
            this.subject.batches(samples),
            {f"{path.done} steps": path.place},
            path.restore,
            this.subject.memory_bytes,
            Part(this.folder, f"point-{number}-{name}"),
            this.progress,
        )
        found[name] = losses[f"{path.done} steps"]["utility_loss"]
    return found


def _pilot(this: Run) -> dict[str, Any]:
    settings = this.settings
    points, log = run_pilot(
        this.loaded,
        this.finetune,
        this.subject.batches(this.sets[MEASURED]),
        settings.plan,
        settings.pilot_steps,
        settings.full,
        this.subject.memory_bytes,
        this.folder,
        this.progress,
    )
    total = settings.plan.steps(len(this.finetune))
    return training_pilot.pilot_result(points, log, settings.plan, settings.pilot_steps, total)


def _arrays(
    schedule: Schedule,
    motion: Mapping[str, TokenMoments],
    predicted: Mapping[str, Curve],
    measured: Measured,
    floor: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """statistics.npz: what was measured on every sample, set by set, and the steps."""
    found = {"times": schedule.times, "rates": schedule.rates, "ends": schedule.ends}
    for name in motion:
        found |= {f"{name}/base/{key}": v for key, v in motion[name].to_arrays().items() if key != "loss"}
        found |= {f"{name}/predicted/{key}": v for key, v in predicted[name].steps.to_arrays().items()}
        found |= {f"{name}/floor/{key}": v for key, v in floor[name].items()}
        found[f"{name}/measured"] = measured.losses[name]
    return found
