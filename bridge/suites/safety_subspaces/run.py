"""One run of `bridge.safety_subspaces`: fine-tunes, their projections, what each does, and how updates overlap."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bridge.deltas.bases import BasisChoice, SingularVectors, write_singular_vectors
from bridge.deltas.open import open_delta
from bridge.deltas.parameters import parameter_files, set_weights
from bridge.deltas.projections import ProjectedDelta
from bridge.deltas.weight_delta import WeightDelta
from bridge.experiments.subspaces.updates import Model
from bridge.models.identity import model_identity
from bridge.models.load import LoadedModel, folder_of, load_model
from bridge.models.loading import choose_device, free_memory
from bridge.models.names import run_name
from bridge.suites.safety_subspaces import report
from bridge.suites.safety_subspaces.measure import Asked, Clock, Measuring, prepare, training_sets
from bridge.suites.safety_subspaces.points import ALIGNED, BASE, Point, points, references
from bridge.suites.safety_subspaces.settings import ExperimentSettings, finetune_command
from bridge.suites.safety_subspaces.updates import measure_energies, measure_overlaps, open_alignment
from bridge.suites.settings_file import run_quietly
from commands.errors import UserError
from commands.progress import Progress
from commands.store import SCHEMA_VERSION, RunFolder, read_result, short_hash, write_json

COMMAND = "bridge.safety_subspaces"
RESULT = "safety_subspaces.json"
_FINETUNES = "finetunes"
_WEIGHTS = ("model", "adapter", "delta.safetensors")
_TRAINING = ("data", "method", "rows", "steps", "epochs", "response_tokens", "first_loss", "last_loss")


@dataclass(frozen=True)
class _Run:
    """What all stages share. `aligned` is the model that the fine-tunes start from, `alignment` how it came about."""

    settings: ExperimentSettings
    asked: Asked
    aligned: Model
    alignment: WeightDelta
    folder: RunFolder
    progress: Progress


def run(settings: ExperimentSettings, name: str, out: Path | None = None, quiet: bool = False) -> bool:
    """Fine-tune, project, measure, write the run folder, print the tables; returns whether every item has a verdict.

    Args:
        settings: the experiment.
        name: of the settings, for the default folder.
        out: the run folder.
        quiet: print nothing.

    Raises:
        UserError: for anything in the settings, the data, the models or the judges that cannot be used.

    """
    progress = Progress(quiet)
    asked = prepare(settings, progress)
    sets = training_sets(settings)
    aligned, alignment = open_alignment(settings, progress)
    identity = _identity(settings, asked, _load(settings, progress)) | {
        "base_sha256": alignment.base_sha256,
        "training_sets": sets,
    }
    free_memory()  # the model is loaded anew behind the fine-tunes, which load their own
    default = Path("runs") / "safety_subspaces" / f"{run_name(name)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)
    try:
        if folder.complete:
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
        else:
            _experiment(_Run(settings, asked, aligned, alignment, folder, progress))
        found = read_result(folder.path / RESULT)
        if folder.complete and not settings.keep_weights:
            _drop_weights(settings, folder.path)
    finally:
        folder.close()
    if not quiet:
        report.print_tables(found)
        print(f"\n{folder.path / 'report.html'}")
    return not found["unanswered"]


def _load(settings: ExperimentSettings, progress: Progress) -> LoadedModel:
    return load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )


def _identity(settings: ExperimentSettings, asked: Asked, loaded: LoadedModel) -> dict[str, Any]:
    """What of settings, model and questions decides the numbers; UserError where a prompt does not fit the model."""
    own: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return own | model_identity(loaded) | asked.identity(loaded)


def _experiment(this: _Run) -> None:
    """All stages from the fine-tunes to the finished folder."""
    for left in this.folder.path.glob("*/.*.tmp"):  # a killed process was writing it
        left.unlink()
    places = {name: this.folder.path / _FINETUNES / name for name in this.settings.finetunes}
    for name, place in places.items():
        _finetune(this, name, place)
    this.folder.note_progress()
    this.progress.say("--- energies and overlaps of the updates")
    energies = measure_energies(this.settings, places, this.folder.path / "energy")
    overlap = measure_overlaps(this.settings, places, this.folder.path / "mso")
    this.folder.note_progress()
    found = _assemble(this, places, energies, overlap, _measure_all(this, places))
    write_json(this.folder.path / RESULT, found)
    report.write(found, asdict(this.settings), this.folder.path)
    if not found["unanswered"]:
        this.folder.finish(stage_seconds={k: round(v, 2) for k, v in this.progress.seconds.items()})


def _finetune(this: _Run, name: str, place: Path) -> None:
    """One fine-tune, by the command that makes them."""
    marker = this.folder.checkpoint(f"{name}-finetuned.json")
    if marker.exists():
        return
    this.progress.say(f"--- fine-tune: {name}")
    main, options = finetune_command(this.settings, name)
    try:
        run_quietly(main, {**options, "out": place})
    except UserError as error:
        raise UserError(f"[{name}] {error}") from error
    free_memory()
    write_json(marker, {"done": name})


def _singular_vectors(this: _Run, device: str) -> SingularVectors:
    """The alignment update's decomposition, made once."""
    path = this.folder.checkpoint("alignment.safetensors")
    if path.exists():
        return SingularVectors(path)
    return write_singular_vectors(this.alignment, path, side=this.settings.side, device=device, progress=this.progress)


def _measure_all(this: _Run, places: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """What every reference and every projected model does, by its name."""
    vectors = _singular_vectors(this, choose_device(this.settings.device))
    loaded = _load(this.settings, this.progress)
    aligned, base = (
        parameter_files(folder, loaded.model)
        for folder in (this.aligned.folder, folder_of(this.settings.base, this.progress.say))
    )
    tasks = {name: open_delta(path, loaded, require_nonzero=True) for name, path in places.items()}
    move = partial(set_weights, loaded.model, aligned)
    unprojected: dict[str, Callable[[], object]] = {
        ALIGNED: move,
        BASE: partial(set_weights, loaded.model, base),
        **{name: partial(move, task) for name, task in tasks.items()},
    }
    weights = {name: unprojected[name] for name in references(this.settings)}
    for point in points(this.settings):
        part = partial(_part, this.settings, tasks[point.finetune], vectors, point, loaded.device)
        weights[point.name] = partial(_move_by, move, part)
    return _measured(this, Measuring(loaded, this.asked, this.folder), weights)


def _measured(
    this: _Run, measuring: Measuring, weights: Mapping[str, Callable[[], object]]
) -> dict[str, dict[str, Any]]:
    """What the loaded model does under each of these weights."""
    found: dict[str, dict[str, Any]] = {}
    done = sum(measuring.done(name) for name in weights)
    clock = Clock(this.progress, len(weights), done)
    with this.progress.stage("models measured", len(weights), done) as tick:
        for name, set_them in weights.items():
            fresh = not measuring.done(name)
            found[name] = measuring.measure(name, set_them)
            if fresh:
                tick()
                clock.step(name)
                this.folder.note_progress()
    return found


def _move_by(move: Callable[[WeightDelta], object], part: Callable[[], WeightDelta]) -> None:
    """Every parameter becomes the aligned model's, as it is on disk, plus its part of the change; rounded once."""
    move(part())


def _part(
    settings: ExperimentSettings, task: WeightDelta, vectors: SingularVectors, point: Point, device: str
) -> ProjectedDelta:
    """The part of a fine-tune that a projected model adds to the aligned model's weights."""
    return ProjectedDelta(
        task,
        vectors,
        BasisChoice(point.basis.kind, settings.side, point.basis.seed),
        point.fraction,
        point.scheme,
        vectors="keep" if settings.vectors == "keep" else "drop",
        device=device,
    )


def _assemble(
    this: _Run,
    places: Mapping[str, Path],
    energies: dict[str, Any],
    overlap: dict[str, Any],
    measured: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """The content of safety_subspaces.json."""
    settings = this.settings
    kept = ("title", "model", "base", "method", "side", "vectors", "bases", "schemes", "fractions", "repeats",
            "contamination")  # fmt: skip
    about = asdict(settings)
    updates = {}
    for name, place in places.items():
        tuned = read_result(place / "finetune.json")
        about_it = {key: energies[name][key] for key in ("norm", "cosine", "matrices", "zero")}
        updates[name] = {key: tuned[key] for key in _TRAINING} | {"parts": tuned["parts"]} | about_it
    found = {
        "schema_version": SCHEMA_VERSION,
        **{key: about[key] for key in kept},
        "updates": updates,
        "references": {name: measured[name] for name in references(settings)},
        "points": [_entry(settings, point, energies) | measured[point.name] for point in points(settings)],
        "overlap": overlap,
        "unanswered": [f"{name}: {each['unanswered']}" for name, each in measured.items() if each["unanswered"]],
    }
    return json.loads(json.dumps(found))  # tuples as the file has them


def _entry(settings: ExperimentSettings, point: Point, energies: dict[str, Any]) -> dict[str, Any]:
    """What a projected model is, and the energy that its part of the update has."""
    shares = energies[point.finetune]["bases"][point.basis.label]
    k = settings.fractions.index(point.fraction)

    def share(key: str) -> float:
        inside: float = shares[key][k]
        return inside if point.scheme == "parallel" else 1.0 - inside

    return {
        "name": point.name,
        "finetune": point.finetune,
        "basis": point.basis.kind,
        "label": point.basis.label,
        "draw": point.basis.draw,
        "seed": point.basis.seed,
        "scheme": point.scheme,
        "fraction": point.fraction,
        "energy": share("energy"),
        "isotropic": share("isotropic"),
    }


def _drop_weights(settings: ExperimentSettings, folder: Path) -> None:
    """Delete what the fine-tunes left of weights."""
    for name in settings.finetunes:
        for part in _WEIGHTS:
            place = folder / _FINETUNES / name / part
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
