"""Defences on a small exact transformer: what each leaves of the utility loss, and that updates are orthogonal.

The probe enumerates every response of one token to two prompts, so that its scores span the whole sensitive subspace
and the expectation over responses is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bridge.data.samples import Sample
from bridge.estimators.probe import Probe, trained_subject
from bridge.estimators.taps import select_modules
from bridge.estimators.theta import Subject
from bridge.training.defences.defence import Defence
from bridge.training.defences.plan import Kind
from bridge.training.defences.record import DefenceSummary, StepRecord, summary
from commands.errors import UserError
from tests.bridge.conftest import random_samples
from tests.bridge.support.tiny_models import VOCABULARY, tiny_gpt2_model
from tests.oracles.brute_force import BruteForce
from tests.oracles.tiny_transformer import TinyTransformer

OUTCOMES, PROMPTS = 5, [(2, 4, 1), (3, 0)]
SKILL = [
    Sample("skill", f"{k}:{y}", (*prompt, y), (0,) * len(prompt) + (1,), k)
    for k, prompt in enumerate(PROMPTS)
    for y in range(OUTCOMES)
]
TRAINING = random_samples("ft", 4, OUTCOMES, 11)


class Tiny:
    """A model of its own, its probe over all outcomes, and dense brute force of both."""

    def __init__(self) -> None:
        self.model = TinyTransformer(vocabulary=OUTCOMES, layers=1)
        modules = select_modules(self.model)
        self.probe = Probe(Subject(self.model, modules, 0, 4, 2**30), SKILL)
        self.oracle = BruteForce(self.model, list(modules))

    @property
    def theta(self) -> Tensor:
        return torch.cat([w.detach().flatten() for w in self.probe.subject.weights.values()])

    def put(self, theta: Tensor) -> None:
        for name, part in self.oracle.unflatten(theta).items():
            self.probe.subject.weights[name].data.copy_(part)

    def utility_loss(self) -> float:
        return self.oracle.utility_loss(self.theta, SKILL)

    def projector(self, theta: Tensor, rank: int | None = None) -> Tensor:
        """Dense P of the scores at theta."""
        at, self.oracle.theta = self.oracle.theta, theta
        _, sizes, rows = torch.linalg.svd(self.oracle.scores(SKILL), full_matrices=False)
        self.oracle.theta = at
        top = rows[: int((sizes > 1e-7 * sizes[0]).sum()) if rank is None else rank]
        return top.T @ top

    def descend(self, defence: Defence, steps: int, rate: float) -> None:
        """Gradient descent on the mean token loss."""
        for step in range(steps):
            defence.before_step(step)
            self.put(self.theta - rate * self.oracle_gradient())
            defence.after_step(step)

    def oracle_gradient(self) -> Tensor:
        theta = self.theta.requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.oracle.loss(theta, TRAINING), theta)
        return gradient


@cache
def onset_coefficient() -> float:
    """E[h^2] at the base, h = v^T Hess(l) v along v = -(I - P) g: its mean over outcomes under the base policy."""
    tiny = Tiny()
    velocity = -(torch.eye(len(tiny.theta), dtype=torch.float64) - tiny.projector(tiny.theta)) @ tiny.oracle_gradient()
    total = 0.0
    for sample in SKILL[::OUTCOMES]:
        z, first, second = tiny.oracle.logit_derivatives(velocity, torch.zeros_like(velocity), sample)
        p = torch.softmax(z[0], 0)
        assert float((first[0] - p @ first[0]).abs().max()) < 1e-7  # the velocity does not move the policy
        total += float(p @ (second[0] - p @ second[0]) ** 2)
    return total / len(PROMPTS)


def defended_loss(steps: int, time: float, kind: Kind = "tracked", refresh: int = 1) -> float:
    tiny = Tiny()
    defence = Defence(kind, tiny.probe, refresh=refresh, measure_every=10**6)
    tiny.descend(defence, steps, time / steps)
    assert len(defence.records) == steps
    return tiny.utility_loss()


TIME = 2e-3


@pytest.mark.parametrize(("steps", "refresh"), [(3, 1), (8, 1), (8, 2), (8, 4)])
def test_a_tracked_defence_leaves_the_law_of_discrete_steps(steps: int, refresh: int) -> None:
    """T^2 (R eta)^2 E[h^2] / 8, its constant included."""
    rate = TIME / steps
    expected = TIME**2 * (refresh * rate) ** 2 * onset_coefficient() / 8
    assert defended_loss(steps, TIME, refresh=refresh) == pytest.approx(expected, rel=0.05)


def test_a_static_defence_leaves_the_quartic_law() -> None:
    """T^4 E[h^2] / 8, whatever the number of steps: a factor (K / R)^2 more than a tracked one."""
    for time in (TIME, TIME / 2):
        expected = time**4 * onset_coefficient() / 8
        assert defended_loss(4, time, "static") == pytest.approx(expected, rel=0.05)


def test_a_tracked_defence_ends_at_rounding_as_the_steps_shrink() -> None:
    """At a displacement where the undefended loss is visible, tracking leaves eta^2 of it, static does not."""
    undefended, static = defended_loss(4, 1.0, "none"), defended_loss(4, 1.0, "static")
    tracked = [defended_loss(steps, 1.0) for steps in (4, 12)]
    assert undefended > 1e-3
    assert static > 10 * tracked[0]
    assert tracked[1] == pytest.approx(tracked[0] / 9, rel=0.1)
    tiny = Tiny()  # steps so small that their squares are rounding
    tiny.descend(Defence("tracked", tiny.probe, measure_every=3), 3, 1e-8)
    assert tiny.utility_loss() < 1e-24
    assert defended_loss(3, 3e-8, "none") > 1e-20


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_the_projection_is_the_dense_projector(rank: int | None) -> None:
    tiny = Tiny()
    defence = Defence("tracked", tiny.probe, rank=rank)
    old = tiny.theta
    delta = 1e-2 * torch.randn(len(old), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    defence.before_step(0)
    tiny.put(old + delta)
    defence.after_step(0)
    dense = tiny.projector(old, rank)
    assert float((tiny.theta - (old + delta - dense @ delta)).norm() / delta.norm()) < 1e-9
    record = defence.records[0]
    scores = tiny.oracle.scores(SKILL)
    assert record.update_squared == pytest.approx(float(delta @ delta))
    assert record.inside == pytest.approx(float(delta @ dense @ delta / (delta @ delta)), rel=1e-9)
    assert record.leak == pytest.approx(float((scores @ delta).square().mean().sqrt()), rel=1e-9)
    left = float((scores @ (delta - dense @ delta)).square().mean().sqrt())
    assert record.leak_left == pytest.approx(left, rel=1e-6, abs=1e-9)
    assert record.rank == (rank or defence.subspace().projector.rank)
    assert (record.projected, record.kept) == (1.0, 1.0)
    assert record.utility_loss == pytest.approx(tiny.utility_loss(), rel=1e-9)
    applied = float((scores @ (tiny.theta - old)).square().mean().sqrt())
    assert record.leak_applied == pytest.approx(applied, rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_after_adamw_the_update_is_orthogonal_where_the_gradients_projection_is_not(weight_decay: float) -> None:
    tiny = Tiny()
    scores = tiny.oracle.scores(SKILL)
    parameters = list(tiny.probe.subject.weights.values())
    start, gradient = tiny.theta, tiny.oracle_gradient()
    leaks = {}
    for what in ("update", "gradient"):
        tiny.put(start)
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=weight_decay)
        used = gradient - tiny.projector(start) @ gradient if what == "gradient" else gradient
        for parameter, part in zip(parameters, tiny.oracle.unflatten(used).values(), strict=True):
            parameter.grad = part.clone()
        defence = Defence("tracked" if what == "update" else "none", tiny.probe)
        defence.before_step(0)
        optimizer.step()
        defence.after_step(0)
        leaks[what] = float((scores @ (tiny.theta - start)).norm() / scores.norm() / (tiny.theta - start).norm())
    assert leaks["update"] < 1e-9
    assert leaks["gradient"] > 1e-2


def test_a_static_defence_keeps_to_the_base_and_a_tracked_one_to_its_last_refresh() -> None:
    for kind, refresh, anchors in (("static", 1, [0, 0, 0, 0]), ("tracked", 2, [0, 0, 2, 2])):
        tiny = Tiny()
        defence = Defence(kind, tiny.probe, refresh=refresh)  # type: ignore[arg-type]
        path = [tiny.theta]
        for step, anchor in enumerate(anchors):
            delta = 0.05 * torch.randn(len(path[0]), generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            defence.before_step(step)
            tiny.put(path[-1] + delta)
            defence.after_step(step)
            expected = path[-1] + delta - tiny.projector(path[anchor]) @ delta
            assert float((tiny.theta - expected).norm() / delta.norm()) < 1e-7
            path.append(tiny.theta)


# ------------------------------------------------------------------------------------------------- budget


def budget_run(limit: float, steps: int = 6, rate: float = 0.1, refresh: int = 1) -> tuple[Tiny, Defence]:
    tiny = Tiny()
    defence = Defence("budget", tiny.probe, max_utility_loss=limit, refresh=refresh)
    tiny.descend(defence, steps, rate)
    return tiny, defence


@pytest.mark.parametrize(("limit", "rank", "held_back"), [(3e-5, None, False), (1e-6, 1, True)])
def test_the_leak_left_under_a_budget_is_that_of_the_update_that_was_applied(
    limit: float, rank: int | None, held_back: bool
) -> None:
    tiny = Tiny()
    defence = Defence("budget", tiny.probe, rank=rank, max_utility_loss=limit)
    seen = []
    for step in range(2):
        defence.before_step(step)
        old = tiny.probe.copy_weights()
        tiny.put(tiny.theta - 0.1 * tiny.oracle_gradient())
        defence.after_step(step)
        new = tiny.probe.copy_weights()
        record = defence.records[-1]
        if record.inside is not None:
            with tiny.probe.at(old):
                inner = tiny.probe.inner(lambda name: new[name] - old[name])[0]  # noqa: B023 - called at once
            left = float(np.sqrt(np.mean(inner**2)))
            assert record.leak_left == pytest.approx(left, rel=1e-6, abs=1e-9 * (record.leak or 0.0))
            assert record.leak_applied == pytest.approx(left, rel=1e-12)
            seen.append(record)
    partly = [record for record in seen if (record.kept if held_back else record.projected) < 1]
    assert any((record.leak_left or 0.0) > 1e-3 * (record.leak or 0.0) for record in partly)
    found = summary(defence.records)
    assert found.measured is not None
    assert found.measured.steps == found.steps_projected == len(seen)


def test_what_is_done_on_a_gpu_is_waited_for_before_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    tiny = Tiny()
    defence = Defence("none", tiny.probe, measure_every=10)
    for device, times in (("cpu", 0), ("cuda", 4)):
        monkeypatch.setattr(Subject, "device", property(lambda _, device=device: torch.device(device)))
        defence.before_step(0)
        defence.after_step(0)
        assert waited == [torch.device(device)] * times


@pytest.mark.parametrize("refresh", [1, 3])
def test_a_budget_is_kept_and_used(refresh: int) -> None:
    free = defended_loss(6, 0.6, "none")
    limit = free / 4
    tiny, defence = budget_run(limit, refresh=refresh)
    losses = [record.utility_loss for record in defence.records]
    assert tiny.utility_loss() == pytest.approx(losses[-1], rel=1e-9)
    assert all(loss is not None and 0 < loss <= limit for loss in losses)
    assert losses[-1] > limit / 2  # type: ignore[operator]
    first = defence.records[0]
    assert (first.projected, first.kept, first.inside) == (0.0, 1.0, None)  # within: nothing is computed or changed
    bound = [record for record in defence.records if record.projected > 0]
    assert bound
    for record in bound:
        assert record.projected * 16 == round(record.projected * 16)
        assert record.inside is not None


def test_a_budget_that_is_never_reached_changes_nothing() -> None:
    tiny, defence = budget_run(1e3)
    other = Tiny()
    other.descend(Defence("none", other.probe), 6, 0.1)
    assert torch.equal(tiny.theta, other.theta)
    assert summary(defence.records) == DefenceSummary(None, None, None, None, 0, 0, None)


def test_a_budget_that_no_projection_keeps_holds_the_step_back() -> None:
    """Where even the projected step is too much, as much of it is taken as the budget allows, to 1/16."""
    tiny, defence = budget_run(1e-9, steps=2, rate=0.3)
    assert all(record.utility_loss <= 1e-9 for record in defence.records)  # type: ignore[operator]
    assert all(record.projected == 1.0 and record.kept < 1.0 for record in defence.records)
    assert tiny.utility_loss() <= 1e-9
    assert summary(defence.records).steps_held_back == 2
    record = defence.records[0]
    old = Tiny().theta
    projected = -0.3 * (torch.eye(len(old), dtype=torch.float64) - tiny.projector(old)) @ Tiny().oracle_gradient()
    more = tiny.oracle.utility_loss(old + (record.kept + 1 / 16) * projected, SKILL)
    assert more > 1e-9 >= tiny.oracle.utility_loss(old + record.kept * projected, SKILL)


# ------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize(
    ("kind", "refresh", "stop"), [("static", 1, 2), ("tracked", 1, 2), ("tracked", 3, 2), ("tracked", 3, 3),
                                  ("budget", 3, 4), ("none", 1, 2)]
)  # fmt: skip
def test_a_defence_goes_on_from_a_checkpoint_to_the_same_bits(
    kind: Kind, refresh: int, stop: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"refresh": refresh, "rank": 4, "measure_every": 2}
    options |= {"max_utility_loss": 1e-4} if kind == "budget" else {}

    def step(tiny: Tiny, defence: Defence, number: int) -> None:
        defence.before_step(number)
        tiny.put(tiny.theta - 0.1 * tiny.oracle_gradient())
        defence.after_step(number)

    whole = Tiny()
    undisturbed = Defence(kind, whole.probe, **options)
    for number in range(6):
        step(whole, undisturbed, number)
        if number + 1 == stop:
            undisturbed.save(tmp_path)
            there = whole.theta
    again = Tiny()
    resumed = Defence(kind, again.probe, **options)
    resumed.load(tmp_path)
    again.put(there)
    for number in range(stop, 6):
        step(again, resumed, number)
    assert torch.equal(again.theta, whole.theta)
    assert resumed.records == undisturbed.records


# ------------------------------------------------------------------------------------------------ others


def test_float32_says_how_many_directions_it_has_and_projects_them() -> None:
    model = tiny_gpt2_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    model.requires_grad_(False).eval()
    samples = random_samples("skill", 5, VOCABULARY, 3)
    told: list[str] = []
    probe = Probe(trained_subject(model, pad_id=0, batch_size=2, memory_bytes=2**30), [*samples, *samples[:3]])
    defence = Defence("tracked", probe, say=told.append)
    for step in range(2):
        defence.before_step(step)
        for weight in probe.subject.weights.values():
            weight.data.add_(1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)))
        old = probe.copy_weights()
        defence.after_step(step)
        assert any(not torch.equal(old[name], weight) for name, weight in probe.subject.weights.items())
    assert defence.records[0].rank == 5  # the other three are the same samples again
    assert len(told) == 1
    assert "8 responses have 5 directions" in told[0]
    record = defence.records[0]
    assert record.leak_left < 1e-4 * record.leak  # type: ignore[operator]
    assert record.leak_left < record.leak_applied < 1e-2 * record.leak  # type: ignore[operator]


def test_an_update_of_zero_and_scores_of_zero() -> None:
    tiny = Tiny()
    defence = Defence("tracked", tiny.probe)
    before = tiny.theta
    defence.before_step(0)
    defence.after_step(0)
    assert torch.equal(tiny.theta, before)
    assert defence.records == [StepRecord.untouched(1, 0.0, utility_loss=0.0)]
    still = Tiny()
    still.model.lm_head.weight.data.zero_()
    defence = Defence("static", Probe(still.probe.subject, SKILL))
    defence.before_step(0)
    still.put(still.theta + 0.1)
    with pytest.raises(UserError, match="scores of the skill's responses are zero"):
        defence.after_step(0)


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"rank": len(SKILL) + 1}, {"refresh": 0}, {"measure_every": 0}, {"kind": "budget"}]
)
def test_options_that_no_defence_can_have(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rank must lie|expected refresh"):
        Defence(**({"kind": "tracked", "probe": Tiny().probe} | options))


def test_the_summary_weighs_steps_by_their_updates() -> None:
    records: Sequence[StepRecord] = [
        StepRecord(1, 4.0, 0.5, 3.0, 0.0, 1.0, 1.0, 7, None, 0.1),
        StepRecord(2, 12.0, 0.1, 4.0, 1.0, 1.0, 0.5, 5, None, None),
        StepRecord.untouched(3, 9.0),
    ]
    found = summary(records)
    assert found.inside == pytest.approx((2.0 + 1.2) / 16)
    assert found.leak == pytest.approx(np.sqrt(12.5))
    assert found.leak_left == pytest.approx(np.sqrt(0.5))
    assert found.measured is not None
    assert asdict(found.measured) == pytest.approx({"steps": 1, "leak": 3.0, "leak_applied": 0.1})
    assert (found.steps_projected, found.steps_held_back, found.rank) == (2, 1, (5, 7))
