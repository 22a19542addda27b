"""Projection by random signs: exact on average, converging as the dimension grows, the same however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bridge.deltas.factors import Factors
from bridge.estimators import rademacher, taps
from bridge.estimators.batches import make_batches
from bridge.models import blocks as models_blocks
from commands.errors import UserError
from tests.bridge.conftest import random_samples, tiny_gpt2
from tests.oracles.brute_force import BruteForce
from tests.oracles.tiny_transformer import TinyTransformer
from theory.random_projection import projected_score
from theory.statistics import ScoreStatistics

CPU = torch.device("cpu")
SKILL = random_samples("skill", 6, 13, seed=0)


def signs_of(name: str, rows: int, columns: int, dim: int, seed: int) -> Tensor:
    """The whole sign matrix (rows * columns, k), row by row."""
    source = rademacher.Signs(name, columns, dim, seed, CPU)
    return torch.cat([source.row(k).clone() for k in range(rows)])


def projected(scores: Tensor, delta: Tensor | Factors | None, dim: int, seed: int, step: int = 1) -> Tensor:
    """Products (N,) of explicit scores (N, rows, columns), some rows at a time."""
    _, rows, columns = scores.shape
    edges = range(0, rows, step)
    chunks = ((slice(a, min(a + step, rows)), scores[:, a : a + step]) for a in edges)
    source = rademacher.Signs("m", columns, dim, seed, CPU)
    return rademacher.project(chunks, [delta], source).products[0]


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 64, 100])
def test_signs_are_fair_and_independent(dim: int) -> None:
    signs = signs_of("m", 40, 50, dim, 0).double()
    assert signs.shape == (2000, dim)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    deviation = 2000**-0.5
    assert signs.mean().abs() < 5 * deviation / dim**0.5
    assert signs.mean(0).abs().max() < 5 * deviation
    gram = signs.T @ signs / 2000
    gram.fill_diagonal_(0)
    assert gram.abs().max() < 5.5 * deviation
    for lag in (1, 50):  # neighbours in a row, and in a column, of the weight
        assert (signs[lag:] * signs[:-lag]).mean(0).abs().max() < 5.5 * deviation


def test_no_two_streams_share_signs() -> None:
    base = signs_of("a", 3, 64, 128, 7)
    streams = [*base.split(64), signs_of("b", 1, 64, 128, 7), signs_of("a", 1, 64, 128, 8)]
    for k, one in enumerate(streams):
        for other in streams[:k]:
            assert (one * other).mean().abs() < 5 * (64 * 128) ** -0.5
    assert torch.equal(base, signs_of("a", 3, 64, 128, 7))
    # a row's signs follow from its index alone
    assert torch.equal(rademacher.Signs("a", 64, 128, 7, CPU).row(2), base[128:])


def test_projection_is_the_product_with_the_sign_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    delta = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    signs = signs_of("m", 5, 6, 20, 3).double() / 20**0.5
    expected = (scores.flatten(1) @ signs) @ (delta.flatten() @ signs)
    for step in (1, 2, 5):
        torch.testing.assert_close(projected(scores, delta, 20, 3, step), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(projected(scores, delta, 20, 3, 2), projected(scores, delta, 20, 3, 5))


def test_factors_and_unmoved_modules() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)
    thin = Factors(
        torch.randn(5, 2, generator=generator, dtype=torch.float64),
        torch.randn(2, 6, generator=generator, dtype=torch.float64),
    )
    torch.testing.assert_close(projected(scores, thin, 9, 0, 2), projected(scores, thin.dense(), 9, 0, 2))
    assert torch.equal(projected(scores, None, 9, 0), torch.zeros(3, dtype=torch.float64))


def test_mean_of_the_estimate_over_seeds_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    delta = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    rows, v = scores.flatten(1).numpy(), delta.flatten().numpy()
    law = projected_score([ScoreStatistics.from_scores(rows, v, v)], 8, elementwise=(rows * v) @ (rows * v).T)
    estimates = np.array([float(projected(scores, delta, 8, seed).square().mean()) for seed in range(3000)])
    error = estimates.std() / len(estimates) ** 0.5
    assert law.mean == pytest.approx(estimates.mean(), abs=4 * error)
    without = projected_score([ScoreStatistics.from_scores(rows, v, v)], 8)
    assert abs(without.mean - estimates.mean()) > 5 * error  # the elementwise term is seen


def test_error_falls_with_the_root_of_the_dimension() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(4, 3, 8, generator=generator, dtype=torch.float64)
    delta = scores.mean(0) + 0.3 * torch.randn(3, 8, generator=generator, dtype=torch.float64)
    exact = float((scores * delta).sum((1, 2)).square().mean())
    dims = [64, 256, 1024, 4096]
    errors = []
    for dim in dims:
        estimates = np.array([float(projected(scores, delta, dim, seed).square().mean()) for seed in range(150)])
        errors.append(np.sqrt(np.mean((estimates - exact) ** 2)))
    slope = np.polyfit(np.log(dims), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.08)
    assert errors[-1] < 0.05 * exact


@pytest.fixture(scope="module", params=["pure", "gpt2"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return TinyTransformer() if request.param == "pure" else tiny_gpt2()


def block_projections(
    model: torch.nn.Module, batch_size: int, dim: int, chunk_bytes: int
) -> tuple[dict[str, rademacher.Projection], dict[str, Tensor]]:
    """Every module of the model, and the change that was projected."""
    modules = taps.select_modules(model)
    batches = make_batches(SKILL, batch_size, 0, CPU)
    generator = torch.Generator().manual_seed(5)
    delta = {n: torch.randn(m.weight.shape, generator=generator, dtype=torch.float64) for n, m in modules.items()}
    blocks = models_blocks.group_by_block(list(modules))
    tape = taps.record(model, list(blocks), batches)
    found: dict[str, rademacher.Projection] = {}
    for block, names in blocks.items():
        held = {name: modules[name] for name in names}
        found |= rademacher.project_block(
            model, block, held, tape.records[block], batches, [lambda _: None, delta.get], dim, 11, chunk_bytes
        )
    return found, delta


def test_modules_of_a_model_are_projected_by_their_own_signs(model: torch.nn.Module) -> None:
    found, delta = block_projections(model, 2, 40, 2000)
    scores = BruteForce(model, list(delta)).scores(SKILL).split([d.numel() for d in delta.values()], dim=1)
    tolerance = 1e-9 if isinstance(model, TinyTransformer) else 1e-5  # transformers rounds to float32 inside
    total, products, columns, whole = 0.0, 0.0, [], []
    for (name, change), own in zip(delta.items(), scores, strict=True):
        signs = signs_of(name, *change.shape, 40, 11).double() / 40**0.5
        expected = (own @ signs) @ (change.flatten() @ signs)
        torch.testing.assert_close(
            found[name].products[1], expected, rtol=0, atol=tolerance * float(expected.abs().max())
        )
        assert torch.equal(found[name].products[0], torch.zeros(len(SKILL), dtype=torch.float64))
        products = products + expected
        total = total + found[name].products[1]
        columns.append(signs)
        whole.append(own)
    torch.testing.assert_close(total, products, rtol=0, atol=tolerance * float(products.abs().max()))
    one = torch.cat(columns)  # the sign matrices side by side project the concatenation
    expected = (torch.cat(whole, 1) @ one) @ (torch.cat([d.flatten() for d in delta.values()]) @ one)
    parts = list(found.values())
    joint = sum(parts[1:], parts[0]).products[1]
    torch.testing.assert_close(joint, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_results_do_not_depend_on_batches_or_memory(model: torch.nn.Module) -> None:
    base, _ = block_projections(model, 3, 33, 10**9)
    for batch_size, chunk_bytes in ((3, 1), (3, 3000)):
        again, _ = block_projections(model, batch_size, 33, chunk_bytes)
        for name, projection in base.items():
            torch.testing.assert_close(again[name].scores, projection.scores, rtol=1e-12, atol=1e-12)
            assert torch.equal(again[name].deltas, projection.deltas)
    other, _ = block_projections(model, 1, 33, 10**9)
    for name, projection in base.items():
        scale = float(projection.scores.abs().max())
        torch.testing.assert_close(other[name].scores, projection.scores, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("dim", "seed", "option"), [(0, 0, "--dim"), (4, -1, "--seed"), (4, 2**64, "--seed")])
def test_impossible_settings_are_refused(dim: int, seed: int, option: str) -> None:
    with pytest.raises(UserError, match=f"{option}: expected"):
        rademacher.Signs("m", 3, dim, seed, CPU)
