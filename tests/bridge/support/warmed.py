"""Importing this imports all that a command needs, and makes what libraries make at first use.

A process that is forked has it then: that costs several times what a tiny run does. Nothing of the project runs.
"""

from __future__ import annotations

import gc
import importlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # with a GPU, autograd starts threads that no fork has

import torch
import transformers
from tqdm import tqdm

from tests.bridge.support.tiny_models import save_model, tiny_gpt2_model, tiny_llama_model

LIBRARIES = (
    "datasets", "encodings.cp437", "encodings.unicode_escape", "jinja2", "matplotlib.backends.backend_agg",
    "matplotlib.figure", "peft", "rich._emoji_codes", "rich.table", "safetensors.torch", "scipy.linalg",
    "scipy.optimize", "scipy.stats", "torch.utils.serialization", "trl", "typer._adapters",
)  # fmt: skip
RUNS = (
    "experiments.activations.run", "experiments.align.run", "experiments.estimate_aic.run",
    "experiments.fisher_overlap.run", "experiments.finetune.run", "experiments.harmfulness.run",
    "experiments.onset.run", "experiments.overlap.run", "experiments.risk.run", "suites.safety_subspaces.run",
    "suites.study.run", "experiments.subspaces.energy", "experiments.subspaces.mso", "experiments.subspaces.project",
    "suites.table1.run", "experiments.utility.run", "training.defences.defence", "deltas.open", "training.pilot",
    "estimators.probe", "training.sft",
)  # fmt: skip


def _warm() -> None:
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0
    for name in LIBRARIES:
        importlib.import_module(name)
    importlib.import_module("tests.sketches")
    for name in RUNS:
        importlib.import_module(f"bridge.{name}")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        for model in (tiny_llama_model(tied=False), tiny_gpt2_model()):
            _use(save_model(model, Path(folder) / type(model).__name__))
    gc.collect()
    gc.freeze()  # what a fork collects is its own


def _use(folder: Path) -> None:
    """Load the model, generate, and differentiate it both ways."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = torch.tensor([[tokenizer.bos_token_id, 7]])  # a tokenizer that encodes starts threads
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
    model(ids).logits.sum().backward()
    weight = model.get_input_embeddings().weight.detach()

    def logits(embeddings: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(inputs_embeds=embeddings[ids]).logits
        return found

    torch.func.jvp(lambda w: torch.func.jvp(logits, (w,), (w,))[1], (weight,), (weight,))


_warm()
