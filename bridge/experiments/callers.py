"""What a caller in Python hands to a run: options as keywords, sets by name, from memory, or as samples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bridge.data.in_memory import Rows, row_set
from bridge.data.rows import RowSet
from bridge.data.samples import Sample
from bridge.experiments.options import Compute, OfModel, SkillSampling
from bridge.experiments.options import Rows as RowOptions
from bridge.reports.tables import Table
from commands.errors import UserError
from commands.settings import Settings, fields_of

Change = str | Path
"""A weight change: a run folder of finetune, an adapter, a delta.safetensors, or the folder of a changed model."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(RowOptions, Compute, SkillSampling, OfModel):
    """What decides the samples of a set."""


@dataclass(frozen=True)
class Samples:
    """Some rows of a set, tokenised, with the data's responses or the model's own.

    Attributes:
        name: of the set, as results name it.
        rows: the set.
        options: how many were chosen, and how they are answered.
        samples: token ids and masks; with `draws` above 1 as many of each row.
        prompts: of each sample, as text.
        responses: of each sample, as text.

    """

    name: str
    rows: RowSet
    options: SampleOptions
    samples: list[Sample] = field(repr=False)
    prompts: list[str] = field(repr=False)
    responses: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[dict[str, str]]:
        """Prompt and response of each."""
        for prompt, response in zip(self.prompts, self.responses, strict=True):
            yield {"prompt": prompt, "response": response}

    def _repr_html_(self) -> str:
        whose = "the model's own responses" if self.options.fisher == "sampled" else "the data's responses"
        rows = list(zip(self.prompts, self.responses, strict=True))[:10]
        return Table(f"{len(self)} samples of {self.name}, {whose}", ("prompt", "response"), rows, 2).html()


Data = str | Path | Rows | Samples
"""A set: its NAME, NAME=FILE, FILE.jsonl, rows in memory, or samples of a model."""


class Given:
    """The options of a command from what a caller gave: sets by name, from memory, or as samples."""

    def __init__(self, kind: type[Settings], options: Mapping[str, object]) -> None:
        self.kind, self.options, self.rows = kind, dict(options), dict[str, RowSet]()

    def one(self, option: str, data: Data, answered: bool = True) -> Given:
        """One set."""
        self.options[option] = self._name(data, answered)
        return self

    def skill(self, data: Data) -> Given:
        """The skill, with how its samples were chosen and answered."""
        self._take(data)
        return self.one("skill", data)

    def skills(self, several: Sequence[Data]) -> Given:
        """Several of them; none for those that the command has by itself."""
        if not several:
            return self
        for data in several:
            self._take(data)
        self.options["skill"] = [self._name(data) for data in several]
        return self

    def trained(self, option: str, data: Data, count: str) -> Given:
        """A set that is trained on."""
        if isinstance(data, Samples):
            if data.options.fisher != "empirical":
                raise UserError(f'{option}: expected samples with responses="rows", which are trained on')
            self._agree({count: data.options.num_skill} | {k: getattr(data.options, k) for k in ("max_length", "seed")})
        return self.one(option, data)

    def sets(
        self, option: str, several: Mapping[str, Data] | Sequence[str], count: str | None, answered: bool = True
    ) -> Given:
        """Sets by label."""
        if not isinstance(several, Mapping):
            self.options[option] = [str(spec) for spec in several]
            return self
        for data in several.values():
            if isinstance(data, Samples) and count is not None:
                self._agree({count: data.options.num_skill})
        self.options[option] = {label: self._name(data, answered) for label, data in several.items()}
        return self

    def _take(self, data: Data) -> None:
        if isinstance(data, Samples):
            names = ("num_skill", "fisher", "draws", "max_new_tokens", "max_length", "seed", "batch_size")
            values = {name: value for name, value in asdict(data.options).items() if name in names}
            if "fisher" not in fields_of(self.kind) and values.pop("fisher") != "sampled":
                raise UserError('skill: expected samples with responses="model"')
            self._agree(values)

    def _agree(self, values: Mapping[str, object]) -> None:
        for name, value in values.items():
            if self.options.setdefault(name, value) != value:
                raise UserError(f"{name}: expected {value!r}, as the samples have it, got {self.options[name]!r}")

    def _name(self, data: Data, answered: bool = True) -> str:
        if isinstance(data, Samples):
            self.rows[data.name] = data.rows
            return data.name
        name, rows = rows_of(data, bool(self.options.get("skip_bad_rows")), answered)
        if rows is not None:
            self.rows[name] = rows
        return name


def rows_of(data: str | Path | Rows, skip_bad_rows: bool, answered: bool) -> tuple[str, RowSet | None]:
    """A set's name, and its rows where they are in memory."""
    if isinstance(data, str | Path):
        return str(data), None
    rows = row_set(data, answered=answered, skip_bad_rows=skip_bad_rows)
    return rows.name, rows


def labelled(delta: Change | Mapping[str, Change]) -> dict[str, str] | list[str]:
    """Weight changes as the commands' options take them: by label, or a list of one or none."""
    if isinstance(delta, Mapping):
        return {label: str(path) for label, path in delta.items()}
    return [str(delta)] if delta else []


@contextmanager
def python_names() -> Iterator[None]:
    """Errors name keywords, not options of a command line."""
    try:
        yield
    except UserError as error:
        text = re.sub(r"--([a-z][a-z-]*)", lambda match: match[1].replace("-", "_"), str(error))
        raise UserError(text) from error
