"""One run of `bridge.overlap`: from the options to the finished run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.data.chat import ChatFormat
from bridge.data.encode import check_positions, encode, token_hash
from bridge.data.rows import Row, RowSet, load_prompts, load_rows
from bridge.data.samples import Sample
from bridge.deltas import weight_delta
from bridge.deltas.open import open_delta, weights_folder
from bridge.deltas.parameters import parameter_files, save_snapshot, set_weights
from bridge.deltas.tensor_files import TensorFiles
from bridge.deltas.weight_delta import WeightDelta
from bridge.estimators import random_signs
from bridge.estimators import scores as measure
from bridge.estimators.batches import in_sample_order
from bridge.estimators.first_order import first_order
from bridge.estimators.taps import probe
from bridge.estimators.theta import Subject, subject_of
from bridge.estimators.utility_loss import measure_utility_loss
from bridge.evaluation.refusals import is_refusal, refusal_rate
from bridge.experiments.overlap import report
from bridge.experiments.overlap import result as overlap_result
from bridge.generation.drawing import Drawing, draw_samples
from bridge.generation.generate import check_room, generate_texts
from bridge.models.identity import model_identity, positions_of
from bridge.models.load import LoadedModel, load_model
from bridge.models.names import run_name
from commands.errors import UserError
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

if TYPE_CHECKING:
    from bridge.experiments.overlap.settings import Settings
    from theory.statistics import ScoreStatistics

COMMAND = "bridge.overlap"


@dataclass(frozen=True)
class _Run:
    """What all stages of a run share."""

    loaded: LoadedModel
    subject: Subject
    chat: ChatFormat
    deltas: dict[str, WeightDelta]
    prompts: tuple[Row, ...]  # at which refusals are counted
    settings: Settings
    folder: RunFolder
    progress: Progress


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Measure, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options, the data, the model or the changes that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    rows = load_rows(settings.skill, skip_bad_rows=settings.skip_bad_rows)
    prompts = _prompts(settings, progress)
    loaded = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )
    subject = subject_of(loaded, settings.modules, settings.batch_size, settings.memory)
    deltas = {label: open_delta(path, loaded, require_nonzero=True) for label, path in settings.delta.items()}
    chat = ChatFormat(loaded.tokenizer)
    samples = encode(
        "--skill",
        rows,
        chat,
        count=settings.num_skill,
        max_length=settings.max_length,
        seed=settings.seed,
        skip_bad_rows=settings.skip_bad_rows,
        progress=progress,
    )
    sampled = settings.fisher == "sampled"
    check_positions(
        positions_of(loaded), [] if sampled else samples, samples if sampled else [], settings.max_new_tokens
    )
    if prompts:
        check_room(loaded.model, prompts.rows, list(map(chat.prompt_ids, prompts.rows)), settings.max_new_tokens)
    identity = asdict(settings) | {
        **model_identity(loaded),
        "tokens": token_hash(samples),
        "end_token_ids": list(chat.end_token_ids),
        "skill_sha256": rows.sha256,
        "refusals_sha256": prompts.sha256 if prompts else None,
        "changes": {label: weight_delta.fingerprint(delta) for label, delta in deltas.items()},
        "order": list(deltas),  # checkpoints number the changes
    }
    default = Path("runs") / "overlap" / f"{run_name(settings.model)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)
    asked = prompts.rows if prompts else ()
    this = _Run(loaded, subject, chat, deltas, asked, settings, folder, progress)
    found = result_of(folder, "overlap.json", partial(_measure, this, samples), progress)
    if not quiet:
        report.print_table(found)
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _prompts(settings: Settings, progress: Progress) -> RowSet | None:
    """The prompts at which refusals are counted, where they are."""
    if settings.refusals is None:
        return None
    try:
        found = load_prompts(settings.refusals, skip_bad_rows=settings.skip_bad_rows)
    except UserError as error:
        raise UserError(f"--refusals: {error}") from error
    for line in found.skipped:
        progress.say(f"left out: {line}")
    return found


def _measure(this: _Run, samples: list[Sample]) -> None:
    """All stages from the samples to the finished folder."""
    settings, folder, progress = this.settings, this.folder, this.progress
    if settings.fisher == "sampled":
        samples = draw_samples(this.loaded, this.chat, samples, Drawing.of(settings), folder, progress)
    write_atomically(folder.path / "samples.jsonl", ("\n".join(s.to_json() for s in samples) + "\n").encode())
    probe(this.subject.model, this.subject.modules, this.subject.batches(samples[:1])[0])
    directions = {label: delta.direction for label, delta in this.deltas.items()}
    products = measure.measure_products(this.subject, samples, directions, folder, progress)
    folder.note_progress()
    motion = {label: _first_order(this, samples, label) for label in this.deltas}
    losses = _utility_loss(this, samples) if settings.utility_loss else {}
    refused = _refusals(this) if this.prompts else {}
    folder.note_progress()
    with progress.stage("scores, nulls and intervals", 1):
        statistics = {
            label: overlap_result.statistics(this.subject, samples, products, delta, label, settings.fisher)
            for label, delta in this.deltas.items()
        }
        question = overlap_result.Question(
            rank=settings.rank,
            resamples=settings.bootstrap,
            seed=settings.seed,
            groups=np.unique([s.group for s in samples], return_inverse=True)[1],
        )
        found = overlap_result.assemble(this.deltas, statistics, motion, losses, question)
    signs = _random_signs(this, samples, statistics) if settings.estimator == "rademacher" else {}
    about = {"model": settings.model, "skill": settings.skill, "fisher": settings.fisher, "dtype": this.loaded.dtype}
    result = about | found
    for label, entry in result["deltas"].items():
        entry |= {key: values[label] for key, values in (("rademacher", signs), ("refusals", refused)) if values}
    if refused:
        result["base_refusals"] = refused["base"]
    arrays = {f"{name}/gram": values["gram"] for name, values in products.items()}
    for label in this.deltas:
        arrays |= {f"{name}/{label}": values[label] for name, values in products.items()}
        arrays |= {f"{kind}/{label}": values for kind, values in (motion[label] | losses.get(label, {})).items()}
    write_arrays(folder.path / "statistics.npz", arrays)
    write_json(folder.path / "overlap.json", result)
    report.write(result, asdict(settings), folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})


def _first_order(this: _Run, samples: Sequence[Sample], label: str) -> dict[str, np.ndarray]:
    """First derivative of the policy along one change, over all parameters that it moves, for every sample."""
    batches = this.subject.batches(samples)
    part = Part(this.folder, f"first-{list(this.deltas).index(label)}")
    files = [part.checkpoint(f"{k}.npz") for k in range(len(batches))]
    done = sum(file.exists() for file in files)
    with this.progress.stage(f"motion along {label}", len(batches), done) as tick:
        if done < len(batches):
            tangents = dict(this.deltas[label])
            for batch, file in zip(batches, files, strict=True):
                if not file.exists():
                    write_arrays(file, first_order(this.subject.model, tangents, batch))
                    tick()
    found = in_sample_order([read_arrays(file) for file in files], batches)
    if not all(np.isfinite(values).all() for values in found.values()):
        raise UserError(f"expected finite derivatives of the logits along {label}, got inf or nan: use --dtype float32")
    return found


def _base_weights(this: _Run) -> TensorFiles:
    """The model's own weights on disk, from which it is put back after it was moved."""
    folder = weights_folder(this.loaded)
    if folder is not None:
        return parameter_files(folder, this.loaded.model)
    path = this.folder.checkpoint("base.safetensors")
    if not path.exists():
        save_snapshot(path, this.loaded.model)
    return TensorFiles([path])


def _utility_loss(this: _Run, samples: Sequence[Sample]) -> dict[str, dict[str, np.ndarray]]:
    base, model = _base_weights(this), this.subject.model
    moves = {label: partial(set_weights, model, base, delta) for label, delta in this.deltas.items()}
    return measure_utility_loss(
        model,
        this.subject.batches(samples),
        moves,
        partial(set_weights, model, base),
        this.subject.memory_bytes,
        this.folder,
        this.progress,
    )


def _random_signs(
    this: _Run, samples: Sequence[Sample], statistics: Mapping[str, Mapping[str, ScoreStatistics]]
) -> dict[str, Any]:
    """The paper's estimate of every change's score, beside the exact one."""
    directions = {label: delta.direction for label, delta in this.deltas.items()}
    dim = this.settings.dim
    own, together = random_signs.projected_products(
        this.subject, samples, directions, dim, this.settings.seed, this.folder, this.progress
    )
    return {
        label: random_signs.comparison(
            statistics[label], {name: products[k] for name, products in own.items()}, together[k], dim
        )
        for k, label in enumerate(directions)
    }


def _refusals(this: _Run) -> dict[str, Any]:
    """Refusal rate on a set of prompts, by change and before any ("base"); leaves refusals.jsonl."""
    base, model = _base_weights(this), this.subject.model
    found: dict[str, Any] = {}
    lines: list[str] = []
    try:
        for k, label in enumerate(("base", *this.deltas)):
            set_weights(model, base, this.deltas.get(label))
            answers = generate_texts(
                this.loaded,
                this.chat,
                this.prompts,
                max_new_tokens=this.settings.max_new_tokens,
                batch_size=8 * this.settings.batch_size,
                checkpoint=this.folder.checkpoint(f"refusals-{k}"),
                progress=this.progress,
                stage=f"responses of {label}",
            )
            rate = refusal_rate([answer.text for answer in answers])
            found[label] = {
                "set": this.settings.refusals,
                "rate": rate.refused / rate.total,
                "interval": [rate.low, rate.high],
                "refused": rate.refused,
                "total": rate.total,
            }
            lines += [
                _response_line(label, row, answer.text) for row, answer in zip(this.prompts, answers, strict=True)
            ]
    finally:
        set_weights(model, base)
    write_atomically(this.folder.path / "refusals.jsonl", ("\n".join(lines) + "\n").encode())
    return found


def _response_line(label: str, row: Row, text: str) -> str:
    match = is_refusal(text)
    fields = {"change": label, "prompt": row.messages[-1]["content"], "response": text, "refused": match is not None}
    return json.dumps(fields | {"pattern": match.pattern if match else None}, ensure_ascii=False)
