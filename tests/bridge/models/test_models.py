from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge.models import default as default_model
from bridge.models import hub as models_hub
from bridge.models import loading
from bridge.models.architectures import ALIASES, HUB_NAMES, architecture
from bridge.models.load import DTYPES, load_model
from bridge.models.names import resolve
from commands.errors import UserError
from tests.bridge.support.tiny_models import VOCABULARY, save_model, tiny_gpt2_model, tiny_llama_model, tiny_tokenizer

# Parameter counts of the models' cards on the hub (tied embeddings counted once).
PUBLISHED_PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "qwen3-1.7b": 1_720_574_976,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-2-7b": 6_738_415_616,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
}


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny_llama_model(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def _quiet_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may look for anything on the hub."""
    monkeypatch.setattr(models_hub, "download_snapshot", lambda *_: pytest.fail("went to the hub"))


@pytest.fixture
def copy(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# What a name means


@pytest.mark.parametrize(
    ("name", "kind", "location"),
    [
        ("qwen3-1.7b", "hub", "Qwen/Qwen3-1.7B"),
        ("Llama-3.2-1B-base", "hub", "meta-llama/Llama-3.2-1B"),
        ("someone/some-model_1.0", "hub", "someone/some-model_1.0"),
        ("random:qwen2.5-7b", "random", "qwen2.5-7b"),
    ],
)
def test_resolve_knows_aliases_hub_names_and_random(name: str, kind: str, location: str) -> None:
    source = resolve(name)
    assert (source.name, source.kind, source.location) == (name, kind, location)


def test_resolve_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGNMENT_COLLAPSE_CACHE", str(tmp_path))
    source = resolve("SmolLM2-135M")
    assert source.kind == "default"
    assert Path(source.location).is_relative_to(tmp_path)


def test_a_folder_is_found_and_an_alias_comes_first(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    copy.rename(copy.parent / "qwen3-1.7b")
    assert resolve("qwen3-1.7b").kind == "hub"
    assert resolve("./qwen3-1.7b").location == str(copy.parent / "qwen3-1.7b")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("qwen3-1.7", "qwen3-1.7b"),
        ("smollm2", "smollm2-135m"),
        ("xyzzy", ", ".join(ALIASES)),
        ("", ", ".join(ALIASES)),
        ("a/b/c", "unknown model 'a/b/c'"),
        ("a--b/c", "unknown model"),
        ("./not-there", "no such folder or file: ./not-there"),
        ("/not/there", "no such folder or file: /not/there"),
        ("model.gguf", "no such folder or file: model.gguf"),
        ("random:qwen3", "qwen3-1.7b"),
    ],
)
def test_resolve_names_that_mean_nothing(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_resolving_imports_nothing_heavy() -> None:
    code = "import sys, bridge.models.names as m; "
    code += "m.resolve('qwen3-1.7b'); print({'torch', 'transformers'} & {*sys.modules})"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"


# Folders that cannot be used


def test_pickles_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickles \(pytorch_model.bin\)"):
        resolve(str(copy))


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_missing_files_are_named(copy: Path, missing: str, says: str) -> None:
    (copy / missing).unlink()
    with pytest.raises(UserError, match=says):
        resolve(str(copy))


def test_an_adapter_is_not_a_model(copy: Path) -> None:
    (copy / "config.json").rename(copy / "adapter_config.json")
    with pytest.raises(UserError, match="adapter"):
        resolve(str(copy))


def test_quantised_weights_are_refused(copy: Path) -> None:
    edit_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match="quantised"):
        resolve(str(copy))


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_cut_off_safetensors_are_named(copy: Path, kept: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors is corrupted"):
        load_model(str(copy), device="cpu")


def test_broken_config_is_named(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"):
        resolve(str(copy))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_model(tiny_llama_model(), tmp_path, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(UserError, match=shards[1].name):
        resolve(str(folder))


def test_a_file_that_is_no_gguf_is_refused(copy: Path) -> None:
    with pytest.raises(UserError, match=r"expected a folder with config\.json, or a \.gguf file"):
        resolve(str(copy / "tokenizer.json"))


def test_several_gguf_files_are_listed(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.gguf, b\.gguf"):
        resolve(str(tmp_path))


def test_weights_that_do_not_fit_are_named(copy: Path) -> None:
    edit_config(copy, num_hidden_layers=3)
    with pytest.raises(UserError, match=r"missing: model\.layers\.2\."):
        load_model(str(copy), device="cpu")
    edit_config(copy, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"unexpected: model\.layers\.1\..* and 5 more"):
        load_model(str(copy), device="cpu")
    edit_config(copy, num_hidden_layers=2, intermediate_size=48)
    with pytest.raises(UserError, match=r"of another shape: model\.layers\.0\.mlp\.down_proj\.weight"):
        load_model(str(copy), device="cpu")


def test_an_untied_head_that_is_missing_is_named(copy: Path) -> None:
    edit_config(copy, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"missing: lm_head\.weight"):
        load_model(str(copy), device="cpu")


def test_an_architecture_that_is_no_causal_language_model_is_refused(copy: Path) -> None:
    edit_config(copy, model_type="clip", architectures=["CLIPModel"])
    with pytest.raises(UserError, match="no causal language model"):
        load_model(str(copy), device="cpu")


def test_a_models_own_code_is_never_run(copy: Path) -> None:
    (copy / "own.py").write_text("raise SystemExit('ran')")
    edit_config(copy, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    with pytest.raises(UserError, match="no causal language model"):
        load_model(str(copy), device="cpu")


# Loading


@pytest.mark.parametrize("make", [tiny_llama_model, lambda: tiny_llama_model(tied=False), tiny_gpt2_model])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_loaded_weights_are_those_saved(make: Any, shard: str, tmp_path: Path) -> None:
    original = make()
    folder, state = save_model(original, tmp_path, max_shard_size=shard), torch.get_rng_state()
    loaded = load_model(str(folder), device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded.model) is type(original)
    found, expected = loaded.model.state_dict(), original.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (loaded.dtype, loaded.device) == ("float32", "cpu")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 1 if shard == "5GB" else len(files) > 1
    assert loaded.weights_hash == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_that_of_every_parameter(llama_folder: Path, dtype: str) -> None:
    loaded = load_model(str(llama_folder), dtype=dtype, device="cpu")
    expected = getattr(torch, dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {expected}
    exact = tiny_llama_model().model.embed_tokens.weight.to(expected)
    assert torch.equal(loaded.model.get_input_embeddings().weight, exact)
    assert loaded.dtype == dtype


def test_dtype_and_device_that_are_unknown_or_absent(llama_folder: Path) -> None:
    name = str(llama_folder)
    with pytest.raises(UserError, match="expected one of float32, bfloat16, float16, float64"):
        load_model(name, dtype="int8")
    for device in ("gpu", "cuda:", "cuda:x", "CPU"):
        with pytest.raises(UserError, match="expected cpu, cuda, cuda:N or auto"):
            load_model(name, device=device)


@pytest.mark.parametrize(("count", "asked"), [(0, "cuda"), (0, "cuda:3"), (2, "cuda:2")])
def test_a_gpu_that_is_not_there(llama_folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, asked: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError, match=f"--device {asked}: .*; use "):
        load_model(str(llama_folder), device=asked)


@pytest.mark.parametrize(
    ("count", "asked", "chosen"),
    [
        (0, None, "cpu"),
        (0, "auto", "cpu"),
        (2, "cpu", "cpu"),
        (2, None, "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_choice_of_device(monkeypatch: pytest.MonkeyPatch, count: int, asked: str | None, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert loading.choose_device(asked) == chosen


def test_out_of_memory_says_what_to_do(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("transformers.LlamaForCausalLM.to", full)
    with pytest.raises(UserError, match="--dtype bfloat16"):
        load_model(str(llama_folder), device="cpu")


def test_sampling_is_from_the_model_itself(copy: Path) -> None:
    """Whatever the folder's generation_config says, generate() draws from softmax(logits)."""
    hub = {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 2,
        "top_p": 0.5,
        "repetition_penalty": 9.0,
        "eos_token_id": [1, 7],
    }
    (copy / "generation_config.json").write_text(json.dumps(hub))
    loaded = load_model(str(copy), device="cpu")
    prompt = torch.tensor([[5, 9, 9]]).expand(20_000, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = loaded.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1)[:, 3]
    expected = 20_000 * loaded.model(prompt[:1]).logits[0, -1].double().softmax(-1)
    counts = torch.bincount(drawn, minlength=VOCABULARY).double()
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - (VOCABULARY - 1)) < 5 * (2 * (VOCABULARY - 1)) ** 0.5
    assert loaded.model.generation_config.eos_token_id == [1, 7]


def test_a_padding_token_is_there(llama_folder: Path) -> None:
    assert tiny_tokenizer().pad_token_id is None
    loaded = load_model(str(llama_folder), device="cpu")
    assert loaded.tokenizer.pad_token_id == loaded.model.generation_config.pad_token_id == 1


def test_a_padding_token_without_a_row_is_not_used(copy: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"extra{i}" for i in range(VOCABULARY)])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(copy)
    assert load_model(str(copy), device="cpu").tokenizer.pad_token_id == 1


def test_loading_leaves_the_settings_of_transformers_alone(llama_folder: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(str(llama_folder), device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# Random weights


def test_every_alias_has_an_architecture_of_the_published_size() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    assert {alias.removesuffix("-base") for alias in ALIASES} == PUBLISHED_PARAMETERS.keys()
    for alias, expected in PUBLISHED_PARAMETERS.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture(alias)))
        assert model.num_parameters() == expected, alias


def test_bases_share_the_shape_of_their_instruct_models() -> None:
    assert all(architecture(alias) == architecture(alias.removesuffix("-base")) for alias in HUB_NAMES)


def test_random_weights_follow_the_seed_and_leave_the_global_generator() -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 50}
    fields = loading.random_fields({**architecture("llama-3.2-1b"), **small}, tiny_tokenizer())
    assert (fields["vocab_size"], fields["eos_token_id"], fields["pad_token_id"]) == (258, 1, None)
    state = torch.get_rng_state()
    first, again, other = (loading.build_random(fields, torch.float32, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    weight = "model.layers.0.mlp.up_proj.weight"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[weight], other[weight])
    assert float(first[weight].std()) == pytest.approx(0.02, rel=0.05)
    assert {value.dtype for value in loading.build_random(fields, torch.bfloat16, 5).state_dict().values()} == {
        torch.bfloat16
    }


# GGUF


def write_gguf(path: Path, model: Any, without: str = "lm_head.weight") -> None:
    """The model as an unquantised GGUF file, with queries and keys permuted as that format has them."""
    import gguf

    config, names = (
        model.config,
        gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers),
    )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = tiny_tokenizer().convert_ids_to_tokens(list(range(258)))
    tokens += ["ab", *(f"<{i}>" for i in range(259, VOCABULARY))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in (0, 1) else 1 for i in range(VOCABULARY)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for key, weight in model.state_dict().items():
        array, heads = weight.numpy(), {"q_proj": 4, "k_proj": 2}.get(key.split(".")[-2])
        if key in ("lm_head.weight", without):  # the head is tied
            continue
        if heads:
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(key, (".weight",)), array.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("give", ["file", "folder"])
def test_gguf_files_are_read(tmp_path: Path, give: str) -> None:
    original, path = tiny_llama_model(), tmp_path / "tiny.gguf"
    write_gguf(path, original)
    state = torch.get_rng_state()
    loaded = load_model(str(path if give == "file" else tmp_path), dtype="float64", device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    expected = original.state_dict()
    assert all(torch.equal(value, expected[name].double()) for name, value in loaded.model.state_dict().items())
    assert loaded.tokenizer("Hi!", add_special_tokens=False)["input_ids"] == tiny_tokenizer()("Hi!")["input_ids"]
    assert loaded.weights_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded.model.save_pretrained(tmp_path / "saved")


def test_a_gguf_file_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama_model(), without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(UserError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load_model(str(tmp_path), device="cpu")


def test_a_broken_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and then nothing of use")
    with pytest.raises(UserError, match=r"broken\.gguf cannot be read as a GGUF model"):
        load_model(str(tmp_path / "broken.gguf"))


# The real default model


@pytest.mark.real_model
def test_the_default_model_answers() -> None:
    loaded = load_model()
    assert loaded.model.num_parameters() == PUBLISHED_PARAMETERS["smollm2-135m"]
    text = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    prompt = loaded.tokenizer(text, return_tensors="pt").to(loaded.device)
    answer = loaded.model.generate(**prompt, do_sample=False, max_new_tokens=8)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in loaded.tokenizer.decode(answer)
    noted = default_model.read_provenance(default_model.default_folder())
    assert noted is not None
    assert loaded.weights_hash == noted["files"]["model.safetensors"]["sha256"]


@pytest.mark.real_model
def test_the_default_tokenizer_splits_digits_off_first() -> None:
    """As the "smollm" pre-tokenizer does: two spaces before a digit stay one token."""
    tokenizer = loading.load_tokenizer(default_model.ensure_default(print))
    assert tokenizer.tokenize("is  12") == ["is", "ĠĠ", "1", "2"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id == tokenizer.pad_token_id == 2


@pytest.mark.real_model
def test_random_weights_in_a_known_architecture() -> None:
    loaded = load_model("random:smollm2-135m", dtype="bfloat16", device="cpu", seed=1)
    assert loaded.model.num_parameters() == PUBLISHED_PARAMETERS["smollm2-135m"]
    assert loaded.model.config.vocab_size >= len(loaded.tokenizer)
    assert len(loaded.weights_hash) == 64
