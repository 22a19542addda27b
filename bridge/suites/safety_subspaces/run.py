"""One run of `bridge.safety_subspaces`: fine-tunes, their projections, what each does, and how updates overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from bridge.deltas.bases import SingularVectors, singular_vectors
from bridge.deltas.choices import BasisChoice
from bridge.deltas.open import open_delta
from bridge.deltas.parameters import parameter_files, set_weights
from bridge.deltas.projections import ProjectedDelta
from bridge.deltas.weight_delta import WeightDelta
from bridge.experiments.finetune.result import FinetuneResult
from bridge.experiments.finetune.run import run as finetune
from bridge.experiments.session import Lent
from bridge.experiments.subspaces.updates import Model
from bridge.models.identity import model_identity
from bridge.models.load import LoadedModel, folder_of, load_model
from bridge.models.loading import choose_device, free_memory
from bridge.models.names import run_name
from bridge.suites.finetunes import drop_weights
from bridge.suites.safety_subspaces import report
from bridge.suites.safety_subspaces.measure import Asked, Clock, Measuring, prepare, training_sets
from bridge.suites.safety_subspaces.points import Point, points, references
from bridge.suites.safety_subspaces.result import (
    ALIGNED,
    BASE,
    FinetuneUpdate,
    Measured,
    ProjectedModel,
    SafetySubspacesResult,
    UpdateOverlaps,
)
from bridge.suites.safety_subspaces.settings import ExperimentSettings
from bridge.suites.safety_subspaces.updates import Energies, measure_energies, measure_overlaps, open_alignment
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder, short_hash, write_json

COMMAND = "bridge.safety_subspaces"
_FINETUNES = "finetunes"


def run(settings: ExperimentSettings, name: str, out: Path | None = None, quiet: bool = False) -> SafetySubspacesResult:
    """Fine-tune, project, measure, write the run folder, print the tables.

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
    identity = settings.identity() | _identity(asked, _load(settings, progress))
    identity |= {"base_sha256": alignment.base_sha256, "training_sets": sets}
    free_memory()  # the model is loaded anew behind the fine-tunes, which load their own
    default = Path("runs") / "safety_subspaces" / f"{run_name(name)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)
    try:
        if folder.complete:
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
        else:
            settings.write(folder.path, COMMAND)
            _Experiment(settings, asked, aligned, alignment, folder, progress).fill()
        found = SafetySubspacesResult.read(folder.path)
        if folder.complete and not settings.keep_weights:
            for each in settings.finetunes:
                drop_weights(folder.path / _FINETUNES / each)
    finally:
        folder.close()
    if not quiet:
        report.print_result(found, folder.path)
    return found


def _load(settings: ExperimentSettings, progress: Progress) -> LoadedModel:
    return load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )


def _identity(asked: Asked, loaded: LoadedModel) -> dict[str, object]:
    """What of the model and the questions decides the numbers; UserError where a prompt does not fit the model."""
    return model_identity(loaded) | asked.identity(loaded)


class _Experiment:
    """An experiment that is run: its settings, what models are asked, what they are made from, and its folder."""

    def __init__(
        self,
        settings: ExperimentSettings,
        asked: Asked,
        aligned: Model,
        alignment: WeightDelta,
        folder: RunFolder,
        progress: Progress,
    ) -> None:
        """Begin; `aligned` is the model that the fine-tunes start from, `alignment` how it came about."""
        self.settings, self.asked, self.folder, self.progress = settings, asked, folder, progress
        self.aligned, self.alignment = aligned, alignment
        self.tuned = {name: folder.path / _FINETUNES / name for name in settings.finetunes}

    def fill(self) -> None:
        """All stages from the fine-tunes to the finished folder."""
        for left in self.folder.path.glob("*/.*.tmp"):  # a killed process was writing it
            left.unlink()
        for name in self.tuned:
            self._finetune(name)
        self.folder.note_progress()
        self.progress.say("--- energies and overlaps of the updates")
        energies = measure_energies(self.settings, self.tuned, self.folder.path / "energy", self._lent())
        overlap = measure_overlaps(self.settings, self.tuned, self.folder.path / "mso", self._lent())
        self.folder.note_progress()
        found = self._assemble(energies, overlap, self._measure_all())
        found.write(self.folder.path)
        report.write(found, self.settings, self.folder.path)
        if not found.unanswered:
            self.folder.finish(stage_seconds={k: round(v, 2) for k, v in self.progress.seconds.items()})

    def _lent(self) -> Lent:
        """A command's stages are shown, in seconds of its own; its closing table is not."""
        return Lent(progress=Progress(self.progress.quiet))

    def _finetune(self, name: str) -> None:
        """One fine-tune, by the command that makes them."""
        marker = self.folder.checkpoint(f"{name}-finetuned.json")
        if marker.exists():
            return
        self.progress.say(f"--- fine-tune: {name}")
        try:
            finetune(self.settings.finetune_settings(name), self.tuned[name], True, self._lent())
        except UserError as error:
            raise UserError(f"[{name}] {error}") from error
        free_memory()
        write_json(marker, {"done": name})

    def _measure_all(self) -> dict[str, Measured]:
        """What every reference and every projected model does, by its name."""
        vectors = singular_vectors(
            self.alignment,
            self.folder.checkpoint("alignment.safetensors"),
            side=self.settings.side,
            device=choose_device(self.settings.device),
            progress=self.progress,
        )
        loaded = _load(self.settings, self.progress)
        base_folder = folder_of(self.settings.base, self.progress.say)
        aligned, base = (parameter_files(each, loaded.model) for each in (self.aligned.folder, base_folder))
        tasks = {name: open_delta(path, loaded, require_nonzero=True) for name, path in self.tuned.items()}
        move = partial(set_weights, loaded.model, aligned)
        unprojected: dict[str, Callable[[], object]] = {
            ALIGNED: move,
            BASE: partial(set_weights, loaded.model, base),
            **{name: partial(move, task) for name, task in tasks.items()},
        }
        weights = {name: unprojected[name] for name in references(self.settings)}
        for point in points(self.settings):
            part = partial(self._part, tasks[point.finetune], vectors, point, loaded.device)
            weights[point.name] = partial(_move_by, move, part)
        return self._measured(Measuring(loaded, self.asked, self.folder), weights)

    def _measured(self, measuring: Measuring, weights: Mapping[str, Callable[[], object]]) -> dict[str, Measured]:
        """What the loaded model does under each of these weights."""
        found: dict[str, Measured] = {}
        done = sum(measuring.done(name) for name in weights)
        clock = Clock(self.progress, len(weights), done)
        with self.progress.stage("models measured", len(weights), done) as tick:
            for name, set_them in weights.items():
                fresh = not measuring.done(name)
                found[name] = measuring.measure(name, set_them)
                if fresh:
                    tick()
                    clock.step(name)
                    self.folder.note_progress()
        return found

    def _part(self, task: WeightDelta, vectors: SingularVectors, point: Point, device: str) -> ProjectedDelta:
        """The part of a fine-tune that a projected model adds to the aligned model's weights."""
        choice = BasisChoice(point.basis.kind, self.settings.side, point.basis.seed)
        return ProjectedDelta(
            task, vectors, choice, point.fraction, point.scheme, vectors=self.settings.vectors, device=device
        )

    def _assemble(
        self, energies: Energies, overlap: UpdateOverlaps, measured: Mapping[str, Measured]
    ) -> SafetySubspacesResult:
        """The content of safety_subspaces.json."""
        settings = self.settings
        return SafetySubspacesResult(
            title=settings.title,
            model=settings.model,
            base=settings.base,
            method=settings.method,
            side=settings.side,
            vectors=settings.vectors,
            bases=list(settings.bases),
            schemes=list(settings.schemes),
            fractions=list(settings.fractions),
            repeats=settings.repeats,
            contamination=settings.contamination,
            updates={name: self._update(name, energies) for name in self.tuned},
            references={name: measured[name] for name in references(settings)},
            points=[ProjectedModel.of(energies.of(settings, p), measured[p.name]) for p in points(settings)],
            overlap=overlap,
            unanswered=[f"{name}: {each.unanswered}" for name, each in measured.items() if each.unanswered],
        )

    def _update(self, name: str, energies: Energies) -> FinetuneUpdate:
        """A fine-tune: how it was trained, and the change."""
        tuned, task = FinetuneResult.read(self.tuned[name]), energies.tasks[name]
        return FinetuneUpdate(
            data=tuned.data,
            method=tuned.method,
            rows=tuned.rows,
            steps=tuned.steps,
            epochs=tuned.epochs,
            response_tokens=tuned.response_tokens,
            first_loss=tuned.first_loss,
            last_loss=tuned.last_loss,
            parts=tuned.parts,
            norm=task.norm,
            cosine=task.cosine,
            matrices=task.matrices,
            zero=task.zero,
        )


def _move_by(move: Callable[[WeightDelta], object], part: Callable[[], WeightDelta]) -> None:
    """Every parameter becomes the aligned model's, as it is on disk, plus its part of the change; rounded once."""
    move(part())
