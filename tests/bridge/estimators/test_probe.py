"""What a probe measures inside a training, against dense brute force in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bridge.deltas.factors import Factors
from bridge.estimators.probe import Probe, measuring, trained_subject
from bridge.estimators.taps import select_modules
from bridge.estimators.theta import Subject
from bridge.training.plan import Plan
from bridge.training.train import with_lora
from commands.errors import UserError
from tests.bridge.conftest import random_samples
from tests.bridge.support.tiny_models import VOCABULARY, tiny_gpt2_model, tiny_llama_model
from tests.oracles.brute_force import BruteForce
from tests.oracles.tiny_transformer import TinyTransformer

SAMPLES = random_samples("skill", 7, 13, 5)


def tiny_probe(memory_bytes: int = 2**30, layers: int = 2) -> tuple[Probe, BruteForce]:
    model = TinyTransformer(layers=layers)
    modules = select_modules(model)
    return Probe(Subject(model, modules, 0, 3, memory_bytes), SAMPLES), BruteForce(model, list(modules))


def random_direction(oracle: BruteForce, seed: int = 0) -> Tensor:
    return torch.randn(oracle.theta.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts.values()])


@pytest.mark.parametrize("memory_bytes", [2**30, 1])
def test_scores_against_brute_force(memory_bytes: int) -> None:
    probe, oracle = tiny_probe(memory_bytes)
    scores, direction = oracle.scores(SAMPLES), random_direction(oracle)
    assert np.allclose(probe.gram(), scores @ scores.T, rtol=1e-12, atol=1e-11)
    parts = oracle.unflatten(direction)
    one = next(iter(parts))
    found = probe.inner(parts.get, lambda name: parts[name] if name == one else None)
    assert np.allclose(found[0], scores @ direction, rtol=1e-11, atol=1e-11)
    where = oracle.slices()[one]
    assert np.allclose(found[1], scores[:, where] @ direction[where], rtol=1e-11, atol=1e-11)
    coefficients = np.linspace(-2, 3, len(SAMPLES))
    weighted = flat(probe.weighted_scores(coefficients))
    assert torch.allclose(weighted, scores.T @ torch.from_numpy(coefficients), rtol=1e-11, atol=1e-12)


def test_directions_as_factors() -> None:
    probe, oracle = tiny_probe()
    draw = torch.Generator().manual_seed(3)
    factors = {
        name: Factors(
            torch.randn(w.shape[0], 2, generator=draw, dtype=w.dtype),
            torch.randn(2, w.shape[1], generator=draw, dtype=w.dtype),
        )
        for name, w in probe.subject.weights.items()
    }
    dense = {name: f.left @ f.right for name, f in factors.items()}
    thin, wide = probe.inner(factors.get, dense.get)
    assert np.allclose(thin, wide, rtol=1e-11)
    assert np.allclose(wide, oracle.scores(SAMPLES) @ flat(dense), rtol=1e-10)


@pytest.mark.parametrize("memory_bytes", [2**30, 1])
def test_utility_loss_since_the_base_and_weights_put_back(memory_bytes: int) -> None:
    probe, oracle = tiny_probe(memory_bytes)
    assert probe.utility_loss().tolist() == [0.0] * 7
    moved = oracle.theta + 0.05 * random_direction(oracle, 1)
    before = flat(probe.copy_weights())
    with probe.at(oracle.unflatten(moved)):
        found, likelihood = probe.utility_loss(), probe.log_likelihood()
        at_moved = probe.gram()
    assert found.mean() == pytest.approx(oracle.utility_loss(moved, SAMPLES), rel=1e-12)
    assert likelihood == pytest.approx([float(oracle.log_probability(moved, s)) for s in SAMPLES], rel=1e-12)
    oracle.theta = moved
    scores = oracle.scores(SAMPLES)
    assert np.allclose(at_moved, scores @ scores.T, rtol=1e-11, atol=1e-11)
    assert torch.equal(flat(probe.copy_weights()), before)


def test_weights_are_put_back_after_an_error() -> None:
    probe, oracle = tiny_probe()
    broken = oracle.unflatten(oracle.theta * float("nan"))
    with pytest.raises(UserError, match="finite"), probe.at(broken):
        probe.inner(probe.base.get)
    with pytest.raises(UserError, match="finite"), probe.at(broken):
        probe.utility_loss()
    assert torch.equal(flat(probe.copy_weights()), oracle.theta)


@pytest.mark.parametrize("make", [tiny_llama_model, tiny_gpt2_model])
def test_the_scores_of_adapters(make: Any) -> None:
    """A and B are linear modules themselves: their scores are the gradients of the response's log-probability."""
    model = with_lora(make().double(), Plan("lora", 1e-3, lora_rank=2, lora_dropout=0.3))
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if "lora_B" in name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    samples = random_samples("skill", 5, VOCABULARY, 2)
    probe = Probe(trained_subject(model, pad_id=0, batch_size=2, memory_bytes=2**30), samples)
    weights = probe.subject.weights
    assert {id(w) for w in weights.values()} == {id(p) for n, p in model.named_parameters() if "lora_" in n}
    rows = []
    with measuring(model, asking=weights.values()):
        for sample in samples:
            ids = torch.tensor([sample.input_ids])
            logits = model(input_ids=ids).logits[0].log_softmax(-1)
            total = sum(logits[t - 1, y] for t, y in enumerate(sample.input_ids) if sample.response_mask[t])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, list(weights.values()))]))
    scores = torch.stack(rows).double()
    direction = {name: torch.randn(w.shape, generator=draw, dtype=w.dtype) for name, w in weights.items()}
    # transformers computes norms in float32, whatever the dtype of the weights
    gram = (scores @ scores.T).numpy()
    assert np.allclose(probe.gram(), gram, atol=1e-4 * np.abs(gram).max())
    assert np.allclose(probe.inner(direction.get)[0], scores @ flat(direction), rtol=1e-3, atol=1e-4)
    found = flat(probe.weighted_scores(np.arange(5.0)))
    assert torch.allclose(found, scores.T @ torch.arange(5.0).double(), rtol=1e-3, atol=1e-4 * float(found.abs().max()))


def test_a_training_is_left_as_it_was() -> None:
    """Modes, gradients, who asks for them, random numbers, and a forward that a trainer has wrapped."""
    model = tiny_gpt2_model()
    subject = trained_subject(model, pad_id=0, batch_size=2, memory_bytes=2**30)
    probe = Probe(subject, random_samples("skill", 4, VOCABULARY, 2))
    model.train()
    model.requires_grad_(True)
    model.transformer.wpe.weight.requires_grad_(False)
    plain = probe.gram()
    inner, forward = model.forward, []

    def wrapped(*args: Any, **options: Any) -> Any:
        forward.append(args)
        return inner(*args, **options)

    model.forward = wrapped
    asked = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    state = torch.random.get_rng_state()
    assert np.array_equal(probe.gram(), plain)
    probe.inner(probe.base.get)
    probe.weighted_scores(np.ones(4))
    probe.utility_loss()
    assert model.__dict__["forward"] is wrapped
    assert not forward
    assert [p.requires_grad for p in model.parameters()] == asked
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_dtype_says_how_exact_scores_are() -> None:
    probe, _ = tiny_probe()
    assert probe.precision == 2.0**-52
    float32 = tiny_llama_model()
    found = Probe(trained_subject(float32, pad_id=0, batch_size=2, memory_bytes=2**30), random_samples("s", 2, 300, 0))
    assert found.precision == 2.0**-23


def test_no_samples_and_no_linear_modules() -> None:
    probe, _ = tiny_probe()
    with pytest.raises(ValueError, match="at least one sample"):
        Probe(probe.subject, [])
    with pytest.raises(UserError, match="linear modules"):
        trained_subject(nn.Embedding(3, 3), pad_id=0, batch_size=1, memory_bytes=1)
