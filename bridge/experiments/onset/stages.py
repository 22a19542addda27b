"""What all stages of a run of `bridge.onset` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bridge.data.samples import Sample
from bridge.estimators.theta import Subject
from bridge.experiments.onset.result import SetName
from bridge.experiments.onset.settings import Settings
from bridge.experiments.session import MeasuringSession
from commands.progress import Progress
from commands.store import Folder


@dataclass(frozen=True)
class Stages:
    """A model, the skill's samples (those of the removed directions apart), the rows, and where checkpoints go."""

    session: MeasuringSession
    settings: Settings
    sets: Mapping[SetName, list[Sample]]
    finetune: list[Sample]
    folder: Folder

    @property
    def subject(self) -> Subject:
        """The modules that move."""
        return self.session.subject

    @property
    def progress(self) -> Progress:
        """Where the stages are shown."""
        return self.session.progress
