"""Kills tiny runs of `bridge.overlap` everywhere; `python -m tests.bridge.killed_overlaps WORKPLACE`."""

from __future__ import annotations

import sys
from pathlib import Path

from bridge.overlap import MEMORY_ADVICE
from bridge.overlap import main as command
from tests.bridge.killing import Killed, kill_everywhere, like_another
from tests.bridge.tiny_overlaps import overlap_options

PICTURES = ("scores.png", "modules.png", "damage.png")
COMPARED = ("overlap.json", "samples.jsonl", "refusals.jsonl", "statistics.npz", "report.html", *PICTURES)
BEFORE = ("before overlap.json",)  # elsewhere the moment before a rename is like the last


def main(folder: Path) -> None:
    _import_everything()
    more = ("--refusals", str(folder / "prompts.jsonl"), "--estimator", "rademacher", "--dim", "16", "--memory", "1e-6")
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: overlap_options(folder, out, *more),
        compared=COMPARED,
        watch=lambda at: None,
        skip=like_another(lambda moment: moment.startswith("before") and moment not in BEFORE),
        often=(3, 25),
    )
    kill_everywhere(killed, folder)


def _import_everything() -> None:
    import jinja2  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import rich.table  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers

    from bridge import overlap_run  # noqa: F401

    torch.set_num_threads(1)  # no thread pool that a fork would lose
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
