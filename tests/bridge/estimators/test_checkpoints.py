"""Sums that survive a kill: bit-identical however often and wherever they stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.estimators import checkpoints
from bridge.estimators.checkpoints import Accumulator, in_order, load_directions, save_directions
from bridge.estimators.curvature import Direction

STEPS = 7
SHAPES = {"z.last": (3, 4), "a.first": (5,)}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the product may catch it and tidy up."""


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def zeros() -> dict[str, Direction]:
    return {kind: {name: torch.zeros(shape) for name, shape in SHAPES.items()} for kind in ("total", "second")}


def add(sums: dict[str, Direction], step: int) -> float:
    """Add terms of very different sizes, so that any other order of addition rounds differently."""
    draw = torch.Generator().manual_seed(step)
    scale = 10.0 ** ((step * 5) % 7 - 3)
    for name, shape in SHAPES.items():
        term = scale * torch.randn(shape, generator=draw)
        sums["total"][name] += term
        sums["second"][name] += term**2
    return scale / 3


def undisturbed() -> tuple[dict[str, Direction], float]:
    sums, value = zeros(), 0.0
    for step in range(STEPS):
        value += add(sums, step)
    return sums, value


def attempt(
    path: Path, saved_at: set[int], kill_at: int | None = None, half: bool = False
) -> tuple[Accumulator, list[int]]:
    """One process. The steps in `saved_at` take a minute, the others no time.

    It dies in step `kill_at`, before it or (half) in the middle of changing the sums.
    """
    clock, called = Clock(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "time", clock)
        accumulator = Accumulator(path, zeros, "cpu")

        def body(step: int) -> float:
            if step == kill_at:
                if half:
                    accumulator.sums["total"]["a.first"] += 1e6
                raise Killed
            called.append(step)
            clock.now += 60.0 * (step + 1 in saved_at)
            return add(accumulator.sums, step)

        accumulator.run(STEPS, body, lambda: None)
    return accumulator, called


def done(path: Path) -> int:
    return int(load_directions(path, "cpu")[1]["done"]) if path.exists() else 0


def assert_same(left: dict[str, Direction], right: dict[str, Direction]) -> None:
    assert set(left) == set(right)
    for kind, direction in right.items():
        assert set(left[kind]) == set(direction)
        for name, tensor in direction.items():
            assert torch.equal(left[kind][name], tensor)


@settings(max_examples=60, deadline=None)
@given(
    deaths=st.lists(st.tuples(st.integers(0, STEPS - 1), st.booleans()), max_size=5),
    saved_at=st.sets(st.integers(1, STEPS)),
)
def test_killed_at_any_steps_the_sums_are_the_same_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, deaths: list[tuple[int, bool]], saved_at: set[int]
) -> None:
    path = tmp_path_factory.mktemp("run") / "sums.safetensors"
    for step, half in deaths:
        if done(path) > step:
            continue  # this process would not reach that step any more
        with pytest.raises(Killed):
            attempt(path, saved_at, step, half)
        assert done(path) == max((s for s in saved_at if s <= step), default=0)
    begin = done(path)
    found, called = attempt(path, saved_at)
    expected, value = undisturbed()
    assert called == list(range(begin, STEPS))
    assert_same(found.sums, expected)
    assert found.value == value
    again, called = attempt(path, saved_at)
    assert called == []  # finished sums are only read
    assert_same(again.sums, expected)
    assert again.value == value


def test_the_order_of_addition_can_be_seen_in_these_sums() -> None:
    """Else the test above could not tell a resumed sum from one added up in another order."""
    sums = zeros()
    for step in reversed(range(STEPS)):
        add(sums, step)
    assert not torch.equal(sums["total"]["a.first"], undisturbed()[0]["total"]["a.first"])


def test_ticks_count_the_steps_of_this_process(tmp_path: Path) -> None:
    path, ticks = tmp_path / "sums", []
    with pytest.raises(Killed):
        attempt(path, {3}, kill_at=5)
    accumulator = Accumulator(path, zeros, "cpu")
    accumulator.run(STEPS, lambda step: add(accumulator.sums, step), lambda: ticks.append(accumulator.done))
    assert ticks == [4, 5, 6, 7]


def test_a_save_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sums.safetensors"
    save_directions(path, {"total": {"w": torch.ones(2)}}, {"done": 1})

    def no_rename(self: Path, target: Path) -> None:
        assert done(self) == 2  # all of it is there before the rename
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_rename)
        with pytest.raises(Killed):
            save_directions(path, {"total": {"w": torch.zeros(2)}}, {"done": 2})
    assert done(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["sums.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_directions_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    directions = {
        kind: {name: torch.randn(4, 3, generator=draw).to(dtype).T for name in ("model.layers.0.q", "a")}
        for kind in ("velocity", "preconditioner")
    }
    meta = {"gradient_squared": {"a": 1e-300, "b": 0.1}, "loss": 1 / 3}
    save_directions(tmp_path / "d", directions, meta)
    found, found_meta = load_directions(tmp_path / "d", "cpu")
    assert_same(found, directions)
    assert found["velocity"]["a"].dtype == dtype
    assert found_meta == meta


def test_modules_come_back_in_the_models_order(tmp_path: Path) -> None:
    names = ["layers.10", "layers.9", "b", "a"]
    save_directions(tmp_path / "d", {"v": {n: torch.full((1,), float(i)) for i, n in enumerate(names)}}, {})
    found = in_order(load_directions(tmp_path / "d", "cpu")[0]["v"], names)
    assert list(found) == names
    assert [float(t) for t in found.values()] == [0.0, 1.0, 2.0, 3.0]
