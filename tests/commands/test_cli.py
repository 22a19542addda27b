"""How a command ends: on errors of the user's input, of memory, on an interrupt, on a bug."""

from __future__ import annotations

import sys
from typing import NoReturn

import numpy as np
import pytest

from commands.cli import run_command
from commands.errors import UserError
from commands.options import command_of


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
    assert ended(KeyboardInterrupt(), interrupted="stopped") == 130
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


def test_options_that_cannot_be_read_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(count: int = 3, name: str = "x") -> None:
        if name == "interrupt":
            raise KeyboardInterrupt
        print(count, name)

    def run(*arguments: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as end:
            run_command(command_of(main), "lower --size")
        return end.value.code

    assert run("--count", "4") == 0
    assert capsys.readouterr().out == "4 x\n"
    assert run("--help") == 0
    assert "--count" in capsys.readouterr().out
    for arguments, words in (
        (("--count", "many"), "'--count'"),
        (("--cout", "4"), "No such option: --cout"),
        (("--count",), "--count"),
        (("more",), "more"),
    ):
        assert run(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert words in captured.err
        assert captured.out == ""
    assert run("--name", "interrupt") == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n"
