"""The Python interface: the same numbers as the commands, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bridge
from tests.bridge.support.tiny_interface import CASES, SHORT, Case, make_interface_workplace

TIMES = ("seconds",)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_interface_workplace(tmp_path_factory.mktemp("interface"))


@pytest.fixture(scope="module")
def model(workplace: Path) -> Any:
    return bridge.Model(workplace / "model", device="cpu")


def numbers(result: Any) -> dict[str, Any]:
    return {name: value for name, value in result.to_dict().items() if name not in TIMES}


@pytest.fixture
def no_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, a model that computes anything is an error."""

    def refuse(*given: Any, **options: Any) -> Any:
        raise AssertionError("a model was asked")

    return lambda: monkeypatch.setattr(torch.nn.Module, "__call__", refuse)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_call_gives_the_numbers_of_its_command(
    case: Case, model: Any, workplace: Path, tmp_path: Path, command: Any, no_passes: Any
) -> None:
    theirs, own = tmp_path / "command", tmp_path / "call"
    assert command(case.command, *case.line(workplace, theirs)).code == 0

    result = case.call(model, workplace, None if case.in_memory else own)
    read = type(result).read(theirs)
    assert numbers(result) == numbers(read) == numbers(bridge.load_result(theirs))
    assert str(result)
    assert "<table" in result._repr_html_()
    assert len(result.to_frame()) > 0
    if case.draws:
        picture = result.plot()
        assert picture.startswith(b"\x89PNG")
        assert picture._repr_png_() == picture

    written = case.call(model, workplace, own)
    assert numbers(written) == numbers(result)
    assert (own / "settings.toml").read_text() == (theirs / "settings.toml").read_text()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (own, theirs)]
    assert manifests[0]["settings"] == manifests[1]["settings"]
    no_passes()
    assert case.call(model, workplace, own).to_dict() == written.to_dict()
    assert case.call(model, workplace, theirs).to_dict() == read.to_dict()


def test_samples_show_what_the_model_says_and_what_the_rows_hold(model: Any, workplace: Path) -> None:
    skill = model.samples(workplace / "skill.jsonl", 6, draws=2, **SHORT)
    assert len(skill) == 12 == len(list(skill))
    assert skill.samples[0].set == "skill"
    assert "12 samples" in repr(skill)
    assert "own responses" in repr(skill)
    assert "<table" in skill._repr_html_()
    rows = model.samples(workplace / "skill.jsonl", 8, responses="rows")
    assert [pair["response"] for pair in rows][:2] == ["no</s>", "noyy</s>"]
    assert "data's responses" in repr(rows)
    assert "&lt;script&gt;" in rows._repr_html_()
    again = model.samples(workplace / "skill.jsonl", 6, draws=2, **SHORT)
    assert again.samples == skill.samples


def test_utility_loss_is_that_of_overlap(model: Any, workplace: Path) -> None:
    skill = model.samples(workplace / "skill.jsonl", 6, **SHORT)
    changes = {"full": workplace / "full.safetensors", "adapter": workplace / "adapter"}
    found = model.overlap(skill, changes, rank=3, bootstrap=0)
    for label, delta in changes.items():
        assert model.utility_loss(skill, delta) == found.deltas[label].utility_loss.mean


def test_responses_are_drawn_once(model: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skill = model.samples(workplace / "skill.jsonl", 6, **SHORT)

    def refuse(*given: Any, **options: Any) -> Any:
        raise AssertionError("drawn again")

    monkeypatch.setattr("bridge.generation.drawing.draw_responses", refuse)
    model.spectrum(skill, rank=3)
    model.spectrum(workplace / "skill.jsonl", num_skill=6, rank=3, **SHORT)


def test_nothing_is_written_without_a_folder(
    model: Any, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.spectrum(model.samples(workplace / "skill.jsonl", 6, **SHORT), rank=3)
    model.harmfulness(workplace / "prompts.jsonl", max_new_tokens=3)
    assert not list(tmp_path.iterdir())


def test_random_numbers_of_the_process_are_left_alone(model: Any, workplace: Path, tmp_path: Path) -> None:
    def states() -> tuple[Any, ...]:
        numpy: Any = np.random.get_state()
        return numpy[1].tolist(), numpy[2:], torch.random.get_rng_state().tolist()

    before = states()
    for name in ("spectrum", "onset", "harmfulness", "finetune"):
        CASES[name].call(model, workplace, tmp_path / name)
        assert states() == before, name


def test_finetune_by_name_is_the_method(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(bridge), "finetune", raising=False)  # the door of that name, where a test imported it
    options: dict[str, Any] = {"rows": 5, "max_steps": 2, "max_length": 64, "device": "cpu", "seed": 3}
    rows = workplace / "finetune.jsonl"
    found = bridge.finetune(workplace / "model", rows, folder=tmp_path / "run", **options)
    assert found.to_dict() == bridge.load_result(tmp_path / "run").to_dict()
    assert found.steps == 2
    device = options.pop("device")
    method = bridge.Model(workplace / "model", device=device).finetune(rows, folder=tmp_path / "method", **options)
    assert numbers(found) == numbers(method)


def test_a_picture_is_shown_and_saved(model: Any, workplace: Path, tmp_path: Path) -> None:
    result = model.spectrum(workplace / "skill.jsonl", num_skill=6, rank=3, **SHORT)
    picture = result.plot()
    picture.save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes() == picture
    assert "data:image/png" in picture._repr_html_()
    with pytest.raises(bridge.UserError, match="spectrum"):
        result.plot("no such picture")


SILENT = """
import atexit, gc, logging, os, sys, warnings
registered, really = [], atexit.register


def register(function, *given, **options):
    registered.append(function)
    return really(function, *given, **options)


atexit.register = register
before = dict(os.environ), logging.root.level, list(logging.root.handlers), list(warnings.filters)
{importing}
ours = [f for f in registered if (getattr(f, "__module__", "") or "").split(".")[0] in ("bridge", "commands", "theory")]
assert not ours, ours
assert gc.get_freeze_count() == 0 and gc.isenabled()
{after}
"""


@pytest.mark.parametrize(
    ("importing", "after"),
    [
        (
            "import bridge; bridge.__all__; dir(bridge); bridge.UserError",
            "heavy = {'torch', 'numpy', 'transformers', 'pandas', 'scipy', 'pydantic'} & set(sys.modules)\n"
            "assert not heavy, heavy\nassert not registered\n"
            "assert before == (dict(os.environ), logging.root.level, logging.root.handlers, warnings.filters)",
        ),
        (
            "from bridge.monitor import AlignmentMonitor; import bridge; assert bridge.AlignmentMonitor",
            "assert before[:3] == (dict(os.environ), logging.root.level, logging.root.handlers)",
        ),
        (
            "import bridge; bridge.Model, bridge.Samples, bridge.finetune, bridge.load_result, bridge.mso",
            "assert before[:3] == (dict(os.environ), logging.root.level, logging.root.handlers)",
        ),
    ],
    ids=["bridge", "monitor", "interface"],
)
def test_importing_leaves_the_process_as_it_was(importing: str, after: str) -> None:
    code = SILENT.format(importing=importing, after=after)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_name_is_there() -> None:
    assert dir(bridge) == bridge.__all__
    for name in bridge.__all__:
        assert getattr(bridge, name).__doc__
    with pytest.raises(AttributeError, match="no_such_name"):
        bridge.no_such_name  # noqa: B018
