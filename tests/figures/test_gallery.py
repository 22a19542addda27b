"""``python -m figures``: runs what is missing, reads what is there, draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sim
from figures.__main__ import COMMANDS
from tests.in_process import run_module

ROOT = Path(__file__).parents[2]


def gallery(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "figures", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_picture_is_drawn_from_its_run(tmp_path: Path) -> None:
    arguments = ("--names", "landscape", "--out", str(tmp_path / "pictures"), "--runs", str(tmp_path / "runs"))
    done = gallery(*arguments)
    assert done.returncode == 0, done.stderr
    picture = tmp_path / "pictures" / "landscape.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    run = tmp_path / "runs" / "landscape" / "landscape.json"
    written = run.stat().st_mtime_ns
    picture.unlink()
    assert run_module("figures", *arguments).code == 0
    assert picture.exists()
    assert run.stat().st_mtime_ns == written  # the run is read again, not made again


def test_wrong_names_are_one_line() -> None:
    done = run_module("figures", "--names", "landscape,ridge")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: --names takes names out of quartic")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module_a_picture_and_a_place_in_the_readme(name: str) -> None:
    assert (Path(sim.__file__).parent / f"{name}.py").exists()
    assert (ROOT / "docs" / "pictures" / f"{name}.png").exists()
    readme = (ROOT / "README.md").read_text()
    assert f"python -m sim.{name}" in readme
    assert f"docs/pictures/{name}.png" in readme
