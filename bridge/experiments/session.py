"""What every run begins with: rows read, the model loaded, samples encoded and answered, the folder opened.

`Session` is for all commands; `MeasuringSession` adds theta and the skill's responses for those that measure scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from bridge.data.chat import ChatFormat
from bridge.data.encode import EncodedRows, check_positions, choose, token_hash
from bridge.data.rows import RowSet, load_prompts, load_rows
from bridge.data.samples import Sample
from bridge.deltas.changed_model import changed_identity, with_change
from bridge.estimators.taps import probe
from bridge.estimators.theta import Subject, subject_of
from bridge.generation.drawing import Drawing, draw_samples
from bridge.models.identity import model_identity, positions_of
from bridge.models.load import LoadedModel, load_model
from bridge.models.names import run_name
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Checkpoints, Folder, RunFolder, Scratch, short_hash, write_atomically


@runtime_checkable
class Options(Protocol):
    """What a session needs of a command's settings."""

    @property
    def model(self) -> str:
        """Its name."""

    @property
    def dtype(self) -> str | None:
        """Type of its weights."""

    @property
    def device(self) -> str | None:
        """Where it is computed."""

    @property
    def seed(self) -> int:
        """Seed of the random streams."""

    @property
    def skip_bad_rows(self) -> bool:
        """Whether bad rows are left out."""

    def identity(self) -> dict[str, object]:
        """The options as a manifest holds them."""

    def write(self, folder: Path, command: str) -> None:
        """Write settings.toml."""


@runtime_checkable
class EncodingOptions(Options, Protocol):
    """The same where rows are tokenised whole."""

    @property
    def max_length(self) -> int:
        """Longest row, in tokens."""


@runtime_checkable
class MeasuringOptions(EncodingOptions, Protocol):
    """The same where scores are measured."""

    @property
    def modules(self) -> str | None:
        """Regular expression for theta."""

    @property
    def batch_size(self) -> int:
        """Rows at a time."""

    @property
    def memory(self) -> float:
        """GiB for what is kept between passes."""

    @property
    def draws(self) -> int:
        """Responses a prompt."""

    @property
    def max_new_tokens(self) -> int:
        """Longest response, in tokens."""


@dataclass(frozen=True)
class Lent:
    """What a caller has in memory already, in place of names: a model, rows, responses that it drew before.

    Attributes:
        loaded: the model; it stands for the settings' `model`.
        rows: sets of rows by the name that the settings give them.
        responses: samples with the model's own responses, by what they were drawn from and how (`MeasuringSession`).
        in_memory: whether the result alone is wanted, and no folder.
        progress: where stages are shown; None for where the command shows them.

    """

    loaded: LoadedModel | None = None
    rows: Mapping[str, RowSet] = field(default_factory=dict)
    responses: dict[str, list[Sample]] = field(default_factory=dict)
    in_memory: bool = False
    progress: Progress | None = None


class Session:
    """One run's model, sets and folder. The model is loaded when it is first asked for, after the rows were read."""

    def __init__(self, command: str, settings: Options, progress: Progress, lent: Lent | None = None) -> None:
        """Begin a run of a command, as `python -m` takes its name."""
        self.command, self.options, self.lent = command, settings, lent or Lent()
        self.progress = self.lent.progress or progress

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model."""
        if self.lent.loaded is not None:
            return self.lent.loaded
        asked = self.options
        return load_model(
            asked.model, dtype=asked.dtype, device=asked.device, seed=asked.seed, report=self.progress.say
        )

    @cached_property
    def chat(self) -> ChatFormat:
        """Its chat template."""
        return ChatFormat(self.loaded.tokenizer)

    def rows(self, option: str, spec: str, load: Callable[..., RowSet] = load_rows) -> RowSet:
        """The rows of a set, or its prompts with `load_prompts`; errors name the option."""
        if spec in self.lent.rows:
            return self.lent.rows[spec]
        try:
            return load(spec, skip_bad_rows=self.options.skip_bad_rows)
        except UserError as error:
            raise UserError(f"--{option}: {error}") from error

    def prompts(self, option: str, spec: str) -> RowSet:
        """The prompts of a set, whose answers may be missing; bad rows that are left out are told."""
        if spec in self.lent.rows:
            return self.lent.rows[spec]
        try:
            found = load_prompts(spec, skip_bad_rows=self.options.skip_bad_rows)
        except UserError as error:
            raise UserError(f"--{option}: {error}") from error
        for line in found.skipped:
            self.progress.say(f"left out: {line}")
        return found

    def choose(self, option: str, rows: RowSet, count: int | None) -> EncodedRows:
        """Some rows of a set (None: all), chosen by the seed and tokenised."""
        asked = self.options
        assert isinstance(asked, EncodingOptions)
        return choose(
            f"--{option}", rows, self.chat, count=count, max_length=asked.max_length, seed=asked.seed,
            skip_bad_rows=asked.skip_bad_rows, progress=self.progress,
        )  # fmt: skip

    def encode(self, option: str, rows: RowSet, count: int | None) -> list[Sample]:
        """The samples of the rows that `choose` chooses."""
        return list(self.choose(option, rows, count).samples)

    def check_positions(self, whole: Sequence[Sample], answered: Sequence[Sample] = (), new_tokens: int = 0) -> None:
        """Refuse rows, or prompts with the tokens drawn after them, beyond the model's last position."""
        check_positions(positions_of(self.loaded), whole, answered, new_tokens)

    def model_identity(self) -> dict[str, object]:
        """What of the model and its chat template decides the numbers."""
        return {**model_identity(self.loaded), "end_token_ids": list(self.chat.end_token_ids)}

    def open_folder(self, out: Path | None, **identity: object) -> Folder:
        """The run's folder, runs/COMMAND/MODEL-HASH unless another is given; a temporary one where none is wanted.

        Args:
            out: the folder.
            identity: what besides the settings and the model decides the numbers: hashes of tokens and of files.

        Raises:
            UserError: as `RunFolder` does.

        """
        if self.lent.in_memory:
            return Scratch()
        folder = RunFolder(self.path_of(out, **identity), self.command, self._identity(identity))
        if not folder.complete:
            self.options.write(folder.path, self.command)
        return folder

    def path_of(self, out: Path | None, **identity: object) -> Path:
        """Where `open_folder` opens the folder."""
        name = f"{run_name(self.options.model)}-{short_hash(self._identity(identity))}"
        return out or Path("runs") / self.command.removeprefix("bridge.") / name

    def _identity(self, more: Mapping[str, object]) -> dict[str, object]:
        """All that decides the numbers."""
        return self.options.identity() | self.model_identity() | dict(more)

    def finish(self, folder: Folder, **extra: object) -> None:
        """Mark the folder complete, with the time that every stage took."""
        folder.finish(**extra, stage_seconds={k: round(v, 2) for k, v in self.progress.seconds.items()})

    def run_id(self, **identity: object) -> str:
        """What tells the run from others, short: a hash of all that decides its numbers (see `open_folder`)."""
        return short_hash(self._identity(identity))


@runtime_checkable
class AnsweringOptions(Options, Protocol):
    """The same where a model, or a changed one, answers."""

    @property
    def delta(self) -> str | None:
        """The change of its weights."""


class AnsweringSession(Session):
    """A session whose model may be changed before it answers."""

    options: AnsweringOptions

    def __init__(self, command: str, settings: AnsweringOptions, progress: Progress, lent: Lent | None = None) -> None:
        """Begin a run of a command, as `python -m` takes its name."""
        super().__init__(command, settings, progress, lent)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model, changed where a change is given."""
        base = super().loaded
        return base if self.options.delta is None else with_change(base, self.options.delta)

    def model_identity(self) -> dict[str, object]:
        """What of the model, and of its change, decides the numbers."""
        return changed_identity(self.loaded)


class MeasuringSession(Session):
    """A session whose command measures scores on a skill."""

    options: MeasuringOptions

    def __init__(self, command: str, settings: MeasuringOptions, progress: Progress, lent: Lent | None = None) -> None:
        """Begin a run of a command, as `python -m` takes its name."""
        super().__init__(command, settings, progress, lent)

    @cached_property
    def subject(self) -> Subject:
        """The linear modules that make up theta, and how to compute on them."""
        return subject_of(self.loaded, self.options.modules, self.options.batch_size, self.options.memory)

    def answered(self, samples: Sequence[Sample], folder: Checkpoints, seed: int | None = None) -> list[Sample]:
        """The samples with the model's own responses, `draws` a prompt, by the settings' seed unless one is given."""
        how = Drawing.of(self.options, seed)
        key = short_hash([token_hash(samples), asdict(how)])
        if key in self.lent.responses:
            return self.lent.responses[key]
        drawn = draw_samples(self.loaded, self.chat, samples, how, folder, self.progress)
        self.lent.responses[key] = drawn
        return drawn

    def probe(self, samples: Sequence[Sample]) -> None:
        """Refuse, on the first sample, modules whose scores cannot be taken."""
        probe(self.subject.model, self.subject.modules, self.subject.batches(samples[:1])[0])


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """One line of JSON a sample."""
    write_atomically(path, ("\n".join(sample.to_json() for sample in samples) + "\n").encode())
