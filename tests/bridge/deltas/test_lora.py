"""LoRA adapters as changes of weights; peft's own layers and its merge are the oracles."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge.deltas.factors import Factors
from bridge.deltas.lora import LoraDelta
from bridge.deltas.parameters import check_fits, save_snapshot, set_weights
from bridge.deltas.tensor_files import TensorFiles
from commands.errors import UserError
from tests.bridge.support.tiny_deltas import adapted, merged_change, save_adapter
from tests.bridge.support.tiny_models import tiny_gpt2_model, tiny_llama_model

LLAMA = ["q_proj", "v_proj", "o_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]  # attn.c_proj is square: both layouts fit its shape
CASES: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "llama": (tiny_llama_model, LLAMA, {"r": 3, "lora_alpha": 7}),
    "llama-rslora": (tiny_llama_model, LLAMA, {"r": 3, "lora_alpha": 7, "use_rslora": True}),
    "llama-patterns": (
        tiny_llama_model,
        LLAMA,
        {
            "r": 2,
            "lora_alpha": 5,
            "rank_pattern": {"layers.1.self_attn.v_proj": 3, r"model.layers.1.mlp.\w+": 1, "v_proj": 4},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 11, "o_proj": 0.5, "proj": 100},
        },
    ),
    "gpt2": (tiny_gpt2_model, GPT2, {"r": 3, "lora_alpha": 7}),
    "gpt2-rslora-patterns": (
        tiny_gpt2_model,
        GPT2,
        {"r": 3, "lora_alpha": 7, "use_rslora": True, "rank_pattern": {"attn.c_proj": 5}},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A float64 model, the same with peft's adapter, and the adapter's folder."""
    make, targets, config = CASES[request.param]
    model = make().double().eval().requires_grad_(False)
    peft_model = adapted(model, targets, **config)
    return model, peft_model, save_adapter(peft_model, tmp_path_factory.mktemp("adapter"))


def test_every_change_is_that_of_the_layer_in_peft(case: tuple[Any, Any, Path]) -> None:
    model, peft_model, folder = case
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in peft_model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    for delta in (LoraDelta(folder, model), LoraDelta(folder)):
        assert set(delta.names) == {f"{name}.weight" for name in layers}
        for module, layer in layers.items():
            name = f"{module}.weight"
            expected = layer.get_delta_weight("default").detach()
            factors = delta.factors(name)
            assert factors is not None
            assert delta.scale(module) == layer.scaling["default"]
            assert delta.shape(name) == factors.shape == tuple(expected.shape)
            assert factors.left.dtype == factors.right.dtype == torch.float64
            for found in (factors.dense(), delta.dense(name, torch.float64)):
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_merged_and_unmerged_logits_agree(case: tuple[Any, Any, Path], tmp_path: Path) -> None:
    model, peft_model, folder = case
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        before, unmerged = model(ids).logits, peft_model(ids).logits
        save_snapshot(tmp_path / "base", model)
        base = TensorFiles([tmp_path / "base"])
        set_weights(model, base, LoraDelta(folder, model))
        merged = model(ids).logits
        set_weights(model, base)
        restored = model(ids).logits
    moved = float((unmerged - before).abs().max())
    assert moved > 1e-2
    # transformers' Llama rounds to float32 inside its norms even in a float64 model; GPT-2 does not
    atol = 1e-12 if model.config.model_type == "gpt2" else 1e-6 * max(1.0, float(unmerged.abs().max()))
    torch.testing.assert_close(merged, unmerged, rtol=0, atol=atol)
    assert torch.equal(restored, before)


def test_the_merged_weights_are_those_of_pefts_merge(case: tuple[Any, Any, Path]) -> None:
    model, peft_model, folder = case
    expected = merged_change(model, peft_model)
    delta = LoraDelta(folder, model)
    assert set(expected) == set(delta.names)
    for name, change in expected.items():
        torch.testing.assert_close(delta.dense(name, torch.float64), change, rtol=0, atol=1e-13)


def test_names_come_in_the_models_order_or_the_natural_one(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1, "vocab_size": 5}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=11))
    folder = save_adapter(adapted(model, ["q_proj", "down_proj"], r=1), tmp_path / "adapter")
    in_model = [n for n, _ in model.named_parameters() if "q_proj" in n or "down_proj" in n]
    assert list(LoraDelta(folder, model).names) == in_model
    layers = [int(name.split(".")[2]) for name in LoraDelta(folder).names]
    assert layers == sorted(layers)


def test_of_patterns_that_overlap_the_one_that_peft_finds_in_the_file_counts(tmp_path: Path) -> None:
    """peft sorts the patterns when it writes them, so that the first that matches is another one afterwards."""
    from peft import PeftModel

    model = tiny_llama_model().double()
    alphas = {"v_proj": 3, "layers.1.self_attn.v_proj": 9}
    folder = save_adapter(adapted(model, ["v_proj"], r=2, alpha_pattern=alphas), tmp_path / "adapter")
    delta = LoraDelta(folder, model)
    assert [delta.scale(f"model.layers.{k}.self_attn.v_proj") for k in (0, 1)] == [1.5, 4.5]
    again: Any = PeftModel.from_pretrained(tiny_llama_model().double(), str(folder))
    for name, change in merged_change(model, again).items():
        torch.testing.assert_close(delta.dense(name, torch.float64), change, rtol=0, atol=1e-13)


def test_directions_are_factors(case: tuple[Any, Any, Path]) -> None:
    model, _, folder = case
    delta = LoraDelta(folder, model)
    for module in delta.modules():
        assert isinstance(delta.direction(module), Factors)
    assert set(delta.modules()) == {name.removesuffix(".weight") for name in delta.names}
    untouched = next(n for n, m in model.named_modules() if type(m).__name__ == "Embedding")
    assert delta.direction(untouched) is None
    assert delta.factors(f"{untouched}.weight") is None


# ------------------------------------------------------------------------------------------------ errors


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(adapted(tiny_llama_model(), LLAMA, r=2), tmp_path / "adapter")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "expected a LoRA adapter, got one of type IA3"),
        ({"use_dora": True}, "plain LoRA, got an adapter with DoRA"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"lora_bias": True}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules trained beside the adapter"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "parameters that are no module's weight"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "replicated layers"),
        ({"trainable_token_indices": [3]}, "trained rows of the embedding"),
        ({"init_lora_weights": "pissa_niter_4"}, "a base changed by init_lora_weights=pissa_niter_4"),
        ({"r": 3}, r"expected rank 3 for .*layers\.0\..*_proj, as adapter_config.json says, got lora_A \[2, "),
        ({"rank_pattern": {"v_proj": 5}}, r"expected rank 5 for model\.layers\.0\.self_attn\.v_proj"),
        ({"r": 0}, "expected a rank of at least 1 and a number alpha, got r = 0"),
        ({"lora_alpha": "many"}, "got r = 2 and alpha = 'many'"),
        ({"rank_pattern": {"(": 2}}, r"expected regular expressions as patterns, got '\('"),
    ],
)
def test_adapters_that_are_not_plain_lora_are_refused(changes: dict[str, Any], message: str, adapter: Path) -> None:
    edit(adapter, **changes)
    with pytest.raises(UserError, match=message):
        LoraDelta(adapter)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("base_model.model.lm_head.lora_embedding_A", (2, 3), "linear modules only .* got .*lora_embedding_A"),
        ("base_model.model.conv.lora_A.weight", (2, 3), "expected lora_A and lora_B of conv, got lora_A alone"),
        ("base_model.model.a.lora_magnitude_vector", (3,), "got .*lora_magnitude_vector"),
    ],
)
def test_tensors_that_are_no_pair_of_factors_are_refused(
    key: str, shape: tuple[int, ...], message: str, adapter: Path
) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), key: torch.ones(shape)}, path)
    with pytest.raises(UserError, match=message):
        LoraDelta(adapter)


def test_convolutions_and_empty_adapters_are_refused(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({f"base_model.model.c.lora_{f}.weight": torch.ones(2, 2, 1, 1) for f in "AB"}, path)
    with pytest.raises(UserError, match=r"expected factors of a linear module, got \[2, 2, 1, 1\]"):
        LoraDelta(adapter)
    save_file({}, path)
    with pytest.raises(UserError, match="at least one module, got none"):
        LoraDelta(adapter)


def test_missing_files_are_named(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors: save"):
        LoraDelta(adapter)
    (adapter / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle"):
        LoraDelta(adapter)
    with pytest.raises(UserError, match=r"holds no adapter_config\.json"):
        LoraDelta(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_change_that_is_not_finite_names_its_module(value: float, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight"][3, 1] = value
    save_file(tensors, path)
    delta = LoraDelta(adapter)
    for read in (delta.dense, delta.factors, delta.squared_norm):
        with pytest.raises(UserError, match=r"NaN or infinity in lora_B of model\.layers\.1\.self_attn\.o_proj"):
            read("model.layers.1.self_attn.o_proj.weight")
    assert delta.squared_norm("model.layers.0.self_attn.o_proj.weight") > 0


def test_an_adapter_that_never_trained_is_no_change(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    fresh: Any = get_peft_model(tiny_llama_model(), LoraConfig(target_modules=LLAMA))
    delta = LoraDelta(save_adapter(fresh, tmp_path / "adapter"))
    assert delta.norm() == 0
    with pytest.raises(UserError, match="zero everywhere"):
        delta.require_nonzero()


def test_an_adapter_of_another_model_does_not_fit(adapter: Path) -> None:
    gpt2 = tiny_gpt2_model()
    with pytest.raises(UserError, match=r"it moves model\.layers\.0\.\S+, which the model does not have"):
        check_fits(LoraDelta(adapter, gpt2), gpt2)


def test_a_tied_head_cannot_move_alone(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = save_adapter(adapted(tiny_llama_model(), ["lm_head"], r=2), tmp_path / "adapter")
    tied, untied = tiny_llama_model(), tiny_llama_model(tied=False)
    with pytest.raises(UserError, match=r"lm_head\.weight, which is tied to model\.embed_tokens\.weight"):
        check_fits(LoraDelta(folder, tied), tied)
    check_fits(LoraDelta(folder, untied), untied)


def test_the_layout_comes_from_the_model_and_not_from_the_configuration(tmp_path: Path) -> None:
    model = tiny_gpt2_model().double()
    peft_model = adapted(model, ["attn.c_proj"], r=2)
    folder = save_adapter(peft_model, tmp_path / "adapter")
    edit(folder, fan_in_fan_out=False)
    expected = merged_change(model, peft_model)
    right, wrong = LoraDelta(folder, model), LoraDelta(folder)
    check_fits(right, model)
    name = "transformer.h.0.attn.c_proj.weight"
    torch.testing.assert_close(right.dense(name, torch.float64), expected[name], rtol=0, atol=1e-13)
    torch.testing.assert_close(wrong.dense(name, torch.float64), expected[name].T, rtol=0, atol=1e-13)
    with pytest.raises(UserError, match=r"attn\.c_proj stores its weight as \(in, out\), and adapter_config"):
        check_fits(wrong, model)
