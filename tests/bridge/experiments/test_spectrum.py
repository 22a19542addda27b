"""`python -m bridge.spectrum` on a tiny model: its folder, its numbers, its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.experiments.spectrum import run as spectrum_run
from bridge.experiments.spectrum.report import reading
from bridge.experiments.spectrum.result import SkillSpectrum, Spectrum, SpectrumResult
from tests.bridge.support.tiny_runs import make_workplace
from tests.in_process import run_module
from theory.growth import Growth

FILES = {
    "manifest.json", "settings.toml", "spectrum.json", "statistics.npz", "samples.jsonl", "spectrum.png",
    "growth.png", "blocks.png", "report.html",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("spectrum"), "gpt2")


def command(monkeypatch: pytest.MonkeyPatch, place: Path, out: Path, *more: str) -> int:
    skills = [text for name in ("skill", "finetune") for text in ("--skill", str(place / f"{name}.jsonl"))]
    numbers = ("--num-skill", "6", "--rank", "2", "--max-new-tokens", "6", "--max-length", "64")
    arguments = ("--model", str(place / "model"), *skills, *numbers, "--device", "cpu", "--out", str(out), *more)
    return run_module("bridge.spectrum", *arguments).code


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, place, place / "run") == 0
    return place / "run"


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "spectrum.json").read_text())
    return found


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES


def test_every_spectrum_is_that_of_its_grams(place: Path, finished: Path) -> None:
    arrays = np.load(finished / "statistics.npz")
    for skill, found in read(finished)["skills"].items():
        grams = {key.removeprefix(f"{skill}/"): arrays[key] for key in arrays.files if key.startswith(f"{skill}/")}
        assert set(grams) == set(found["blocks"])
        for layer, names in {
            "": list(grams),
            **{b: [n for n in grams if n.startswith(b + ".")] for b in found["layers"]},
        }.items():
            total = sum(grams[name] for name in names)
            values = np.sort(np.linalg.eigvalsh(total))[::-1] / len(total)
            summary = found["layers"][layer] if layer else found["whole_model"]
            assert summary["eigenvalues"] == pytest.approx(values, rel=1e-6, abs=1e-9 * values[0])
            assert summary["trace"] == pytest.approx(np.trace(total) / len(total))
            assert summary["effective_rank"] == pytest.approx(values.sum() ** 2 / np.sum(values**2))
            norms = np.diag(total)
            assert summary["effective_rank_orthogonal"] == pytest.approx(norms.sum() ** 2 / np.sum(norms**2))
        assert found["growth"][-1]["effective_rank"] == pytest.approx(found["whole_model"]["effective_rank"])
        assert {half["rank"] for half in found["split_half"]} == {1, 2, 3}


def test_skills_do_not_share_their_checkpoints(finished: Path) -> None:
    first, second = read(finished)["skills"].values()
    assert first["whole_model"]["trace"] != second["whole_model"]["trace"]


def test_the_result_is_read_back_as_it_was_written(finished: Path) -> None:
    result = SpectrumResult.read(finished)
    assert result.to_dict() == read(finished)
    assert list(result.to_frame()["samples"]) == [6, 6]
    assert "effective rank" in result._repr_html_()
    assert result.plot("growth").startswith(b"\x89PNG")


def test_the_page_explains_itself(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "twice the samples show" in page


def test_the_same_command_again_computes_nothing(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spectrum_run, "_measure", lambda *_, **__: pytest.fail("computed again"))
    assert command(monkeypatch, place, finished) == 0
    assert "complete already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rank", "7"), "--rank: expected at most 6"),
        (("--subsets", "0"), "--subsets: expected a whole number from 1"),
        (("--num-skill", "60"), "has 8 usable rows"),
        (("--skill", "refusal"), "did you mean refusals"),
        (("--skill", "benign", "--skill", "benign"), "--skill: expected different sets"),
    ],
)
def test_what_cannot_be(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    more: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    assert command(monkeypatch, place, tmp_path / "run", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def made(samples: int, half: Growth, whole: float, norms: float) -> SkillSpectrum:
    """A skill's spectrum with these effective ranks."""
    spectrum = Spectrum([1.0], 1.0, whole, [1.0], norms, whole, whole)
    growth = [half, Growth(float(samples), whole, norms, whole)]
    return SkillSpectrum(samples, 10, spectrum, 0.0, growth, [], {}, {})


@pytest.mark.parametrize(("half", "words"), [(4.9, "it has stopped growing"), (2.6, "it still grows")])
def test_what_is_said_of_the_growth(half: float, words: str) -> None:
    assert words in reading("refusals", made(8, Growth(4.0, half, half, half), 5.0, 7.0), 2)


def test_without_a_half_nothing_is_said_of_doubling() -> None:
    assert "cannot be told" in reading("refusals", made(3, Growth(2.0, 2.0, 2.0, 2.0), 2.1, 3.0), 2)
