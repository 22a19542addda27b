"""One run of `bridge.risk`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from bridge.data import cleaned_rows
from bridge.data.encode import EncodedRows, token_hash
from bridge.data.rows import RowSet
from bridge.data.samples import Sample
from bridge.estimators import update
from bridge.estimators.row_attribution import RowProducts, measure_exact_leak, measure_row_losses, measure_row_products
from bridge.estimators.scores import measure_products
from bridge.experiments.risk import ranking, report
from bridge.experiments.risk.ranking import Candidate, Skill
from bridge.experiments.risk.result import RiskResult
from bridge.experiments.risk.settings import Settings
from bridge.experiments.session import Lent, MeasuringSession, write_samples
from commands.options import require
from commands.progress import Progress
from commands.runs import Arrays, kept, numbered, result_of
from commands.store import Folder, Part, read_arrays, write_arrays
from theory.risk import RowParts

COMMAND = "bridge.risk"
_LEAST_BATCHES = 8  # of Adam's: with fewer, second moments near 0 by chance would magnify single rows


class RiskSession(MeasuringSession):
    """A session with the skill's rows and those of every candidate."""

    options: Settings

    def __init__(self, settings: Settings, progress: Progress, lent: Lent | None = None) -> None:
        """Read all rows; the model is loaded when it is first asked for."""
        super().__init__(COMMAND, settings, progress, lent)
        self.skill_rows = self.rows("skill", settings.skill)
        self.row_sets: dict[str, RowSet] = {
            label: self.rows("candidates", spec) for label, spec in settings.candidates.items()
        }

    @cached_property
    def skill(self) -> list[Sample]:
        """The skill's samples, with the data's responses."""
        self.subject  # noqa: B018  # modules that do not exist are refused before rows that cannot be encoded
        return self.encode("skill", self.skill_rows, self.options.num_skill)

    @cached_property
    def candidates(self) -> dict[str, EncodedRows]:
        """By label the rows that are measured: all of a set that has fewer than asked for."""
        most = self.options.num_rows
        return {
            label: self.choose("candidates", rows, most if most and len(rows.rows) > most else None)
            for label, rows in self.row_sets.items()
        }

    @property
    def candidate_samples(self) -> list[Sample]:
        """The samples of all candidates."""
        return [sample for encoded in self.candidates.values() for sample in encoded.samples]

    def check_cleaning(self) -> None:
        """Refuse, before anything is computed, a set that cannot be cleaned, or of which not every row is measured."""
        label, asked = self.options.to_clean, self.options
        if label is None:
            return
        cleaned_rows.without_lines(asked.candidates[label], self.row_sets[label], ())
        rows = len(self.row_sets[label].rows)
        wanted = f"0 or at least the {rows} rows of {label}, which is to be cleaned"
        require(asked.num_rows == 0 or asked.num_rows >= rows, "num_rows", wanted, asked.num_rows)
        require(asked.clean < rows, "clean", f"fewer than the {rows} rows of {label}", asked.clean)

    def check_rows(self) -> None:
        """Refuse rows that the model or the cleaning cannot take."""
        answered = self.skill
        self.check_positions(self.candidate_samples, answered, self.options.max_new_tokens)
        if self.options.to_clean is not None:
            measured = len(self.candidates[self.options.to_clean].rows)
            require(
                self.options.clean < measured, "clean", f"fewer than the {measured} usable rows", self.options.clean
            )

    def risk_identity(self) -> dict[str, object]:
        """What besides the settings and the model decides the numbers."""
        return {
            "tokens": token_hash([*self.skill, *self.candidate_samples]),
            "skill_sha256": self.skill_rows.sha256,
            "candidates_sha256": {label: rows.sha256 for label, rows in self.row_sets.items()},
            "order": list(self.row_sets),  # checkpoints number the sets
        }

    def cleaned_content(self, label: str, removed: list[int]) -> bytes:
        """A candidate's file without some of its lines."""
        return cleaned_rows.without_lines(self.options.candidates[label], self.row_sets[label], removed)

    def write_cleaned(self, result: RiskResult, target: Path | None) -> None:
        """Write the cleaned copy that the result describes, if it describes one and it is wanted."""
        if result.cleaned is not None and target is not None:
            content = self.cleaned_content(result.cleaned.candidate, result.cleaned.removed)
            cleaned_rows.write_copy(target, content)


def run(
    settings: Settings,
    out: Path | None = None,
    quiet: bool = False,
    lent: Lent | None = None,
    clean_out: Path | None = None,
) -> RiskResult:
    """Measure, write the run folder, print the closing table.

    Args:
        settings: the options.
        out: the run folder; None for one in runs/.
        quiet: print nothing.
        lent: what is in memory already.
        clean_out: where the cleaned copy goes, if one is asked for; None for cleaned.jsonl in the run folder.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    session = RiskSession(settings, Progress(quiet), lent)
    session.check_cleaning()
    session.check_rows()
    identity = session.risk_identity()
    target = clean_out
    if settings.to_clean is not None and not session.lent.in_memory:
        path = session.path_of(out, **identity)
        target = clean_out or path / "cleaned.jsonl"
        resumed = (path / "manifest.json").exists()
        cleaned_rows.check_target(target, settings.candidates[settings.to_clean], resumed)
    folder = session.open_folder(out, **identity)
    measurement = Measurement(session, folder, target)
    result = result_of(folder, measurement.read, measurement.result, session.progress)
    if not quiet:
        report.print_result(result, folder, target)
    return result


@dataclass(frozen=True)
class Measurement:
    """All stages from the samples to the finished folder; `target` is where a cleaned copy goes."""

    session: RiskSession
    folder: Folder
    target: Path | None

    def read(self, folder: Path) -> RiskResult:
        """Read a complete run's result; its cleaned copy is written again where it was moved or deleted."""
        result = RiskResult.read(folder)
        self.session.write_cleaned(result, self.target)
        return result

    def result(self) -> RiskResult:
        """Measure, and leave the folder complete."""
        session, folder = self.session, self.folder
        settings = session.options
        samples = session.answered(session.skill, folder)
        session.probe(samples)
        products = measure_products(session.subject, samples, {}, folder, session.progress)
        folder.note_progress()
        candidates = self._candidates(samples)
        skill = Skill(
            labels=tuple(sample.id for sample in samples),
            groups=np.unique([sample.group for sample in samples], return_inverse=True)[1],
            gram={name: arrays["gram"] for name, arrays in products.items()},
            sizes={name: weight.numel() for name, weight in session.subject.weights.items()},
        )
        with session.progress.stage("ranking and intervals", 1):
            result = self._cleaned(ranking.assemble(candidates, skill, settings), candidates, skill)
        if not session.lent.in_memory:
            self._write(result, samples, candidates, skill)
        session.write_cleaned(result, self.target)
        session.finish(folder)
        return result

    def _candidates(self, skill: list[Sample]) -> dict[str, Candidate]:
        """Everything that is measured of every set; a set's large checkpoints go when it is done."""
        sets = self.session.candidates
        items = list(enumerate(sets))
        files = numbered(self.folder, items, "set-{}.npz")
        quiet = Progress(quiet=True)  # a set's own stages are shown
        measure = partial(self._measure_set, skill)
        candidates = {}
        for (number, label), arrays in kept(items, measure, files, "sets", quiet, write=write_arrays, read=read_arrays):
            Part(self.folder, f"set-{number}").discard()
            self.folder.note_progress()
            candidates[label] = self._candidate(label, arrays)
        return candidates

    def _measure_set(self, skill: list[Sample], item: tuple[int, str]) -> Arrays:
        number, label = item
        subject, progress, settings = self.session.subject, self.session.progress, self.session.options
        part, rows = Part(self.folder, f"set-{number}"), self.session.candidates[label].samples
        batch = min(settings.adam_batch_size, max(1, len(rows) // _LEAST_BATCHES))
        start = update.measure_velocity(subject, rows, settings.optimizer, batch, part, progress)
        exact = measure_exact_leak(subject, skill, start.velocity, part, progress)
        losses = measure_row_losses(subject, rows, part, progress)
        products = measure_row_products(subject, skill, rows, start.preconditioner, part, progress)
        return {
            **_forms(products.parts),
            "losses": losses,
            "gradient_squared": np.array(sum(start.gradient_squared.values())),
            **exact,
            **{f"velocity/{name}": values for name, values in products.velocity.items()},
            **{f"squared_norm/{name}": np.array(value) for name, value in products.squared_norm.items()},
        }

    def _candidate(self, label: str, arrays: Arrays) -> Candidate:
        names = list(self.session.subject.modules)
        return Candidate(
            source=self.session.options.candidates[label],
            rows=self.session.candidates[label].rows,
            set_rows=len(self.session.row_sets[label].rows),
            products=RowProducts(
                parts=RowParts(arrays["skill"], arrays["decrease"], arrays["norm"], arrays["tokens"]),
                velocity={name: arrays[f"velocity/{name}"] for name in names},
                squared_norm={name: float(arrays[f"squared_norm/{name}"]) for name in names},
            ),
            losses=arrays["losses"],
            gradient_squared=float(arrays["gradient_squared"]),
            variance=arrays["variance"],
        )

    def _cleaned(self, result: RiskResult, candidates: Mapping[str, Candidate], skill: Skill) -> RiskResult:
        """The result with what cleaning a set does, if one is to be cleaned."""
        settings = self.session.options
        label = settings.to_clean
        if label is None:
            return result
        content = self.session.cleaned_content(label, ranking.removed_lines(candidates[label], settings))
        sha256 = cleaned_rows.fingerprint(content)
        return replace(result, cleaned=ranking.cleaned(label, candidates[label], skill, settings, sha256))

    def _write(
        self, result: RiskResult, samples: list[Sample], candidates: Mapping[str, Candidate], skill: Skill
    ) -> None:
        parts = {"skill": samples}
        parts |= {f"candidate {label}": list(rows.samples) for label, rows in self.session.candidates.items()}
        path = self.folder.path
        write_samples(path / "samples.jsonl", [replace(s, set=name) for name, part in parts.items() for s in part])
        write_arrays(path / "statistics.npz", _statistics(candidates, skill))
        result.write(path)
        report.write(result, self.session.options, path)


def _forms(parts: RowParts) -> Arrays:
    return {"skill": parts.skill, "decrease": parts.decrease, "norm": parts.norm, "tokens": parts.tokens}


def _statistics(candidates: Mapping[str, Candidate], skill: Skill) -> Arrays:
    """statistics.npz: the skill's grams by module, and every set's inner products."""
    arrays = {f"gram/{name}": gram for name, gram in skill.gram.items()}
    for label, candidate in candidates.items():
        forms = _forms(candidate.parts) | {"losses": candidate.losses, "variance": candidate.variance}
        forms |= {f"velocity/{name}": values for name, values in candidate.products.velocity.items()}
        arrays |= {f"{label}/{name}": values for name, values in forms.items()}
    return arrays
