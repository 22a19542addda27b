"""Kills tiny runs of `bridge.subspaces` everywhere, for `kill_server`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bridge.subspaces import MEMORY_ADVICE, app
from tests.bridge.support.killing import Killed, kill_everywhere, like_another

REPORT = ("report.html",)
ENERGY = ("energy.json", "energy.npz", "energy.png", "layers.png", *REPORT)
MSO = ("mso.json", "mso.npz", "mso.png", "layers.png", *REPORT)
MODEL = ("chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json")  # fmt: skip
PROJECT = ("project.json", "delta.json", "delta.safetensors", *(f"model/{name}" for name in MODEL), *REPORT)


def main(folder: Path) -> None:
    given = ["--alignment", str(folder / "alignment.safetensors"), "--device", "cpu"]
    full = f"full={folder / 'full.safetensors'}"
    few = ["--fractions", "0.3,1", "--repeats", "2"]
    one = ["--aligned", str(folder / "aligned"), "--save-model"]
    commands: dict[str, tuple[tuple[str, ...], list[str], tuple[int, int]]] = {
        "energy": (ENERGY, ["energy", *given, "--task", full, *few], (5, 30)),
        "mso": (MSO, ["mso", *given, "--update", full, "--energies", "0.5,0.9", "--permutations", "3"], (5, 30)),
        "project": (PROJECT, ["project", *given, "--task", full, "--fraction", "0.3", *one], (5, 9)),
    }
    for name, (compared, arguments, often) in commands.items():
        (folder / f"killed-{name}").mkdir()
        killed = Killed(
            main=app,  # type: ignore[arg-type]  # command_of takes an app as well as a function
            advice=MEMORY_ADVICE,
            arguments=partial(_writing_to, arguments),
            compared=compared,
            watch=lambda at: None,
            skip=like_another(_left_out),
            often=often,
        )
        kill_everywhere(killed, folder / f"killed-{name}")


def _writing_to(arguments: list[str], out: Path) -> list[str]:
    return [*arguments, "--out", str(out)]


def _left_out(moment: str) -> bool:
    """Pictures, and the time before a rename, but for that before a result or a model's folder appears."""
    early = moment.startswith("before") and not moment.endswith((".json", "model"))
    return early or moment.endswith((".png", "manifest.json"))
