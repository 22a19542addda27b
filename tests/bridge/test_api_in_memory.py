"""Models in memory: measured as the command measures them, and left as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bridge
from tests.bridge.support.tiny_activations import make_prompts
from tests.bridge.support.tiny_deltas import adapted
from tests.bridge.support.tiny_interface import SHORT


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prompts(tmp_path_factory.mktemp("in-memory"))


@pytest.fixture(scope="module")
def tokenizer(workplace: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(workplace / "model")


def load(workplace: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(workplace / "model", **options)


def measured(model: Any, workplace: Path) -> dict[str, Any]:
    skill = model.samples(workplace / "skill.jsonl", 6, **SHORT)
    found = model.estimate_aic(skill, workplace / "finetune.jsonl", num_finetune=5, bootstrap=0).to_dict()
    return {name: value for name, value in found.items() if name != "model"}


@pytest.fixture(scope="module")
def by_name(workplace: Path) -> dict[str, Any]:
    return measured(bridge.Model(workplace / "model", device="cpu"), workplace)


def state(model: Any, tokenizer: Any) -> dict[str, Any]:
    """All that a caller could miss afterwards."""
    modules, numpy = list(model.modules()), np.random.get_state()
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return {
        "modes": [module.training for module in modules],
        "attributes": [sorted(vars(module)) for module in modules],
        "compiled": [module._compiled_call_impl for module in modules],
        "hooks": [[dict(getattr(module, kind)) for kind in kinds] for module in modules],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [p.grad if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "weights": [(p.data_ptr(), p.detach().double().sum().item()) for p in model.parameters()],
        "config": (model.config.to_json_string(), model.config._attn_implementation, model.config.return_dict),
        "generation": (id(model.generation_config), model.generation_config.to_json_string()),
        "tokenizer": (tokenizer.pad_token, tokenizer.padding_side, len(tokenizer), tokenizer.chat_template),
        "numpy": (numpy[1].tolist(), numpy[2:]),  # type: ignore[index,union-attr]
        "torch": torch.random.get_rng_state().tolist(),
    }


def _training(model: Any) -> Any:
    for module in model.train().modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    return model


def _checkpointed(model: Any) -> Any:
    model.train().gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return model


def _compiled_in_place(model: Any) -> Any:
    model.compile()
    return model


def _partly_trained(model: Any) -> Any:
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if number % 2 == 0 else None
    return model


def _hooked(model: Any) -> Any:
    model.register_forward_pre_hook(lambda module, args: None)
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: None)
    model.model.layers[0].mlp.down_proj.register_full_backward_hook(lambda *given: None)
    return model


def _configured(model: Any) -> Any:
    model.config.output_hidden_states, model.config.return_dict, model.config.use_cache = True, False, False
    model.generation_config.do_sample, model.generation_config.max_length = False, 5
    return model


def _other_attention(model: Any) -> Any:
    model.set_attn_implementation("flex_attention")
    return model


AS_THEY_STAND: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda model: model,
    "in training": _training,
    "checkpointed": _checkpointed,
    "torch.compile": torch.compile,
    "model.compile": _compiled_in_place,
    "partly trained": _partly_trained,
    "hooked": _hooked,
    "configured": _configured,
    "other attention": _other_attention,
}


@pytest.mark.parametrize("prepare", AS_THEY_STAND.values(), ids=AS_THEY_STAND.keys())
def test_a_model_in_memory_gives_the_numbers_of_its_name_and_stays_as_it_is(
    prepare: Callable[[Any], Any], workplace: Path, tokenizer: Any, by_name: Any
) -> None:
    model = prepare(load(workplace))
    before = state(model, tokenizer)
    assert measured(bridge.Model(model, tokenizer), workplace) == by_name
    assert state(model, tokenizer) == before


def test_bfloat16(workplace: Path, tokenizer: Any, by_name: Any) -> None:
    named = measured(bridge.Model(workplace / "model", device="cpu", dtype="bfloat16"), workplace)
    assert measured(bridge.Model(load(workplace, dtype=torch.bfloat16), tokenizer), workplace) == named != by_name


@pytest.mark.parametrize("prepare", [lambda model: model, _training, torch.compile], ids=["plain", "train", "compile"])
def test_an_adapter_is_measured_as_the_merged_model(prepare: Any, workplace: Path, tokenizer: Any) -> None:
    model = prepare(adapted(load(workplace), ["q_proj", "down_proj"], r=2, lora_alpha=4))
    merged = copy.deepcopy(getattr(model, "_orig_mod", model)).merge_and_unload()
    before = state(model, tokenizer)
    lent = bridge.Model(model, tokenizer)
    assert lent.name == f"{workplace / 'model'} with adapter default"
    assert measured(lent, workplace) == measured(bridge.Model(merged, tokenizer), workplace)
    assert state(model, tokenizer) == before


MOVING: dict[str, Callable[[Any, Path], Any]] = {
    "overlap": lambda m, w: m.overlap(w / "skill.jsonl", w / "full.safetensors", num_skill=6, rank=3, **SHORT),
    "onset": lambda m, w: m.onset(
        w / "skill.jsonl", w / "finetune.jsonl", num_skill=4, num_finetune=5, num_probe=3, bootstrap=0,
        curvature_iterations=2, at=(0.03, 0.1), learning_rate=1.0, **SHORT,
    ),
    "harmfulness": lambda m, w: m.harmfulness(w / "prompts.jsonl", delta=w / "adapter", max_new_tokens=4),
    "activations": lambda m, w: m.activations(
        {"a": w / "useful.jsonl", "b": w / "harmful.jsonl"}, delta=w / "adapter", num_prompts=8, splits=2,
        permutations=9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", MOVING.values(), ids=MOVING.keys())
def test_what_moves_weights_moves_those_of_a_copy(call: Any, workplace: Path, tokenizer: Any) -> None:
    model = _checkpointed(load(workplace))
    before = state(model, tokenizer)
    found = call(bridge.Model(model, tokenizer), workplace)
    assert state(model, tokenizer) == before
    assert found.to_dict() == call(bridge.Model(workplace / "model", device="cpu"), workplace).to_dict()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_fine_tune_trains_a_copy_and_resumes_by_name(
    method: str, workplace: Path, tokenizer: Any, tmp_path: Path
) -> None:
    model = _hooked(_training(load(workplace)))
    before = state(model, tokenizer)
    rows = workplace / "finetune.jsonl"
    options: dict[str, Any] = {"rows": 5, "max_steps": 2, "max_length": 64, "method": method}
    found = bridge.Model(model, tokenizer).finetune(rows, folder=tmp_path / "run", **options)
    assert state(model, tokenizer) == before
    named = bridge.Model(workplace / "model", device="cpu")
    assert named.finetune(rows, folder=tmp_path / "other", **options).losses == found.losses
    changes = [
        named.overlap(rows, tmp_path / run, num_skill=4, rank=1, bootstrap=0, **SHORT) for run in ("run", "other")
    ]
    one, other = (next(iter(change.deltas.values())) for change in changes)
    assert one.utility_loss == other.utility_loss


def test_a_run_by_name_is_resumed_by_the_same_model_in_memory(workplace: Path, tokenizer: Any, tmp_path: Path) -> None:
    rows, options = workplace / "skill.jsonl", {"num_skill": 6, "rank": 3, **SHORT}
    named = bridge.Model(workplace / "model").spectrum(rows, folder=tmp_path / "run", **options)
    lent = bridge.Model(load(workplace), tokenizer)
    assert lent.spectrum(rows, folder=tmp_path / "run", **options).to_dict() == named.to_dict()
    moved = load(workplace)
    with torch.no_grad():
        moved.lm_head.weight[0, 0] += 1
    with pytest.raises(bridge.UserError, match=r"folder: .* holds another run .*weights_sha256"):
        bridge.Model(moved, tokenizer).spectrum(rows, folder=tmp_path / "run", **options)


def test_a_model_without_a_name_is_called_by_its_class(workplace: Path, tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(load(workplace).config)
    model.config.name_or_path = model.name_or_path = ""
    lent = bridge.Model(model, tokenizer)
    rows, options = workplace / "skill.jsonl", {"num_skill": 6, "rank": 3, **SHORT}
    found = lent.spectrum(rows, folder=tmp_path / "run", **options)
    assert found.model == lent.name == "LlamaForCausalLM"
    assert found.to_dict() == lent.spectrum(rows, **options).to_dict() == bridge.load_result(tmp_path / "run").to_dict()


def test_a_model_that_was_trained_meanwhile_answers_anew(workplace: Path, tokenizer: Any) -> None:
    model = load(workplace)
    lent, options = bridge.Model(model, tokenizer), {"num_skill": 6, "rank": 3, **SHORT}
    skill = lent.samples(workplace / "skill.jsonl", 6, **SHORT)
    before = lent.spectrum(workplace / "skill.jsonl", **options)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(0.1)
    with pytest.raises(bridge.UserError, match="skill: the model has changed since it answered these samples"):
        lent.spectrum(skill, rank=3)
    after = lent.spectrum(workplace / "skill.jsonl", **options)
    fresh = bridge.Model(copy.deepcopy(model), tokenizer).spectrum(workplace / "skill.jsonl", **options)
    assert after.to_dict() == fresh.to_dict() != before.to_dict()


def test_an_error_inside_leaves_the_model_as_it_was(
    workplace: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _partly_trained(_checkpointed(_compiled_in_place(_other_attention(_configured(load(workplace))))))
    before = state(model, tokenizer)
    lent = bridge.Model(model, tokenizer)
    with pytest.raises(bridge.UserError, match="row 1"):
        lent.samples(["x" * 80], 1, **SHORT)
    assert state(model, tokenizer) == before

    def interrupt(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bridge.estimators.taps.contract_block", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lent.spectrum(workplace / "skill.jsonl", num_skill=6, rank=3, **SHORT)
    assert state(model, tokenizer) == before


def test_what_cannot_be_measured_is_said_in_a_line(workplace: Path, tokenizer: Any) -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    spread = load(workplace)
    spread.lm_head = torch.nn.Linear(16, 300, bias=False, device="meta")
    prompted = get_peft_model(load(workplace), PromptTuningConfig(num_virtual_tokens=2, task_type=TaskType.CAUSAL_LM))
    for model, wanted in (
        (spread, "model: expected one device for the whole model, got cpu, meta"),
        (prompted, "model: expected an adapter that can be merged"),
    ):
        with pytest.raises(bridge.UserError, match=wanted):
            bridge.Model(model, tokenizer).samples(workplace / "skill.jsonl", 2, **SHORT)
    for model, wanted in ((load(workplace).model, "which has no output layer"), (torch.nn.Linear(2, 2), "got Linear")):
        with pytest.raises(bridge.UserError, match=wanted):
            bridge.Model(model, tokenizer)
    with pytest.raises(bridge.UserError, match="tokenizer: expected the fast tokenizer"):
        bridge.Model(load(workplace))
    with pytest.raises(bridge.UserError, match="dtype, device"):
        bridge.Model(load(workplace), tokenizer, dtype="bfloat16")
    half = bridge.Model(load(workplace, dtype=torch.bfloat16), tokenizer)
    with pytest.raises(bridge.UserError, match="dtype: expected float32 or float64"):
        half.finetune(workplace / "finetune.jsonl", folder=workplace / "none")
