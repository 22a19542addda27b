"""A session over several skills of one model: what `bridge.spectrum` and `bridge.fisher_overlap` begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from bridge.data.encode import token_hash
from bridge.data.rows import RowSet
from bridge.data.samples import Sample
from bridge.estimators.scores import measure_products
from bridge.experiments.session import Lent, MeasuringOptions, MeasuringSession
from commands.progress import Progress
from commands.store import Checkpoints, Folder


@runtime_checkable
class SkillsOptions(MeasuringOptions, Protocol):
    """What a command on several skills asks for."""

    @property
    def skill(self) -> tuple[str, ...]:
        """The sets."""

    @property
    def num_skill(self) -> int:
        """Rows of each."""

    @property
    def fisher(self) -> Literal["sampled", "empirical"]:
        """Whose responses."""


class SkillsSession(MeasuringSession):
    """The skills' rows, and their samples with the responses that are measured."""

    options: SkillsOptions

    def __init__(self, command: str, settings: SkillsOptions, progress: Progress, lent: Lent | None = None) -> None:
        """Read the skills' rows; the model is loaded when it is first asked for."""
        super().__init__(command, settings, progress, lent)
        self.row_sets: dict[str, RowSet] = {skill: self.rows("skill", skill) for skill in settings.skill}

    @cached_property
    def samples(self) -> dict[str, list[Sample]]:
        """By skill its samples, with the data's responses."""
        asked = self.options
        self.subject  # noqa: B018  # modules that do not exist are refused before rows that cannot be encoded
        found = {skill: self.encode("skill", rows, asked.num_skill) for skill, rows in self.row_sets.items()}
        sampled = asked.fisher == "sampled"
        for part in found.values():
            self.check_positions([] if sampled else part, part if sampled else [], asked.max_new_tokens)
        return found

    def open_skills_folder(self, out: Path | None) -> Folder:
        """The run's folder, which knows the tokens and the files of all skills."""
        return self.open_folder(
            out,
            tokens=[token_hash(samples) for samples in self.samples.values()],
            skill_sha256=[rows.sha256 for rows in self.row_sets.values()],
        )

    def responses(self, skill: str, seed: int, folder: Checkpoints) -> list[Sample]:
        """One skill's samples under its name, with the model's own responses, or the data's."""
        samples = self.samples[skill]
        if self.options.fisher == "sampled":
            samples = self.answered(samples, folder, seed)
        return [replace(sample, set=skill) for sample in samples]

    def grams(self, samples: Sequence[Sample], folder: Checkpoints) -> dict[str, np.ndarray]:
        """By module the inner products (N, N) of the samples' scores, in float64."""
        self.probe(samples)
        products = measure_products(self.subject, samples, {}, folder, self.progress)
        return {name: arrays["gram"] for name, arrays in products.items()}
