"""Supervised fine-tuning of a model on tokenised samples: the plan, the run, and the log of every step.

The loss is the mean negative log-likelihood over the response tokens of a batch, whatever the sizes of the
micro-batches that it is computed in. Rows are neither packed nor cut; padding is on the right. The trained weights
are float32 (or float64): in bfloat16 most updates of a usual learning rate are rounded away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridge.data.samples import Sample
from bridge.training.hooks import OnStep, StepHook
from bridge.training.plan import Plan, TrainingLog
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Checkpoints

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def with_lora(model: PreTrainedModel, plan: Plan, base_name: str | None = None) -> PeftModel:
    """The model with new LoRA adapters on the plan's targets, drawn from the plan's seed (a peft.PeftModel).

    The model itself is changed (its linear modules are wrapped). A is drawn as peft draws it and B is 0, so the
    function is not changed yet. `base_name` is what adapter_config.json calls the base model.

    Raises:
        UserError: if the targets match no linear module, or the output layer.

    """
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model

    from bridge.models.transformers_setup import quiet_transformers

    names = _targets(model, plan.lora_targets)
    config = LoraConfig(
        r=plan.lora_rank,
        lora_alpha=plan.lora_alpha,  # type: ignore[arg-type]  # a float is as good
        lora_dropout=plan.lora_dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of what it sets itself for GPT-2's Conv1D
        torch.manual_seed(plan.seed)
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def _targets(model: PreTrainedModel, pattern: str | None) -> list[str]:
    from bridge.estimators.taps import select_modules

    try:
        chosen = select_modules(model, pattern)
    except UserError as error:
        raise UserError(str(error).replace("--modules", "--lora-targets")) from None
    output = model.get_output_embeddings()
    for name, module in chosen.items():
        if module is output:
            raise UserError(f"--lora-targets: expected linear modules of the blocks, got the output layer {name}")
    return list(chosen)


def train(
    model: PreTrainedModel | PeftModel,
    samples: Sequence[Sample],
    plan: Plan,
    folder: Checkpoints,
    progress: Progress,
    *,
    pad_id: int,
    on_step: OnStep | None = None,
    hook: StepHook | None = None,
    stage: str = "training",
) -> TrainingLog:
    """Fine-tune the model in place; with the same folder again, go on from the last whole checkpoint.

    Full fine-tuning trains every parameter of the model; LoRA the adapters of what `with_lora` returned. At the end
    the model is in evaluation mode and needs no gradient. On the CPU, the weights are the same to the last bit for
    the same samples, plan and number of threads, killed and continued or not.

    Args:
        model: a causal language model in float32 or float64; for LoRA, what `with_lora` returned.
        samples: what to train on, shuffled anew for each epoch by the plan's seed.
        plan: the hyper-parameters.
        folder: of the run, where the training keeps its checkpoints until the run is finished.
        progress: where the stage is shown.
        pad_id: any id of the vocabulary; padding is masked.
        on_step: called after each step with the number of steps done and the model in evaluation mode; True ends
            the training. It does not disturb torch's random numbers, and is not called again for steps that a
            killed process had saved.
        hook: stands around every optimizer step (a defence, say); parameters that are not its own are frozen.
        stage: name of the stage, and of its folder of checkpoints.

    Returns:
        The log of all steps, those before a kill included.

    Raises:
        UserError: for a plan that cannot be used, no samples, weights of less than float32, a loss or gradient
            that is no number.

    """
    plan.check()
    if not samples:
        raise UserError("--data: expected at least one row to train on, got none")
    _make_trainable(model, plan, hook)
    from bridge.training import sft

    try:
        return sft.run(model, samples, plan, folder.checkpoint(stage), progress, pad_id, on_step, hook, stage)
    finally:
        model.eval().requires_grad_(False)


def _make_trainable(model: torch.nn.Module, plan: Plan, hook: StepHook | None) -> None:
    import torch

    adapted = hasattr(model, "peft_config")
    if adapted != (plan.method == "lora"):
        raise ValueError(f"method {plan.method} got a model {'with' if adapted else 'without'} adapters")
    chosen = None if hook is None else {id(parameter) for parameter in hook.trained}
    for name, parameter in model.named_parameters():
        wanted = "lora_" in name if adapted else parameter.is_floating_point()
        parameter.requires_grad_(wanted and (chosen is None or id(parameter) in chosen))
    low = next((p for p in model.parameters() if p.dtype not in (torch.float32, torch.float64)), None)
    if low is not None:
        raise UserError(
            f"--dtype: expected float32 or float64 weights, got {str(low.dtype).removeprefix('torch.')}: at usual "
            "learning rates it rounds most updates away; for speed on a GPU use --set bf16=true, which computes in "
            "bfloat16 and keeps the weights in float32"
        )
