"""What the losses measured so far say of the end of the training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from theory.damage_forecast import forecast_end


def forecast(history: Iterable[Mapping[str, float]], accumulated: float, loss: float, end: float) -> dict[str, float]:
    """The utility loss at the end, in nats a response, with its interval; nothing before three usable measurements.

    Args:
        history: the measurements before, each with accumulated_learning_rate and utility_loss.
        accumulated: the sum of the learning rates of the steps so far.
        loss: measured now.
        end: that sum at the end of the training.

    """
    points = [(point["accumulated_learning_rate"], point["utility_loss"]) for point in history]
    at, losses = np.array([*points, (accumulated, loss)], dtype=np.float64).T
    found = forecast_end(at, losses, max(end, accumulated))
    return {} if found is None else {"forecast": found.value, "forecast_low": found.low, "forecast_high": found.high}
