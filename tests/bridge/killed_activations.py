"""Kills tiny runs of `bridge.activations`; `python -m tests.bridge.killed_activations WORKPLACE`."""

from __future__ import annotations

import sys
from pathlib import Path

from bridge.activations import MEMORY_ADVICE
from bridge.activations import main as command
from tests.bridge.killing import Killed, kill_everywhere
from tests.bridge.tiny_activations import activation_options

MOMENTS = {  # one of each stage
    "after set-0-responses-0.json", "after set-1-states-0.npz", "after overlaps-1.npz", "after activations.npz",
    "before activations.json", "after report.html",
}  # fmt: skip
COMPARED = (
    "activations.json", "activations.npz", "prompts.jsonl", "energies.png", "layers.png", "report.html",
)  # fmt: skip


def main(folder: Path) -> None:
    _import_everything()
    killed = Killed(
        main=command,
        advice=MEMORY_ADVICE,
        arguments=lambda out: activation_options(folder, out, "--token", "generated", "--batch-size", "4"),
        compared=COMPARED,
        watch=lambda at: None,
        skip=lambda moment: moment not in MOMENTS,
        often=(5, 15),
    )
    kill_everywhere(killed, folder)


def _import_everything() -> None:
    import jinja2  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import rich.table  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import transformers

    from bridge import activations_run  # noqa: F401

    torch.set_num_threads(1)  # no thread pool that a fork would lose
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
