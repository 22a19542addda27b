"""One run of `bridge.activations`: from the options to the finished run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from bridge.data.chat import ChatFormat
from bridge.data.rows import RowSet, load_prompts
from bridge.deltas.changed_model import changed_identity, open_changed
from bridge.estimators.hidden_states import decoder_blocks, states_of
from bridge.experiments.activations import report
from bridge.experiments.activations.prompts import Prompts, choose_prompts, prompt_ends, record
from bridge.experiments.activations.result import CENTRINGS, assemble
from bridge.experiments.activations.settings import layer_numbers, paper_layers
from bridge.models.load import LoadedModel
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
from theory.activation_overlap import PairOverlap, Plan, compare_sets, draw_plan, pairs

if TYPE_CHECKING:
    from bridge.experiments.activations.settings import Settings

COMMAND = "bridge.activations"


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Measure, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options, the data, the model or the change that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    sources = {label: _load(spec, settings, progress) for label, spec in settings.sets.items()}
    subject = open_changed(
        settings.model, settings.delta, dtype=settings.dtype, device=settings.device, seed=settings.seed,
        report=progress.say,
    )  # fmt: skip
    layers = summed_layers(settings.layers, len(decoder_blocks(subject.model)))
    chat = ChatFormat(subject.tokenizer)
    chosen = [choose_prompts(label, rows, subject, chat, settings) for label, rows in sources.items()]
    for prompts in chosen:
        for line in prompts.skipped:
            progress.say(f"left out: {line}")
    identity = asdict(settings) | {
        **changed_identity(subject),
        "energies": list(settings.energies),
        "order": list(settings.sets),  # checkpoints number the sets
        "sets_sha256": {prompts.label: prompts.source.sha256 for prompts in chosen},
        "prompts": {p.label: short_hash([[row.line for row in p.rows], p.ids]) for p in chosen},
        "end_token_ids": list(chat.end_token_ids),
    }
    default = Path("runs") / "activations" / f"{run_name(settings.model)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)
    found = result_of(
        folder,
        "activations.json",
        partial(_measure, subject, chat, chosen, layers, settings, folder, progress),
        progress,
    )
    if not quiet:
        report.print_table(found)
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _load(spec: str, settings: Settings, progress: Progress) -> RowSet:
    try:
        rows = load_prompts(spec, skip_bad_rows=settings.skip_bad_rows)
    except UserError as error:
        raise UserError(f"--set: {error}") from error
    for line in rows.skipped:
        progress.say(f"left out: {line}")
    return rows


def summed_layers(text: str | None, blocks: int) -> tuple[int, ...]:
    """The layers that the table sums up; UserError for one that the model has not."""
    if text is None:
        return paper_layers(blocks)
    found = layer_numbers(text)
    if found[-1] > blocks:
        raise UserError(f"--layers: expected layers from 0 (embeddings) to {blocks}, the last block, got {found[-1]}")
    return found


def _measure(
    subject: LoadedModel,
    chat: ChatFormat,
    chosen: Sequence[Prompts],
    layers: tuple[int, ...],
    settings: Settings,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """All stages from the prompts to the finished folder."""
    ended, states = [], []
    for number, prompts in enumerate(chosen):
        part = Part(folder, f"set-{number}")
        ended.append(prompt_ends(subject, chat, prompts, settings, part, progress))
        states.append(
            states_of(
                subject.model,
                [end.ids for end in ended[-1]],
                pad_id=int(subject.tokenizer.pad_token_id),
                batch_size=settings.batch_size,
                folder=part,
                progress=progress,
                stage=f"hidden states of {prompts.label}",
            )
        )
        folder.note_progress()
    plan = draw_plan([len(p.rows) for p in chosen], settings.splits, settings.permutations, settings.seed)
    overlaps = _overlaps(states, settings.energies, plan, folder, progress)
    lines = [
        json.dumps(record(prompts, row, end), ensure_ascii=False)
        for prompts, ends in zip(chosen, ended, strict=True)
        for row, end in zip(prompts.rows, ends, strict=True)
    ]
    write_atomically(folder.path / "prompts.jsonl", ("\n".join(lines) + "\n").encode())
    write_arrays(folder.path / "activations.npz", {p.label: x for p, x in zip(chosen, states, strict=True)})
    about = {"model": settings.model, "delta": settings.delta, "dtype": subject.dtype, "token": settings.token}
    result = about | assemble(chosen, ended, overlaps, plan, layers, settings, states[0].shape)
    write_json(folder.path / "activations.json", result)
    report.write(result, asdict(settings), folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})


def _overlaps(
    states: Sequence[Float[np.ndarray, "layers _n D"]],
    energies: Sequence[float],
    plan: Plan,
    folder: RunFolder,
    progress: Progress,
) -> dict[str, list[list[PairOverlap]]]:
    """By centring, for each layer the overlaps of every pair of sets."""
    layers = range(len(states[0]))
    files = [folder.checkpoint(f"overlaps-{layer}.npz") for layer in layers]
    found: dict[str, list[list[PairOverlap]]] = {name: [] for name in CENTRINGS}
    with progress.stage("overlaps", len(files), sum(file.exists() for file in files)) as tick:
        for layer, file in zip(layers, files, strict=True):
            if not file.exists():
                here = [x[layer].astype(np.float64) for x in states]
                made = {name: compare_sets(here, energies, plan, name == "centred") for name in CENTRINGS}
                write_arrays(file, _as_arrays(made))
                tick()
            arrays = read_arrays(file)
            for name in CENTRINGS:
                found[name].append([_from_arrays(arrays, f"{name}/{q}/") for q in range(len(pairs(len(states))))])
    return found


def _as_arrays(made: dict[str, list[PairOverlap]]) -> dict[str, np.ndarray]:
    return {
        f"{name}/{number}/{field.name}": getattr(overlap, field.name)
        for name, overlaps in made.items()
        for number, overlap in enumerate(overlaps)
        for field in fields(PairOverlap)
    }


def _from_arrays(arrays: dict[str, np.ndarray], prefix: str) -> PairOverlap:
    return PairOverlap(**{field.name: arrays[prefix + field.name] for field in fields(PairOverlap)})
