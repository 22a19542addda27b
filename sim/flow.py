"""Paths of the parameters: continuous ones by SciPy's DOP853, discrete ones step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.func import vmap

from sim.fields import Field

RELATIVE_TOLERANCE = 3e-14  # keeps the interpolation between the steps accurate to 1e-13, not the steps alone
ABSOLUTE_TOLERANCE = 1e-15
_DIVERGED = 1e12  # a parameter of this size has no meaning left in any of our problems


class DivergedError(ValueError):
    """A path left every bound; ``time`` is where."""

    def __init__(self, time: float) -> None:
        super().__init__(f"the path diverges near t = {time:.3g}")
        self.time = time


def flow(field: Field, base: Float[Tensor, " n"], times: Float[np.ndarray, " T"]) -> Float[Tensor, "T n"]:
    """The parameters at increasing times along ``theta' = v(theta)`` from ``theta(0) = base``.

    Raises:
        ValueError: unless the times increase from at least 0.
        DivergedError: if the path diverges.
    """
    return flow_many(field, base[None], times)[0]


def flow_many(field: Field, bases: Float[Tensor, "B n"], times: Float[np.ndarray, " T"]) -> Float[Tensor, "B T n"]:
    """Trajectories from B base points at once: one vectorised system, one step control.

    Args:
        field: the field that all follow.
        bases: starting points.
        times: increasing, the first at least 0.

    Raises:
        ValueError: unless the times increase from at least 0.
        DivergedError: if a path diverges.
    """
    if len(times) == 0 or not (np.isfinite(times).all() and times[0] >= 0 and (np.diff(times) > 0).all()):
        raise ValueError(f"the times of a path must be finite and increase from at least 0, got {times}")
    return trajectory(field, bases, float(times[-1]))(times)


def trajectory(field: Field, bases: Float[Tensor, "B n"], end: float) -> Callable[[np.ndarray], Tensor]:
    """The paths from B base points as one function of times in [0, end], (T,) to (B, T, n): DOP853's dense output.

    Raises:
        ValueError: if there is no base point, or the end is negative or not finite.
        DivergedError: if a path diverges.
    """
    if len(bases) == 0 or not 0 <= end < np.inf:
        raise ValueError(f"expected base points and a finite end of at least 0, got {len(bases)} and {end}")
    start = torch.stack([field.start(base) for base in bases])
    velocity = vmap(field) if len(bases) > 1 else lambda states: field(states[0])[None]

    reached = 0.0

    def right_hand_side(time: float, flat: np.ndarray) -> np.ndarray:
        nonlocal reached
        if not np.abs(flat).max() < _DIVERGED:
            raise DivergedError(reached)
        reached = time
        return velocity(torch.from_numpy(flat).reshape(start.shape)).flatten().numpy()

    with np.errstate(over="ignore", invalid="ignore"):
        solution = solve_ivp(
            right_hand_side,
            (0.0, max(end, np.finfo(float).tiny)),
            start.flatten().numpy(),
            method="DOP853",
            dense_output=True,
            rtol=RELATIVE_TOLERANCE,
            atol=ABSOLUTE_TOLERANCE,
        )
    if not solution.success:
        raise DivergedError(reached)

    def parameters(times: np.ndarray) -> Tensor:
        states = torch.from_numpy(solution.sol(times).T.copy()).reshape(len(times), *start.shape)
        return vmap(vmap(field.parameters))(states).transpose(0, 1)

    return parameters


def descend(
    field: Field,
    base: Float[Tensor, " n"],
    step_sizes: Sequence[float] | Float[np.ndarray, " K"],
    *,
    momentum: float = 0.0,
    noise: Float[Tensor, "K n"] | None = None,
    refresh: int = 1,
) -> Float[Tensor, "K1 n"]:
    """The parameters after 0, 1, ..., K steps of ``u <- mu u + eta_k v(theta)``, ``theta <- theta + u``.

    With a gradient field this is gradient descent with a schedule, and with momentum Polyak's heavy ball.

    Args:
        field: the field to step along.
        base: theta(0).
        step_sizes: eta_k.
        momentum: mu, in [0, 1).
        noise: added to the velocity at each step, in the state's coordinates.
        refresh: a projector that the field tracks is renewed every so many steps.

    Raises:
        ValueError: if the momentum or the refresh interval is impossible, or the noise is not one row a step.
        DivergedError: if a step leaves every bound; its time is the sum of the step sizes so far.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"the momentum must lie in [0, 1), got {momentum}")
    if refresh < 1:
        raise ValueError(f"the projector is refreshed every 1 or more steps, got {refresh}")
    if noise is not None and len(noise) != len(step_sizes):
        raise ValueError(f"expected one row of noise for each of the {len(step_sizes)} steps, got {len(noise)}")
    state = field.start(base)
    push, held = torch.zeros_like(state), field
    path = [field.parameters(state)]
    for k, eta in enumerate(step_sizes):
        if k % refresh == 0:
            held = field.frozen(state)
        velocity = held(state) if noise is None else held(state) + noise[k]
        push = momentum * push + eta * velocity
        state = state + push
        if not state.abs().max() < _DIVERGED:
            raise DivergedError(float(np.sum(step_sizes[: k + 1])))
        path.append(field.parameters(state))
    return torch.stack(path)


def adam(
    field: Field,
    base: Float[Tensor, " n"],
    step_sizes: Sequence[float] | Float[np.ndarray, " K"],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    decay: float = 0.0,
) -> Float[Tensor, "K1 n"]:
    """The parameters after 0, 1, ..., K steps of torch's AdamW along a field, moments from zero.

    Raises:
        DivergedError: as :func:`descend`.
    """
    state = field.start(base).clone()
    optimizer = torch.optim.AdamW([state], betas=betas, eps=epsilon, weight_decay=decay)
    path = [field.parameters(state).clone()]
    for k, eta in enumerate(step_sizes):
        state.grad = -field(state)
        optimizer.param_groups[0]["lr"] = float(eta)
        optimizer.step()
        if not state.abs().max() < _DIVERGED:
            raise DivergedError(float(np.sum(step_sizes[: k + 1])))
        path.append(field.parameters(state).clone())
    return torch.stack(path)
