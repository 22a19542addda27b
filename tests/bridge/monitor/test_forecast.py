from __future__ import annotations

import pytest

from bridge.monitor.forecast import forecast


def test_a_power_of_time_is_continued_and_the_end_is_never_before_now() -> None:
    history = [{"accumulated_learning_rate": t, "utility_loss": 3 * t**2} for t in (1.0, 2.0, 3.0)]
    found = forecast(history, 4.0, 48.0, 12.0)
    assert found["forecast"] == pytest.approx(3 * 12.0**2, rel=0.02)
    assert found["forecast_low"] < found["forecast"] < found["forecast_high"]
    assert forecast(history, 4.0, 48.0, 2.0)["forecast"] == pytest.approx(48.0, rel=0.02)
    assert forecast(history[:1], 2.0, 12.0, 12.0) == {}
