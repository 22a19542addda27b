"""A function's options on the command line, by typer, with their errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import typer

from commands.cli import INTERRUPTED
from commands.errors import UserError

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports no other name for it


def command_of(main: Callable[..., int | None] | typer.Typer) -> Callable[[], NoReturn]:
    """The command that reads the arguments of the process and ends with an exit code: what main returns, or 0.

    main is a function of options, or an app of several such commands.

    Raises:
        UserError: for options that typer cannot read.
        KeyboardInterrupt: for an interrupt.
    """
    app = main if isinstance(main, typer.Typer) else _app_of(main)

    def command() -> NoReturn:
        try:
            code = app(standalone_mode=False)
        except _UsageError as error:
            raise UserError(f"{error.format_message()} See --help.") from error  # type: ignore[attr-defined]
        if code == INTERRUPTED:  # what typer makes of an interrupt
            raise KeyboardInterrupt
        sys.exit(code or 0)

    return command


def _app_of(main: Callable[..., int | None]) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    return app


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
