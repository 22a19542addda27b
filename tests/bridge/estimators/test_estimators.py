"""Every estimator against brute force: per-sample autograd scores, dense F, dense Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from bridge.data.samples import Sample
from bridge.estimators import curvature, output_space, taps
from bridge.estimators import output_space as estimators_output_space
from bridge.estimators import scores as measure
from bridge.estimators import theta as estimators_theta
from bridge.estimators import update as estimators_update
from bridge.estimators.batches import make_batches, response_logits
from bridge.experiments.estimate_aic import assembly
from bridge.experiments.estimate_aic.settings import Settings
from bridge.models import blocks as models_blocks
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder
from tests.bridge.conftest import random_samples, tiny_gpt2, tiny_llama
from tests.oracles.brute_force import BruteForce
from tests.oracles.tiny_transformer import TinyTransformer

# The pure-torch transformer is float64 throughout. transformers' Llama rounds norms, rotary tables and eager
# softmax to float32 inside even in a float64 model.
MODELS = {"pure": (TinyTransformer, 1e-9), "llama": (tiny_llama, 1e-5), "gpt2": (tiny_gpt2, 1e-5)}
SKILL = random_samples("skill", 7, 13, seed=0)
FINETUNE = random_samples("finetune", 5, 13, seed=1)
TIMES = np.geomspace(1e-4, 3e-1, 7)


@dataclass
class Case:
    """A model, its tolerance, and everything by brute force."""

    model: torch.nn.Module
    modules: dict[str, torch.nn.Module]
    oracle: BruteForce
    tolerance: float
    scores: Tensor
    gradient: Tensor
    hessian: Tensor
    adam: Tensor  # Adam's diagonal
    sample_hessians: Tensor  # (N, n, n)

    def update(self, optimizer: str) -> tuple[Tensor, Tensor]:
        """Velocity and acceleration as the definitions say."""
        if optimizer == "sgd":
            return -self.gradient, self.hessian @ self.gradient
        return -self.adam * self.gradient, self.adam * (self.hessian @ (self.adam * self.gradient))

    def curvature(self, v: Tensor) -> Tensor:
        """v^T Hess(l_i) v from the dense Hessian of each sample."""
        return torch.einsum("a,iab,b->i", v, self.sample_hessians, v)


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest) -> Case:
    build, tolerance = MODELS[request.param]
    model = build()
    modules = taps.select_modules(model)
    reference = build()
    if hasattr(reference, "set_attn_implementation"):
        reference.set_attn_implementation("eager")  # the fused kernels cannot be differentiated twice
    oracle = BruteForce(reference, list(modules))
    found = [oracle.scores(SKILL), oracle.gradient(FINETUNE), oracle.hessian(FINETUNE)]
    found += [oracle.adam_diagonal(FINETUNE, batch=2), oracle.sample_hessians(SKILL)]
    return Case(model, modules, oracle, tolerance, *found)


def close(found: Tensor | np.ndarray | float, expected: Tensor | np.ndarray | float, tolerance: float) -> None:
    """Relative to the largest expected entry."""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-300)


def flat(direction: dict[str, Tensor]) -> Tensor:
    return torch.cat([d.flatten() for d in direction.values()])


def measured(
    case: Case, tmp_path: Path, batch_size: int, memory: int, optimizer: str = "sgd"
) -> tuple[estimators_update.Update, dict, output_space.TokenMoments]:
    """The three stages of a run."""
    subject = estimators_theta.Subject(case.model, case.modules, pad_id=0, batch_size=batch_size, memory_bytes=memory)
    folder, quiet = RunFolder(tmp_path / "run", "test", {}), Progress(quiet=True)
    update = estimators_update.measure_update(subject, FINETUNE, optimizer, 2, folder, quiet)
    modules = measure.measure_scores(subject, SKILL, update, "empirical", folder, quiet)
    moments = estimators_output_space.measure_output_space(subject, SKILL, update, TIMES, folder, quiet)
    folder.close()
    return update, modules, moments


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("batch_size", "memory"), [(1, 10**9), (7, 4000)])
def test_all_statistics_equal_brute_force(
    case: Case, tmp_path: Path, batch_size: int, memory: int, optimizer: str
) -> None:
    """4,000 bytes of memory force one block a sweep and a few rows of a weight at a time."""
    update, modules, moments = measured(case, tmp_path, batch_size, memory, optimizer)
    v, a = case.update(optimizer)
    tolerance = case.tolerance
    close(flat(update.velocity), v, tolerance)
    close(flat(update.acceleration), a, tolerance)
    close(update.loss, float(case.oracle.loss(case.oracle.theta, FINETUNE)), tolerance)
    for name, part in case.oracle.slices().items():
        s, stats = case.scores[:, part], modules[name]
        close(stats.gram, s @ s.T, tolerance)
        close(stats.velocity, s @ v[part], tolerance)
        close(stats.acceleration, s @ a[part], tolerance)
        close(stats.velocity_squared, float(v[part] @ v[part]), 2 * tolerance)
        close(stats.acceleration_squared, float(a[part] @ a[part]), 2 * tolerance)  # a square doubles it
        close(stats.velocity_dot_acceleration, float(v[part] @ a[part]), 30 * tolerance)  # terms cancel
        close(update.gradient_squared[name], float(case.gradient[part] @ case.gradient[part]), tolerance)
        assert stats.dimension == s.shape[1]
    whole = assembly.whole_model(modules)
    close(whole.gram, case.scores @ case.scores.T, tolerance)
    close(moments.first, case.scores @ v, tolerance)
    close(moments.second, case.scores @ a + case.curvature(v), tolerance)


def naive_moments(case: Case, v: Tensor, a: Tensor, sample: Sample) -> dict[str, np.ndarray]:
    """Sums over tokens, written token by token as the definitions read."""
    z, dz, ddz = case.oracle.logit_derivatives(v, a, sample)
    p = torch.softmax(z, -1)
    out = dict.fromkeys(("first", "second", "leak_variance", "quartic_variance", "cross"), 0.0)
    loss = np.zeros(len(TIMES))  # in 40 digits: of a double's 16, the smallest time's terms cancel 14
    for t, y in enumerate(case.oracle.targets(sample).tolist()):
        e1, e2 = p[t] @ dz[t], p[t] @ ddz[t]
        var1 = p[t] @ (dz[t] - e1) ** 2
        out["first"] += float(dz[t, y] - e1)
        out["second"] += float(ddz[t, y] - e2 - var1)
        out["leak_variance"] += float(var1)
        out["quartic_variance"] += float(p[t] @ (ddz[t] - e2) ** 2)
        out["cross"] += float(p[t] @ ((dz[t] - e1) * (ddz[t] - e2)) + p[t] @ (dz[t] - e1) ** 3 / 3)
        for k, tau in enumerate(TIMES):
            loss[k] += naive_divergence(z[t], tau * dz[t] + tau**2 / 2 * ddz[t])
    return {name: np.array(value) for name, value in out.items()} | {"loss": loss}


def naive_divergence(z: Tensor, d: Tensor) -> float:
    """KL of the policies of the logits z and z + d."""
    with mpmath.workdps(40):
        steps = [mpmath.mpf(x) for x in d.tolist()]
        before = [mpmath.exp(x) for x in z.tolist()]
        after = [weight * mpmath.exp(step) for weight, step in zip(before, steps, strict=True)]
        total = mpmath.fsum(before)
        return float(mpmath.log(mpmath.fsum(after) / total) - mpmath.fdot(before, steps) / total)


def test_token_moments_equal_their_definitions(case: Case, tmp_path: Path) -> None:
    *_, moments = measured(case, tmp_path, 3, 10**9)
    v, a = case.update("sgd")
    expected = [naive_moments(case, v, a, sample) for sample in SKILL]
    for name, found in moments.to_arrays().items():
        wanted = np.array([sample[name] for sample in expected])
        close(found, wanted, 10 * case.tolerance)
        if name == "loss":
            assert np.abs(found / wanted - 1).max() < 100 * case.tolerance


def dense_numbers(scores: np.ndarray, v: np.ndarray, a: np.ndarray, rank: int) -> dict[str, float]:
    """The AIC from a dense F and its eigenvectors."""
    f = scores.T @ scores / len(scores)
    values, vectors = np.linalg.eigh(f)
    values, u = values[::-1], vectors[:, ::-1][:, :rank]
    return {
        "sharpness": values[rank - 1],
        "tail": values[rank:].sum(),
        "overlap": np.linalg.norm(u.T @ v),
        "coupling": np.sqrt((u.T @ a) ** 2 @ values[:rank]),
        "leak": np.sqrt(v @ f @ v),
        "acceleration_norm": np.linalg.norm(a),
        "effective_rank": values.sum() ** 2 / (values**2).sum(),
        "mean_score_share": np.sum(scores.mean(0) ** 2) / values.sum(),
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_aic_json_equals_brute_force(case: Case, tmp_path: Path, optimizer: str) -> None:
    update, modules, moments = measured(case, tmp_path, 3, 10**9, optimizer)
    settings = Settings(rank=3, learning_rate=1e-2, steps=1, bootstrap=20)
    found = assembly.assemble("tiny", modules, update, moments, TIMES, np.arange(7), settings).to_dict()
    v, a = (x.numpy() for x in case.update(optimizer))
    scores, gradient = case.scores.numpy(), case.gradient.numpy()
    everything = slice(0, len(v))
    parts = case.oracle.slices()
    blocks = models_blocks.group_by_block(list(modules))
    wanted = {"whole": (found["whole_model"], everything)}
    wanted |= {name: (found["blocks"][name], part) for name, part in parts.items()}
    wanted |= {
        block: (found["layers"][block], slice(parts[names[0]].start, parts[names[-1]].stop))
        for block, names in blocks.items()
    }
    assert len(wanted) == 1 + len(parts) + 2
    for entry, part in wanted.values():
        # Projections on an eigenvector amplify by the relative gap, which these tiny models keep above 1/30.
        for name, value in dense_numbers(scores[:, part], v[part], a[part], 3).items():
            close(entry[name], value, 30 * case.tolerance)
        close(entry["gradient_norm"], np.linalg.norm(gradient[part]), case.tolerance)
        spectrum = np.linalg.eigvalsh(scores[:, part] @ scores[:, part].T / 7)[::-1]
        close(np.array(entry["eigenvalues"]), spectrum, case.tolerance)
    whole = found["whole_model"]
    curve = case.curvature(torch.from_numpy(v)).numpy()
    first, second = scores @ v, scores @ a + curve
    leak, onset = np.sqrt(np.mean(first**2)), np.sqrt(np.mean(second**2))
    naive = [naive_moments(case, torch.from_numpy(v), torch.from_numpy(a), s) for s in SKILL]
    mean = {name: np.mean([n[name] for n in naive], axis=0) for name in naive[0]}
    close(whole["onset_coefficient"], onset, case.tolerance)
    close(whole["crossover"], 2 * leak / onset, case.tolerance)
    close(whole["onset_exact"], onset, case.tolerance)
    close(whole["leak_exact"], np.sqrt(mean["leak_variance"]), case.tolerance)
    close(whole["quartic_exact"], np.sqrt(mean["quartic_variance"]), case.tolerance)
    close([point["t"] for point in whole["predicted_loss"]], TIMES, 0)
    for k, t in enumerate(TIMES):
        quadratic = np.mean((t * first + t**2 / 2 * second) ** 2) / 2
        close(whole["predicted_loss"][k]["utility_loss"], quadratic, 10 * case.tolerance)
        if t > 1e-3:  # below, the naive logsumexp form has no digits left
            close(whole["predicted_loss_exact"][k]["utility_loss"], mean["loss"][k], 100 * case.tolerance)
    quartic = np.sqrt(mean["quartic_variance"])
    close(whole["crossover_exact"], 2 * np.sqrt(mean["leak_variance"]) / quartic, case.tolerance)
    nat = (-leak + np.sqrt(leak**2 + 2 * onset)) / onset  # leak t + onset t^2/2 = 1
    window = min(np.linalg.norm(v) / np.linalg.norm(a), nat)
    close(whole["window"], window, 10 * case.tolerance)
    assert whole["regime"] == (
        "outside" if window < 1e-2 else "first-order" if 2 * leak / onset / 3 > 1e-2 else "mixed"
    )
    at = int(np.argmin(np.abs(TIMES - 1e-2)))
    assert whole["utility_loss_at_horizon"] == whole["predicted_loss_exact"][at]["utility_loss"]
    for name in ("leak_exact", "onset_exact", "quartic_exact", "crossover_exact", "utility_loss_at_horizon"):
        low, high = whole["intervals"][name]
        assert low < whole[name] < high
    assert found["checks"]["first_derivative_disagreement"] < 10 * case.tolerance


def test_block_sums_are_the_whole(case: Case, tmp_path: Path) -> None:
    """Scores of all modules at once, from one selection, against the sum of two selections."""
    _, modules, _ = measured(case, tmp_path, 7, 10**9)
    names = list(modules)
    left, right = ({n: modules[n] for n in part} for part in (names[::2], names[1::2]))
    both = assembly.whole_model(left) + assembly.whole_model(right)
    close(both.gram, assembly.whole_model(modules).gram, 1e-12)
    close(both.velocity, case.scores @ -case.gradient, case.tolerance)


def test_predicted_loss_agrees_with_the_real_path_at_its_order(tiny: TinyTransformer, tmp_path: Path) -> None:
    """Along theta + t v + t^2/2 a the output-space prediction errs by O(t^4), the score one by O(t^3).

    With the third derivative of the logits unknown, dz is wrong by O(t^3) and the loss, quadratic in dz with
    a first part of O(t), by O(t^4). Gradient descent in 400 steps follows the same path up to O(t^3).
    """
    modules = taps.select_modules(tiny)
    oracle = BruteForce(tiny, list(modules))
    gradient = oracle.gradient(FINETUNE)
    v, a = -gradient, oracle.hessian(FINETUNE) @ gradient
    times = np.array([0.05, 0.025, 0.0125])
    directions = oracle.unflatten(v), oracle.unflatten(a)
    predicted = np.zeros(3)
    for batch in make_batches(SKILL, 3, 0, "cpu"):
        predicted += output_space.token_moments(tiny, modules, *directions, batch, times).loss.sum(0) / len(SKILL)
    real = np.array([oracle.utility_loss(oracle.theta + t * v + t**2 / 2 * a, SKILL) for t in times])
    slope = np.diff(np.log(np.abs(predicted - real))) / np.diff(np.log(times))
    np.testing.assert_allclose(slope, 4, atol=0.3)

    def descended(t: float, steps: int) -> float:
        theta = oracle.theta.clone()
        for _ in range(steps):
            theta -= t / steps * BruteForceAt(oracle, theta)
        return oracle.utility_loss(theta, SKILL)

    def BruteForceAt(o: BruteForce, theta: Tensor) -> Tensor:
        return torch.func.grad(o.loss)(theta, FINETUNE)

    t = 0.0125
    # One step of descent carries none of the acceleration; K steps carry (1 - 1/K) of it.
    error = [abs(descended(t, steps) - predicted[2]) / predicted[2] for steps in (1, 40)]
    assert error[1] < 0.1 * error[0]


def test_velocity_of_two_gradients_never_leaks(case: Case, tmp_path: Path) -> None:
    """A second measurement on the same model finds the same numbers: nothing is left in .grad or in hooks."""
    first = measured(case, tmp_path / "a", 3, 10**9)
    second = measured(case, tmp_path / "b", 3, 10**9)
    assert torch.equal(flat(first[0].acceleration), flat(second[0].acceleration))
    assert np.array_equal(first[2].second, second[2].second)
    assert all(p.grad is None and not p.requires_grad for p in case.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in case.model.modules())


class Bypassing(TinyTransformer):
    """Uses one weight without calling its module, and another module twice."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        mlp = self.layers[1].mlp
        if twice:
            plain = mlp.forward
            mlp.forward = lambda x: plain(x) + mlp.up_proj(x).sum()
        else:
            mlp.forward = lambda x: torch.nn.functional.linear(mlp.up_proj(x), mlp.down_proj.weight)


@pytest.mark.parametrize(("twice", "name", "count"), [(False, "gate_proj|down_proj", 0), (True, "up_proj", 2)])
def test_a_module_that_is_not_called_once_is_refused(twice: bool, name: str, count: int) -> None:
    model = Bypassing(twice)
    batch = make_batches(SKILL, 1, 0, "cpu")[0]
    with pytest.raises(UserError, match=f"layers.1.mlp.({name}), which it calls {count} times"):
        taps.probe(model, taps.select_modules(model), batch)
    taps.probe(model, taps.select_modules(model, "layers.0"), batch)


def test_stacked_experts_are_refused_by_default() -> None:
    model = TinyTransformer()
    model.layers[1].mlp.experts = torch.nn.Parameter(torch.zeros(2, 8, 8))
    with pytest.raises(UserError, match=r"layers.1.mlp.experts.*--modules"):
        taps.select_modules(model)
    assert len(taps.select_modules(model, "self_attn")) == 8


def test_half_precision_sums_are_made_in_float32(tiny: TinyTransformer) -> None:
    model = TinyTransformer().bfloat16()
    batch = make_batches(SKILL, 7, 0, "cpu")[0]
    assert response_logits(model, batch).dtype == torch.float32


def test_hessian_product_is_symmetric_and_linear(case: Case) -> None:
    weights = {name: module.get_parameter("weight").requires_grad_(True) for name, module in case.modules.items()}
    batches = make_batches(FINETUNE, 2, 0, "cpu")
    generator = torch.Generator().manual_seed(3)
    directions = [
        {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in weights.items()} for _ in range(2)
    ]
    products = []
    for direction in directions:
        total = curvature.zeros_like(weights)
        for batch in batches:
            curvature.add_hessian_product(total, case.model, case.modules, direction, batch)
        products.append(total)
    for weight in weights.values():
        weight.requires_grad_(False)
    left, right = flat(directions[0]) @ flat(products[1]), flat(directions[1]) @ flat(products[0])
    close(left, right, 100 * case.tolerance)
