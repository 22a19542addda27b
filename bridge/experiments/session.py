"""Several skills on one model: their samples, the responses that are measured, the inner products of their scores.

The stages that `bridge.spectrum` and `bridge.fisher_overlap` have in common; what they make of the inner products is
their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bridge.data.chat import ChatFormat
from bridge.data.encode import check_positions, encode, token_hash
from bridge.data.rows import RowSet, load_rows
from bridge.data.samples import Sample
from bridge.estimators import scores as measure
from bridge.estimators.taps import probe
from bridge.estimators.theta import Subject, subject_of
from bridge.generation.drawing import Drawing, draw_samples
from bridge.models.identity import model_identity, run_name
from bridge.models.load import LoadedModel, load_model
from commands.progress import Progress
from commands.store import Checkpoints, RunFolder, short_hash, write_atomically

if TYPE_CHECKING:
    from bridge.experiments.fisher_overlap import settings as fisher_overlap
    from bridge.experiments.spectrum import settings as spectrum

    Settings = fisher_overlap.Settings | spectrum.Settings


@dataclass(frozen=True)
class Skills:
    """The skills of a run, and the model that they are measured on.

    Attributes:
        settings: the run's options.
        loaded: the model.
        subject: its linear modules that make up theta, and how to compute on them.
        chat: its chat template.
        rows: by skill, the set that its samples were chosen from.
        samples: by skill, with the data's responses.

    """

    settings: Settings
    loaded: LoadedModel
    subject: Subject
    chat: ChatFormat
    rows: dict[str, RowSet]
    samples: dict[str, list[Sample]]

    def open_folder(self, command: str, out: Path | None) -> RunFolder:
        """The run's folder, runs/COMMAND/MODEL-HASH unless another is given.

        Raises:
            UserError: as `RunFolder` does.

        """
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.settings).items()}
        identity = settings | {
            **model_identity(self.loaded),
            "tokens": [token_hash(samples) for samples in self.samples.values()],
            "end_token_ids": list(self.chat.end_token_ids),
            "skill_sha256": [rows.sha256 for rows in self.rows.values()],
        }
        name = f"{run_name(self.settings.model)}-{short_hash(identity)}"
        return RunFolder(out or Path("runs") / command.removeprefix("bridge.") / name, command, identity)

    def answered(self, skill: str, seed: int, folder: Checkpoints, progress: Progress) -> list[Sample]:
        """One skill's samples under its name, with the responses that are measured: the model's own, or the data's."""
        samples, asked = self.samples[skill], self.settings
        if asked.fisher == "sampled":
            how = Drawing.of(asked, seed)
            samples = draw_samples(self.loaded, self.chat, samples, how, folder, progress)
        return [replace(sample, set=skill) for sample in samples]

    def grams(self, samples: Sequence[Sample], folder: Checkpoints, progress: Progress) -> dict[str, np.ndarray]:
        """By module the inner products (N, N) of the samples' scores, in float64."""
        probe(self.subject.model, self.subject.modules, self.subject.batches(samples[:1])[0])
        products = measure.measure_products(self.subject, samples, {}, folder, progress)
        return {name: arrays["gram"] for name, arrays in products.items()}


def open_skills(settings: Settings, progress: Progress) -> Skills:
    """Read the skills' rows, load the model, and choose and tokenise the rows that are measured.

    Raises:
        UserError: for data or a model that cannot be used, or that do not go together.

    """
    rows = {skill: load_rows(skill, skip_bad_rows=settings.skip_bad_rows) for skill in settings.skill}
    loaded = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )
    subject = subject_of(loaded, settings.modules, settings.batch_size, settings.memory)
    chat = ChatFormat(loaded.tokenizer)
    samples = {
        skill: encode(
            "--skill",
            part,
            chat,
            count=settings.num_skill,
            max_length=settings.max_length,
            seed=settings.seed,
            skip_bad_rows=settings.skip_bad_rows,
            progress=progress,
        )
        for skill, part in rows.items()
    }
    sampled = settings.fisher == "sampled"
    for part in samples.values():
        check_positions(loaded, [] if sampled else part, part if sampled else [], settings.max_new_tokens)
    return Skills(settings, loaded, subject, chat, rows, samples)


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """One line of JSON a sample."""
    write_atomically(path, ("\n".join(sample.to_json() for sample in samples) + "\n").encode())
