from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numeric_oracle import gradient, taylor
from scipy.special import erf

from sim.networks import Layout, Perceptron, Transformer, train, trained_perceptron, trained_transformer
from sim.skills import path_derivatives

SMALL = Transformer(vocabulary=3, context=5, width=8, heads=2, layers=2)
SMALL_PERCEPTRON = Perceptron(inputs=3, widths=(7, 5), classes=3)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def perceptron():
    return trained_perceptron(0)


@pytest.fixture(scope="module")
def transformer():
    return trained_transformer(0)


def test_a_layout_cuts_the_vector_in_order():
    layout = Layout({"a": (2, 3), "b": (4,), "c": (1, 2)})
    assert layout.size == 12
    parts = layout.unpack(torch.arange(12.0))
    assert {name: part.tolist() for name, part in parts.items()} == {
        "a": [[0, 1, 2], [3, 4, 5]],
        "b": [6, 7, 8, 9],
        "c": [[10, 11]],
    }


def test_random_parameters_have_the_scale_of_their_fan_in():
    layout = Layout({"table": (300, 50), "weight": (400, 100), "bias": (9,)}, tables=("table",))
    theta = layout.random(generator(0))
    assert theta.shape == (layout.size,)
    assert theta.dtype == torch.float64
    parts = layout.unpack(theta)
    assert float(parts["table"].std()) == pytest.approx(1, rel=0.03)
    assert float(parts["weight"].std()) == pytest.approx(0.1, rel=0.03)
    assert not parts["bias"].any()
    assert torch.equal(layout.random(generator(0)), theta)
    assert not torch.equal(layout.random(generator(1)), theta)


def test_the_perceptron_is_torchs():
    net, sizes = SMALL_PERCEPTRON, [3, 7, 5, 3]
    theta, features = normal(net.layout.size, seed=1), normal(4, 3, seed=2)
    layers = [torch.nn.Linear(a, b, dtype=torch.float64) for a, b in itertools.pairwise(sizes)]
    torch.nn.utils.vector_to_parameters(theta, [p for layer in layers for p in layer.parameters()])
    oracle = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])
    torch.testing.assert_close(net.logits(theta, features), oracle(features).detach(), rtol=1e-13, atol=1e-13)


def naive_transformer(net, theta, tokens):
    """One sequence, one position and one head at a time, in numpy."""
    p = {name: part.numpy() for name, part in net.layout.unpack(theta).items()}
    size = net.width // net.heads

    def normalised(x):
        return x / math.sqrt((x @ x) / len(x) + 1e-6)

    x = [p["embedding"][token] + p["position"][i] for i, token in enumerate(tokens)]
    for layer in range(net.layers):
        qkv = [(p[f"qkv{layer}"] @ normalised(row)).reshape(3, net.heads, size) for row in x]
        mixed = []
        for t in range(len(x)):
            heads = []
            for head in range(net.heads):
                scores = np.array([qkv[t][0, head] @ qkv[s][1, head] / math.sqrt(size) for s in range(t + 1)])
                shares = np.exp(scores - scores.max())
                heads.append(sum(w * qkv[s][2, head] for s, w in enumerate(shares / shares.sum())))
            mixed.append(p[f"out{layer}"] @ np.concatenate(heads))
        x = [row + update for row, update in zip(x, mixed, strict=True)]
        inner = [p[f"up{layer}"] @ normalised(row) for row in x]
        x = [row + p[f"down{layer}"] @ (h * (1 + erf(h / math.sqrt(2))) / 2) for row, h in zip(x, inner, strict=True)]
    return np.array([p["head"] @ normalised(row) for row in x])


@pytest.mark.parametrize("net", [SMALL, Transformer(4, 3, 6, 3, 1)])
def test_the_transformer_is_its_naive_transcription(net):
    theta = net.layout.random(generator(3))
    tokens = torch.randint(net.vocabulary, (3, net.context), generator=generator(4))
    logits = net.logits(theta, tokens)
    assert logits.shape == (3, net.context, net.vocabulary)
    for row, sequence in zip(logits, tokens, strict=True):
        np.testing.assert_allclose(row, naive_transformer(net, theta, sequence.tolist()), rtol=1e-11, atol=1e-12)


def test_a_later_token_changes_no_earlier_logits():
    theta = SMALL.layout.random(generator(5))
    tokens = torch.randint(3, (1, 5), generator=generator(6))
    logits = SMALL.logits(theta, tokens)
    for position in range(5):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % 3
        moved = (SMALL.logits(theta, changed) - logits).abs().amax(dim=(0, 2))
        assert not moved[:position].any()
        assert (moved[position:] > 1e-6).all()  # and every later one
    torch.testing.assert_close(SMALL.logits(theta, tokens[:, :3]), logits[:, :3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_response_probabilities_are_those_of_sampling_token_by_token(length):
    theta = SMALL.layout.random(generator(7))
    prompts = torch.tensor([[0, 2], [1, 1], [2, 0]])
    table = SMALL.response_log_probabilities(theta, prompts, length)
    assert table.shape == (3, 3**length)
    torch.testing.assert_close(table.exp().sum(dim=1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-14)
    for row, prompt in zip(table, prompts.tolist(), strict=True):
        for value, response in zip(row, itertools.product(range(3), repeat=length), strict=True):
            probability = 1.0
            for step, token in enumerate(response):
                shown = torch.tensor([[*prompt, *response[:step]]])
                probability *= float(torch.softmax(SMALL.logits(theta, shown)[0, -1], dim=0)[token])
            assert math.exp(value) == pytest.approx(probability, rel=1e-12)


@pytest.mark.parametrize("kind", ["perceptron", "transformer"])
def test_three_forward_derivatives(kind):
    """Nested forward mode through every operation of the networks, against interpolation."""
    if kind == "perceptron":
        layout, features = SMALL_PERCEPTRON.layout, normal(4, 3, seed=2)

        def function(theta):
            return torch.log_softmax(SMALL_PERCEPTRON.logits(theta, features), dim=1).flatten()
    else:
        layout, prompts = SMALL.layout, torch.tensor([[0, 2, 1], [1, 1, 0]])

        def function(theta):
            return SMALL.response_log_probabilities(theta, prompts, 2).flatten()

    base = layout.random(generator(1))
    velocity = normal(len(base), seed=2) / len(base) ** 0.5
    expected = taylor(lambda times: torch.stack([function(base + t * velocity) for t in times]), radius=0.05)
    for order, value in enumerate(path_derivatives(function, base, velocity)):
        torch.testing.assert_close(value, expected[order + 1], rtol=1e-6, atol=(1e-11, 1e-8, 1e-5)[order])


@pytest.mark.parametrize("kind", ["perceptron", "transformer"])
def test_a_trained_network_and_its_own_samples(kind, request):
    trained = request.getfixturevalue(kind)
    skill = trained.skill
    assert trained.accuracy == 1.0
    assert skill.dimension > 2000
    assert skill.base.dtype == torch.float64
    assert not skill.base.requires_grad
    assert float(skill.weights.sum()) == pytest.approx(1, abs=1e-13)
    assert float((skill.weights @ skill.scores()).norm()) < 1e-12  # Assumption 1: the labels are the model's own
    per_prompt = skill.weights.reshape(len(skill.prompts), -1).sum(dim=1)
    torch.testing.assert_close(per_prompt, torch.full_like(per_prompt, 1 / len(per_prompt)), rtol=1e-12, atol=0)
    assert float(trained.loss(skill.base)) > 0.1  # the second task is still to be learnt
    assert float(gradient(trained.loss, skill.base).norm()) > 0.01


def test_what_the_trained_transformer_repeats(transformer):
    net, prompts = Transformer(), torch.randint(6, (24, 4), generator=generator(0))[:4]
    likely = net.response_log_probabilities(transformer.skill.base, prompts, 2).argmax(dim=1)
    assert likely.tolist() == [6 * a + b for a, b in prompts[:, :2].tolist()]
    table = net.response_log_probabilities(transformer.skill.base, prompts, 2).flatten()
    torch.testing.assert_close(transformer.skill.log_probabilities(transformer.skill.base), table, rtol=0, atol=1e-13)


def test_training_is_decided_by_the_seed():
    for trained in (
        lambda seed: trained_perceptron(seed, SMALL_PERCEPTRON, prompts=2, steps=5),
        lambda seed: trained_transformer(seed, SMALL, prompts=2, steps=3),
    ):
        first, again, other = trained(1), trained(1), trained(2)
        assert torch.equal(first.skill.base, again.skill.base)
        assert torch.equal(first.loss(first.skill.base), again.loss(first.skill.base))
        assert not torch.equal(first.skill.base, other.skill.base)


def test_training_goes_down_and_leaves_its_start():
    target, start = normal(4, seed=1), torch.zeros(4, dtype=torch.float64)
    end = train(lambda theta: (theta - target).square().sum(), start, 400)
    assert not start.any()
    assert not end.requires_grad
    assert float((end - target).norm()) < 0.05 * float(target.norm())


def test_sizes_that_a_network_cannot_have():
    with pytest.raises(ValueError, match="the heads must divide the width 24, got 5"):
        Transformer(heads=5)
    with pytest.raises(ValueError, match="the heads must divide the width 24, got 0"):
        Transformer(heads=0)
    theta = torch.zeros(SMALL.layout.size, dtype=torch.float64)
    with pytest.raises(ValueError, match="the context holds 5 tokens, got 6"):
        SMALL.logits(theta, torch.zeros(1, 6, dtype=torch.int64))
    prompts = torch.zeros(2, 4, dtype=torch.int64)
    assert SMALL.response_log_probabilities(theta, prompts, 2).shape == (2, 9)
    with pytest.raises(ValueError, match="the context holds 5 tokens, got 6"):
        SMALL.response_log_probabilities(theta, prompts, 3)
    with pytest.raises(ValueError, match="1 or more tokens of prompt and response, got 4 and 0"):
        SMALL.response_log_probabilities(theta, prompts, 0)
    with pytest.raises(ValueError, match="1 or more tokens of prompt and response, got 0 and 1"):
        SMALL.response_log_probabilities(theta, prompts[:, :0], 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trained_perceptron(0, prompts=31), r"prompts must lie in 1\.\.30, got 31"),
        (lambda: trained_perceptron(0, prompts=0), r"prompts must lie in 1\.\.30, got 0"),
        (lambda: trained_transformer(0, prompts=25), r"prompts must lie in 1\.\.24, got 25"),
        (lambda: trained_transformer(0, response=0), r"response must lie in 1\.\.3, got 0"),
        (lambda: trained_transformer(0, response=4), r"response must lie in 1\.\.3, got 4"),
        (lambda: trained_perceptron(0, steps=0), "expected 1 or more training steps, got 0"),
    ],
)
def test_trainings_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
