"""Two workers share the machine: each keeps to one thread, and so does every command that a test starts."""

from __future__ import annotations

import gc
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch and NumPy are imported, which read it then
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def pytest_collection_finish() -> None:
    """What is imported by now stays: a training collects garbage at each of its steps, and would look at all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def drawn() -> None:
    """For a test whose own pictures are to be drawn."""


@pytest.fixture(autouse=True)
def _sketched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of runs in a test are sketched; runs of fixtures of a wider scope come before this."""
    if "drawn" not in request.fixturenames:
        from tests.sketches import sketch

        monkeypatch.setattr("matplotlib.figure.Figure.savefig", sketch)
