"""The overlap score, the motion of the policy and the utility loss of a change against brute force."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev

from bridge.deltas.factors import Factors
from bridge.deltas.parameters import save_snapshot, set_weights
from bridge.deltas.tensor_files import TensorFiles
from bridge.deltas.weight_delta import Kind, WeightDelta
from bridge.estimators import scores as measure
from bridge.estimators import taps
from bridge.estimators import theta as estimators_theta
from bridge.estimators.batches import in_sample_order
from bridge.estimators.first_order import first_order
from bridge.estimators.utility_loss import measure_utility_loss, token_divergence
from bridge.experiments.overlap.assembly import statistics
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder
from tests.bridge.conftest import random_samples, tiny_gpt2, tiny_llama
from tests.oracles.brute_force import BruteForce
from tests.oracles.tiny_transformer import TinyTransformer
from theory.overlap_score import overlap_score

MODELS = {"pure": (TinyTransformer, 1e-9), "llama": (tiny_llama, 1e-5), "gpt2": (tiny_gpt2, 1e-5)}
SKILL = random_samples("skill", 7, 13, seed=0)
QUIET = Progress(quiet=True)


class Held(WeightDelta):
    """A change in memory: dense tensors by parameter, some of them as factors."""

    kind: Kind = "full"
    label = "held"

    def __init__(self, dense: dict[str, Tensor], thin: dict[str, Factors]) -> None:
        self.tensors, self.thin = dense | {name: f.dense() for name, f in thin.items()}, thin
        self.names = tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def _exact(self, name: str) -> Tensor:
        return self.tensors[name]

    def factors(self, name: str) -> Factors | None:
        return self.thin.get(name)


@dataclass
class Case:
    model: torch.nn.Module
    modules: dict[str, torch.nn.Module]
    oracle: BruteForce
    scores: Tensor  # (N, n)
    tolerance: float

    def draw(self) -> torch.Generator:
        return torch.Generator().manual_seed(5)

    def full(self) -> Held:
        """A change of every parameter, embeddings and norms included."""
        draw = self.draw()
        return Held(
            {
                # a dense change is stored in float32
                name: (0.05 * torch.randn(p.shape, generator=draw, dtype=torch.float32)).double()
                for name, p in self.model.named_parameters()
            },
            {},
        )

    def lora(self) -> Held:
        """Factors of rank 2 in every second module."""
        draw = self.draw()
        thin = {}
        for name in list(self.modules)[::2]:
            rows, columns = self.modules[name].weight.shape
            left = 0.2 * torch.randn(rows, 2, generator=draw, dtype=torch.float64)
            thin[f"{name}.weight"] = Factors(left, 0.2 * torch.randn(2, columns, generator=draw, dtype=torch.float64))
        return Held({}, thin)

    def subject(self, batch_size: int = 3, memory: int = 2**30) -> estimators_theta.Subject:
        return estimators_theta.Subject(self.model, self.modules, pad_id=0, batch_size=batch_size, memory_bytes=memory)

    def flat(self, delta: Held) -> Tensor:
        """The change of the selected modules as one vector."""
        zeros = {name: torch.zeros(m.weight.shape, dtype=torch.float64) for name, m in self.modules.items()}
        return torch.cat([delta.tensors.get(f"{name}.weight", zero).flatten() for name, zero in zeros.items()])


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest) -> Case:
    build, tolerance = MODELS[request.param]
    model, reference = build(), build()
    modules = taps.select_modules(model)
    if hasattr(reference, "set_attn_implementation"):
        reference.set_attn_implementation("eager")
    oracle = BruteForce(reference, list(modules))
    return Case(model, modules, oracle, oracle.scores(SKILL), tolerance)


def close(found: object, expected: object, tolerance: float) -> None:
    """Relative to the largest expected entry."""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def folder(path: Path) -> RunFolder:
    return RunFolder(path, "test", {})


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_the_score_is_the_quadratic_form_of_the_dense_fisher(
    case: Case, kind: str, batch_size: int, tmp_path: Path
) -> None:
    delta: Held = getattr(case, kind)()
    subject = case.subject(batch_size)
    products = measure.measure_products(subject, SKILL, {"change": delta.direction}, folder(tmp_path / "run"), QUIET)
    stats = statistics(subject, SKILL, products, delta, "change", "empirical")
    change = case.flat(delta)
    fisher = case.scores.T @ case.scores / len(SKILL)
    whole = overlap_score(list(stats.values()), 3, resamples=0)
    close(whole.raw, change @ fisher @ change, case.tolerance)
    close(whole.squared_norm, change @ change, 1e-12 if kind == "lora" else 1e-6)
    for name, part in case.oracle.slices().items():
        own = change[part] @ fisher[part, part] @ change[part]
        if own > 0:
            close(overlap_score([stats[name]], 3, resamples=0).raw, own, case.tolerance)
        else:
            assert overlap_score([stats[name]], 3, resamples=0).raw == 0
        close(products[name]["gram"], case.scores[:, part] @ case.scores[:, part].T, case.tolerance)


def test_factors_and_their_product_have_the_same_score(case: Case, tmp_path: Path) -> None:
    lora = case.lora()
    dense = Held(dict(lora.tensors), {})
    directions = {"thin": lora.direction, "dense": lambda name: lora.tensors.get(f"{name}.weight")}
    products = measure.measure_products(case.subject(), SKILL, directions, folder(tmp_path / "run"), QUIET)
    assert dense.direction(next(iter(case.modules))) is not None
    moved = [name for name in case.modules if lora.moves(f"{name}.weight")]
    for name in moved:
        close(products[name]["thin"], products[name]["dense"], 1e-12)
    for name in set(case.modules) - set(moved):
        assert not products[name]["thin"].any()
        assert not products[name]["dense"].any()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_motion_of_the_policy_is_that_of_every_parameter(case: Case, kind: str) -> None:
    delta: Held = getattr(case, kind)()
    batches = case.subject().batches(SKILL)
    found = in_sample_order([first_order(case.model, delta.tensors, batch) for batch in batches], batches)
    base = dict(case.oracle.model.named_parameters())
    first, variance = [], []
    for sample in SKILL:
        ids = torch.tensor([sample.input_ids])
        positions = [t for t, on in enumerate(sample.response_mask) if on]

        def logits(tau: Tensor, ids: Tensor = ids, positions: list[int] = positions) -> Tensor:
            moved = {name: base[name] + tau * change for name, change in delta.tensors.items()}
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            out = functional_call(case.oracle.model, moved, (), inputs)
            return out.logits[0, torch.tensor(positions) - 1]

        zero = torch.zeros((), dtype=torch.float64)
        z, moved = logits(zero), jacrev(logits)(zero)
        p = torch.softmax(z, 1)
        centred = moved - (p * moved).sum(1, keepdim=True)
        chosen = torch.tensor([sample.input_ids[t] for t in positions])
        first.append(float(centred[torch.arange(len(chosen)), chosen].sum()))
        variance.append(float((p * centred**2).sum()))
    close(found["first"], first, case.tolerance)
    close(found["variance"], variance, case.tolerance)


def test_for_linear_modules_alone_both_routes_agree(case: Case) -> None:
    lora = case.lora()
    batches = case.subject().batches(SKILL)
    found = in_sample_order([first_order(case.model, lora.tensors, batch) for batch in batches], batches)
    close(found["first"], case.scores @ case.flat(lora), case.tolerance)


# ------------------------------------------------------------------------------------------- utility loss


def losses(case: Case, path: Path, memory: int = 2**30, moves: dict[str, Held] | None = None) -> dict:
    run = folder(path)
    save_snapshot(path / "base.safetensors", case.model)
    base = TensorFiles([path / "base.safetensors"])
    changes = moves or {"lora": case.lora()}
    steps = {label: partial(set_weights, case.model, base, delta) for label, delta in changes.items()}
    subject = case.subject(memory=memory)
    try:
        return measure_utility_loss(
            case.model, subject.batches(SKILL), steps, partial(set_weights, case.model, base), memory, run, QUIET
        )
    finally:
        run.close()


def test_the_utility_loss_is_the_token_exact_divergence(case: Case, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in case.model.named_parameters()}
    found = losses(case, tmp_path / "run")["lora"]
    expected = [case.oracle.utility_loss(case.oracle.theta + case.flat(case.lora()), [s]) for s in SKILL]
    close(found["utility_loss"], expected, case.tolerance)
    own = [
        float(case.oracle.log_probability(case.oracle.theta, s))
        - float(case.oracle.log_probability(case.oracle.theta + case.flat(case.lora()), s))
        for s in SKILL
    ]
    close(found["sampled"], own, case.tolerance)
    assert all(torch.equal(before[name], p) for name, p in case.model.named_parameters())


def test_little_memory_changes_nothing(case: Case, tmp_path: Path) -> None:
    moves = {"lora": case.lora(), "full": case.full()}
    much, little = (losses(case, tmp_path / str(memory), memory, moves) for memory in (2**30, 1))
    for label in moves:
        assert np.array_equal(much[label]["utility_loss"], little[label]["utility_loss"])


def test_a_model_that_breaks_is_named_and_the_base_put_back(case: Case, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in case.model.named_parameters()}
    name = f"{list(case.modules)[-1]}.weight"
    broken = Held({name: torch.full_like(case.model.get_parameter(name), 1e308)}, {})
    with pytest.raises(UserError, match="moved by broken"):
        losses(case, tmp_path / "run", moves={"broken": broken})
    assert all(torch.equal(before[key], p) for key, p in case.model.named_parameters())


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 1.0, 30.0, 3000.0])
def test_a_divergence_keeps_its_digits(size: float) -> None:
    draw = torch.Generator().manual_seed(1)
    base = max(1.0, size / 3) * torch.randn(3, 11, generator=draw, dtype=torch.float64)
    moved = base + size * torch.randn(3, 11, generator=draw, dtype=torch.float64)
    found = token_divergence(base, moved)
    with mpmath.workdps(60):
        for row in range(3):
            p, q = ([mpmath.exp(mpmath.mpf(x)) for x in z[row].tolist()] for z in (base, moved))
            p, q = ([x / mpmath.fsum(z) for x in z] for z in (p, q))
            exact = mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))
            # the logits themselves are rounded to 1e-16, which a divergence of size^2 sees as 1e-16 / size
            assert float(found[row]) == pytest.approx(float(exact), rel=1e-12 + 1e-15 / size)
    assert (found >= 0).all()
