"""The risk of a fine-tuning set for a skill, at equal fine-tuning progress, and its rows' share of it.

A set of R rows with scores ``s_r`` (gradients of the rows' summed log-probabilities) and T response tokens moves the
parameters along ``v = M sum_r s_r / T``, the descent of its mean token loss under a fixed preconditioner M. At
parameters ``theta + t v`` the utility loss is, at second order, ``t^2 / 2`` times ``leak^2 = v^T F v``, with F the
Fisher matrix of the skill (Proposition 3.3 of "The Geometry of Alignment Collapse", arXiv 2602.15799). Sets are
compared where they have made the same progress:

* "norm", the same distance: ``t |v| = rho``, so that the utility loss is ``rho^2 / 2 * v^T F v / |v|^2``;
* "loss", the same first-order decrease of each set's own loss: ``t v^T M^-1 v = D``, so that it is
  ``D^2 / 2 * v^T F v / (v^T M^-1 v)^2``.

Since v is a sum over rows and all three forms are quadratic, every subset and every resample of the rows follows from
inner products of pairs. Nothing here is a model or a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float

from theory.statistics import Scalar

Equal = Literal["norm", "loss"]
"""What is equal where sets are compared: the distance from the start, or the decrease of their own losses."""
EQUALS: tuple[Equal, ...] = get_args(Equal)

_ROWS_STREAM, _REMOVALS_STREAM = 5, 6  # random streams apart from those of the samples' resamples


@dataclass(frozen=True, eq=False)
class RowParts:
    """Inner products of a set's rows with a skill's samples and with each other.

    Attributes:
        skill: (N, R) ``s_i . M s_r``.
        decrease: (R, R) ``s_r . M s_r'``: first-order decrease of the loss of one row by a step along another.
        norm: (R, R) ``M s_r . M s_r'``.
        tokens: (R,) response tokens of each row.

    Raises:
        ValueError: if shapes do not fit, a number is not finite, or a row has no token.
    """

    skill: np.ndarray
    decrease: np.ndarray
    norm: np.ndarray
    tokens: np.ndarray

    def __post_init__(self) -> None:
        """Validate."""
        rows = len(self.tokens)
        shapes = [a.shape for a in (self.skill, self.decrease, self.norm)]
        if rows == 0 or len(self.skill) == 0 or shapes != [(len(self.skill), rows), (rows, rows), (rows, rows)]:
            raise ValueError(f"expected inner products of {rows} rows (at least one), got shapes {shapes}")
        if not all(np.isfinite(a).all() for a in (self.skill, self.decrease, self.norm)):
            raise ValueError("inner products of rows must be finite")
        if self.tokens.min() < 1:
            raise ValueError("every row needs at least one response token")

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.skill)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.tokens)

    @property
    def every_row(self) -> Float[np.ndarray, "1 R"]:
        """The weights of the whole set: each row once."""
        return np.ones((1, self.num_rows))

    @property
    def velocity(self) -> Float[np.ndarray, " N"]:
        """``s_i . v`` of every sample."""
        return self.skill.sum(axis=1) / self.tokens.sum()


class Motion(NamedTuple):
    """How weighted rows move: one value for each of B weightings.

    leak_squared: ``v^T F v``; decrease: ``v^T M^-1 v``, the rate at which the set's own loss falls; squared_norm:
    ``|v|^2``.
    """

    leak_squared: Float[np.ndarray, " B"]
    decrease: Float[np.ndarray, " B"]
    squared_norm: Float[np.ndarray, " B"]

    def per_progress(self, equal: Equal) -> Float[np.ndarray, " B"]:
        """``leak^2`` at unit progress: utility loss is half of it times the progress squared. NaN without progress."""
        below = self.squared_norm if equal == "norm" else self.decrease**2
        usable = (below > 0) & (self.decrease > 0)
        return np.divide(self.leak_squared, below, out=np.full(len(below), np.nan), where=usable)

    def time(self, equal: Equal, progress: Scalar) -> Float[np.ndarray, " B"]:
        """t (learning rate times steps) at which that progress is made; NaN where it never is."""
        below = np.sqrt(np.maximum(self.squared_norm, 0)) if equal == "norm" else self.decrease
        return np.divide(float(progress), below, out=np.full(len(below), np.nan), where=below > 0)


def motion(parts: RowParts, weights: Float[np.ndarray, "B R"]) -> Motion:
    """Motion of the set with its rows weighted: 0 leaves a row out, 2 has it twice.

    Args:
        parts: inner products of the rows.
        weights: B weightings, none of them all zero.

    Raises:
        ValueError: if a weighting leaves no row.
    """
    tokens = weights @ parts.tokens
    if tokens.min(initial=1.0) <= 0:
        raise ValueError("a weighting of the rows must leave at least one")
    first = weights @ parts.skill.T
    forms = [((weights @ form) * weights).sum(axis=1) for form in (parts.decrease, parts.norm)]
    return Motion((first**2).mean(axis=1) / tokens**2, *(form / tokens**2 for form in forms))


# ----------------------------------------------------------------------------------------- shares of rows


class Attribution(NamedTuple):
    """What each row adds to ``leak^2 = v^T F v``, with ``v = sum_r v_r`` and ``v_r = M s_r / T``.

    contribution: ``v_r^T F v``; these add up to ``leak^2``. own: ``v_r^T F v_r``, the leak of the row alone at its
    share of the step. leave_one_out: ``2 v_r^T F v - v_r^T F v_r``, by how much ``leak^2`` falls without the row, T
    kept.
    """

    contribution: Float[np.ndarray, " R"]
    own: Float[np.ndarray, " R"]
    leave_one_out: Float[np.ndarray, " R"]


def attribution(parts: RowParts) -> Attribution:
    """The rows' shares in the set's leak."""
    share = parts.skill / parts.tokens.sum()  # s_i . v_r
    contribution = share.T @ share.sum(axis=1) / parts.num_samples
    own = (share**2).mean(axis=0)
    return Attribution(contribution, own, 2 * contribution - own)


def removal_effects(parts: RowParts, equal: Equal) -> Float[np.ndarray, " R"]:
    """Relative change of the set's utility loss at equal progress if one row is left out, for each row.

    -0.1: without the row the set costs a tenth less. M is held fixed. NaN where nothing is left, or nothing moves.
    """
    if parts.num_rows == 1:
        return np.full(1, np.nan)
    whole = motion(parts, parts.every_row).per_progress(equal)
    without = motion(parts, 1.0 - np.eye(parts.num_rows)).per_progress(equal)
    return np.divide(without, whole, out=np.full(parts.num_rows, np.nan), where=whole > 0) - 1


def random_removals(parts: RowParts, count: int, draws: int, seed: int) -> Motion:
    """Motion of the set without `count` rows chosen at random, `draws` times: what removing any rows does.

    Raises:
        ValueError: if that leaves no row.
    """
    if not 0 <= count < parts.num_rows:
        raise ValueError(f"expected 0 to {parts.num_rows - 1} rows to remove, got {count}")
    rng = np.random.default_rng([seed, _REMOVALS_STREAM])
    order = rng.permuted(np.tile(np.arange(parts.num_rows), (draws, 1)), axis=1)
    weights = np.ones((draws, parts.num_rows))
    np.put_along_axis(weights, order[:, :count], 0.0, axis=1)
    return motion(parts, weights)


# ---------------------------------------------------------------------------------------------- resamples


def resampled_motion(
    parts: RowParts, skill_weights: Float[np.ndarray, "B N"], seed: int | Sequence[int] | None = None
) -> Motion:
    """Motion under B resamples of the skill's samples and, with a seed, of the rows too.

    v is a mean over tokens, ``sum_r s_r / sum_r tokens_r`` before M, so that other rows of the same source move it by
    about ``sum_r e_r d_r`` with ``d_r = M (s_r - tokens_r v_0) / T``, v_0 that mean and e_r random signs that add up
    to 0 (half of the rows against the other half). What that does to a quadratic form is computed from the inner
    products of the d_r, and shrunk to the variance that it should have (`_row_deviations`). To the leak it is added
    beside what the samples' weights do: drawn both at once, what samples and rows make together would be counted
    three times (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007).

    Args:
        parts: inner products of the rows.
        skill_weights: weights of the samples, each draw summing to 1 (`theory.resampling.bootstrap_weights`).
        seed: of the rows' resamples; None keeps the rows.
    """
    leak = skill_weights @ parts.velocity**2
    whole = motion(parts, parts.every_row)
    if seed is None:
        return Motion(leak, *(np.repeat(form, len(leak)) for form in whole[1:]))
    key = [seed] if isinstance(seed, int) else list(seed)
    signs = _half_against_half(np.random.default_rng([*key, _ROWS_STREAM]), len(leak), parts.num_rows)
    total, share = parts.tokens.sum(), parts.tokens / parts.tokens.sum()
    moved = parts.skill / total - np.outer(parts.velocity, share)  # s_i . d_r
    leak = leak + _row_deviations(signs, moved.T @ moved / len(moved), parts.velocity @ moved / len(moved))
    drawn = [np.maximum(leak, 0.0)]
    for form, value in zip((parts.decrease, parts.norm), whole[1:], strict=True):
        along = form.sum(axis=1) / total**2  # v with the row's part of v
        gram = form / total**2 - np.outer(along, share) - np.outer(share, along) + value * np.outer(share, share)
        drawn.append(np.maximum(value + _row_deviations(signs, gram, along - value * share), 0.0))
    return Motion(*drawn)


def _half_against_half(rng: np.random.Generator, draws: int, rows: int) -> Float[np.ndarray, "B R"]:
    """Random signs of the rows that add up to 0 and have mean square 1; zeros for a single row."""
    half = rows // 2
    if half == 0:
        return np.zeros((draws, rows))
    signs = np.full((draws, rows), -np.sqrt(half / (rows - half)))
    order = rng.permuted(np.tile(np.arange(rows), (draws, 1)), axis=1)
    np.put_along_axis(signs, order[:, :half], np.sqrt((rows - half) / half), axis=1)
    return signs


def _row_deviations(
    signs: Float[np.ndarray, "B R"], gram: Float[np.ndarray, "R R"], along: Float[np.ndarray, " R"]
) -> Float[np.ndarray, " B"]:
    """By how much a quadratic form Q(v) deviates for other rows of the same source, in B draws of mean 0.

    The draws ``sum_r e_r h_r + sum_{r != s} e_r e_s G_rs`` have the variance ``L + P``, ``L = sum_r h_r^2`` and
    ``P = 2 sum_{r != s} G_rs^2``. But v holds the noise of the rows already, which the h_r count as if it were v's:
    for a form of pure noise L is 2 P where the variance of Q is P alone. Without that bias the variance is ``L - P``
    (Efron and Stein, "The jackknife estimate of variance", Annals of Statistics 9, 1981), and never below P. The
    deviations are shrunk to that.

    Args:
        signs: e of each draw.
        gram: G, the form between the deviations d_r.
        along: the form between v and d_r.
    """
    apart = gram - np.diag(np.diag(gram))
    first = 2 * along - np.diag(gram)  # what Q loses without row r
    first = first - first.mean()
    linear, pairs = float(first @ first), 2 * float((apart**2).sum())
    if linear + pairs == 0:
        return np.zeros(len(signs))
    raw = signs @ first + ((signs @ gram) * signs).sum(axis=1) - gram.trace() * len(gram) / max(len(gram) - 1, 1)
    return np.sqrt(min(max(linear - pairs, pairs) / (linear + pairs), 1.0)) * raw


def probability_worst(values: Float[np.ndarray, "C B"]) -> Float[np.ndarray, " C"]:
    """Share of the draws in which each of C sets has the largest value.

    Sets that tie share a draw; a draw in which a value is undefined does not count. NaN if none does.
    """
    defined = values[:, ~np.isnan(values).any(axis=0)]
    if defined.shape[1] == 0:
        return np.full(len(values), np.nan)
    best: Bool[np.ndarray, "C B"] = defined == defined.max(axis=0)
    return (best / best.sum(axis=0)).mean(axis=1)


def order_by(values: Sequence[float]) -> list[int]:
    """Indices from the largest value to the smallest; ties keep their order, undefined values come last."""
    found = np.asarray(values, dtype=np.float64)
    return [int(i) for i in np.argsort(np.where(np.isnan(found), np.inf, -found), kind="stable")]
