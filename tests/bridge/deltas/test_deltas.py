"""Norms and inner products of changes against sums over all entries, and what can be opened as a change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from bridge.deltas import factors
from bridge.deltas.factors import Factors
from bridge.deltas.lora import LoraDelta
from bridge.deltas.open import open_delta, weights_folder, write_record
from bridge.deltas.parameters import check_fits, save_snapshot, write_full_delta
from bridge.deltas.tensor_files import TensorFiles
from bridge.deltas.weight_delta import Difference, FullDelta, WeightDelta
from bridge.models.load import LoadedModel, load_model
from commands.errors import UserError
from tests.bridge.support.tiny_deltas import adapted, dense_inner, jolted, save_adapter
from tests.bridge.support.tiny_models import save_model, tiny_gpt2_model, tiny_llama_model

LLAMA = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders base, moved, adapters one and two, and the changes between base and moved as files."""
    root = tmp_path_factory.mktemp("deltas")
    model = tiny_llama_model()
    save_model(model, root / "base")
    save_model(jolted(model, 1), root / "moved", max_shard_size="8KB")
    save_snapshot(root / "base.safetensors", model)
    base = TensorFiles([root / "base.safetensors"])
    write_full_delta(root / "moved.safetensors", jolted(model, 1), base)
    write_full_delta(root / "other.safetensors", jolted(model, 2), base)
    save_adapter(adapted(model, LLAMA, 3, r=2, lora_alpha=3), root / "one")
    save_adapter(adapted(model, ["v_proj", "o_proj"], 4, r=5, lora_alpha=8, use_rslora=True), root / "two")
    return root


@pytest.fixture(scope="module")
def base(places: Path) -> LoadedModel:
    return load_model(str(places / "base"), device="cpu")


KINDS = ("moved.safetensors", "other.safetensors", "one", "two", "moved")


def opened(kind: str, places: Path, base: LoadedModel) -> WeightDelta:
    return open_delta(places / kind, base)


def dense(delta: WeightDelta) -> dict[str, Tensor]:
    return {name: delta.dense(name, torch.float64) for name in delta.names}


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole matrices are taken in pieces that do not divide them evenly."""
    monkeypatch.setattr(factors, "CHUNK", 100)


# ------------------------------------------------------------------------------------------------ mathematics


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_sums_over_all_entries(kind: str, places: Path, base: LoadedModel) -> None:
    delta = opened(kind, places, base)
    whole = dense(delta)
    assert delta.squared_norm() == pytest.approx(dense_inner(whole, whole), rel=1e-12)
    assert delta.norm() == pytest.approx(math.sqrt(dense_inner(whole, whole)), rel=1e-12)
    for name, change in whole.items():
        assert delta.squared_norm(name) == pytest.approx(dense_inner({"x": change}, {"x": change}), rel=1e-12)
        assert tuple(change.shape) == delta.shape(name)
    modules = {name.rpartition(".")[0] for name in whole}
    norms = delta.norms_by_module()
    assert set(norms) == modules
    assert math.fsum(value**2 for value in norms.values()) == pytest.approx(delta.squared_norm(), rel=1e-12)


@pytest.mark.parametrize("right", KINDS)
@pytest.mark.parametrize("left", KINDS)
def test_inner_products_are_sums_over_all_entries(left: str, right: str, places: Path, base: LoadedModel) -> None:
    one, two = opened(left, places, base), opened(right, places, base)
    a, b = dense(one), dense(two)
    size = one.norm() * two.norm()
    assert one.inner(two) == pytest.approx(dense_inner(a, b), rel=0, abs=1e-12 * size)
    for name in [*a.keys() | b.keys(), "none.weight"]:
        expected = dense_inner({name: a[name]}, {name: b[name]}) if name in a and name in b else 0.0
        assert one.inner(two, name) == pytest.approx(expected, rel=0, abs=1e-12 * size)


def test_a_modules_weight_and_bias_count_together(tmp_path: Path) -> None:
    model = tiny_gpt2_model()
    save_snapshot(tmp_path / "base", model)
    delta = write_full_delta(tmp_path / "delta", jolted(model), TensorFiles([tmp_path / "base"]))
    module = "transformer.h.1.mlp.c_fc"
    expected = math.hypot(*(delta.dense(f"{module}.{part}").double().norm() for part in ("weight", "bias")))
    assert delta.norms_by_module()[module] == pytest.approx(expected, rel=1e-12)
    assert module in delta.modules()
    assert "transformer.h.1.ln_1" not in delta.modules()


@given(
    sizes=st.tuples(*[st.integers(1, 7)] * 4),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_factors_measure_as_their_products(sizes: tuple[int, int, int, int], seed: int, dtype: torch.dtype) -> None:
    rows, columns, mine, theirs = sizes
    draw = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    one, two = (Factors(some(rows, rank), some(rank, columns)) for rank in (mine, theirs))
    whole = [f.left.double() @ f.right.double() for f in (one, two)]
    size = float(whole[0].norm() * whole[1].norm())
    assert one.squared_norm() == pytest.approx(float(whole[0].square().sum()), rel=1e-12)
    assert one.inner(two) == pytest.approx(float((whole[0] * whole[1]).sum()), rel=0, abs=1e-12 * size)
    assert one.inner(whole[1]) == pytest.approx(float((whole[0] * whole[1]).sum()), rel=0, abs=1e-12 * size)


def test_the_norm_of_factors_that_cancel_is_not_lost() -> None:
    """B A with two terms that cancel but for 1e-7: the trace of the two Gram matrices would have no digit left."""
    left = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    right = torch.tensor([[3.0, 1.0], [-3.0, -1.0 + 1e-7]], dtype=torch.float64)
    assert Factors(left, right).squared_norm() == pytest.approx(5e-14, rel=1e-6)


def test_directions_and_iteration(places: Path, base: LoadedModel) -> None:
    full, lora = (opened(kind, places, base) for kind in ("moved", "one"))
    module = "model.layers.0.self_attn.q_proj"
    found = full.direction(module)
    assert isinstance(found, Tensor)
    assert found.dtype == torch.float32
    assert isinstance(lora.direction(module), Factors)
    assert lora.direction("model.layers.0.self_attn.k_proj") is None
    assert full.direction("model.layers.0.self_attn") is None
    assert [name for name, _ in full] == list(full.names)
    assert all(torch.equal(change, lora.dense(name)) for name, change in lora)
    assert (full.kind, lora.kind) == ("full", "lora")
    with pytest.raises(KeyError):
        lora.dense("model.layers.0.self_attn.k_proj.weight")


def test_a_difference_is_the_change_that_was_written(places: Path, base: LoadedModel) -> None:
    written, difference = opened("moved.safetensors", places, base), opened("moved", places, base)
    assert isinstance(written, FullDelta)
    assert isinstance(difference, Difference)
    assert written.names == difference.names == tuple(name for name, _ in base.model.named_parameters())
    moved = dict(jolted(tiny_llama_model(), 1).named_parameters())
    start = dict(tiny_llama_model().named_parameters())
    for name in written.names:
        exact = moved[name].detach().double() - start[name].detach().double()
        assert torch.equal(difference.dense(name, torch.float64), exact)
        assert torch.equal(written.dense(name), exact.float())
        assert torch.equal(difference.dense(name), exact.float())


# ------------------------------------------------------------------------------------------------ opening


@pytest.fixture
def run(places: Path, base: LoadedModel, tmp_path: Path) -> Path:
    """A run folder as bridge.finetune leaves it."""
    (tmp_path / "delta.safetensors").write_bytes((places / "moved.safetensors").read_bytes())
    delta = FullDelta(tmp_path / "delta.safetensors")
    write_record(tmp_path, delta, "delta.safetensors", base.name, base.weights_hash)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "delta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_folder_opens_as_its_change(run: Path, places: Path, base: LoadedModel) -> None:
    record = json.loads((run / "delta.json").read_text())
    delta = open_delta(str(run), base)
    assert record == {
        "schema_version": 1,
        "kind": "full",
        "file": "delta.safetensors",
        "base": {"name": base.name, "weights_sha256": base.weights_hash},
        "squared_norm": delta.squared_norm(),
    }
    assert isinstance(delta, FullDelta)
    assert delta.base_sha256 == base.weights_hash
    (run / "adapter").mkdir()
    for path in (places / "one").iterdir():
        (run / "adapter" / path.name).write_bytes(path.read_bytes())
    lora = LoraDelta(run / "adapter")
    write_record(run, lora, "adapter", base.name, base.weights_hash)
    again = open_delta(run, base)
    assert isinstance(again, LoraDelta)
    assert (again.base_sha256, again.squared_norm()) == (base.weights_hash, lora.squared_norm())


def test_an_adapter_named_inside_its_run_folder_still_knows_its_base(
    run: Path, places: Path, base: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of one architecture fit each other's adapters: only the record tells them apart."""
    (run / "adapter").mkdir()
    for path in (places / "one").iterdir():
        (run / "adapter" / path.name).write_bytes(path.read_bytes())
    assert open_delta(run / "adapter", base).base_sha256 is None  # the record is of another change
    write_record(run, LoraDelta(run / "adapter"), "adapter", base.name, "f" * 64)
    monkeypatch.chdir(run / "adapter")
    for spec in (run / "adapter", "."):
        with pytest.raises(UserError, match=r"another model than .*sha256 ffffffffffff…"):
            open_delta(spec, base)
    assert open_delta(places / "one", base).base_sha256 is None


def test_a_change_of_other_weights_is_refused(run: Path, base: LoadedModel) -> None:
    edit(run, base={"name": "other", "weights_sha256": "f" * 64})
    with pytest.raises(UserError, match=f"another model than .*sha256 ffffffffffff…, .*{base.weights_hash[:12]}…"):
        open_delta(run, base)
    assert open_delta(run).base_sha256 == "f" * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "expected schema_version 1 and kind full or lora, got 2"),
        ({"kind": "diff"}, "got 1 and 'diff'"),
        ({"base": None}, "lacks fields"),
        ({"file": "gone.safetensors"}, "no such file: .*gone.safetensors"),
        ({"kind": "lora", "file": "adapter"}, "adapter holds no adapter_config.json"),
    ],
)
def test_records_that_cannot_be_used_are_errors(changes: dict[str, Any], message: str, run: Path) -> None:
    edit(run, **changes)
    with pytest.raises(UserError, match=message):
        open_delta(run)


def test_a_moved_model_needs_its_base_on_disk(places: Path, base: LoadedModel) -> None:
    with pytest.raises(UserError, match=r"difference from the base's weights: .* got none"):
        open_delta(places / "moved")
    folder = open_delta(places / "moved", base_folder=places / "base")
    assert folder.squared_norm() == opened("moved", places, base).squared_norm()
    random = LoadedModel(base.model, base.tokenizer, "random:smollm2-135m", "random weights", "float32", "cpu", str)
    with pytest.raises(UserError, match="got random weights"):
        open_delta(places / "moved", random)
    assert weights_folder(base) == places / "base"


def test_what_holds_no_change_is_an_error(places: Path, base: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such change of weights: .*nowhere; expected a run folder"):
        open_delta(tmp_path / "nowhere", base)
    with pytest.raises(UserError, match="holds no change of weights: expected a run folder"):
        open_delta(tmp_path, base)
    with pytest.raises(UserError, match=r"model\.safetensors holds no change of weights: expected the delta"):
        open_delta(places / "base" / "model.safetensors", base)


def test_models_of_other_shapes_are_no_moved_models(places: Path, base: LoadedModel, tmp_path: Path) -> None:
    save_model(tiny_gpt2_model(), tmp_path / "gpt2")
    with pytest.raises(UserError, match=r"expected weights of the model's parameter model\.embed_tokens\.weight"):
        open_delta(tmp_path / "gpt2", base)
    save_model(tiny_llama_model(), tmp_path / "wide")
    path = tmp_path / "wide" / "model.safetensors"
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**load_file(path), name: torch.zeros(32, 17)}, path)
    with pytest.raises(UserError, match=rf"wide: expected {name} of shape \[32, 16\], got \[32, 17\]"):
        open_delta(tmp_path / "wide", base)


def rewritten(places: Path, out: Path, **changes: Tensor) -> Path:
    from safetensors import safe_open

    with safe_open(places / "moved.safetensors", framework="pt") as file:
        about = file.metadata()
    tensors = load_file(places / "moved.safetensors")
    save_file({**tensors, **{name.replace("__", "."): t for name, t in changes.items()}}, out, about)
    return out


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model__layers__2__mlp__up_proj__weight", (32, 16), r"it moves model\.layers\.2\.mlp\.up_proj\.weight, which"),
        ("model__norm__weight", (17,), r"expected model\.norm\.weight of shape \[16\], got \[17\]"),
        ("lm_head__weight", (300, 16), r"lm_head\.weight, which is tied to model\.embed_tokens\.weight"),
    ],
)
def test_changes_that_do_not_fit_name_the_parameter(
    name: str, shape: tuple[int, ...], message: str, places: Path, base: LoadedModel, tmp_path: Path
) -> None:
    path = rewritten(places, tmp_path / "delta.safetensors", **{name: torch.zeros(shape)})
    with pytest.raises(UserError, match=message):
        open_delta(path, base)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_full_change_that_is_not_finite_names_its_parameter(value: float, places: Path, tmp_path: Path) -> None:
    bad = torch.ones(16)
    bad[3] = value
    delta = open_delta(rewritten(places, tmp_path / "delta.safetensors", model__norm__weight=bad))
    with pytest.raises(UserError, match=r"NaN or infinity in model\.norm\.weight"):
        delta.norm()
    assert delta.squared_norm("model.embed_tokens.weight") > 0


def test_no_change_is_an_error_only_where_it_is_asked_for(places: Path, base: LoadedModel) -> None:
    still = open_delta(places / "base", base)
    assert still.norm() == 0
    with pytest.raises(UserError, match="zero everywhere: the model did not move"):
        open_delta(places / "base", base, require_nonzero=True)
    assert open_delta(places / "moved", base, require_nonzero=True).norm() > 0


def test_changes_of_different_models_have_no_inner_product(places: Path, tmp_path: Path) -> None:
    ours = open_delta(places / "moved.safetensors")
    other = open_delta(rewritten(places, tmp_path / "delta.safetensors", model__norm__weight=torch.ones(4)))
    with pytest.raises(UserError, match=r"different models: model\.norm\.weight is \(16,\) in one and \(4,\)"):
        ours.inner(other)


def test_two_models_under_different_names_have_no_difference(places: Path, tmp_path: Path) -> None:
    base = TensorFiles([places / "base.safetensors"])
    for names in (base.names[1:], (*base.names, "extra")):
        stored = {name: base.names[0] if name == "extra" else name for name in names}
        with pytest.raises(UserError, match=r"expected \S+ to be .* as in the base model, got"):
            Difference(base.renamed(stored), base, "moved")


def test_check_fits_accepts_what_fits(places: Path, base: LoadedModel) -> None:
    for kind in KINDS:
        check_fits(opened(kind, places, base), base.model)
