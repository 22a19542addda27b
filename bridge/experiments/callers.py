"""What a caller in Python hands to a run: options as keywords, sets by name, from memory, or as samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.data.in_memory import Answers, Rows, row_set
from bridge.data.rows import RowSet
from bridge.data.samples import Sample
from bridge.experiments.options import Compute, OfModel, SkillSampling
from bridge.experiments.options import Rows as RowOptions
from bridge.reports.tables import Table
from commands.errors import UserError
from commands.paths import expanded
from commands.progress import Progress
from commands.settings import Settings, fields_of
from commands.store import Scratch

if TYPE_CHECKING:
    from bridge.experiments.session import Lent

Change = str | Path
"""A weight change: a run folder of finetune, an adapter, a delta.safetensors, or the folder of a changed model."""

SAMPLING = ("draws", "max_new_tokens", "max_length", "seed", "batch_size", "skip_bad_rows")
"""Options of `bridge.api.Model.samples`."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(RowOptions, Compute, SkillSampling, OfModel):
    """What decides the samples of a set."""


@dataclass(frozen=True, repr=False)
class Samples:
    """Some rows of a set, tokenised, with the data's responses or the model's own.

    Attributes:
        name: of the set, as results name it.
        rows: the set.
        options: how many were chosen, and how they are answered.
        answered_by: the model with its weights, dtype and device, whose own responses they are; None for the data's.
        samples: token ids and masks; with `draws` above 1 as many of each row.
        prompts: of each sample, as text.
        responses: of each sample, as text.

    """

    name: str
    rows: RowSet
    options: SampleOptions
    answered_by: str | None
    samples: list[Sample]
    prompts: list[str]
    responses: list[str]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[dict[str, str]]:
        """Prompt and response of each."""
        for prompt, response in zip(self.prompts, self.responses, strict=True):
            yield {"prompt": prompt, "response": response}

    def __repr__(self) -> str:
        return f"<{self._title()}>"

    def _repr_html_(self) -> str:
        rows = list(zip(self.prompts, self.responses, strict=True))[:10]
        return Table(self._title(), ("prompt", "response"), rows, 2).html()

    def _title(self) -> str:
        whose = "the data's responses" if self.answered_by is None else "the model's own responses"
        return f"{len(self)} samples of {self.name}, {whose}"


Data = str | Path | Rows | Samples
"""A set: its NAME, NAME=FILE, FILE.jsonl, rows in memory, or samples of a model."""


class Given:
    """The options of a command from what a caller gave: sets by name, from memory, or as samples.

    Attributes:
        kind: the command's settings.
        options: by name, as the settings read them.
        rows: the sets in memory, by the names that the options give them.
        samples: those that were given, by option.

    """

    def __init__(self, kind: type[Settings], options: Mapping[str, object]) -> None:
        self.kind, self.options = kind, dict(options)
        self.rows: dict[str, RowSet] = {}
        self.samples: list[tuple[str, Samples]] = []

    def skill(self, data: Data) -> Given:
        """The skill, with how its samples were chosen and answered."""
        self.options["skill"] = self._skill(data)
        return self

    def skills(self, several: Sequence[Data]) -> Given:
        """Several of them; none for those that the command has by itself."""
        if several:
            self.options["skill"] = [self._skill(data) for data in several]
        return self

    def prompts(self, option: str, data: Data, count: str) -> Given:
        """A set whose prompts are asked."""
        if isinstance(data, Samples):
            self._agree({count: data.options.num_skill, "seed": data.options.seed})
        self.options[option] = self._name(option, data, "none")
        return self

    def rows_of(self, option: str, data: Data, count: str | None) -> Given:
        """A set whose rows are taken with their answers."""
        self.options[option] = self._with_answers(option, data, count)
        return self

    def candidates(self, several: Mapping[str, Data] | Sequence[str | Path]) -> Given:
        """Sets by label whose rows are taken with their answers, or a list of their names."""
        self._labelled("candidates", several, lambda data: self._with_answers("candidates", data, "num_rows"))
        return self

    def prompt_sets(self, several: Mapping[str, Data] | Sequence[str | Path]) -> Given:
        """The same of sets whose prompts are asked."""

        def name(data: Data) -> str:
            return str(self.prompts("sets", data, "num_prompts").options["sets"])

        self._labelled("sets", several, name)
        return self

    def settings(self, own: Mapping[str, object]) -> Settings:
        """The options with those that the model decides; UserError for others, and for samples of another model."""
        for name in ("model", "dtype", "device", *own):
            if name in self.options and self.options[name] != own.get(name):
                mine = own.get(name, "the default")
                raise UserError(f"{name}: expected the model's own, {mine}, got {self.options[name]!r}")
        for option, samples in self.samples:
            if samples.options.model != own["model"]:
                raise UserError(f"{option}: expected samples of {own['model']}, got samples of {samples.options.model}")
        known = fields_of(self.kind)
        return self.kind.read(self.options | {name: value for name, value in own.items() if name in known})

    def _skill(self, data: Data) -> str:
        if isinstance(data, Samples):
            self._take(data)
        sampled = self.options.get("fisher", "sampled") == "sampled"
        return self._name("skill", data, "drawn" if sampled else "given")

    def _labelled(
        self, option: str, several: Mapping[str, Data] | Sequence[str | Path], name: Callable[[Data], str]
    ) -> None:
        if isinstance(several, Mapping):
            self.options[option] = {str(label): name(data) for label, data in several.items()}
            return
        names = [several] if isinstance(several, str | Path) else several
        if not isinstance(names, Sequence) or not all(isinstance(each, str | Path) for each in names):
            raise UserError(f"{option}: expected sets by label, or a list of their names, got {type(several).__name__}")
        self.options[option] = [str(each) for each in names]

    def _with_answers(self, option: str, data: Data, count: str | None) -> str:
        if isinstance(data, Samples):
            if data.answered_by is not None:
                raise UserError(f'{option}: expected samples with responses="rows", got the model\'s own responses')
            if count is None:
                raise UserError(f"{option}: expected a set or rows, got samples, whose choice it does not take")
            self._agree({count: data.options.num_skill} | {k: getattr(data.options, k) for k in ("max_length", "seed")})
        return self._name(option, data, "given")

    def _take(self, data: Samples) -> None:
        names = ("num_skill", "fisher", "draws", "max_new_tokens", "max_length", "seed", "batch_size")
        values = {name: getattr(data.options, name) for name in names}
        if "fisher" not in fields_of(self.kind) and values.pop("fisher") != "sampled":
            raise UserError('skill: expected samples with responses="model", got the data\'s responses')
        self._agree(values)

    def _agree(self, values: Mapping[str, object]) -> None:
        for name, value in values.items():
            if self.options.setdefault(name, value) != value:
                raise UserError(f"{name}: expected {value!r}, as the samples have it, got {self.options[name]!r}")

    def _name(self, option: str, data: Data, answers: Answers) -> str:
        if isinstance(data, Samples):
            self.samples.append((option, data))
            self.rows[data.name] = data.rows
            if data.options.skip_bad_rows:
                self.options.setdefault("skip_bad_rows", True)
            return data.name
        name, rows = named_rows(option, data, answers, bool(self.options.get("skip_bad_rows")))
        if rows is not None:
            self.rows[name] = rows
        return name


def take_samples(settings: SampleOptions, data: str, lent: Lent, model: str) -> Samples:
    """Choose rows of a set, tokenise them, and let the model that is lent answer them, unless the data's are asked.

    Args:
        settings: how many, and how they are answered.
        data: the set.
        lent: the model, and rows in memory.
        model: what tells it from others.

    """
    from bridge.experiments.session import MeasuringSession

    session = MeasuringSession("bridge.samples", settings, Progress(quiet=True), lent)
    rows = session.rows("data", data)
    samples = session.encode("data", rows, settings.num_skill)
    answered_by = model if settings.fisher == "sampled" else None
    if answered_by is None:
        session.check_positions(samples)
    else:
        session.check_positions([], samples, settings.max_new_tokens)
        with closing(Scratch()) as folder:
            samples = session.answered(samples, folder)
    decode = session.loaded.tokenizer.decode
    prompts = [str(decode(list(sample.prompt_ids))) for sample in samples]
    responses = [str(decode(list(sample.input_ids)[len(sample.prompt_ids) :])) for sample in samples]
    return Samples(data, rows, settings, answered_by, samples, prompts, responses)


def named_rows(option: str, data: str | Path | Rows, answers: Answers, skip_bad: bool) -> tuple[str, RowSet | None]:
    """A set's name, and its rows where they are in memory; errors name the option."""
    if isinstance(data, str | Path):
        return str(data), None
    try:
        rows = row_set(data, answers=answers, skip_bad_rows=skip_bad)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    return rows.name, rows


def change(option: str, delta: Change) -> str:
    """The place of a weight change."""
    if not isinstance(delta, str | Path):
        raise UserError(f"{option}: expected the path of a weight change, got {type(delta).__name__}")
    if not delta:
        raise UserError(f"{option}: expected the path of a weight change, got none")
    return str(delta)


def place(folder: str | Path) -> Path:
    """The folder of a run."""
    if not isinstance(folder, str | Path):
        raise UserError(f"folder: expected a path, got {type(folder).__name__}")
    return expanded(folder)


def changes(option: str, delta: Change | Mapping[str, Change] | Sequence[Change]) -> dict[str, str] | list[str]:
    """Weight changes as the commands' options take them: by label, or a list of any length."""
    if isinstance(delta, Mapping):
        return {str(label): change(option, path) for label, path in delta.items()}
    if isinstance(delta, Sequence) and not isinstance(delta, str):
        return [change(option, path) for path in delta]
    return [change(option, delta)] if delta else []


@contextmanager
def python_names(kind: type[Settings] | None = None, **others: str) -> Iterator[None]:
    """Errors name keywords, not options of a command line.

    Args:
        kind: the settings whose fields are the keywords.
        others: keywords by the names of options that they stand for.

    """
    flags = {} if kind is None else {field.flag: name for name, field in fields_of(kind).items()}
    flags |= {"--out": "folder"} | {f"--{name.replace('_', '-')}": keyword for name, keyword in others.items()}
    try:
        yield
    except UserError as error:
        text = re.sub(r"(?<![\w-])--[a-z][a-z-]*", lambda m: flags.get(m[0], m[0][2:].replace("-", "_")), str(error))
        raise UserError(" ".join(text.split())) from error
