"""Kills tiny runs of `bridge.study`; `python -m tests.bridge.killed_studies WORKPLACE`."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from bridge.study import MEMORY_ADVICE
from bridge.study import main as command
from tests.bridge.killed_finetunes import import_everything
from tests.bridge.killing import Killed, kill_everywhere

MOMENTS = {"before pilot.json", "after row.json"}


def main(folder: Path) -> None:
    import_everything()
    settings = folder / "tiny.toml"
    text = settings.read_text().replace('"lora", "full"', '"full"').replace("pilot_steps", "risk = false\npilot_steps")
    settings.write_text(text[: text.index("[[sets]]", text.index("[[sets]]") + 1)])  # the first set alone
    _in_child(str(settings), folder / "whole")
    files = sorted(str(p.relative_to(folder / "whole")) for p in (folder / "whole").rglob("*") if p.is_file())
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: ["--settings", str(settings), "--out", str(out)],
        compared=[name for name in files if name != "manifest.json"],
        watch=lambda at: None,
        skip=lambda moment: moment not in MOMENTS,
        normal=_without_time_and_place,
        often=(20, 40),
    )
    kill_everywhere(killed, folder)


def _in_child(settings: str, out: Path) -> None:
    """A whole run, for the names of its files; in a child, since later forks would lose its threads."""
    child = os.fork()
    if child == 0:
        from matplotlib.figure import Figure

        from tests.sketches import sketch

        Figure.savefig = sketch  # type: ignore[method-assign,assignment]
        with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
            os._exit(command(settings, None, out))
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the undisturbed run failed")


def _without_time_and_place(name: str, content: bytes) -> bytes:
    """What may differ are seconds, memory, and the paths of the run itself."""
    content = re.sub(rb"/(?:undisturbed|killed-\d+|often)/", b"/RUN/", content)
    if name.endswith(("manifest.json", "finetune.json")):
        found = json.loads(content)
        for key in ("seconds", "wall_seconds", "peak_memory_bytes", "stage_seconds"):
            found.pop(key, None)
        return json.dumps(found).encode()
    return content


if __name__ == "__main__":
    main(Path(sys.argv[1]))
