"""Kills tiny runs of `estimate_aic` everywhere; `python -m tests.bridge.killed_runs WORKPLACE OPTIMIZER`."""

from __future__ import annotations

import sys
from pathlib import Path

from bridge.estimate_aic import MEMORY_ADVICE
from bridge.estimate_aic import main as command
from tests.bridge.killing import At, Killed, kill_everywhere, like_another
from tests.bridge.tiny_runs import options

BEFORE = ("before velocity.safetensors", "before aic.json")  # elsewhere the moment before a rename is like the last
PICTURES = ("spectrum.png", "coupling.png", "prediction.png")
COMPARED = ("aic.json", "samples.jsonl", "statistics.npz", "report.html", *PICTURES)


def main(folder: Path, optimizer: str) -> None:
    _import_everything()
    more = ("--optimizer", optimizer, "--adam-batch-size", "2", "--batch-size", "3")
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: options(folder, *more, "--out", str(out)),
        compared=COMPARED,
        watch=_watch,
        skip=like_another(lambda moment: moment.startswith("before") and moment not in BEFORE),
    )
    kill_everywhere(killed, folder)


def _import_everything() -> None:
    import jinja2  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import rich.table  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import transformers

    from bridge import aic_run  # noqa: F401

    torch.set_num_threads(1)  # no thread pool that a fork would lose
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)


def _watch(at: At) -> None:
    from bridge import checkpoints

    checkpoints._SAVE_EVERY_SECONDS = -1.0  # every step is a checkpoint


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
