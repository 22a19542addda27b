"""Low-rank gradients: ranks against exact ones, and layers that break the assumption."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sympy

from theory.ledger import appendix_a4
from theory.ledger.appendix_a4 import FISHER_RANK, GRADIENT_RANK, numerical_rank

INTEGER_BASIS = np.array([[1, 0], [2, 1], [0, -1], [1, 1]])


def integer_layer(samples: int, spanned: int) -> appendix_a4._Layer:
    """Small integers, whose ranks SymPy knows exactly; inputs in the first ``spanned`` coordinates."""
    rng = np.random.default_rng(samples)
    inputs = rng.integers(-3, 4, (samples, 4)) * (np.arange(4) < spanned)
    signals = rng.integers(-3, 4, (samples, 2)) @ INTEGER_BASIS.T
    return appendix_a4._Layer(INTEGER_BASIS @ rng.integers(-2, 3, (2, 4)), signals, inputs, 2)


@pytest.mark.parametrize(("samples", "spanned", "expected"), [(20, 4, 8), (20, 2, 4), (5, 4, 5), (20, 1, 2)])
def test_ranks_are_the_exact_ones(samples: int, spanned: int, expected: int) -> None:
    layer = integer_layer(samples, spanned)
    assert sympy.Matrix(layer.gradients.tolist()).rank() == expected == numerical_rank(layer.gradients)
    exact = sympy.Matrix((layer.signals.T @ layer.inputs).tolist()).rank()
    assert numerical_rank(layer.mean_gradient) == exact == min(2, spanned)
    second_moment = layer.gradients.T @ layer.gradients
    assert np.linalg.matrix_rank(second_moment.astype(float), tol=1e-9) == expected
    assert FISHER_RANK.check(layer).value == 0
    assert GRADIENT_RANK.check(layer).value == pytest.approx((2 - exact) / 2)


def test_the_gradients_are_outer_products() -> None:
    layer = integer_layer(3, 4)
    np.testing.assert_array_equal(layer.gradients[1].reshape(4, 4), np.outer(layer.signals[1], layer.inputs[1]))
    mean = sum(np.outer(s, v) for s, v in zip(layer.signals, layer.inputs, strict=True)) / 3
    np.testing.assert_allclose(layer.mean_gradient, mean)


def test_singular_values_below_rounding_do_not_count() -> None:
    assert numerical_rank(np.diag([1.0, 2e-10, 1e-11])) == 2
    assert numerical_rank(np.diag([1e6, 2e-4, 1e-5])) == 2


@pytest.mark.parametrize("invertible", [0, 1])
def test_the_builder_keeps_the_assumption(invertible: int) -> None:
    layer = GRADIENT_RANK.build(np.random.default_rng(1), 5, 2, 30, invertible, 1e3)
    signals = np.linalg.svd(layer.signals)[2][:2]
    outputs = layer.inputs @ layer.weight.T
    np.testing.assert_allclose(outputs @ signals.T @ signals, outputs, atol=1e-9)
    assert numerical_rank(layer.signals) == 2
    assert numerical_rank(layer.weight) == (5 if invertible else 2)
    assert numerical_rank(layer.inputs) == (2 if invertible else 5)
    assert 1e2 < np.median(np.linalg.norm(layer.signals, axis=1)) < 1e4
    assert layer.rank == 2
    assert GRADIENT_RANK.build(np.random.default_rng(1), 2, 4, 3, invertible, 1.0).rank == 2


def test_the_bounds_are_attained() -> None:
    ranks = [numerical_rank(example.case().gradients) for example in FISHER_RANK.boundary]
    assert ranks == [10, 9, 4]
    assert [numerical_rank(example.case().mean_gradient) for example in GRADIENT_RANK.boundary] == [2, 3]


def test_signals_outside_the_subspace_are_noticed() -> None:
    layer = GRADIENT_RANK.boundary[0].case()
    free = replace(layer, signals=np.random.default_rng(2).standard_normal(layer.signals.shape))
    slack = GRADIENT_RANK.check(free)
    assert (slack.value, slack.holds) == (-0.6, False)  # 2 against 5
    many = replace(FISHER_RANK.boundary[0].case(), rank=1)
    slack = FISHER_RANK.check(many)
    assert (slack.value, slack.holds) == (-0.5, False)  # 5 against 10


def test_the_sharper_bound_is_checked_by_itself() -> None:
    layer = FISHER_RANK.boundary[1].case()  # r = 3, width 5, inputs in three dimensions
    free = replace(layer, signals=np.random.default_rng(2).standard_normal(layer.signals.shape))
    slack = FISHER_RANK.check(free)  # the rank is 15: within r d = 15, not within r^2 = 9
    assert (slack.part, slack.value) == ("sharper bound", pytest.approx(-0.4))
    wide = replace(FISHER_RANK.boundary[0].case(), rank=1, inputs=np.eye(5)[np.arange(40) % 5])
    assert FISHER_RANK.check(wide).value == -0.5
