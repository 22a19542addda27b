"""Results: one frozen dataclass an experiment, written as JSON and read back by one function, shown in a notebook.

The tables and the pictures of a result are in its experiment's `report`, which registers them with `tables_of` and
`pictures_of`; a result itself knows no report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from bridge.reports.tables import Table
from commands.errors import UserError
from commands.settings import Settings
from commands.store import write_json

if TYPE_CHECKING:
    from pandas import DataFrame

Kind = TypeVar("Kind", bound="Result")
Json = dict[str, object] | list[object] | str | int | float | bool | None


@dataclass(frozen=True)
class Result:
    """What an experiment found: a subclass has the fields, as they stand in its JSON file.

    A field whose default is None is left out of the file where it is None; settings are written as in a manifest.

    Attributes:
        FILE: name of that file in a run's folder.
        FORMAT: version of the fields, `schema_version` in the file; a change that old files do not fit raises it.

    """

    FILE: ClassVar[str]
    FORMAT: ClassVar[int] = 1

    def to_dict(self) -> dict[str, object]:
        """The result as JSON has it."""
        found = _json(self)
        assert isinstance(found, dict)
        return {"schema_version": self.FORMAT, **found}

    def write(self, folder: Path) -> None:
        """Write the result's file into a folder, whole or not at all."""
        write_json(folder / self.FILE, self.to_dict())

    @classmethod
    def read(cls: type[Kind], folder: Path) -> Kind:
        """Read the result of a complete run from its folder.

        Raises:
            UserError: there is none, or it is not of these fields; all faults with their places.

        """
        path = folder / cls.FILE
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); delete the folder and run again") from error
        return cls.of_json(content, str(path))

    @classmethod
    def of_json(cls: type[Kind], content: bytes, source: str) -> Kind:
        """The result in the text of its file; errors name the source."""
        import json

        from pydantic import TypeAdapter, ValidationError

        try:
            found = json.loads(content)
            if not isinstance(found, dict):
                raise TypeError("it is no JSON object")
            version = found.pop("schema_version", 1)  # the first pilots had none
        except (ValueError, TypeError) as error:
            raise UserError(f"{source} is no result of a run ({error}); delete the folder and run again") from error
        if version != cls.FORMAT:
            raise UserError(f"{source}: expected format {cls.FORMAT}, got {version}; another version wrote it")
        try:
            adapter: TypeAdapter[Kind] = TypeAdapter(cls)
            made = adapter.validate_python(found)
            faults = [f"{place}: not known" for place in _unread(found, made.to_dict())]
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)]
        if faults:
            raise UserError(f"{source} is not as this version writes it: {'; '.join(faults[:4])}")
        return made

    def records(self) -> list[dict[str, object]]:
        """The rows of the result as a table has them, a mapping each; where it is none, its plain numbers."""
        return [{name: value for name, value in self.to_dict().items() if not isinstance(value, dict | list)}]

    def to_frame(self) -> DataFrame:
        """The rows of the result as a pandas table."""
        from pandas import DataFrame

        return DataFrame(self.records())

    def plot(self, name: str | None = None) -> Picture:
        """A picture that the command draws: by its name, or the first.

        Raises:
            UserError: there is none of that name.

        """
        drawn = pictures_of(self)
        chosen = next(iter(drawn), "") if name is None else name
        if chosen not in drawn:
            raise UserError(f"expected {' or '.join(drawn)}, got {name}" if drawn else "this result has no picture")
        return Picture(drawn[chosen])

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in tables_of(self))

    def __str__(self) -> str:
        return "\n\n".join(table.text() for table in tables_of(self))


class Picture(bytes):
    """A PNG file, which a notebook shows."""

    def _repr_png_(self) -> bytes:
        return bytes(self)

    def _repr_html_(self) -> str:
        import base64

        return f'<img src="data:image/png;base64,{base64.b64encode(self).decode()}">'

    def save(self, path: str | Path) -> None:
        """Write it to a file."""
        Path(path).write_bytes(self)


@singledispatch
def tables_of(result: Result) -> Sequence[Table]:
    """The tables in which a result is shown to a person."""
    records = result.records()
    headings = list(dict.fromkeys(name for record in records for name in record))
    rows = [["" if record.get(name) is None else str(record[name]) for name in headings] for record in records]
    return [Table(type(result).__name__, headings, rows)]


@singledispatch
def pictures_of(result: Result) -> Mapping[str, bytes]:
    """PNG files by name."""
    return {}


def _json(value: object) -> Json:
    if isinstance(value, Settings):
        return value.identity()
    if is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: _json(getattr(value, each.name))
            for each in fields(value)
            if not (each.default is None and getattr(value, each.name) is None)
        }
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"expected a JSON value, got {type(value).__name__}")


def _unread(found: object, made: object, place: str = "") -> Iterator[str]:
    """Places in what a file holds that the result made of it does not have."""
    if isinstance(found, dict) and isinstance(made, dict):
        for name, value in found.items():
            where = f"{place}.{name}" if place else str(name)
            if name in made:
                yield from _unread(value, made[name], where)
            elif value is not None:
                yield where
    elif isinstance(found, list) and isinstance(made, list):
        for k, (value, other) in enumerate(zip(found, made, strict=True)):
            yield from _unread(value, other, f"{place}.{k}")
