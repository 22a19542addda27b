"""Real steps against dense gradient descent, and the order at which the prediction agrees with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bridge.estimators import curvature, taps
from bridge.estimators import update as measure
from bridge.estimators.curvature import Direction
from bridge.estimators.lanczos import leading_eigenvalue
from bridge.estimators.probe import Probe
from bridge.estimators.real_path import FullPath, LoraPath, RealPath, rounding_move
from bridge.estimators.step_moments import measure_step_moments
from bridge.estimators.theta import Subject
from bridge.estimators.update import Update
from bridge.estimators.update_maps import (
    Diagonal,
    Identity,
    LowRank,
    Removal,
    UpdateMap,
    WithoutOverlap,
    draw_factors,
)
from bridge.estimators.utility_loss import measure_utility_loss
from commands.progress import Progress
from commands.store import RunFolder
from tests.bridge.conftest import random_samples, tiny_gpt2
from tests.oracles.brute_force import BruteForce
from tests.oracles.descent import descend, descend_lora, lora_map, predicted, slope
from tests.oracles.tiny_transformer import TinyTransformer
from theory.descent import steps_to
from theory.projection_coefficients import snapshot_projector

SKILL = random_samples("skill", 6, 13, seed=0)
FINETUNE = random_samples("finetune", 5, 13, seed=1)
QUIET = Progress(quiet=True)
STEPS = 3


@dataclass
class Case:
    """The tiny transformer of one layer, with everything dense beside it."""

    folder: Path
    model: TinyTransformer = field(default_factory=lambda: TinyTransformer(layers=1))

    def __post_init__(self) -> None:
        self.modules = taps.select_modules(self.model)
        self.subject = Subject(self.model, self.modules, pad_id=0, batch_size=3, memory_bytes=10**8)
        self.oracle = BruteForce(TinyTransformer(layers=1), list(self.modules))
        self.run = RunFolder(self.folder / "run", "test", {})
        self.start = measure.measure_velocity(self.subject, FINETUNE, "adamw", 2, self.run, QUIET)
        self.gradient = self.oracle.gradient(FINETUNE)
        self.hessian = self.oracle.hessian(FINETUNE)
        self.factors = draw_factors(self.subject.weights, dict.fromkeys(self.modules, False), 3, seed=5)

    def map(self, kind: str) -> tuple[UpdateMap, Tensor]:
        """N as the product has it, and as a dense matrix."""
        n = len(self.oracle.theta)
        if kind == "sgd":
            return Identity(), torch.eye(n, dtype=torch.float64)
        if kind == "adamw":
            assert self.start.preconditioner is not None
            return Diagonal(self.start.preconditioner), self.oracle.adam_diagonal(FINETUNE, 2).diag()
        if kind == "lora":
            low = LowRank(self.factors, 1.5, dict.fromkeys(self.modules, False))
            return low, lora_map(self.oracle, self.factors, 1.5)
        scores = self.oracle.scores(SKILL)
        probe = Probe(self.subject, SKILL)
        removal = Removal(probe, snapshot_projector((scores @ scores.T).numpy(), 4))
        top = torch.linalg.svd(scores, full_matrices=False).Vh[:4]
        away = torch.eye(n, dtype=torch.float64) - top.T @ top
        inner, dense = self.map("adamw" if kind == "adamw without overlap" else "sgd")
        return WithoutOverlap(inner, removal), away @ dense

    def path(self, kind: str, name: str) -> RealPath:
        update = self.map(kind)[0]
        place = self.folder / f"{name}.safetensors"
        batches = self.subject.batches(FINETUNE)
        if isinstance(update, LowRank):
            return LoraPath(self.subject, batches, place, update)
        return FullPath(self.subject, batches, place, update)

    def update(self, kind: str) -> Update:
        dense = self.map(kind)[1]
        velocity = -dense @ self.gradient
        acceleration = -dense @ (self.hessian @ velocity)
        return Update(self.oracle.unflatten(velocity), self.oracle.unflatten(acceleration), {}, 0.0)

    def theta(self) -> Tensor:
        return torch.cat([w.detach().flatten() for w in self.subject.weights.values()])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


def flat(direction: Direction) -> Tensor:
    return torch.cat([part.flatten() for part in direction.values()])


KINDS = ("sgd", "adamw", "lora", "without overlap", "adamw without overlap")
SCALE = {"sgd": 1.0, "adamw": 0.02, "lora": 0.4, "without overlap": 1.0, "adamw without overlap": 0.02}


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_its_dense_matrix_and_the_square_of_its_root(case: Case, kind: str) -> None:
    update, dense = case.map(kind)
    vector = torch.randn(len(case.oracle.theta), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = case.oracle.unflatten(vector)
    torch.testing.assert_close(flat(update.apply(direction)), dense @ vector, rtol=1e-9, atol=1e-9)
    root = update.root(direction)
    if kind == "adamw without overlap":
        assert root is None  # not symmetric
        return
    assert root is not None
    twice = update.root(root)
    assert twice is not None
    torch.testing.assert_close(flat(twice), dense @ vector, rtol=1e-9, atol=1e-9)
    assert float(flat(root) @ vector) >= 0


def test_the_map_of_weights_stored_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's Conv1D keeps (in, out): the same numbers as a linear layer of the transposed weight."""
    model = tiny_gpt2()
    modules = taps.select_modules(model)
    weights = {name: module.get_parameter("weight") for name, module in modules.items()}
    factors = draw_factors(weights, dict.fromkeys(modules, True), 2, seed=0)
    there, here = (LowRank(factors, 2.0, dict.fromkeys(modules, way)) for way in (True, False))
    direction = {name: torch.randn_like(w) for name, w in weights.items()}
    turned = {name: part.T for name, part in direction.items()}
    for method in ("apply", "root"):
        found, expected = getattr(there, method)(direction), getattr(here, method)(turned)
        for name in modules:
            torch.testing.assert_close(found[name], expected[name].T)
    subject = Subject(model, modules, 0, 3, 10**8)
    path = LoraPath(subject, subject.batches(FINETUNE), tmp_path / "position", there)
    path.walk([0.1], 1, lambda: None)
    path.place()
    moved = {name: w.detach().clone() for name, w in weights.items()}
    path.restore()
    start = measure.measure_velocity(subject, FINETUNE, "sgd", 2, RunFolder(tmp_path / "run", "test", {}), QUIET)
    step = there.apply(start.velocity)  # from B = 0 the first step is that of the map, but for A, which stays
    for name, weight in weights.items():
        torch.testing.assert_close(moved[name] - weight, 0.1 * step[name], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_dense_gradient_descent(case: Case, kind: str, tmp_path: Path) -> None:
    rates = [SCALE[kind] * rate for rate in (0.03, 0.01, 0.02)]
    path = case.path(kind, f"steps-{kind}-{tmp_path.name}")
    before = case.theta()
    path.walk(rates, len(rates), lambda: None)
    assert torch.equal(case.theta(), before)  # the base's own bits
    if kind == "lora":
        expected = descend_lora(case.oracle, FINETUNE, rates, case.factors, 1.5)
    else:
        expected = descend(case.oracle, FINETUNE, rates, case.map(kind)[1])
    path.place()
    torch.testing.assert_close(case.theta(), expected, rtol=0, atol=1e-12)
    path.restore()
    assert torch.equal(case.theta(), before)
    assert path.loss() == pytest.approx(float(case.oracle.loss(expected, FINETUNE)), rel=1e-12)
    assert path.distance() == pytest.approx(float((expected - before).norm()), rel=1e-9)
    assert float((expected - before).norm()) > 1e-4


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["sgd", "lora"])
def test_a_path_that_was_stopped_goes_on_to_the_same_bits(
    case: Case, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bridge.estimators import checkpoints

    monkeypatch.setattr(checkpoints, "_SAVE_EVERY_SECONDS", -1.0)
    rates = [0.02, 0.01, 0.03, 0.01]

    def end(name: str, *stops: int) -> Tensor:
        for stop in stops:
            left = [stop]

            def tick(left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] == 0:
                    raise Stopped

            with pytest.raises(Stopped):
                case.path(kind, name).walk(rates, 4, tick)
        path = case.path(kind, name)
        path.walk(rates, 2, lambda: None)
        path.walk(rates, 4, lambda: None)
        assert path.done == 4
        path.place()
        found = case.theta()
        path.restore()
        return found

    assert torch.equal(end(f"whole-{tmp_path.name}"), end(f"parts-{tmp_path.name}", 1, 2))


def measured_loss(case: Case, kind: str, rates: list[float], name: str) -> float:
    path = case.path(kind, name)
    path.walk(rates, len(rates), lambda: None)
    folder = RunFolder(case.folder / f"loss-{name}", "test", {})
    batches = case.subject.batches(SKILL)
    found = measure_utility_loss(case.model, batches, {"moved": path.place}, path.restore, 10**8, folder, QUIET)
    folder.close()
    return float(found["moved"]["utility_loss"].mean())


def predictions(case: Case, kind: str, times: np.ndarray, share: float) -> dict[str, np.ndarray]:
    folder = RunFolder(case.folder / f"predict-{kind}-{share}-{len(times)}".replace(" ", "-"), "test", {})
    shares = np.full(len(times), share)
    found = measure_step_moments(case.subject, SKILL, case.update(kind), times, shares, folder, QUIET)
    folder.close()
    return {name: values.mean(0) for name, values in found.to_arrays().items()}


@pytest.mark.parametrize("share", [0.0, 0.75])
def test_the_prediction_is_that_of_the_dense_derivatives(case: Case, share: float) -> None:
    times = np.array([1e-6, 1e-3, 0.1, 1.0])
    found, update = predictions(case, "sgd", times, share), case.update("sgd")
    v, a = flat(update.velocity), flat(update.acceleration)
    for k, expected in enumerate(predicted(case.oracle, SKILL, v, share * a, times.tolist())):
        for name, value in expected.items():
            assert found[name][k] == pytest.approx(value, rel=1e-9), (name, times[k])


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lora", "without overlap"])
def test_prediction_and_steps_agree_to_fourth_order(case: Case, kind: str) -> None:
    """K equal steps: the first term that the prediction lacks is t z' against t^3/6 z''', of order t^4."""
    times = np.geomspace(0.004, 0.03, 5) * SCALE[kind]
    share = float(steps_to(times[-1:], times[-1] / STEPS).shares()[0])
    expected = dict(zip(times.tolist(), predictions(case, kind, times, share)["loss"].tolist(), strict=True))

    def error(t: float) -> float:
        return measured_loss(case, kind, [t / STEPS] * STEPS, f"order-{kind}-{t:.6g}") - expected[t]

    assert slope(times.tolist(), error) == pytest.approx(4.0, abs=0.3)
    largest = times[-1]
    assert abs(error(float(largest))) < 0.02 * expected[float(largest)]


def test_with_the_flow_s_acceleration_the_agreement_is_an_order_lower(case: Case) -> None:
    """The share of the acceleration is not an embellishment: without it the error is of order t^3."""
    times = np.geomspace(0.004, 0.03, 5)
    expected = dict(zip(times.tolist(), predictions(case, "sgd", times, 1.0)["loss"].tolist(), strict=True))

    def error(t: float) -> float:
        return measured_loss(case, "sgd", [t / STEPS] * STEPS, f"flow-{t:.6g}") - expected[t]

    assert slope(times.tolist(), error) == pytest.approx(3.0, abs=0.3)


# ---- rounding and curvature


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_moves_one_weight_in_twelve_by_one_spacing(dtype: torch.dtype) -> None:
    base = {"a": torch.randn(200, 300, dtype=dtype), "b": torch.randn(50, 1000, dtype=dtype)}
    weights = {name: w.clone() for name, w in base.items()}
    rounding_move(weights, base, seed=0)
    up = {name: torch.nextafter(w, torch.full_like(w, torch.inf)) for name, w in base.items()}
    down = {name: torch.nextafter(w, torch.full_like(w, -torch.inf)) for name, w in base.items()}
    total = sum(w.numel() for w in base.values())
    ups, downs = (sum(int((weights[n] == d[n]).sum()) for n in base) for d in (up, down))
    stayed = sum(int((weights[n] == base[n]).sum()) for n in base)
    assert ups + downs + stayed == total
    for count in (ups, downs):
        assert abs(count - total / 24) < 5 * np.sqrt(total / 24)


def test_the_leading_curvature_is_the_dense_one(case: Case, tmp_path: Path) -> None:
    values = torch.linalg.eigvalsh(case.hessian)

    def operator(_: int, direction: Direction) -> Direction:
        return case.oracle.unflatten(case.hessian @ flat(direction))

    start = case.oracle.unflatten(case.gradient)
    few = leading_eigenvalue(operator, start, 8, tmp_path / "few", lambda: None)
    many = leading_eigenvalue(operator, start, 60, tmp_path / "many", lambda: None)
    assert few is not None
    assert many is not None
    along = float(case.gradient @ case.hessian @ case.gradient / (case.gradient @ case.gradient))
    assert few.along_start == pytest.approx(along, rel=1e-12)
    assert along <= few.value <= float(values[-1]) * (1 + 1e-12)
    assert float((values - few.value).abs().min()) <= few.residual * (1 + 1e-9)
    assert many.value == pytest.approx(float(values[-1]), rel=1e-9)


def test_a_small_space_is_exhausted_and_known(tmp_path: Path) -> None:
    matrix = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 9.0]], dtype=torch.float64)

    def operator(_: int, direction: Direction) -> Direction:
        return {"m": matrix @ direction["m"]}

    start = {"m": torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)}
    found = leading_eigenvalue(operator, start, 6, tmp_path / "small", lambda: None)
    assert found is not None
    assert found.iterations == 2  # the third axis is never seen
    assert found.value == pytest.approx((5 + 5**0.5) / 2, rel=1e-12)
    assert found.residual == pytest.approx(0, abs=1e-12)
    zero = curvature.times(0.0, start)
    assert leading_eigenvalue(operator, zero, 6, tmp_path / "zero", lambda: None) is None
