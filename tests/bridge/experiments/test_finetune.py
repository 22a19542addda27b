"""`python -m bridge.finetune` on tiny models: what it writes, what that means, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge.experiments.finetune.result import FinetuneResult
from bridge.experiments.finetune.run import run
from bridge.experiments.finetune.settings import Settings, parse_overrides
from bridge.experiments.session import Lent
from bridge.finetune import MEMORY_ADVICE, main
from bridge.models.load import load_model
from bridge.training.presets import DEFAULT_PRESET, PRESETS, describe, make_plan, sources
from bridge.training.tuning import parameter_kinds
from commands.cli import run_command
from commands.errors import UserError
from commands.options import command_of
from tests.bridge.support.killed_finetunes import COMPARED, RESULTS, defence_options, finetune_options
from tests.bridge.support.tiny_models import tiny_gpt2_model, tiny_llama_model
from tests.bridge.support.tiny_runs import SCRIPT, make_workplace, write_rows


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("llama"), "llama")


def finetune(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process as `python -m bridge.finetune` does: exit code, output, errors."""
    before, sys.argv = sys.argv, ["finetune", *arguments]
    try:
        with pytest.raises(SystemExit) as end:
            run_command(command_of(main), MEMORY_ADVICE)
    finally:
        sys.argv = before
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[2, 7, 3, 9, 200, 4]])).logits


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_and_the_same_command_again(
    place: Path, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = finetune_options(place, method, tmp_path / "run")
    code, printed, told = finetune(capsys, *arguments)
    assert code == 0, told
    files = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert files == {*COMPARED, *RESULTS[method], "manifest.json", "settings.toml"}
    found = json.loads((tmp_path / "run" / "finetune.json").read_text())
    assert (found["steps"], found["epochs"], len(found["losses"]), found["rows"]) == (6, 2.0, 6, 5)
    assert (found["first_loss"], found["last_loss"]) == (found["losses"][0], found["losses"][-1])
    assert sum(found["update"]["shares"].values()) == pytest.approx(1)
    assert f"--delta {tmp_path / 'run'}" in printed
    assert "step 6 of 6" in told
    for private in ("Warning", "it/s", "http"):
        assert private not in told
    code, again, told = finetune(capsys, *arguments)
    assert (code, again) == (0, printed)
    assert told.startswith("complete already: ")
    assert "step" not in told


def test_the_adapter_is_what_peft_loads(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The change that delta.json counts is the one by which peft's reloaded model differs from the base."""
    from peft import PeftModel

    finetune(capsys, *finetune_options(place, "lora", tmp_path / "run", "--lora-rank", "2", "--lora-alpha", "8"))
    base = load_model(str(place / "model"), device="cpu").model
    before = {name: p.detach().double().clone() for name, p in base.named_parameters()}
    start = logits(base)
    adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    assert (logits(adapted) - start).abs().max() > 1e-3
    merged = adapted.merge_and_unload()
    squared = sum(float((p.double() - before[name]).square().sum()) for name, p in merged.named_parameters())
    assert json.loads((tmp_path / "run" / "delta.json").read_text())["squared_norm"] == pytest.approx(squared, rel=1e-4)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "model")
    assert (config["r"], config["lora_alpha"]) == (2, 8)
    assert config["target_modules"] == sorted(config["target_modules"])


def test_the_model_is_the_base_and_its_change(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    finetune(capsys, *finetune_options(place, "full", tmp_path / "run"))
    base, moved = (load_model(str(p / "model"), device="cpu") for p in (place, tmp_path / "run"))
    change = load_file(tmp_path / "run" / "delta.safetensors")
    assert moved.tokenizer.chat_template == base.tokenizer.chat_template
    after = dict(moved.model.named_parameters())
    found = json.loads((tmp_path / "run" / "finetune.json").read_text())
    for name, start in base.model.named_parameters():
        difference = after[name].double() - start.double()
        expected = change.get(name, torch.zeros_like(start)).double()
        assert torch.allclose(difference, expected, atol=1e-9, rtol=1e-6), name
        assert found["update"]["norms"].get(name, 0.0) == pytest.approx(float(difference.norm()), rel=1e-5)
    record = json.loads((tmp_path / "run" / "delta.json").read_text())
    assert record["kind"] == "full"
    assert record["base"] == {"name": str(place / "model"), "weights_sha256": base.weights_hash}
    assert record["squared_norm"] == pytest.approx(sum(float(c.double().square().sum()) for c in change.values()))


@pytest.mark.parametrize("make", [tiny_llama_model, tiny_gpt2_model])
def test_every_parameter_has_a_kind(make: Any) -> None:
    kinds = parameter_kinds(make())
    assert list(kinds) == [name for name, _ in make().named_parameters()]
    if make is tiny_gpt2_model:
        expected = {"wte": "embeddings", "wpe": "embeddings", "ln_1": "norms", "ln_f": "norms"}
        assert kinds["transformer.h.0.attn.c_attn.weight"] == "block linear modules"
        assert kinds["transformer.h.0.attn.c_attn.bias"] == "others"
    else:
        expected = {"embed_tokens": "embeddings", "input_layernorm": "norms", "model.norm": "norms"}
        assert kinds["model.layers.1.mlp.down_proj.weight"] == "block linear modules"
        assert "others" not in kinds.values()
    for part, kind in expected.items():
        assert {found for name, found in kinds.items() if part in name} == {kind}


def test_a_mixture_is_trained_on_and_told(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mix = write_rows(tmp_path / "mix.jsonl", [(f"say {i}", SCRIPT) for i in range(4)])
    options = finetune_options(llama, "lora", tmp_path / "run", "--mix", mix, "--share", "0.4", "--max-steps", "1")
    code, printed, told = finetune(capsys, *options)
    assert code == 0, told
    parts = json.loads((tmp_path / "run" / "finetune.json").read_text())["parts"]
    assert [(part["name"], len(part["rows"])) for part in parts] == [("finetune", 3), ("mix", 2)]
    assert "3 of finetune, 2 of mix" in printed
    sets = [json.loads(line)["set"] for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert sorted(sets) == ["finetune"] * 3 + ["mix"] * 2
    page = (tmp_path / "run" / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert SCRIPT not in page
    assert "data:image/png;base64," in page


def test_overrides_reach_the_trainer(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--set", "lr_scheduler_type=constant", "--set", "adam_beta1=0.5", "--max-steps", "2")
    code, _, told = finetune(capsys, *finetune_options(llama, "lora", tmp_path / "run", *more))
    assert code == 0, told
    found = json.loads((tmp_path / "run" / "finetune.json").read_text())
    assert found["learning_rates"] == [0.01, 0.01]
    assert found["plan"]["scheduler"] == "constant"
    assert found["plan"]["overrides"] == {"adam_beta1": 0.5}


def test_another_objective_is_not_told_as_a_likelihood(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, more in (("plain", ()), ("dft", ("--set", "loss_type=dft"))):
        out = tmp_path / name
        code, printed, told = finetune(capsys, *finetune_options(llama, "lora", out, "--max-steps", "1", *more))
        assert code == 0, told
        page = (out / "report.html").read_text()
        assert ("nats per token" in told) == (name == "plain")
        assert ("nats per response token" in printed) == (name == "plain")
        assert ("log-likelihood" in page) == (name == "plain")
        assert ("objective that --set chose" in page) == (name == "dft")


def test_other_settings_in_the_same_folder_are_refused(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(capsys, *finetune_options(llama, "lora", tmp_path / "run", "--max-steps", "1"))
    code, _, told = finetune(capsys, *finetune_options(llama, "lora", tmp_path / "run", "--max-steps", "2"))
    assert code == 2
    assert "plan.max_steps: 1 there, 2 now" in told


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--data", "benine"), "--data: unknown data set 'benine': did you mean benign"),
        (("--data", "nowhere.jsonl"), "--data: data file nowhere.jsonl does not exist"),
        (("--data", "{no_response}"), 'field "completion" is missing'),
        (("--rows", "50"), "--data: finetune has 7 usable rows, but 50 were asked for"),
        (("--rows", "-1"), "--rows: expected a whole number from 0, got -1"),
        (("--max-length", "3"), "no response token is left"),
        (("--share", "0.2"), "--share: expected --mix and --share together"),
        (("--mix", "benign"), "--share: expected --mix and --share together"),
        (("--mix", "bening", "--share", "0.2"), "--mix: unknown data set 'bening'"),
        (("--method", "half"), "--method"),
        (("--preset", "papers"), "--preset: expected one of alignment-collapse, safety-subspaces, got 'papers'"),
        (("--learning-rate", "0"), "--learning-rate: expected a number above 0 to 1, got 0.0"),
        (("--learning-rate", "nan"), "--learning-rate: expected a number above 0"),
        (("--batch-size", "4", "--micro-batch-size", "3"), "--micro-batch-size: expected a divisor"),
        (("--dtype", "bfloat16"), "--dtype: expected float32 or float64"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--lora-targets", "qqq"), "--lora-targets: no linear module of the model matches 'qqq'"),
        (("--set", "adam_beta"), "--set: expected NAME=VALUE, got 'adam_beta'"),
        (("--set", "adam_bta1=0.5"), "--set adam_bta1: no field of TrainingArguments"),
        (("--set", "output_dir=x"), "--set output_dir: cannot be set"),
        (("--set", "optim=magic"), "--set: transformers refuses"),
        (("--set", "weight_decay=much"), "--set weight_decay: expected a number, got 'much'"),
        (("--set", "adam_epsilon=NaN"), "--set adam_epsilon: expected finite numbers, got NaN"),
        (("--set", "adam_epsilon=1e999"), "--set adam_epsilon: expected finite numbers, got 1e999"),
        (("--set", "lr_scheduler_type=cosine_with_min_lr"), "--set: training cannot start with these values"),
        (("--set", "adam_beta1=2"), "--set: training cannot start with these values"),
        (("--show-preset", "mine"), "--preset: expected one of"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    more = tuple(str(tmp_path / "bad.jsonl") if word == "{no_response}" else word for word in more)
    code, printed, told = finetune(capsys, *finetune_options(llama, "lora", tmp_path / "run", *more))
    assert code == 2
    assert printed == ""
    line = told.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run" / "finetune.json").exists()


def test_a_run_that_diverges_says_where(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--learning-rate", "1", "--set", "max_grad_norm=0", "--lora-alpha", "1e25", "--set", "optim=sgd")
    code, _, told = finetune(capsys, *finetune_options(llama, "lora", tmp_path / "run", *more))
    assert code == 2
    assert "of 6: lower --learning-rate (1 now)" in told.splitlines()[-1]
    assert not (tmp_path / "run" / "adapter").exists()


def test_settings_without_the_command_line(llama: Path, tmp_path: Path) -> None:
    options = {"model": str(llama / "model"), "data": str(llama / "finetune.jsonl"), "rows": 0, "max_length": 64}
    settings = Settings.read({**options, "max_steps": 1, "dtype": "float64", "device": "cpu"})
    found = run(settings, tmp_path / "run", quiet=True)
    assert found.rows == 7  # all of them
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["status"], manifest["settings"]["dtype"]) == ("complete", "float64")
    assert found == FinetuneResult.read(tmp_path / "run")
    assert found == replace(run(settings, quiet=True, lent=Lent(in_memory=True)), seconds=found.seconds)


def test_the_settings_of_a_run_replay_it(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--max-steps", "1", "--set", "lr_scheduler_kwargs=null", "--set", "optim=sgd", "--mix", "benign")
    out = ("--out", str(tmp_path / "run"))
    code, printed, told = finetune(capsys, *finetune_options(llama, "lora", tmp_path / "run", *more, "--share", "0.2"))
    assert code == 0, told
    code, again, told = finetune(capsys, "--settings", str(tmp_path / "run" / "settings.toml"), *out)
    assert (code, again) == (0, printed)
    assert told.startswith("complete already: ")


def test_the_result_is_read_back_as_it_was_written(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = defence_options(llama, "static")
    assert finetune(capsys, *finetune_options(llama, "lora", tmp_path / "run", *more))[0] == 0
    result = FinetuneResult.read(tmp_path / "run")
    assert result.to_dict() == json.loads((tmp_path / "run" / "finetune.json").read_text())
    assert list(result.to_frame()["loss"]) == result.losses
    assert "update norm" in result._repr_html_()
    assert result.plot("defence").startswith(b"\x89PNG")


def test_what_a_manifest_holds_of_the_settings() -> None:
    """The keys of before there was one class of options, so that older folders are gone on with."""
    settings = Settings(defend="tracked", max_steps=2, override={"optim": "sgd", "bf16": True})
    found = settings.identity()
    assert set(found) == {
        "model", "data", "rows", "mix", "share", "max_length", "preset", "plan", "dtype", "device", "skip_bad_rows",
        "defence",
    }  # fmt: skip
    assert found["plan"] == asdict(settings.plan)
    assert (settings.plan.optimizer, settings.plan.overrides) == ("sgd", {"bf16": True})
    assert settings.defence is not None
    assert found["defence"] == asdict(settings.defence)
    assert Settings().identity()["defence"] is None


# ------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_value_of_a_preset_names_its_source(name: str, method: Any) -> None:
    plan = make_plan(name, method, {}, {})
    found = sources(name, plan)
    assert "given" not in found.values()
    for field, source in found.items():
        assert source
        assert field in describe(name)
    assert not any("Table" in source for source in found.values())  # no table was read


def test_what_the_user_gives_is_named_given() -> None:
    plan = make_plan(DEFAULT_PRESET, "full", {"learning_rate": 1e-6, "max_steps": 3}, {"warmup_steps": 4, "bf16": True})
    assert (plan.learning_rate, plan.max_steps, plan.warmup, plan.batch_size) == (1e-6, 3, 4.0, 20)
    found = sources(DEFAULT_PRESET, plan)
    given = {name for name, source in found.items() if source == "given"}
    assert given == {"learning_rate", "max_steps", "warmup", "set bf16"}


def test_show_preset(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = finetune(capsys, "--show-preset", "safety-subspaces")
    assert code == 0
    assert "arXiv 2505.14185" in printed
    assert "ours; not checked against the paper's table" in printed


def test_values_of_overrides() -> None:
    found = parse_overrides(["a=1", "b=2.5", "c=true", "d=text", 'e={"f": [1]}', "g=x=y"])
    assert found == {"a": 1, "b": 2.5, "c": True, "d": "text", "e": {"f": [1]}, "g": "x=y"}
    with pytest.raises(UserError, match="a is given twice"):
        parse_overrides(["a=1", "a=2"])
