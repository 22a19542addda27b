"""How a command ends: on errors of the user's input, of memory, on an interrupt, on a bug."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import pytest

from commands.cli import run_command
from commands.errors import UserError


def ended(error: BaseException, **options: str) -> int | str | None:
    """The exit code of a command that raises."""

    def command() -> NoReturn:
        raise error

    with pytest.raises(SystemExit) as end:
        run_command(command, "lower --size", **options)
    return end.value.code


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(UserError("first\n   second\tthird")) == 2
    assert capsys.readouterr().err == "error: first second third\n"


def test_an_interrupt_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n"
    assert ended(SystemExit(130), interrupted="stopped") == 130  # as typer ends
    assert capsys.readouterr().err == "stopped\n"
    assert ended(SystemExit(3)) == 3
    assert capsys.readouterr().err == ""


def test_an_allocation_that_really_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The words of these libraries' own allocators, whatever they are."""
    torch = pytest.importorskip("torch")
    for allocate in (lambda: torch.empty(2**60, dtype=torch.uint8).sum(), lambda: np.ones(2**60, dtype=np.uint8)):
        with pytest.raises(SystemExit) as end:
            run_command(allocate, "lower --size")
        assert end.value.code == 2
        assert capsys.readouterr().err == "error: out of memory: lower --size\n"


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        run_command(lambda: (_ for _ in ()).throw(RuntimeError("a bug")), "lower --size")
    assert run_command(lambda: 0, "lower --size") is None
