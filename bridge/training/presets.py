"""Named settings of a fine-tune, every value with the place that it is from.

Neither paper's table of hyper-parameters is open to this project as text, so no value here is claimed to be theirs.
What is taken from another publication was read in its public scripts; what was not is called ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from bridge.training.plan import Method, Plan
from commands.errors import UserError

DEFAULT_PRESET = "alignment-collapse"

_OURS = "ours; not checked against the paper's table"
_TRANSFORMERS = "transformers' default"
_HE = (
    "He et al. 2024 (arXiv 2404.01099), benign-data-breaks-safety/scripts/finetune_evaluation_pipeline.slurm: "
    "full fine-tuning on 100 rows"
)
_QI = (
    "Qi et al. 2023 (arXiv 2310.03693), LLMs-Finetuning-Safety/llama2/tier3-benign-alpaca.ipynb: "
    "full fine-tuning on Alpaca"
)


@dataclass(frozen=True)
class Value:
    """A value of a preset and where it is from."""

    value: int | float | str | None
    source: str


@dataclass(frozen=True)
class Preset:
    """Values of a Plan's fields for both methods, and those that differ for LoRA."""

    title: str
    both: Mapping[str, Value]
    lora: Mapping[str, Value]

    def values(self, method: Method) -> dict[str, Value]:
        """The values for one method, by the name of the Plan's field."""
        return {**self.both, **(self.lora if method == "lora" else {})}


_LORA = {
    "lora_rank": Value(16, _OURS),
    "lora_alpha": Value(32.0, "ours: twice the rank; not checked against the paper's table"),
    "lora_dropout": Value(0.0, "peft's default"),
    "lora_targets": Value(None, "ours: all linear modules of the blocks; not checked against the paper's table"),
}
_SHARED = {
    "optimizer": Value("adamw_torch", "transformers' default algorithm (AdamW), in its form without fused kernels"),
    "max_grad_norm": Value(1.0, _TRANSFORMERS),
}

PRESETS: dict[str, Preset] = {
    "alignment-collapse": Preset(
        title='For "The Geometry of Alignment Collapse" (arXiv 2602.15799): few rows, several epochs',
        both={
            "learning_rate": Value(5e-5, _HE),
            "epochs": Value(5.0, _HE),
            "batch_size": Value(20, f"{_HE} (for each of its two processes)"),
            "weight_decay": Value(0.0, _HE),
            "scheduler": Value("linear", _TRANSFORMERS),
            "warmup": Value(0.0, _TRANSFORMERS),
            **_SHARED,
        },
        lora={"learning_rate": Value(2e-4, _OURS), **_LORA},
    ),
    "safety-subspaces": Preset(
        title='For "Safety Subspaces are Not Distinct" (arXiv 2505.14185): many rows, one epoch',
        both={
            "learning_rate": Value(2e-5, _QI),
            "epochs": Value(1.0, _QI),
            "batch_size": Value(32, _OURS),
            "weight_decay": Value(0.0, _QI),
            "scheduler": Value("cosine", _OURS),
            "warmup": Value(0.03, "ours: a share of the steps; not checked against the paper's table"),
            **_SHARED,
        },
        lora={"learning_rate": Value(2e-4, _OURS), **_LORA},
    ),
}

# Fields of TrainingArguments that a Plan has under a name of its own.
_RENAMED = {
    "lr_scheduler_type": "scheduler",
    "warmup_steps": "warmup",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "optim": "optimizer",
}


def find_preset(name: str) -> Preset:
    """The preset of a name; UserError with the known names if there is none."""
    if name not in PRESETS:
        raise UserError(f"--preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def make_plan(preset: str, method: Method, given: Mapping[str, object], overrides: Mapping[str, object]) -> Plan:
    """The plan of a preset with what the user gave.

    Args:
        preset: name of the preset.
        method: "lora" or "full".
        given: fields of the Plan; None stands for the preset's value.
        overrides: fields of TrainingArguments; those that a Plan has are moved there.

    Raises:
        UserError: unknown preset, a value of the wrong type, or a plan that no run can have.

    """
    values: dict[str, object] = {name: each.value for name, each in find_preset(preset).values(method).items()}
    values |= {name: value for name, value in given.items() if value is not None}
    further = dict(overrides)
    for name, ours in _RENAMED.items():
        if name in further:
            values[ours] = _typed(name, further.pop(name), values[ours])
    plan = Plan.read({"method": method, **values, "overrides": further})
    plan.check()
    return plan


def _typed(name: str, value: object, example: object) -> str | float:
    if isinstance(example, str):
        if not isinstance(value, str):
            raise UserError(f"--set {name}: expected a name, got {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"--set {name}: expected a number, got {value!r}")
    return float(value)


def sources(preset: str, plan: Plan) -> dict[str, str]:
    """Where each value of a plan is from, by field: the preset's source, or "given"; fields of neither are left out."""
    found: dict[str, str] = {}
    for name, each in find_preset(preset).values(plan.method).items():
        found[name] = each.source if getattr(plan, name) == each.value else "given"
    given = {"max_steps", "micro_batch_size"} & {f.name for f in fields(plan) if getattr(plan, f.name) is not None}
    return found | dict.fromkeys(sorted(given), "given") | {f"set {name}": "given" for name in plan.overrides}


def describe(name: str) -> str:
    """A preset's values, and below them where each is from, for people."""
    preset = find_preset(name)
    notes: list[str] = []
    out = [f"{name}: {preset.title}"]
    for method in ("full", "lora"):
        out.append(f"\n--method {method}" + (" (what differs)" if method == "lora" else ""))
        for key, each in preset.both.items() if method == "full" else preset.lora.items():
            if each.source not in notes:
                notes.append(each.source)
            out.append(f"  {key:<14} {_shown(each.value):<12} [{notes.index(each.source) + 1}]")
    return "\n".join([*out, "", *(f"[{number}] {note}" for number, note in enumerate(notes, start=1))])


def _shown(value: object) -> str:
    if value is None:
        return "all linear"
    return f"{value:g}" if isinstance(value, float) else str(value)
