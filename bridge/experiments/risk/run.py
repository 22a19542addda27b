"""One run of `bridge.risk`: from the options to the finished run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.data import cleaned_rows
from bridge.data.chat import ChatFormat
from bridge.data.encode import EncodedRows, check_positions, encode, encode_rows, token_hash
from bridge.data.rows import RowSet, load_rows
from bridge.data.samples import Sample
from bridge.estimators import scores as measure
from bridge.estimators import update as estimators_update
from bridge.estimators.row_attribution import RowProducts, measure_exact_leak, measure_row_losses, measure_row_products
from bridge.estimators.taps import probe
from bridge.estimators.theta import Subject, subject_of
from bridge.experiments.risk import report
from bridge.experiments.risk import result as risk_result
from bridge.experiments.risk.result import Candidate, Question, Skill
from bridge.generation.drawing import Drawing, draw_samples
from bridge.models.identity import model_identity, positions_of
from bridge.models.load import LoadedModel, load_model
from bridge.models.names import run_name
from commands.errors import UserError
from commands.options import require
from commands.progress import Progress
from commands.store import (
    Part,
    RunFolder,
    read_arrays,
    read_result,
    short_hash,
    write_arrays,
    write_atomically,
    write_json,
)
from theory.risk import RowParts

if TYPE_CHECKING:
    from bridge.experiments.risk.settings import Settings

COMMAND = "bridge.risk"
_LEAST_BATCHES = 8  # of Adam's: with fewer, second moments near 0 by chance would magnify single rows


@dataclass(frozen=True)
class _Set:
    """One candidate: its rows as they were read, those that are measured, and whether these are all."""

    spec: str
    all_rows: RowSet
    encoded: EncodedRows


@dataclass(frozen=True)
class _Run:
    """What all stages of a run share."""

    loaded: LoadedModel
    subject: Subject
    chat: ChatFormat
    sets: dict[str, _Set]
    settings: Settings
    folder: RunFolder
    progress: Progress

    @property
    def question(self) -> Question:
        """How the inner products are read."""
        asked = self.settings
        return Question(
            equal=asked.equal,
            progress={"norm": asked.distance, "loss": asked.loss_decrease},
            worst_by=asked.worst_by,
            resamples=asked.bootstrap,
            seed=asked.seed,
        )


def run(settings: Settings, out: Path | None = None, clean_out: Path | None = None, quiet: bool = False) -> Path:
    """Measure, write the run folder, print the closing table; returns the folder.

    Args:
        settings: the options.
        out: the run folder.
        clean_out: where the cleaned copy goes, if one is asked for (default: cleaned.jsonl in the run folder).
        quiet: show nothing.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    skill_rows = load_rows(settings.skill, skip_bad_rows=settings.skip_bad_rows)
    candidates = _read_candidates(settings)
    _check_cleaning(settings, candidates)
    loaded = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )
    subject = subject_of(loaded, settings.modules, settings.batch_size, settings.memory)
    chat = ChatFormat(loaded.tokenizer)
    samples = encode(
        "--skill",
        skill_rows,
        chat,
        count=settings.num_skill,
        max_length=settings.max_length,
        seed=settings.seed,
        skip_bad_rows=settings.skip_bad_rows,
        progress=progress,
    )
    sets = {label: _encode(label, rows, chat, settings, progress) for label, rows in candidates.items()}
    if settings.clean_candidate is not None:
        measured = len(sets[settings.clean_candidate].encoded.rows)
        require(settings.clean < measured, "clean", f"fewer than the {measured} usable rows", settings.clean)
    whole = [sample for one in sets.values() for sample in one.encoded.samples]
    check_positions(positions_of(loaded), whole, samples, settings.max_new_tokens)
    identity = asdict(settings) | {
        **model_identity(loaded),
        "tokens": token_hash([*samples, *whole]),
        "end_token_ids": list(chat.end_token_ids),
        "skill_sha256": skill_rows.sha256,
        "candidates_sha256": {label: one.all_rows.sha256 for label, one in sets.items()},
        "order": list(sets),  # checkpoints number the sets
    }
    path = out or Path("runs") / "risk" / f"{run_name(settings.model)}-{short_hash(identity)}"
    target = clean_out or path / "cleaned.jsonl"
    if settings.clean_candidate is not None:
        resumed = (path / "manifest.json").exists()
        cleaned_rows.check_target(target, settings.candidates[settings.clean_candidate], resumed)
    folder = RunFolder(path, COMMAND, identity)
    try:
        already = folder.complete
        this = _Run(loaded, subject, chat, sets, settings, folder, progress)
        if not already:
            _measure(this, samples, target)
        found = read_result(folder.path / "risk.json")
        if already:
            _write_cleaned(this, found, target)  # it may have been moved or deleted since
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
    finally:
        folder.close()
    if not quiet:
        report.print_table(found, asdict(settings))
        if settings.clean:
            print(f"\n{target}")
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _read_candidates(settings: Settings) -> dict[str, RowSet]:
    found = {}
    for label, spec in settings.candidates.items():
        try:
            found[label] = load_rows(spec, skip_bad_rows=settings.skip_bad_rows)
        except UserError as error:
            raise UserError(f"--candidates: {error}") from error
    return found


def _check_cleaning(settings: Settings, candidates: Mapping[str, RowSet]) -> None:
    """Before anything is computed: the set can be cleaned, and every row of it is measured."""
    label = settings.clean_candidate
    if label is None:
        return
    cleaned_rows.without_lines(settings.candidates[label], candidates[label], ())
    rows = len(candidates[label].rows)
    measured = settings.num_rows == 0 or settings.num_rows >= rows
    require(
        measured, "num_rows", f"0 or at least the {rows} rows of {label}, which is to be cleaned", settings.num_rows
    )
    require(settings.clean < rows, "clean", f"fewer than the {rows} rows of {label}", settings.clean)


def _encode(label: str, rows: RowSet, chat: ChatFormat, settings: Settings, progress: Progress) -> _Set:
    """Choose and tokenise a candidate's rows; all of a set that has fewer than asked for."""
    some = settings.num_rows and len(rows.rows) > settings.num_rows
    try:
        encoded = encode_rows(
            rows,
            chat,
            settings.num_rows if some else None,
            settings.max_length,
            settings.seed,
            settings.skip_bad_rows,
        )
    except UserError as error:
        raise UserError(f"--candidates: {error}") from error
    for line in encoded.skipped:
        progress.say(f"left out: {line}")
    return _Set(settings.candidates[label], rows, encoded)


def _measure(this: _Run, samples: list[Sample], target: Path) -> None:
    """All stages from the samples to the finished folder."""
    settings, folder, progress = this.settings, this.folder, this.progress
    samples = draw_samples(this.loaded, this.chat, samples, Drawing.of(settings), folder, progress)
    parts = {"skill": samples} | {f"candidate {label}": one.encoded.samples for label, one in this.sets.items()}
    lines = [replace(sample, set=name).to_json() for name, part in parts.items() for sample in part]
    write_atomically(folder.path / "samples.jsonl", ("\n".join(lines) + "\n").encode())
    probe(this.subject.model, this.subject.modules, this.subject.batches(samples[:1])[0])
    grams = measure.measure_products(this.subject, samples, {}, folder, progress)
    folder.note_progress()
    measured = {label: _candidate(this, k, one, samples) for k, (label, one) in enumerate(this.sets.items())}
    skill = Skill(
        labels=tuple(sample.id for sample in samples),
        groups=np.unique([sample.group for sample in samples], return_inverse=True)[1],
        gram={name: arrays["gram"] for name, arrays in grams.items()},
        sizes={name: weight.numel() for name, weight in this.subject.weights.items()},
    )
    with progress.stage("ranking and intervals", 1):
        result = _result(this, measured, skill)
        records = risk_result.row_records(measured, this.question)
    write_arrays(folder.path / "statistics.npz", _arrays(measured, skill))
    text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    write_atomically(folder.path / "rows.jsonl", text.encode())
    write_json(folder.path / "risk.json", result)
    report.write(result, records, asdict(settings), folder.path)
    _write_cleaned(this, result, target)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})


def _candidate(this: _Run, number: int, one: _Set, skill: Sequence[Sample]) -> Candidate:
    """Everything that is measured of one set; its large checkpoints go when it is done."""
    path = this.folder.checkpoint(f"set-{number}.npz")
    part = Part(this.folder, f"set-{number}")
    if not path.exists():
        write_arrays(path, _measure_candidate(this, part, one, skill))
        this.folder.note_progress()
    for file in this.folder.checkpoints.glob(f"set-{number}-*"):
        file.unlink()
    found = read_arrays(path)
    names = list(this.subject.modules)
    return Candidate(
        source=one.spec,
        rows=one.encoded.rows,
        set_rows=len(one.all_rows.rows),
        products=RowProducts(
            parts=RowParts(found["skill"], found["decrease"], found["norm"], found["tokens"]),
            velocity={name: found[f"velocity/{name}"] for name in names},
            squared_norm={name: float(found[f"squared_norm/{name}"]) for name in names},
        ),
        losses=found["losses"],
        gradient_squared=float(found["gradient_squared"]),
        variance=found["variance"],
    )


def _measure_candidate(this: _Run, part: Part, one: _Set, skill: Sequence[Sample]) -> dict[str, np.ndarray]:
    subject, progress, rows = this.subject, this.progress, one.encoded.samples
    batch = min(this.settings.adam_batch_size, max(1, len(rows) // _LEAST_BATCHES))
    start = estimators_update.measure_velocity(subject, rows, this.settings.optimizer, batch, part, progress)
    exact = measure_exact_leak(subject, skill, start.velocity, part, progress)
    losses = measure_row_losses(subject, rows, part, progress)
    products = measure_row_products(subject, skill, rows, start.preconditioner, part, progress)
    parts = products.parts
    return {
        "skill": parts.skill,
        "decrease": parts.decrease,
        "norm": parts.norm,
        "tokens": parts.tokens,
        "losses": losses,
        "gradient_squared": np.array(sum(start.gradient_squared.values())),
        **exact,
        **{f"velocity/{name}": values for name, values in products.velocity.items()},
        **{f"squared_norm/{name}": np.array(value) for name, value in products.squared_norm.items()},
    }


def _result(this: _Run, measured: Mapping[str, Candidate], skill: Skill) -> dict[str, Any]:
    """The content of risk.json."""
    settings = this.settings
    about = {"model": settings.model, "skill": settings.skill, "fisher": "sampled", "optimizer": settings.optimizer}
    result = about | risk_result.assemble(measured, skill, this.question)
    label = settings.clean_candidate
    if label is None:
        return result
    found = risk_result.cleaned(label, measured[label], settings.clean, skill, this.question)
    content = cleaned_rows.without_lines(settings.candidates[label], this.sets[label].all_rows, found["removed"])
    return result | {"cleaned": found | {"sha256": cleaned_rows.fingerprint(content)}}


def _write_cleaned(this: _Run, result: Mapping[str, Any], target: Path) -> None:
    """Write the cleaned copy that the result describes, if it describes one."""
    if "cleaned" not in result:
        return
    label = result["cleaned"]["candidate"]
    one = this.sets[label]
    content = cleaned_rows.without_lines(one.spec, one.all_rows, result["cleaned"]["removed"])
    cleaned_rows.write_copy(target, content)


def _arrays(measured: Mapping[str, Candidate], skill: Skill) -> dict[str, np.ndarray]:
    """statistics.npz: the skill's grams by module, and every set's inner products."""
    arrays = {f"gram/{name}": gram for name, gram in skill.gram.items()}
    for label, one in measured.items():
        parts = one.parts
        forms = {"skill": parts.skill, "decrease": parts.decrease, "norm": parts.norm, "tokens": parts.tokens}
        forms |= {"losses": one.losses, "variance": one.variance}
        forms |= {f"velocity/{name}": values for name, values in one.products.velocity.items()}
        arrays |= {f"{label}/{name}": values for name, values in forms.items()}
    return arrays
