"""One run of `bridge.activations`: from the options to the finished run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from bridge.estimators.hidden_states import decoder_blocks, states_of
from bridge.experiments.activations import report
from bridge.experiments.activations.assembly import Measured, assemble
from bridge.experiments.activations.prompts import Ended, Prompts, choose_prompts, prompt_ends, record
from bridge.experiments.activations.result import CENTRINGS, ActivationsResult
from bridge.experiments.activations.settings import Settings, layer_numbers, paper_layers
from bridge.experiments.session import AnsweringSession, Lent
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import Arrays, arrays_of, result_of
from commands.store import Folder, Part, short_hash, write_arrays, write_atomically
from theory.activation_overlap import PairOverlap, Plan, compare_sets, draw_plan, pairs

COMMAND = "bridge.activations"


def run(
    settings: Settings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None
) -> ActivationsResult:
    """Measure, write the run folder, print the closing table.

    Args:
        settings: the options.
        out: the run folder; None for one in runs/.
        quiet: print nothing.
        lent: what is in memory already.

    Raises:
        UserError: for anything in the options, the data, the model or the change that cannot be used.

    """
    settings.check()
    session = AnsweringSession(COMMAND, settings, Progress(quiet), lent)
    sources = {label: session.prompts("set", spec) for label, spec in settings.sets.items()}
    layers = summed_layers(settings.layers, len(decoder_blocks(session.loaded.model)))
    chosen = [choose_prompts(label, rows, session.loaded, session.chat, settings) for label, rows in sources.items()]
    for prompts in chosen:
        for line in prompts.skipped:
            session.progress.say(f"left out: {line}")
    folder = session.open_folder(
        out,
        order=list(settings.sets),  # checkpoints number the sets
        sets_sha256={prompts.label: prompts.source.sha256 for prompts in chosen},
        prompts={p.label: short_hash([[row.line for row in p.rows], p.ids]) for p in chosen},
        end_token_ids=list(session.chat.end_token_ids),
    )
    measurement = _Measurement(session, settings, folder, chosen, layers)
    found = result_of(folder, ActivationsResult.read, measurement.measure, session.progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def summed_layers(text: str | None, blocks: int) -> tuple[int, ...]:
    """The layers that the table sums up; UserError for one that the model has not."""
    if text is None:
        return paper_layers(blocks)
    found = layer_numbers(text)
    if found[-1] > blocks:
        raise UserError(f"--layers: expected layers from 0 (embeddings) to {blocks}, the last block, got {found[-1]}")
    return found


@dataclass(frozen=True)
class _Measurement:
    """The stages of a run, from the prompts to the finished folder."""

    session: AnsweringSession
    settings: Settings
    folder: Folder
    chosen: Sequence[Prompts]
    layers: tuple[int, ...]

    def measure(self) -> ActivationsResult:
        """All stages."""
        ended, states = [], []
        for number, prompts in enumerate(self.chosen):
            ends, here = self._states(prompts, Part(self.folder, f"set-{number}"))
            ended.append(ends)
            states.append(here)
            self.folder.note_progress()
        settings = self.settings
        counts = [len(prompts.rows) for prompts in self.chosen]
        plan = draw_plan(counts, settings.splits, settings.permutations, settings.seed)
        overlaps = self._overlaps(states, plan)
        dtype = self.session.loaded.dtype
        measured = Measured(self.chosen, ended, overlaps, plan, self.layers, states[0].shape, dtype)
        found = assemble(measured, settings)
        if not self.session.lent.in_memory:
            self._write(found, ended, states)
        return found

    def _states(self, prompts: Prompts, part: Part) -> tuple[list[Ended], Float[np.ndarray, "layers _n D"]]:
        """The tokens of one set that are measured, and their hidden states."""
        loaded, progress = self.session.loaded, self.session.progress
        ends = prompt_ends(loaded, self.session.chat, prompts, self.settings, part, progress)
        states = states_of(
            loaded.model,
            [end.ids for end in ends],
            pad_id=int(loaded.tokenizer.pad_token_id),
            batch_size=self.settings.batch_size,
            folder=part,
            progress=progress,
            stage=f"hidden states of {prompts.label}",
        )
        return ends, states

    def _overlaps(
        self, states: Sequence[Float[np.ndarray, "layers _n D"]], plan: Plan
    ) -> dict[str, list[list[PairOverlap]]]:
        """By centring, for each layer the overlaps of every pair of sets."""
        layers = range(len(states[0]))
        compare = partial(_layer_overlaps, states, self.settings.energies, plan)
        arrays = arrays_of(layers, compare, self.folder, "overlaps", self.session.progress, "overlaps-{}.npz")
        count = len(pairs(len(states)))
        return {
            name: [[_from_arrays(arrays[layer], f"{name}/{q}/") for q in range(count)] for layer in layers]
            for name in CENTRINGS
        }

    def _write(self, found: ActivationsResult, ended: Sequence[Sequence[Ended]], states: Sequence[np.ndarray]) -> None:
        path = self.folder.path
        lines = [
            json.dumps(record(prompts, row, end), ensure_ascii=False)
            for prompts, ends in zip(self.chosen, ended, strict=True)
            for row, end in zip(prompts.rows, ends, strict=True)
        ]
        write_atomically(path / "prompts.jsonl", ("\n".join(lines) + "\n").encode())
        write_arrays(path / "activations.npz", {p.label: x for p, x in zip(self.chosen, states, strict=True)})
        found.write(path)
        report.write(found, self.settings, path)
        self.session.finish(self.folder)


def _layer_overlaps(
    states: Sequence[Float[np.ndarray, "layers _n D"]], energies: Sequence[float], plan: Plan, layer: int
) -> Arrays:
    here = [x[layer].astype(np.float64) for x in states]
    return _as_arrays({name: compare_sets(here, energies, plan, name == "centred") for name in CENTRINGS})


def _as_arrays(made: Mapping[str, Sequence[PairOverlap]]) -> dict[str, np.ndarray]:
    return {
        f"{name}/{number}/{field.name}": getattr(overlap, field.name)
        for name, overlaps in made.items()
        for number, overlap in enumerate(overlaps)
        for field in fields(PairOverlap)
    }


def _from_arrays(arrays: dict[str, np.ndarray], prefix: str) -> PairOverlap:
    return PairOverlap(**{field.name: arrays[prefix + field.name] for field in fields(PairOverlap)})
