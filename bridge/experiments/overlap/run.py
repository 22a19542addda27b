"""One run of `bridge.overlap`: from the options to the finished run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np

from bridge.data.encode import token_hash
from bridge.data.samples import Sample
from bridge.deltas.open import open_delta, weights_folder
from bridge.deltas.parameters import parameter_files, save_snapshot, set_weights
from bridge.deltas.tensor_files import TensorFiles
from bridge.deltas.weight_delta import WeightDelta, fingerprint
from bridge.estimators.batches import Batch, in_sample_order
from bridge.estimators.first_order import first_order
from bridge.estimators.random_signs import projected_products
from bridge.estimators.scores import Parts, measure_products
from bridge.estimators.utility_loss import measure_utility_loss
from bridge.evaluation.refusals import is_refusal
from bridge.experiments.overlap import report
from bridge.experiments.overlap.assembly import (
    Measured,
    Question,
    assemble,
    count_refusals,
    rank_changes,
    signs_estimates,
    statistics,
)
from bridge.experiments.overlap.result import OverlapResult
from bridge.experiments.overlap.settings import Settings
from bridge.experiments.session import Lent, MeasuringSession, write_samples
from bridge.generation.generate import check_room, generate_texts
from commands.errors import UserError
from commands.progress import Progress
from commands.runs import Arrays, arrays_of, result_of
from commands.store import Folder, Part, write_arrays, write_atomically

COMMAND = "bridge.overlap"
_BASE = "base"  # the model before any change, among the answers


def run(settings: Settings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None) -> OverlapResult:
    """Measure, write the run folder, print the closing table.

    Args:
        settings: the options.
        out: the run folder; None for one in runs/.
        quiet: print nothing.
        lent: what is in memory already.

    Raises:
        UserError: for anything in the options, the data, the model or the changes that cannot be used.

    """
    settings.check()
    session = OverlapSession(settings, Progress(quiet), lent)
    folder = session.open_overlap_folder(out)
    found = result_of(folder, OverlapResult.read, partial(_measure, session, folder), session.progress)
    if not quiet:
        report.print_result(found, folder)
    return found


class OverlapSession(MeasuringSession):
    """The skill's samples, the weight changes, and the prompts at which refusals are counted."""

    options: Settings

    def __init__(self, settings: Settings, progress: Progress, lent: Lent | None = None) -> None:
        """Read the rows; the model is loaded when it is first asked for."""
        super().__init__(COMMAND, settings, progress, lent)
        self.row_set = self.rows("skill", settings.skill)
        self.prompt_set = None if settings.refusals is None else self.prompts("refusals", settings.refusals)

    @cached_property
    def deltas(self) -> dict[str, WeightDelta]:
        """The changes by label."""
        self.subject  # noqa: B018  # modules that do not exist are refused first
        places = self.options.delta
        return {label: open_delta(place, self.loaded, require_nonzero=True) for label, place in places.items()}

    @cached_property
    def samples(self) -> list[Sample]:
        """Samples of the skill, with the data's responses."""
        samples = self.encode("skill", self.row_set, self.options.num_skill)
        sampled = self.options.fisher == "sampled"
        longest = self.options.max_new_tokens
        self.check_positions([] if sampled else samples, samples if sampled else [], longest)
        if self.prompt_set:
            rows = self.prompt_set.rows
            check_room(self.loaded.model, rows, list(map(self.chat.prompt_ids, rows)), longest)
        return samples

    def open_overlap_folder(self, out: Path | None) -> Folder:
        """The run's folder, which knows the tokens, the prompts and the content of every change."""
        deltas = self.deltas
        return self.open_folder(
            out,
            tokens=token_hash(self.samples),
            skill_sha256=self.row_set.sha256,
            refusals_sha256=self.prompt_set.sha256 if self.prompt_set else None,
            changes={label: fingerprint(delta) for label, delta in deltas.items()},
            order=list(deltas),  # checkpoints number the changes
        )


def _measure(session: OverlapSession, folder: Folder) -> OverlapResult:
    """All stages from the samples to the finished folder."""
    settings = session.options
    samples = session.answered(session.samples, folder) if settings.fisher == "sampled" else session.samples
    session.probe(samples)
    stages = _Stages(session, folder, samples)
    products = measure_products(session.subject, samples, stages.directions, folder, session.progress)
    folder.note_progress()
    motion = {label: stages.motion(label) for label in session.deltas}
    losses = stages.utility_loss() if settings.utility_loss else {}
    answers = stages.answers() if session.prompt_set else {}
    folder.note_progress()
    signs = stages.random_signs() if settings.estimator == "rademacher" else None
    question = Question(
        rank=settings.rank,
        resamples=settings.bootstrap,
        seed=settings.seed,
        groups=np.unique([s.group for s in samples], return_inverse=True)[1],
    )
    changes = {}
    with session.progress.stage("scores, nulls and intervals", 1):
        for k, (label, delta) in enumerate(session.deltas.items()):
            modules = statistics(session.subject, samples, products, delta, label, settings.fisher)
            estimates = None
            if signs is not None:
                own = {name: values[k] for name, values in signs[0].items()}
                estimates = signs_estimates(modules, own, signs[1][k], settings.dim)
            measured = Measured(modules, motion[label], losses.get(label), estimates, answers.get(label))
            changes[label] = assemble(delta, measured, question, settings.refusals)
    first = next(iter(changes.values())).joint
    found = OverlapResult(
        model=settings.model,
        skill=settings.skill,
        fisher=settings.fisher,
        dtype=session.loaded.dtype,
        num_samples=first.num_samples,
        num_parameters=first.dimension,
        rank=settings.rank,
        ranking=rank_changes(list(changes.values())),
        deltas=changes,
        base_refusals=count_refusals(settings.refusals, answers[_BASE]) if settings.refusals is not None else None,
    )
    if not session.lent.in_memory:
        write_samples(folder.path / "samples.jsonl", samples)
        stages.write_answers(answers)
        arrays = {f"{name}/{kind}": values for name, part in products.items() for kind, values in part.items()}
        for label in session.deltas:
            arrays |= {f"{kind}/{label}": values for kind, values in (motion[label] | losses.get(label, {})).items()}
        write_arrays(folder.path / "statistics.npz", arrays)
        found.write(folder.path)
        report.write(found, settings, folder.path)
        session.finish(folder)
    return found


@dataclass(frozen=True)
class _Stages:
    """The stages of a run that are of this command alone; each keeps what it has finished in the folder."""

    session: OverlapSession
    folder: Folder
    samples: list[Sample]

    @cached_property
    def batches(self) -> list[Batch]:
        """Batches of the samples."""
        return self.session.subject.batches(self.samples)

    @cached_property
    def directions(self) -> dict[str, Parts]:
        """The changes by label, module by module."""
        return {label: delta.direction for label, delta in self.session.deltas.items()}

    @cached_property
    def base_weights(self) -> TensorFiles:
        """The model's own weights on disk, from which it is put back after it was moved."""
        loaded = self.session.loaded
        folder = weights_folder(loaded)
        if folder is not None:
            return parameter_files(folder, loaded.model)
        path = self.folder.checkpoint("base.safetensors")
        if not path.exists():
            save_snapshot(path, loaded.model)
        return TensorFiles([path])

    def motion(self, label: str) -> Arrays:
        """First derivatives of the policy along one change, over all parameters that it moves: (N,) each.

        Raises:
            UserError: they are not finite.

        """
        deltas, model = self.session.deltas, self.session.subject.model
        tangents = cache(lambda: dict(deltas[label]))  # where any batch is left
        part = Part(self.folder, f"first-{list(deltas).index(label)}")
        found = arrays_of(
            range(len(self.batches)),
            lambda k: first_order(model, tangents(), self.batches[k]),
            part,
            f"motion along {label}",
            self.session.progress,
        )
        motion = in_sample_order(list(found.values()), self.batches)
        if not all(np.isfinite(values).all() for values in motion.values()):
            wanted = f"expected finite derivatives of the logits along {label}"
            raise UserError(f"{wanted}, got inf or nan: use --dtype float32")
        return motion

    def utility_loss(self) -> dict[str, Arrays]:
        """By change, what it costs on every sample."""
        base, subject = self.base_weights, self.session.subject
        restore = partial(set_weights, subject.model, base)
        moves = {label: partial(restore, delta) for label, delta in self.session.deltas.items()}
        return measure_utility_loss(
            subject.model, self.batches, moves, restore, subject.memory_bytes, self.folder, self.session.progress
        )

    def random_signs(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The products of scores and D changes by random signs: by module, and of all modules together, (D, N)."""
        asked = self.session.options
        return projected_products(
            self.session.subject, self.samples, self.directions, asked.dim, asked.seed, self.folder,
            self.session.progress,
        )  # fmt: skip

    def answers(self) -> dict[str, list[str]]:
        """What the model says at the prompts: before any change ("base"), and by change."""
        session, model, base = self.session, self.session.subject.model, self.base_weights
        assert session.prompt_set is not None
        texts: dict[str, list[str]] = {}
        try:
            for k, label in enumerate((_BASE, *session.deltas)):
                set_weights(model, base, session.deltas.get(label))
                responses = generate_texts(
                    session.loaded,
                    session.chat,
                    session.prompt_set.rows,
                    max_new_tokens=session.options.max_new_tokens,
                    batch_size=8 * session.options.batch_size,
                    checkpoint=self.folder.checkpoint(f"refusals-{k}"),
                    progress=session.progress,
                    stage=f"responses of {label}",
                )
                texts[label] = [response.text for response in responses]
        finally:
            set_weights(model, base)
        return texts

    def write_answers(self, answers: dict[str, list[str]]) -> None:
        """Write refusals.jsonl, a line an answer, if there are any."""
        if self.session.prompt_set is None:
            return
        lines = []
        for label, texts in answers.items():
            for row, text in zip(self.session.prompt_set.rows, texts, strict=True):
                match = is_refusal(text)
                fields = {
                    "change": label,
                    "prompt": row.messages[-1]["content"],
                    "response": text,
                    "refused": match is not None,
                    "pattern": match.pattern if match else None,
                }
                lines.append(json.dumps(fields, ensure_ascii=False))
        write_atomically(self.folder.path / "refusals.jsonl", ("\n".join(lines) + "\n").encode())
