"""Models that a command has built: their names, how they are installed, and what a name means before and after."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.models import built as built_models
from bridge.models.built import built_folder, check_free, check_name, install, read_note, refusal_name
from bridge.models.load import load_model
from bridge.models.names import resolve
from commands.errors import UserError
from tests.bridge.support.tiny_runs import save_chat_model

NAME = "smollm2-135m-refusal"
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNMENT_COLLAPSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_chat_model(tmp_path / "model", "llama")


def test_a_name_before_it_is_built() -> None:
    with pytest.raises(UserError) as caught:
        resolve("SmolLM2-135m-refusal")
    assert str(caught.value) == (
        "SmolLM2-135m-refusal has not been built: run python -m bridge.align --model smollm2-135m"
    )
    with pytest.raises(UserError, match=r"qwen3-1\.7b-refusal has not been built: run .* --model qwen3-1\.7b$"):
        load_model("qwen3-1.7b-refusal")
    with pytest.raises(UserError, match="unknown model 'gpt9-refusal'"):
        resolve("gpt9-refusal")
    with pytest.raises(UserError, match="unknown model '-refusal'"):
        resolve("-refusal")


def test_a_name_once_it_is_built(folder: Path) -> None:
    place = install(folder, NAME, {"run": "a"}, replace=False)
    assert place == built_folder(NAME)
    source = resolve("SmolLM2-135M-Refusal")
    assert (source.kind, source.location) == ("folder", str(place))
    loaded = load_model(NAME, device="cpu")
    weights = (folder / "model.safetensors").read_bytes()
    assert loaded.weights_hash == hashlib.sha256(weights).hexdigest()
    assert loaded.tokenizer.chat_template
    assert read_note(NAME) == {"run": "a"}
    assert not (folder / built_models.NOTE).exists()


def test_any_name_that_was_chosen_and_a_folder_of_that_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    save_chat_model(tmp_path / "mine", "gpt2")
    assert resolve("mine").location == str(tmp_path / "mine")
    install(folder, "mine", {"run": "a"}, replace=False)
    assert resolve("mine").location == str(built_folder("mine"))
    assert resolve("./mine").location == str(tmp_path / "mine")


def test_half_a_model_is_none(folder: Path) -> None:
    install(folder, NAME, {"run": "a"}, replace=False)
    (built_folder(NAME) / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="has not been built"):
        resolve(NAME)


def test_installing_takes_no_room_twice_where_the_disk_links(folder: Path) -> None:
    place = install(folder, NAME, {"run": "a"}, replace=False)
    for file in folder.iterdir():
        assert os.path.samefile(file, place / file.name)


def test_copies_where_it_does_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    place = install(folder, NAME, {"run": "a"}, replace=False)
    for file in folder.iterdir():
        assert (place / file.name).read_bytes() == file.read_bytes()
    assert resolve(NAME).location == str(place)


def test_another_run_does_not_replace_it_unless_told(folder: Path, tmp_path: Path) -> None:
    other = save_chat_model(tmp_path / "other", "gpt2")
    place = install(folder, NAME, {"run": "a"}, replace=False)
    for attempt in (lambda: install(other, NAME, {"run": "b"}, replace=False), lambda: check_free(NAME, "b", False)):
        with pytest.raises(UserError, match=r"has been built with other settings.*--replace"):
            attempt()
    assert json.loads((place / "config.json").read_text())["model_type"] == "llama"
    install(folder, NAME, {"run": "a"}, replace=False)  # the same run again
    check_free(NAME, "a", False)
    install(other, NAME, {"run": "b"}, replace=True)
    assert json.loads((place / "config.json").read_text())["model_type"] == "gpt2"
    assert read_note(NAME) == {"run": "b"}
    assert folder.exists()


def test_a_damaged_one_is_put_right_by_its_own_run(folder: Path) -> None:
    place = install(folder, NAME, {"run": "a"}, replace=False)
    (place / "model.safetensors").unlink()
    with pytest.raises(UserError, match="other settings"):
        install(folder, NAME, {"run": "b"}, replace=False)
    install(folder, NAME, {"run": "a"}, replace=False)
    assert resolve(NAME).location == str(place)


def test_appears_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Stopped before every rename and every link in turn: the name means the old model, the new, or none."""
    install(folder, NAME, {"run": "a"}, replace=False)
    code = f"""
import os, signal, sys
from pathlib import Path
from bridge.models import built as built_models
at = int(sys.argv[1]); moments = 0
def dying(function):
    def watched(*arguments, **options):
        global moments
        moments += 1
        if moments == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return watched
os.link = dying(os.link); Path.rename = dying(Path.rename); built_models._sync = dying(built_models._sync)
built_models.install(Path({str(folder)!r}), {NAME!r}, {{"run": "b"}}, replace=True)
"""
    seen, at = [], 0
    while True:
        at += 1
        done = subprocess.run([sys.executable, "-c", code, str(at)], cwd=ROOT, capture_output=True, text=True)
        seen.append((read_note(NAME) or {}).get("run"))
        assert seen[-1] is None or resolve(NAME).location == str(built_folder(NAME))
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    assert seen[0] == "a"
    assert seen[-1] == "b"
    assert len(seen) > 8
    assert [p.name for p in (cache / "built").iterdir() if "partial" in p.name] == []


def test_a_cache_that_cannot_be_written(folder: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / "built").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cannot be installed in .*: .*--model FOLDER"):
        install(folder, NAME, {"run": "a"}, replace=False)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2-135m", "smollm2-135m-refusal"),
        ("Qwen/Qwen3-1.7B", "qwen3-1.7b-refusal"),
        ("/some/where/My Model/", "my-model-refusal"),
        ("random:qwen3-1.7b", "random-qwen3-1.7b-refusal"),
        ("./.hidden", "hidden-refusal"),
        ("files/tiny.Q4.gguf", "tiny.q4-refusal"),
    ],
)
def test_names_of_aligned_models(model: str, name: str) -> None:
    assert refusal_name(model) == name
    check_name(name)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", ".a", "a b", "smollm2-135m", "qwen3-1.7b"])
def test_names_that_no_built_model_can_have(name: str) -> None:
    with pytest.raises(UserError, match="--name: "):
        check_name(name)


@pytest.mark.parametrize("name", ["..", "../built", "", "a/b"])
def test_no_name_leads_out_of_the_cache(name: str, folder: Path, cache: Path) -> None:
    install(folder, NAME, {"run": "a"}, replace=False)
    save_chat_model(cache / "a-model", "llama")
    assert not built_models.is_built(name)
    assert not built_models.is_built("../a-model")
