"""Settings: one frozen dataclass a command, in which every option stands once with its type, range, default and help.

The same class is the command line (`commands.options`), a table of a TOML file, the keyword arguments of a function,
the settings in a run's manifest, and the `settings.toml` in a run's folder that replays the run.

    @dataclass(frozen=True, kw_only=True)
    class Sampling(Settings):
        draws: Annotated[int, Option("Responses drawn at each prompt."), Ge(1)] = 1
"""

from __future__ import annotations

import difflib
import math
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from commands.errors import UserError
from commands.paths import expanded

if TYPE_CHECKING:
    from pydantic import BaseModel

Kind = TypeVar("Kind", bound="Settings")
SETTINGS_FILE = "settings.toml"
"""In a run's folder: the options that the run was given, as any command reads them with --settings."""


@dataclass(frozen=True)
class Option:
    """What a field's type and default do not say of an option.

    Attributes:
        help: what it is, for --help.
        wanted: what an error says was expected; None to say it from the type and the range.
        read: makes the value from the text that a command line or a file gives, or from several such texts; raises
            UserError for a text that it cannot use. None where the type is read as it is.
        written: makes of the value what settings.toml holds and `read` takes; None for the value itself.
        several: whether it may be repeated on a command line.
        flag: whether a command line takes --NAME alone, without --no-NAME.
        name: on a command line, where it is not the field's own.
        shown: the default as --help shows it, where it is not the value.

    """

    help: str
    wanted: str | None = None
    read: Callable[..., object] | None = None
    written: Callable[..., object] | None = None
    several: bool = False
    flag: bool = False
    name: str | None = None
    shown: str | None = None


@dataclass(frozen=True)
class Field:
    """One option of a settings class: the field's name, its type with its range, its default, and its `Option`."""

    name: str
    hint: object
    default: object
    option: Option
    group: str  # the first line of what the class says that it is defined in; "" for the command's own

    @property
    def flag(self) -> str:
        """Its name on a command line."""
        return f"--{(self.option.name or self.name).replace('_', '-')}"

    @property
    def wanted(self) -> str:
        """What it takes, in words."""
        return self.option.wanted or _described(self.hint)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of a command; a subclass adds `check_together` for what types and ranges cannot say.

    Attributes:
        IN_FILES_ALONE: whether no command line has them, so that errors call them by their keys in a file.

    """

    IN_FILES_ALONE: ClassVar[bool] = False

    @classmethod
    def read(cls: type[Kind], values: Mapping[str, object]) -> Kind:
        """Settings from options by name; those left out have their defaults. Nothing is checked beyond one option.

        Raises:
            UserError: an option that is unknown, missing, of another type or out of its range; all of them in one line.

        """
        known = fields_of(cls)
        faults = [unknown(name, known) for name in values if name not in known]
        given: dict[str, object] = {}
        for name, value in values.items():
            if name in known:
                try:
                    given[name] = _plain(value, known[name])
                except UserError as error:
                    faults.append(str(error))
        return _validated(cls, given, faults)

    def check(self) -> None:
        """Raise UserError for options that no run can have."""
        _validated(type(self), {name: getattr(self, name) for name in fields_of(type(self))}, [])
        self.check_together()

    def check_together(self) -> None:
        """Raise UserError for options that do not go together; types and ranges are checked already."""

    def identity(self) -> dict[str, object]:
        """The options as the manifest of a run holds them: JSON values by name."""
        return {name: _json(getattr(self, name)) for name in fields_of(type(self))}

    def write(self, folder: Path, command: str) -> None:
        """Write settings.toml, which replays the run: the command, and every option that is not its default."""
        import tomli_w

        from commands.store import write_atomically

        given = {
            name: _json((field.option.written or _itself)(getattr(self, name)))
            for name, field in fields_of(type(self)).items()
            if getattr(self, name) != field.default and getattr(self, name) is not None
        }
        text = f"# python -m {command} --settings {SETTINGS_FILE}\n" + tomli_w.dumps({"command": command, **given})
        write_atomically(folder / SETTINGS_FILE, text.encode())


def read_file(path: Path, command: str) -> dict[str, object]:
    """The options in a TOML file, such as the settings.toml of a run.

    Raises:
        UserError: the file cannot be read, is not TOML, or is another command's.

    """
    return read_toml(path, command, str(path), "a TOML file of options")


def read_toml(path: Path, command: str, name: str, instead: str) -> dict[str, object]:
    """The same; errors call the file by that name, and say what can be given instead where there is none."""
    try:
        found: dict[str, object] = tomllib.loads(expanded(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--settings: no such file: {name}; give {instead}") from None
    except OSError as error:
        raise UserError(f"--settings: {name} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--settings: {name} is not TOML: {error}") from None
    theirs = found.pop("command", command)
    if theirs != command:
        raise UserError(f"--settings: {name} holds options of {theirs}, not of {command}")
    return found


_FIELDS: dict[object, Mapping[str, Field]] = {}


def fields_of(cls: type[Settings]) -> Mapping[str, Field]:
    """The options of a settings class by name, in the order of its fields."""
    if cls not in _FIELDS:
        _FIELDS[cls] = _read_fields(cls)
    return _FIELDS[cls]


def _read_fields(cls: type[Settings]) -> Mapping[str, Field]:
    hints = get_type_hints(cls, include_extras=True)
    groups = {name: _title(kind) for kind in cls.__mro__[1:] for name in vars(kind).get("__annotations__", ())}
    found: dict[str, Field] = {}
    for field in fields(cls):
        options = [part for part in get_args(hints[field.name]) if isinstance(part, Option)]
        if not options:
            raise TypeError(f"{cls.__qualname__}.{field.name}: no Option in its type")
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        found[field.name] = Field(field.name, hints[field.name], default, options[0], groups.get(field.name, ""))
    return found


def _title(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n")[0].rstrip(".")


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean A or B?", or what is known."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"


def unknown(name: str, known: Iterable[str]) -> str:
    """What is wrong with an option that is none of the known ones, and the nearest of them."""
    return f"unknown option {name!r}; {nearest(name, known)}"


def _plain(value: object, field: Field) -> object:
    """The value as the field's type has it: texts read, lists as tuples, NumPy's numbers as Python's."""
    several = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if field.option.read is not None and (isinstance(value, str) or several):
        return field.option.read(value)
    kinds = list(alternatives(field.hint))
    if any(get_origin(kind) is tuple for kind in kinds):
        if isinstance(value, str):  # one of what may be several
            return (value,)
        if isinstance(value, list | tuple):
            return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if isinstance(value, Path) and str in kinds:
        return str(value)
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else value


def _validated(cls: type[Kind], given: Mapping[str, object], faults: list[str]) -> Kind:
    from pydantic import ValidationError

    known = fields_of(cls)
    try:
        read = _model(cls)(**given)
        made = cls(**{name: getattr(read, name) for name in known})
    except ValidationError as error:
        by_name = {str(fault["loc"][0]): fault for fault in reversed(error.errors(include_url=False))}
        for name, field in known.items():
            called = name if cls.IN_FILES_ALONE else field.flag
            if name in by_name and not any(fault.startswith(f"{called}:") for fault in faults):
                got = repr(given[name]) if name in given else "none"
                faults.append(f"{called}: expected {field.wanted}, got {got}")
    if faults:
        raise UserError("; ".join(dict.fromkeys(faults)))
    return made


def _model(cls: type[Settings]) -> type[BaseModel]:
    """The class as a pydantic model, which finds all faults at once."""
    from pydantic import ConfigDict, create_model

    strictly = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
    known = {f.name: (f.hint, ... if f.default is MISSING else f.default) for f in fields_of(cls).values()}
    made: type[BaseModel] = create_model(cls.__name__, __config__=strictly, **known)  # type: ignore[call-overload]
    return made


def alternatives(hint: object) -> Iterable[object]:
    """The types that a hint allows, without None and without what stands beside a type in Annotated."""
    if get_origin(hint) is Annotated:
        yield from alternatives(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for each in get_args(hint):
            if each is not types.NoneType:
                yield from alternatives(each)
    else:
        yield hint


_WORDS: dict[object, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path",
}  # fmt: skip


def _described(hint: object) -> str:
    """What a type with its range takes, in words: "a whole number from 1 to 9"."""
    parts = []
    for kind in alternatives(hint):
        if get_origin(kind) is Literal:
            parts.append(" or ".join(map(str, get_args(kind))))
        elif get_origin(kind) is tuple:
            parts.append("a list of texts" if get_args(kind)[0] is str else "a list of finite numbers")
        elif get_origin(kind) is dict:
            parts.append("a table of names and values")
        else:
            parts.append(_WORDS.get(kind, getattr(kind, "__name__", str(kind))))
    return " or ".join(parts) + _range(hint)


def _range(hint: object) -> str:
    words = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
    found: dict[str, object] = {}
    for part in _parts(hint):
        found |= {name: getattr(part, name) for name in words if getattr(part, name, None) is not None}
    return "".join(f" {words[name].format(found[name])}" for name in words if name in found)


def _parts(hint: object) -> Iterable[object]:
    """What a hint is made of, at any depth."""
    for part in get_args(hint):
        yield part
        yield from _parts(part)


def _itself(value: object) -> object:
    return value


def _json(value: object) -> object:
    """The value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"expected a finite number, got {value}")
    return value
