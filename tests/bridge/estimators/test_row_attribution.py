"""Rows' parts of a leak against brute force: dense scores, dense F, subsets of the rows moved anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bridge.data.samples import Sample
from bridge.estimators import taps
from bridge.estimators import theta as estimators_theta
from bridge.estimators import update as estimators_update
from bridge.estimators.probe import Probe
from bridge.estimators.row_attribution import RowProducts, measure_exact_leak, measure_row_losses, measure_row_products
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder
from tests.bridge.conftest import random_samples, tiny_gpt2, tiny_llama
from tests.oracles.brute_force import BruteForce
from tests.oracles.row_attribution import DenseRows
from tests.oracles.tiny_transformer import TinyTransformer
from theory.risk import EQUALS, attribution, motion, random_removals, removal_effects

# The pure-torch transformer is float64 throughout; transformers' models round to float32 in places.
MODELS = {"pure": (TinyTransformer, 1e-9), "llama": (tiny_llama, 1e-5), "gpt2": (tiny_gpt2, 1e-5)}
SKILL = random_samples("skill", 7, 13, seed=0)
ROWS = random_samples("rows", 5, 13, seed=1)
QUIET = Progress(quiet=True)
ADAM_BATCH = 2


@dataclass
class Case:
    model: torch.nn.Module
    oracle: BruteForce
    tolerance: float
    skill: Tensor  # dense scores
    rows: Tensor
    adam: Tensor

    def dense(self, optimizer: str) -> DenseRows:
        scale = self.adam if optimizer == "adamw" else torch.ones_like(self.adam)
        return DenseRows(self.skill, self.rows, [sum(row.response_mask) for row in ROWS], scale)

    def subject(self, batch_size: int = 3, memory: int = 10**9) -> estimators_theta.Subject:
        return estimators_theta.Subject(self.model, taps.select_modules(self.model), 0, batch_size, memory)


@cache
def make_case(name: str) -> Case:
    build, tolerance = MODELS[name]
    model = build()
    oracle = BruteForce(build(), list(taps.select_modules(model)))
    adam = oracle.adam_diagonal(ROWS, ADAM_BATCH)
    return Case(model, oracle, tolerance, oracle.scores(SKILL), oracle.scores(ROWS), adam)


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


@pytest.fixture(scope="module")
def pure() -> Case:
    return make_case("pure")


def measured(
    case: Case, folder: Path, optimizer: str, batch_size: int = 3, memory: int = 10**9
) -> tuple[estimators_update.Start, RowProducts]:
    subject = case.subject(batch_size, memory)
    run = RunFolder(folder, "test", {})
    start = estimators_update.measure_velocity(subject, ROWS, optimizer, ADAM_BATCH, run, QUIET)
    products = measure_row_products(subject, SKILL, ROWS, start.preconditioner, run, QUIET)
    run.close()
    return start, products


def close(found: Any, expected: Any, tolerance: float) -> None:
    """Relative to the largest expected entry."""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-300)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("batch_size", "memory"), [(1, 10**9), (7, 4000)])
def test_rows_equal_brute_force(case: Case, tmp_path: Path, batch_size: int, memory: int, optimizer: str) -> None:
    """4,000 bytes of memory force one block a sweep, one module at a time, and a few rows of a weight."""
    start, products = measured(case, tmp_path / "run", optimizer, batch_size, memory)
    dense, parts, tolerance = case.dense(optimizer), products.parts, case.tolerance
    everything = range(len(ROWS))
    scaled = dense.rows * dense.scale
    close(parts.skill, dense.skill @ scaled.T, tolerance)
    close(parts.decrease, dense.rows @ scaled.T, tolerance)
    close(parts.norm, scaled @ scaled.T, tolerance)
    assert parts.tokens.tolist() == dense.tokens
    v = dense.velocity(everything)
    close(torch.cat([part.flatten() for part in start.velocity.values()]), v, tolerance)
    for name, part in case.oracle.slices().items():
        close(products.velocity[name], case.skill[:, part] @ v[part], tolerance)
        close(products.squared_norm[name], v[part] @ v[part], tolerance)
    whole = motion(parts, parts.every_row)
    close(whole.leak_squared, [dense.leak_squared(v)], tolerance)
    close(whole.squared_norm, [v @ v], tolerance)
    close(whole.decrease, [v @ (v / dense.scale)], tolerance)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_contributions_are_what_they_say(case: Case, tmp_path: Path, optimizer: str) -> None:
    _, products = measured(case, tmp_path / "run", optimizer)
    dense, found, tolerance = case.dense(optimizer), attribution(products.parts), case.tolerance
    everything = list(range(len(ROWS)))
    v, moved = dense.velocity(everything), dense.fisher @ dense.velocity(everything)
    leak = dense.leak_squared(v)
    close(found.contribution, [dense.part(r) @ moved for r in everything], tolerance)
    close(found.own, [dense.leak_squared(dense.part(r)) for r in everything], tolerance)
    total = sum(dense.tokens)
    without = [dense.leak_squared(dense.velocity([k for k in everything if k != r], total)) for r in everything]
    close(found.leave_one_out, [leak - rest for rest in without], tolerance)
    assert found.contribution.sum() == pytest.approx(motion(products.parts, products.parts.every_row)[0][0], rel=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("equal", EQUALS)
def test_sets_without_a_row(case: Case, tmp_path: Path, optimizer: str, equal: str) -> None:
    """The effect of a row at equal progress is that of the smaller set, moved anew with its own tokens."""
    _, products = measured(case, tmp_path / "run", optimizer)
    dense, everything = case.dense(optimizer), list(range(len(ROWS)))
    before = dense.loss_at_progress(everything, equal, 0.3)
    expected = [
        dense.loss_at_progress([k for k in everything if k != r], equal, 0.3) / before - 1 for r in everything
    ]  # fmt: skip
    close(removal_effects(products.parts, equal), expected, 10 * case.tolerance)
    whole = motion(products.parts, products.parts.every_row)
    close(0.3**2 / 2 * whole.per_progress(equal), [before], 10 * case.tolerance)
    if equal == "norm":
        removed = random_removals(products.parts, 2, 40, seed=3).per_progress(equal) * 0.3**2 / 2
        pairs = [[k for k in everything if k not in (a, b)] for a in everything for b in everything if a < b]
        possible = np.array([dense.loss_at_progress(kept, equal, 0.3) for kept in pairs])
        gaps = np.abs(removed[:, None] - possible).min(axis=1)
        assert gaps.max() <= 10 * case.tolerance * possible.max()
        assert len(np.unique(np.abs(removed[:, None] - possible).argmin(axis=1))) > 5


def test_one_weighted_backward_pass_gives_the_same_contributions(pure: Case, tmp_path: Path) -> None:
    """<s_r, M q> / T with q = F v from a weighted sum of the skill's scores."""
    start, products = measured(pure, tmp_path / "run", "adamw")
    subject = pure.subject()
    probe = Probe(subject, SKILL)
    q = probe.weighted_scores(probe.inner(start.velocity.get)[0] / len(SKILL))
    scaled = {name: start.preconditioner[name] * part for name, part in q.items()}
    found = Probe(subject, ROWS).inner(scaled.get)[0] / sum(sum(row.response_mask) for row in ROWS)
    close(attribution(products.parts).contribution, found, 1e-9)


@pytest.mark.parametrize("equal", EQUALS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_progress_and_damage_are_what_a_small_step_makes(
    pure: Case, tmp_path: Path, optimizer: str, equal: str
) -> None:
    """At t of a small progress: the norm, the fall of the set's own loss, and the token-exact utility loss."""
    start, products = measured(pure, tmp_path / "run", optimizer)
    exact = measure_exact_leak(pure.subject(), SKILL, start.velocity, RunFolder(tmp_path / "x", "t", {}), QUIET)
    whole = motion(products.parts, products.parts.every_row)
    progress = 1e-4
    (t,) = whole.time(equal, progress)
    oracle = pure.oracle
    v = torch.cat([part.flatten() for part in start.velocity.values()])
    step = float(t) * v
    if equal == "norm":
        assert float(step.norm()) == pytest.approx(progress, rel=1e-9)
    else:
        fall = float(oracle.loss(oracle.theta, ROWS) - oracle.loss(oracle.theta + step, ROWS))
        assert fall == pytest.approx(progress, rel=1e-2)
    predicted = progress**2 / 2 * whole.per_progress(equal)[0] * exact["variance"].mean() / whole.leak_squared[0]
    assert oracle.utility_loss(oracle.theta + step, SKILL) == pytest.approx(predicted, rel=2e-2)
    close(exact["first"], pure.skill @ v, 1e-9)


def test_losses_of_the_rows(case: Case, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "test", {})
    found = measure_row_losses(case.subject(), ROWS, run, QUIET)
    close(found, [-float(case.oracle.log_probability(case.oracle.theta, row)) for row in ROWS], case.tolerance)


def test_one_row_is_the_whole(pure: Case, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "test", {})
    parts = measure_row_products(pure.subject(), SKILL, ROWS[:1], None, run, QUIET).parts
    found = attribution(parts)
    leak = motion(parts, parts.every_row).leak_squared
    for values in found:
        close(values, leak, 1e-12)
    assert np.isnan(removal_effects(parts, "norm")).all()


def test_broken_weights_are_an_error(tmp_path: Path) -> None:
    model = TinyTransformer()
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[0, 0] = np.nan
    subject = estimators_theta.Subject(model, taps.select_modules(model), 0, 3, 10**9)
    with pytest.raises(UserError, match="finite"):
        measure_row_products(subject, SKILL, ROWS, None, RunFolder(tmp_path / "run", "test", {}), QUIET)


def test_finished_blocks_are_not_measured_again(pure: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run", "test", {})
    first = measure_row_products(pure.subject(), SKILL, ROWS, None, run, QUIET)
    monkeypatch.setattr(taps, "record", lambda *_: pytest.fail("measured again"))
    again = measure_row_products(pure.subject(), SKILL, ROWS, None, run, QUIET)
    assert np.array_equal(first.parts.skill, again.parts.skill)
    run.checkpoint("rows-1.npz").unlink()
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        measure_row_products(pure.subject(), SKILL, ROWS, None, run, QUIET)


def test_rows_keep_their_order(pure: Case, tmp_path: Path) -> None:
    """Batches sort by length; the numbers of a row must follow it when the rows are turned round."""
    turned: list[Sample] = [replace(row) for row in ROWS[::-1]]
    runs = [RunFolder(tmp_path / name, "test", {}) for name in "ab"]
    forth, back = (
        measure_row_products(pure.subject(), SKILL, rows, None, run, QUIET).parts
        for rows, run in zip((ROWS, turned), runs, strict=True)
    )
    close(back.skill, forth.skill[:, ::-1], 1e-12)
    close(back.norm, forth.norm[::-1, ::-1], 1e-12)
