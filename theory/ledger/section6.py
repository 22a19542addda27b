"""Section 6: lower bounds on the utility loss, the drift of the path, and what follows from both."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from theory.ledger.claim import Claim, Example, Parameter, Slack, Verdict, at_least, equal, worst
from theory.ledger.corollary63 import QUARTIC_SCALING
from theory.ledger.drift import DRIFT_LEMMA, DRIFT_THEOREM
from theory.ledger.maps import polynomial
from theory.ledger.scenarios import Coefficients
from theory.ledger.skills import GaussianSkill, SoftmaxSkill, fisher_at_base
from theory.series import zeros
from theory.spectra import projector

_FLOAT = "projections are computed in float64"


# --- Theorem 6.1, the bound


@dataclass(frozen=True, eq=False)
class _Ray:
    """Displacements ``tau u`` of a skill, and some orthogonal projector of the rank d."""

    skill: SoftmaxSkill | GaussianSkill
    direction: np.ndarray
    projector: np.ndarray

    def second_order(self) -> float:
        """``lim 2 utility loss / tau^2``, from the power series of the policy."""
        curve = zeros((3, len(self.direction)), self.direction)
        curve[1] = self.direction
        return float(2 * self.skill.utility_loss_along(curve)[2])

    def energy(self, vector: np.ndarray) -> float:
        """``|F^(1/2) w|^2``."""
        return float(vector @ fisher_at_base(self.skill).astype(np.float64) @ vector)

    def largest_energy(self) -> float:
        """``lambda_1 |u|^2``, the unit of rounding."""
        fisher, u = (x.astype(np.float64) for x in (fisher_at_base(self.skill), self.direction))
        return float(np.linalg.norm(fisher, 2) * (u @ u))

    def sensitive_part(self) -> np.ndarray:
        """``P u`` with the projector on the top-d eigenspace."""
        rank = round(float(np.trace(self.projector)))
        top = projector(fisher_at_base(self.skill).astype(np.float64), rank)
        return top @ self.direction.astype(np.float64)


def _build_ray(rng: np.random.Generator, dimension: int, prompts: int, outcomes: int, sharpness: float) -> _Ray:
    coefficients = Coefficients(rng, exact=True)
    logits = coefficients.map(prompts * outcomes, dimension).scaled(Fraction(sharpness))
    skill = SoftmaxSkill(coefficients.probabilities(prompts), coefficients.probabilities(prompts, outcomes), logits)
    basis = np.linalg.qr(rng.standard_normal((dimension, int(rng.integers(1, dimension)))))[0]
    return _Ray(skill, coefficients.tensor(dimension), basis @ basis.T)


def _aligned_ray(rng: np.random.Generator) -> _Ray:
    ray = _build_ray(rng, 3, 2, 3, 1.0)
    vectors = np.linalg.eigh(fisher_at_base(ray.skill).astype(np.float64))[1]
    basis = vectors[:, rng.permutation(3)[:2]]
    return _Ray(ray.skill, ray.direction, basis @ basis.T)


def _sensitive_bound(ray: _Ray) -> Slack:
    loss, inside, unit = ray.second_order(), ray.sensitive_part(), ray.largest_energy()
    split = ray.energy(inside) + ray.energy(ray.direction.astype(np.float64) - inside)
    return worst(
        at_least(loss, ray.energy(inside), 1e-12, _FLOAT, scale=unit, part="lower bound"),
        equal(loss, split, 1e-12, _FLOAT, scale=unit, part="P commutes with F"),
    )


def _bound_for_any_projector(ray: _Ray) -> Slack:
    inside = ray.projector @ ray.direction.astype(np.float64)
    return at_least(ray.second_order(), ray.energy(inside), 1e-12, _FLOAT, scale=ray.largest_energy())


def _flat_ray(direction: tuple[float, float], onto: tuple[float, float]) -> _Ray:
    unit = np.array(onto) / np.hypot(*onto)
    return _Ray(GaussianSkill(polynomial(np.array([[2.0, 0.0]])), 1.0), np.array(direction), np.outer(unit, unit))


LOWER_BOUND = Claim(
    key="6.1",
    title="Lower bound by the sensitive displacement",
    source="Theorem 6.1, section 6",
    statement=r"""$\Delta u(\theta^* + D) \ge \frac{1}{2} \|F^{1/2} P D\|^2 - O(\|D\|)^3$, because $P$ is an orthogonal
projector.""",
    hypotheses=(
        r"$P$ projects on the top-$d$ eigenspace of $F = F(\theta^*)$.",
        "The base policy is optimal for the data (Assumption 1) and gives every outcome that can occur nearby a "
        "positive probability.",
        r"Third derivatives of $\log \pi_\theta$ near $\theta^*$ are dominated by an integrable function.",
    ),
    verdict=Verdict.CORRECTED,
    why="the error is O(|D|^3), and it is commuting with F, not orthogonality, that P needs",
    correction=r"""$\Delta u(\theta^* + D) \ge \frac{1}{2} \|F^{1/2} P D\|^2 - O(\|D\|^3)$. It holds because $P$ is a
spectral projector of $F$: $D^T F D = \|F^{1/2} P D\|^2 + \|F^{1/2} (I - P) D\|^2$. For an orthogonal projector that
does not commute with $F$ it is false.""",
    derivation=r"""The local quadratic form (Proposition 3.3) gives $\Delta u = \frac{1}{2} D^T F D + O(\|D\|^3)$. A
spectral projector commutes with $F$, so the cross term $(P D)^T F (I - P) D$ vanishes, and the part outside is not
negative.""",
    evidence=r"""Random softmax skills over fractions, with several prompts and a tail: the coefficient of $\tau^2$ in
$\Delta u(\theta^* + \tau D)$ comes from the exact power series of the policy; everything beyond it is
$O(\tau^3)$. It is compared with the two parts of the quadratic form, projected in float64.""",
    check=_sensitive_bound,
    build=_build_ray,
    parameters=(
        Parameter("dimension", 2, 4),
        Parameter("prompts", 1, 3),
        Parameter("outcomes", 2, 3),
        Parameter("sharpness", 1e-3, 1e3, "log"),
    ),
    printed=_bound_for_any_projector,
    counterexamples=(
        Example(
            "orthogonal, but not spectral",
            r"$F = \mathrm{diag}(4, 0)$, $D = \tau (0, 1)$, and $P$ the projector on $(1, 1)$: $\Delta u = 0$, but "
            r"$\frac{1}{2} \|F^{1/2} P D\|^2 = \tau^2 / 2$.",
            lambda: _flat_ray((0.0, 1.0), (1.0, 1.0)),
        ),
    ),
    accepted=_aligned_ray,
    boundary=(
        Example(
            "inside the sensitive subspace",
            r"$F = \mathrm{diag}(4, 0)$, $D = \tau (1, 0)$, $d = 1$.",
            lambda: _flat_ray((1.0, 0.0), (1.0, 0.0)),
        ),
    ),
    tightness=1e-12,
)


# --- Theorem 6.1, the consequence


@dataclass(frozen=True)
class _Steepest:
    """``f = x sqrt(1 - x)`` on the line, ``x < 1``: its square ``x^2 - x^3`` has nothing beyond the cube."""

    @property
    def origin(self) -> np.ndarray:
        """Shape (1,)."""
        return np.zeros(1)

    def value(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1,)."""
        return displacement * np.sqrt(1 - displacement)

    def jacobian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1, 1)."""
        return ((1 - 1.5 * displacement) / np.sqrt(1 - displacement))[None]

    def hessian(self, displacement: np.ndarray) -> np.ndarray:
        """Shape (1, 1, 1)."""
        return ((0.75 * displacement - 1) / (1 - displacement) ** 1.5)[None, None]


@dataclass(frozen=True, eq=False)
class _Threshold:
    """A displaced skill with ``utility loss >= |F^(1/2) P D|^2 / 2 - C |D|^3`` for every D.

    Attributes:
        skill: whose Fisher matrix gives P and lambda.
        rank: d.
        displacement: D.
        constant: C.
        neighbourhood: a radius called sufficiently small whatever delta is.
    """

    skill: GaussianSkill
    rank: int
    displacement: np.ndarray
    constant: float
    neighbourhood: float = 0.0

    @property
    def sharpness(self) -> float:
        """lambda, the eigenvalue number d."""
        return float(np.linalg.eigvalsh(self.skill.fisher(self.skill.mean.origin))[-self.rank])

    @property
    def delta(self) -> float:
        """``|P D|``."""
        top = projector(self.skill.fisher(self.skill.mean.origin), self.rank)
        return float(np.linalg.norm(top @ self.displacement))

    @property
    def distance(self) -> float:
        """``|D|``."""
        return float(np.linalg.norm(self.displacement))


def _build_threshold(
    rng: np.random.Generator, dimension: int, outputs: int, share: float, precision: float, scale: float
) -> _Threshold:
    """A mean ``A D + Q[D, D]/2``, displaced by a share of the largest distance that the correction allows."""
    mean = Coefficients(rng).map(outputs, dimension, degree=2)
    rank = min(int(rng.integers(1, outputs + 1)), dimension)
    bend = np.sqrt(sum(np.linalg.norm(q, 2) ** 2 for q in mean.quadratic))
    mean = polynomial(mean.linear * scale, mean.quadratic * scale**2)
    constant = float(precision * np.linalg.norm(mean.linear, 2) * bend * scale**2 / 2)
    skill = GaussianSkill(mean, precision, outputs)
    direction = rng.standard_normal(dimension)
    unit = _Threshold(skill, rank, direction / np.linalg.norm(direction), constant)
    return _Threshold(
        skill, rank, unit.displacement * (share * unit.sharpness * unit.delta**2 / (4 * constant)), constant
    )


def _sufficiently_small(case: _Threshold) -> Slack:
    loss, main = case.skill.utility_loss(case.displacement), case.sharpness * case.delta**2
    rest = case.constant * case.distance**3
    bound = at_least(loss, main / 2 - rest, 1e-12, "rounding", scale=main, part="bound")
    if rest > main / 4:
        return bound
    return worst(bound, at_least(loss, main / 4, 1e-12, "rounding", scale=main, part="consequence"))


def _sufficiently_small_as_printed(case: _Threshold) -> Slack:
    main = case.sharpness * case.delta**2
    if case.distance > max(main / (4 * case.constant), case.neighbourhood):
        return Slack(0.0, 0.0, "the statement says nothing here")
    return at_least(case.skill.utility_loss(case.displacement), main / 4, 1e-12, "rounding")


def _within_both_thresholds(rng: np.random.Generator) -> _Threshold:
    """In units in which the printed threshold is the larger one."""
    return _build_threshold(rng, 3, 2, float(rng.uniform(0.1, 1.0)), 1.0, 1e-9)


def _ring(radius: float, displacement: tuple[float, float], neighbourhood: float = 0.0) -> _Threshold:
    """Skill ``N(q, 1)``, ``q = (|theta|^2 - R^2) / (2 R)`` at ``(R, 0)``, for which ``C = 1 / (2 R)``."""
    mean = polynomial(np.array([[1.0, 0.0]]), np.eye(2)[None] / radius)
    return _Threshold(GaussianSkill(mean, 1.0), 1, np.array(displacement), 1 / (2 * radius), neighbourhood)


CONSEQUENCE = Claim(
    key="6.1c",
    title="Consequence for small displacements",
    source="Theorem 6.1, section 6, last sentence",
    statement=r"""Consequently, if $\|P D\| \ge \delta > 0$, then $\Delta u \ge \Omega(\lambda \delta^2)$ for
sufficiently small $\|D\|$. In the proof: with $C$ the constant of the error term, for
$\|D\| \le \lambda \delta^2 / (4 C)$, $\Delta u \ge \lambda \delta^2 / 4$.""",
    hypotheses=(
        r"$\Delta u \ge \frac{1}{2} \|F^{1/2} P D\|^2 - C \|D\|^3$ (Theorem 6.1).",
        r"$\lambda = \lambda_{d} > 0$ and $\|P D\| \ge \delta$.",
    ),
    verdict=Verdict.CORRECTED,
    why="the threshold lacks a cube root, and it must depend on delta",
    correction=r"""For $\|D\| \le (\lambda \delta^2 / (4 C))^{1/3}$, $\Delta u \ge \lambda \delta^2 / 4$. Because
$\delta \le \|D\|$, such displacements exist only for $\delta \le \lambda / (4 C)$. No neighbourhood of
$\theta^*$ that does not depend on $\delta$ is small enough.""",
    derivation=r"""$\|F^{1/2} P D\|^2 \ge \lambda \delta^2$, so $\Delta u \ge \lambda \delta^2 / 2 - C \|D\|^3$, and the
last term is at most $\lambda \delta^2 / 4$ if and only if $\|D\|^3 \le \lambda \delta^2 / (4 C)$.

Along a gradient flow with $P g = 0$, $\delta$ is of the order $t^2$ and $\|D\|$ of the order $t$, so that
$\|D\|^3$ exceeds $\lambda \delta^2$ for small $t$: the consequence never applies there. This is where the proof of
Corollary 6.3 breaks.""",
    evidence=r"""Gaussian skills with a mean of one to three outputs, quadratic in $\theta$, for which
$C = \frac{\mu}{2} \|A\| \|Q\|$ holds for every $D$ ($\mu$ the precision, $A$ and $Q$ the first and second derivative
of the mean). The closed-form utility loss is compared with the bound and, within the threshold, with
$\lambda \delta^2 / 4$.""",
    check=_sufficiently_small,
    build=_build_threshold,
    parameters=(
        Parameter("dimension", 1, 4),
        Parameter("outputs", 1, 3),
        Parameter("share", 1e-3, 2.0, "log"),
        Parameter("precision", 1e-6, 1e6, "log"),
        Parameter("scale", 1e-3, 1e3, "log"),
    ),
    printed=_sufficiently_small_as_printed,
    counterexamples=(
        Example(
            "antipode",
            r"Skill $N(q, 1)$, $q = (\|\theta\|^2 - 4) / 4$, $\theta^* = (2, 0)$, $D = (-4, 0)$: $C = 1/4$ and "
            r"$\delta = \|D\| = 4$ is within the printed threshold $\lambda \delta^2 / (4 C) = 16$, but $\Delta u = "
            r"0$.",
            lambda: _ring(2.0, (-4.0, 0.0)),
        ),
        Example(
            "circle",
            r"Skill $N(q, 1)$, $q = (\|\theta\|^2 - 1) / 2$, $\theta^* = (1, 0)$: on the circle $\Delta u = 0$, with "
            r"$\delta = 1 - \cos \phi > 0$ at the distance $2 \sin(\phi / 2)$ for $\phi = 0.1$, and for every smaller "
            r"angle.",
            lambda: _ring(1.0, (float(np.cos(0.1) - 1), float(np.sin(0.1))), neighbourhood=0.1),
        ),
    ),
    accepted=_within_both_thresholds,
    boundary=(
        Example(
            "largest delta",
            r"Skill $N(x \sqrt{1 - x}, 1)$: $C = 1/2$, and at $D = \delta = \lambda / (4 C) = 1/2$ all bounds are "
            r"attained.",
            lambda: _Threshold(GaussianSkill(_Steepest(), 1.0), 1, np.array([0.5]), 0.5),
        ),
    ),
    tightness=1e-12,
)


CLAIMS = (LOWER_BOUND, CONSEQUENCE, DRIFT_THEOREM, DRIFT_LEMMA, QUARTIC_SCALING)
