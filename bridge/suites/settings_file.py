"""Settings files of suites: TOML documents that give options to the suite and to the commands that it runs.

The suite's own options are the fields of a `SuiteSettings`. A table of options of a command is a field of type
`Options`, checked by that command's own settings class, so that no option is described twice. All that is wrong with
a file is found at once, each fault with its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from annotated_types import Predicate

from bridge.data.sets import NAMED_SETS, unknown_name
from commands.errors import UserError
from commands.settings import SETTINGS_FILE, Settings, fields_of, read_toml, unknown

FOLDER = Path(__file__).parent
"""Where the settings files are that come with the package."""

Kind = TypeVar("Kind", bound=Settings)
Suite = TypeVar("Suite", bound="SuiteSettings")


def _distinct(values: tuple[object, ...]) -> bool:
    return len(set(values)) == len(values)


Distinct = Predicate(_distinct)
"""Beside the type of an option that is a list: each of its values stands there once."""


@dataclass(frozen=True)
class Options(Generic[Kind]):
    """Some options of a command; the suite adds its own, and those left out have the command's defaults.

    Attributes:
        kind: the command's settings.
        given: the options by name, as TOML has them.

    """

    kind: type[Kind]
    given: Mapping[str, object] = field(default_factory=dict)

    def over(self, *others: Options[Kind]) -> Options[Kind]:
        """The same options with those of others in front, the last before all."""
        given = dict(self.given)
        for other in others:
            given |= other.given
        return Options(self.kind, given)

    def settings(self, **own: object) -> Kind:
        """The command's settings with these options and the suite's own, which come first.

        Raises:
            UserError: an option of the suite's own that the command cannot have.

        """
        return self.kind.read({**self.given, **own})


@dataclass(frozen=True, kw_only=True)
class SuiteSettings(Settings):
    """The settings of a suite, as its file gives them."""

    IN_FILES_ALONE: ClassVar[bool] = True

    def identity(self) -> dict[str, object]:
        """The settings as the manifest of a run holds them: JSON values by name."""
        return {name: _json(getattr(self, name)) for name in fields_of(type(self))}

    def document(self) -> dict[str, object]:
        """The settings as a file gives them; None for what is not in it."""
        return self.identity()

    def write(self, folder: Path, command: str) -> None:
        """Write settings.toml, which replays the run."""
        import tomli_w

        from commands.store import write_atomically

        given = {name: value for name, value in self.document().items() if value is not None}
        text = f"# python -m {command} --settings {SETTINGS_FILE}\n" + tomli_w.dumps({"command": command, **given})
        write_atomically(folder / SETTINGS_FILE, text.encode())


def _json(value: object) -> object:
    if isinstance(value, Options):
        return _json(value.given)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class Faults:
    """What is wrong with some settings, each fault with its place."""

    def __init__(self) -> None:
        """Nothing is wrong so far."""
        self._found: list[str] = []

    def add(self, place: str, fault: str) -> None:
        """One more fault; the place "" is the top of the file."""
        self._found.append(f"{place} {fault}" if place else fault)

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """A UserError inside is a fault at that place."""
        try:
            yield
        except UserError as error:
            self.add(place, str(error))

    def end(self) -> None:
        """Raise UserError with all faults in one line, if there are any."""
        if self._found:
            raise UserError("; ".join(dict.fromkeys(self._found)))


class SettingsFile:
    """A settings file while it is read; its tables are taken one by one, and what is left is the suite's own."""

    def __init__(self, spec: str, command: str, shipped: Mapping[str, str]) -> None:
        """Open a TOML file, or one that comes with the package by its name.

        Args:
            spec: the file, or the name.
            command: that it is for, as `python -m` takes it.
            shipped: paths below this folder by name.

        Raises:
            UserError: there is no such file, it cannot be read, it is not TOML, or it is another command's.

        """
        self.spec = spec
        self.faults = Faults()
        self._taken: list[str] = []
        path = FOLDER / shipped[spec] if spec in shipped else Path(spec)
        self._left = read_toml(path, command, spec, f"a TOML file, or {' or '.join(shipped)}")

    def take(self, key: str, default: object = None) -> object:
        """What stands behind a key, or the default, for a caller that reads it itself."""
        self._taken.append(key)
        return self._left.pop(key, default)

    def table(self, place: str, found: object) -> dict[str, object]:
        """A value as a table of options; a fault, and an empty one, if it is none."""
        if isinstance(found, dict):
            return dict(found)
        self.faults.add(place, f"expected a table of options, got {found!r}")
        return {}

    def options(
        self,
        place: str,
        found: object,
        kind: type[Kind],
        only: Collection[str] | None = None,
        without: Collection[str] = (),
    ) -> Options[Kind]:
        """The options of one command in a table, without those that cannot be; these are faults.

        Args:
            place: of the table, in brackets.
            found: the table.
            kind: the command's settings.
            only: the options that the table may give; None for all.
            without: those of them that it may not give, since the suite does.

        """
        known = {
            name: option
            for name, option in fields_of(kind).items()
            if name not in without and (only is None or name in only)
        }
        table = self.table(place, found)
        faults = [unknown(name, known) for name in table if name not in known]
        given = {name: value for name, value in table.items() if name in known}
        usable: dict[str, object] = {}
        for name, value in given.items():
            try:
                read = getattr(kind.read({name: value}), name)
            except UserError as error:
                faults.append(str(error))
            else:
                as_text = known[name].option.read is not None and isinstance(value, str | list)
                several = as_text and known[name].option.several and isinstance(value, str)
                usable[name] = [value] if several else value if as_text else _json(read)
        if faults:
            self.faults.add(place, "; ".join(faults))
        return Options(kind, usable)

    def settings(self, kind: type[Suite], **taken: object) -> Suite:
        """The suite's settings: what is left in the file, and what was made of the rest.

        Raises:
            UserError: with everything that is wrong with the file.

        """
        own = [name for name in fields_of(kind) if name not in taken]
        for name in self._left:
            if name not in own:
                self.faults.add("", unknown(name, [*own, *self._taken]).replace("option", "key", 1))
        try:
            with self.faults.at(""):
                made = kind.read({name: value for name, value in self._left.items() if name in own} | taken)
            self.faults.end()
            made.check()
        except UserError as error:
            raise UserError(f"--settings {self.spec}: {error}") from error
        return made


def check_set(spec: str) -> None:
    """Raise UserError if `--data SPEC` names a set that there is none of; files are not looked for."""
    name, _, _ = spec.partition("=")
    if name not in NAMED_SETS and not Path(spec).exists() and not any(mark in name for mark in "./"):
        raise unknown_name(name)
