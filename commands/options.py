"""Command lines, by typer, with their errors in one line; the options of a settings class become options there."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, NoReturn, get_origin, get_type_hints

import typer

from commands.cli import INTERRUPTED
from commands.errors import UserError
from commands.settings import Field, Settings, alternatives, fields_of, read_file

Out = Annotated[Path | None, typer.Option(help="Run folder. (default: runs/COMMAND/NAME-HASH)")]
"""The folder that a command writes."""
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_FROM_FILE = "TOML file of options, such as the settings.toml of a run; options beside it come first."


def command_of(main: Callable[..., object] | typer.Typer, name: str = "") -> Callable[[], NoReturn]:
    """The command that reads the arguments of the process and ends with an exit code: what main returns, or 0.

    main is a function of options, or an app of several such commands. A first parameter that is a settings class
    (`commands.settings.Settings`) stands for all of its fields, and for --settings, which reads them from a file;
    `name` is then the command's, as `python -m` takes it.

    Raises:
        UserError: for options that typer cannot read, or that no settings can have.
        KeyboardInterrupt: for an interrupt.

    """
    app = main if isinstance(main, typer.Typer) else app_of({"": main}, name or main.__module__)

    def command() -> NoReturn:
        try:
            code = app(standalone_mode=False)
        except typer.TyperException as error:
            text = error.format_message() if hasattr(error, "format_message") else str(error)
            raise UserError(f"{text} See --help." if text else "expected a part; see --help") from error
        if code == INTERRUPTED:  # what typer makes of an interrupt
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)

    return command


def app_of(mains: dict[str, Callable[..., object]], name: str, help_text: str | None = None) -> typer.Typer:
    """An app of one function of options (under the name ""), or of several by their names; see `command_of`."""
    several = "" not in mains
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=several,
        help=help_text if several else None,
    )
    for part, main in mains.items():
        app.command(part or None)(_spread(main, f"{name} {part}".strip()))
    return app


def _spread(main: Callable[..., object], name: str) -> Callable[..., object]:
    """The function with an option of its own for every field of the settings that its first parameter takes."""
    hints = get_type_hints(main, include_extras=True)
    parameters = list(inspect.signature(main).parameters.values())
    if not parameters:
        return main
    first, *rest = parameters
    kind = hints[first.name]
    if not (isinstance(kind, type) and issubclass(kind, Settings)):
        return main
    known = fields_of(kind)

    def command(**given: object) -> object:
        more = {parameter.name: given[parameter.name] for parameter in rest}
        options = {} if given["settings_file"] is None else read_file(Path(str(given["settings_file"])), name)
        options |= {field: given[field] for field in known if given[field] not in (None, [])}
        return main(kind.read(options), **more)

    file = Annotated[Path | None, typer.Option("--settings", help=_FROM_FILE)]
    named = {"settings_file": inspect.Parameter("settings_file", _KEYWORD, default=None, annotation=file)}
    named |= {p.name: inspect.Parameter(p.name, _KEYWORD, default=p.default, annotation=hints[p.name]) for p in rest}
    own_first = sorted(known.values(), key=lambda field: field.group != "")
    spread = [*map(_parameter, own_first), *named.values()]
    command.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
    command.__doc__ = main.__doc__
    return command


def _parameter(field: Field) -> inspect.Parameter:
    """A field on the command line. None stands for what was not given, so that a file's value can take its place."""
    names = [field.flag] if field.option.flag or field.option.name else []
    shown = field.option.shown or _shown(field.default)
    text = f"{field.option.help} (default: {shown})" if shown else field.option.help
    option = typer.Option(*names, help=text, show_default=False, rich_help_panel=field.group or None)
    hint = Annotated[_typer_type(field) | None, option]  # type: ignore[operator, valid-type]
    return inspect.Parameter(field.name, _KEYWORD, default=None, annotation=hint)


def _typer_type(field: Field) -> object:
    """What typer reads: texts where the option reads them itself, else the field's own type."""
    if field.option.read is not None:
        return list[str] if field.option.several else str
    kind = next(iter(alternatives(field.hint)))
    return list[str] if get_origin(kind) is tuple else kind


def _shown(default: object) -> str:
    """The default as --help shows it; nothing for none."""
    if default is None or default is MISSING or default is False or default in ((), {}, ""):
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "yes" if default is True else str(default)


def chosen(option: str, text: str, names: Sequence[str]) -> list[str]:
    """The names in a comma-separated option.

    Raises:
        UserError: if one of them is none of ``names``.
    """
    found = [name.strip() for name in text.split(",")]
    for name in found:
        if name not in names:
            raise UserError(f"{option} takes names out of {', '.join(names)}, got {name!r}")
    return found


def require(holds: bool, option: str, wanted: str, got: object) -> None:
    """Raise UserError for an option (its name with underscores or dashes) unless what it needs holds."""
    if not holds:
        raise UserError(f"--{option.replace('_', '-')}: expected {wanted}, got {got}")


def at_least(least: int, settings: object, *names: str) -> None:
    """Raise UserError unless each named attribute is a whole number from `least`."""
    for name in names:
        value = getattr(settings, name)
        require(value >= least, name, f"a whole number from {least}", value)
