"""Settings files: TOML documents that give commands of this package their options, checked before anything runs.

The parameters of a command's `main` are the options that a file may give it, with their types and their defaults.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import tomllib
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bridge.data.sets import NAMED_SETS, unknown_name
from commands.errors import UserError

FOLDER = Path(__file__).parent
"""Where the settings files are that come with the package."""

Options = Mapping[str, Any]
_KINDS: dict[Any, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table of options",
    list: "a list",
}  # fmt: skip


def read_toml(spec: str, shipped: Mapping[str, str]) -> dict[str, Any]:
    """The content of a TOML file, or of one that comes with the package by its name.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not TOML.

    """
    path = FOLDER / shipped[spec] if spec in shipped else Path(spec).expanduser()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--settings: no such file: {spec}; give a TOML file, or {' or '.join(shipped)}") from None
    except OSError as error:
        raise UserError(f"--settings: {spec} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--settings: {spec} is not TOML: {error}") from None


@cache
def command_main(command: str) -> Any:
    """The function behind `python -m bridge.COMMAND`; its options are its parameters."""
    return importlib.import_module(f"bridge.{command}").main


@cache
def _command_types(command: str) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(command_main(command)).items() if name != "return"}


def with_defaults(command: str, options: Options) -> dict[str, Any]:
    """The options of a command by name; those left out have the defaults of its command line."""
    parameters = inspect.signature(command_main(command)).parameters
    return {name: parameter.default for name, parameter in parameters.items()} | dict(options)


def run_quietly(main: Any, options: Options) -> None:
    """Run a command in this process with these options; its closing table is not shown."""
    with contextlib.redirect_stdout(io.StringIO()):
        main(**options)


class SettingsReader:
    """Reads the values of a settings file by their types; errors name the file and the key.

    `owned` are options of commands that a file cannot give, because the command that reads the file gives them.
    """

    def __init__(self, file: str, owned: Collection[str]) -> None:
        self.file = file
        self._owned = frozenset(owned)

    def error(self, where: str, wanted: str, got: object) -> UserError:
        """An error at a key: what was expected there, and what was got."""
        return UserError(f"--settings {self.file}: {where}: expected {wanted}, got {got!r}")

    @contextmanager
    def naming_file(self) -> Iterator[None]:
        """Errors of the user's input inside name the file."""
        try:
            yield
        except UserError as error:
            raise UserError(f"--settings {self.file}: {error}") from error

    def known(self, where: str, found: Options, known: Options) -> None:
        """Raise UserError, with the nearest names, for a key that is none of the known ones; `where` "" is the top."""
        for name in found:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
                place = f"{where}: unknown option" if where else "unknown key"
                raise UserError(f"--settings {self.file}: {place} {name!r}; {hint}")

    def top(self, found: Options, kinds: Mapping[str, type]) -> None:
        """Raise UserError unless every key is known and its value of the kind."""
        self.known("", found, kinds)
        for name, kind in kinds.items():
            if name in found and (not isinstance(found[name], kind) or (kind is int and isinstance(found[name], bool))):
                raise self.error(name, _KINDS[kind], found[name])

    def table(self, where: str, found: object) -> dict[str, Any]:
        """The value as a table of options; UserError if it is none."""
        if not isinstance(found, dict):
            raise self.error(where, _KINDS[dict], found)
        return found

    def command_options(self, command: str, without: Collection[str] = ()) -> dict[str, Any]:
        """Types of the options that a file may give to a command, by name."""
        left_out = self._owned | set(without)
        return {name: hint for name, hint in _command_types(command).items() if name not in left_out}

    def options(self, where: str, command: str, found: Options, without: Collection[str] = ()) -> dict[str, Any]:
        """The options of one command, checked by the types of its parameters."""
        known = self.command_options(command, without)
        self.known(where, found, known)
        options: dict[str, Any] = {}
        for name, value in found.items():
            read = _read_value(value, known[name])
            if read is None:
                raise self.error(f"{where}: {name}", _describe(known[name]), value)
            options[name] = read
        return options


def check_set(spec: str) -> None:
    """Raise UserError if `--data SPEC` names a set that there is none of; files are not looked for."""
    name, _, _ = spec.partition("=")
    if name not in NAMED_SETS and not Path(spec).exists() and not any(mark in name for mark in "./"):
        raise unknown_name(name)


def _alternatives(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return [each for each in get_args(hint) if each is not types.NoneType]
    return [hint]


def _read_value(value: object, hint: Any) -> Any:
    """The value as a parameter of that type takes it; None if it does not."""
    for each in _alternatives(hint):
        if get_origin(each) is Literal and value in get_args(each) and isinstance(value, str):
            return value
        if get_origin(each) is list:
            many = [value] if isinstance(value, str) else value
            if isinstance(many, list) and many and all(isinstance(item, str) for item in many):
                return many
        elif each is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        elif isinstance(each, type) and type(value) is each:
            return value
        elif each is Path and isinstance(value, str):
            return Path(value)
    return None


def _describe(hint: Any) -> str:
    parts = []
    for each in _alternatives(hint):
        if get_origin(each) is Literal:
            parts.append(" or ".join(get_args(each)))
        else:
            parts.append("texts" if get_origin(each) is list else _KINDS.get(each, "a path"))
    return " or ".join(parts)
