"""Small trainings that are watched, and what their tests need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bridge.monitor import AlignmentMonitor
from bridge.training.lent_model import quiet
from bridge.training.plan import Plan
from bridge.training.train import with_lora
from tests.bridge.support.tiny_models import VOCABULARY, tiny_llama_model, tiny_tokenizer
from tests.bridge.support.tiny_runs import TEMPLATE

PROMPTS = ["how x?", "how xx?", "how xxx?", "and y?"]
STEPS = 6


def tokenizer() -> Any:
    found = tiny_tokenizer()
    found.chat_template = TEMPLATE
    found.pad_token = "</s>"
    return found


def model(lora: bool = False, tied: bool = False) -> Any:
    """A tiny Llama whose outputs are not uniform; with LoRA, B is not 0, so that all scores are there."""
    found = tiny_llama_model(tied=tied)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    if not lora:
        return found
    return with_lora(found, Plan("lora", 1e-3, lora_rank=2, lora_dropout=0.2))


def rows(count: int = 8) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for length in range(8, 8 + count):
        ids = torch.randint(2, VOCABULARY - 2, (length,), generator=draw).tolist()
        found.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]], "attention_mask": [1] * length})
    return found


def monitor(**options: Any) -> AlignmentMonitor:
    return AlignmentMonitor(
        PROMPTS, **{"num_probe": 4, "max_new_tokens": 5, "every": 2, "subspaces_every": 2} | options
    )


def train(
    folder: Path,
    subject: Any,
    callbacks: Sequence[Any] = (),
    *,
    resume: bool | str = False,
    reporters: Sequence[Any] = (),
    processing_class: bool = True,
    eval_dataset: Sequence[Any] | None = None,
    **options: Any,
) -> Any:
    """The trainer after its training: transformers' own, silent, on the CPU."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    given = {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": 2e-3,
        "report_to": "none", "use_cpu": True, "save_strategy": "no", "logging_steps": 100, "disable_tqdm": True,
        "remove_unused_columns": False,
    }  # fmt: skip
    with quiet():
        torch.manual_seed(0)
        trainer = Trainer(
            subject,
            TrainingArguments(**given | options),
            train_dataset=rows(),
            eval_dataset=eval_dataset,
            data_collator=DataCollatorForSeq2Seq(tokenizer()),
            processing_class=tokenizer() if processing_class else None,
        )
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        for callback in (*reporters, *callbacks):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def weights(subject: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in subject.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
