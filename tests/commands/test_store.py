"""Run folders: what appears in them, who may write them, and what a killed process leaves."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from commands import store
from commands.errors import UserError
from commands.store import RunFolder, read_arrays, short_hash, write_arrays, write_atomically, write_json

SETTINGS = {"model": "m", "rank": None, "seed": 0, "data": {"sha256": "ab", "rows": 3}}


@contextmanager
def opened(path: Path, settings: dict[str, Any] = SETTINGS, command: str = "a.command") -> Iterator[RunFolder]:
    folder = RunFolder(path, command, settings)
    try:
        yield folder
    finally:
        folder.close()


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


# ---- files


def test_a_failure_between_write_and_rename_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.json"
    write_json(file, {"old": 1})

    def no_rename(self: Path, target: Path) -> None:
        assert json.loads(self.read_text()) == {"new": 2}  # all of it is there before the rename
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", no_rename)
    with pytest.raises(OSError, match="no"):
        write_json(file, {"new": 2})
    assert json.loads(file.read_text()) == {"old": 1}
    assert names(tmp_path) == ["result.json"]


def test_a_failure_while_writing_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "result.bin"
    write_atomically(file, b"old")

    def writes_half(stream: IO[bytes]) -> None:
        stream.write(b"ne")
        stream.flush()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, writes_half)
    assert file.read_bytes() == b"old"
    assert names(file.parent) == ["result.bin"]


def test_content_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    replace, fsync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("rename"), replace(self, target))[1])
    write_atomically(tmp_path / "a", b"x")
    assert done == ["sync", "rename"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_is_strict(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": [value]})
    assert names(tmp_path) == []


def test_arrays_come_back_bit_for_bit_and_pickles_are_refused(tmp_path: Path) -> None:
    arrays = {
        "a/b.c": np.random.default_rng(0).normal(size=(3, 2)),
        "n": np.array(-0.0),
        "f": np.array([np.nan, 5e-324]),
        "text": np.array(["é", "zz"]),
    }
    write_arrays(tmp_path / "a.npz", arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].tobytes() == array.tobytes()
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
    write_arrays(tmp_path / "b.npz", {"o": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(tmp_path / "b.npz")


def test_equal_arrays_make_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        write_arrays(tmp_path / name, {"x": np.arange(4.0)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_short_hash_depends_on_content_not_on_order() -> None:
    assert short_hash({"a": 1, "b": [2]}) == short_hash({"b": [2], "a": 1})
    assert len({short_hash(v) for v in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {})}) == 5
    assert len(short_hash({})) == 8


# ---- one run after the other


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run"
    with opened(path) as folder:
        assert not folder.complete
        assert manifest(path)["status"] == "running"
        folder.checkpoint("part").write_text("half")
        folder.finish(device_name="x")
    found = manifest(path)
    assert names(path) == ["manifest.json"]
    assert found["status"] == "complete"
    assert found["device_name"] == "x"
    assert found["settings"] == SETTINGS
    assert found["command"] == "a.command"
    assert found["versions"]["numpy"] == np.__version__
    assert found["wall_seconds"] >= 0
    assert found["peak_memory_bytes"] > 10**7


def test_an_unfinished_run_is_resumed_with_its_checkpoints_and_time(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.checkpoint("part").write_text("half")
    write_json(tmp_path / "manifest.json", manifest(tmp_path) | {"wall_seconds": 1000.0})
    with opened(tmp_path) as folder:
        assert not folder.complete
        assert folder.checkpoint("part").read_text() == "half"
        folder.note_progress()
        assert 1000 <= manifest(tmp_path)["wall_seconds"] < 1100


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.finish()
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    with opened(tmp_path) as folder:
        assert folder.complete
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()} == before


def test_checkpoints_left_by_a_kill_after_the_end_are_dropped(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.finish()
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "part").write_text("half")
    with opened(tmp_path) as folder:
        assert folder.complete
    assert names(tmp_path) == ["manifest.json"]


def test_other_versions_drop_the_checkpoints_of_an_unfinished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as folder:
        folder.checkpoint("part").write_text("half")
    monkeypatch.setattr(store, "library_versions", lambda: {"numpy": "0.0"})
    with opened(tmp_path) as folder:
        assert not folder.checkpoint("part").exists()
        assert folder.checkpoints.is_dir()
        assert manifest(tmp_path)["versions"] == {"numpy": "0.0"}


def test_other_versions_leave_a_finished_run_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as folder:
        folder.finish()
    before = (tmp_path / "manifest.json").read_bytes()
    monkeypatch.setattr(store, "library_versions", lambda: {"numpy": "0.0"})
    with opened(tmp_path) as folder:
        assert folder.complete
    assert (tmp_path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("step", ["manifest.json", ".partial"])
def test_a_process_killed_while_it_makes_the_folder_leaves_it_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whichever of the two appears first, the same command must not take the folder for somebody else's."""

    class Killed(BaseException):
        pass

    mkdir, write = Path.mkdir, store.write_json

    def dying_mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name == step:
            raise Killed
        mkdir(self, *args, **kwargs)

    def dying_write(path: Path, value: object) -> None:
        if path.name == step:
            path.with_name(f".{path.name}.4711.tmp").write_text("{")  # what SIGKILL leaves of it
            raise Killed
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", dying_mkdir)
        patch.setattr(store, "write_json", dying_write)
        with pytest.raises(Killed):
            RunFolder(tmp_path / "run", "a.command", SETTINGS)
    with opened(tmp_path / "run") as folder:
        assert not folder.complete
        assert names(tmp_path / "run") == [".lock", ".partial", "manifest.json"]


def test_temporary_files_of_a_killed_process_are_removed_and_no_others(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        for name in (".aic.json.12345.tmp", ".partial/.scores-0.npz.7.tmp", ".mine.tmp", "notes.12.tmp"):
            (tmp_path / name).write_text("x")
        folder.checkpoint("part").write_text("half")
    with opened(tmp_path) as folder:
        assert names(tmp_path) == [".lock", ".mine.tmp", ".partial", "manifest.json", "notes.12.tmp"]
        assert names(folder.checkpoints) == ["part"]


# ---- folders that are refused


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"rank": 4}, "rank: None there, 4 now"),
        ({"data": {"sha256": "cd", "rows": 3}}, "data.sha256: 'ab' there, 'cd' now"),
    ],
)
def test_another_run_is_refused_with_the_difference(
    tmp_path: Path, change: dict[str, Any], shown: str, finished: bool
) -> None:
    with opened(tmp_path) as folder:
        folder.checkpoint("part").write_text("half")
        if finished:
            folder.finish()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError) as caught:
        RunFolder(tmp_path, "a.command", SETTINGS | change)
    assert f"({shown})" in str(caught.value)
    assert "choose another folder" in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_another_command_and_another_schema_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with pytest.raises(UserError, match=r"command: 'a\.command' there, 'another' now"):
        RunFolder(tmp_path, "another", SETTINGS)
    write_json(tmp_path / "manifest.json", manifest(tmp_path) | {"schema_version": 99})
    with pytest.raises(UserError, match="another schema version"):
        RunFolder(tmp_path, "a.command", SETTINGS)


def test_at_most_four_differences_are_shown(tmp_path: Path) -> None:
    with opened(tmp_path, {f"s{i}": 0 for i in range(9)}):
        pass
    with pytest.raises(UserError) as caught:
        RunFolder(tmp_path, "a.command", {f"s{i}": 1 for i in range(9)})
    assert str(caught.value).count(" there, ") == 4


def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds thesis\.tex and no manifest\.json"):
        RunFolder(tmp_path, "a.command", SETTINGS)
    assert names(tmp_path) == ["thesis.tex"]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match="expected a folder, got the file"):
        RunFolder(file, "a.command", SETTINGS)
    with pytest.raises(UserError, match=r"cannot write to .*Not a directory"):
        RunFolder(file / "below", "a.command", SETTINGS)
    assert file.read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="cannot write to"):
        RunFolder(tmp_path / "run", "a.command", SETTINGS)
    tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{}", b'{"command": "a.command"}',
        b'{"schema_version": 1, "command": "a.command", "settings": [1], "versions": {}, "status": "running"}',
        b'{"schema_version": 1, "command": "a.command", "settings": {}, "versions": {}, "status": "?"}',
        b'{"schema_version": 1, "command": "a.command", "settings": {}, "versions": 3, "status": "complete"}',
    ],
)  # fmt: skip
def test_a_corrupted_manifest_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"expected a run's manifest, got .*manifest\.json"):
        RunFolder(tmp_path, "a.command", SETTINGS)
    assert (tmp_path / "manifest.json").read_bytes() == content
    assert names(tmp_path) == ["manifest.json"]


# ---- two processes

_HOLD = """
import sys
from pathlib import Path
from commands.store import RunFolder
folder = RunFolder(Path(sys.argv[1]), "a.command", {"a": 1})
print("held", flush=True)
sys.stdin.read()
"""


def test_a_live_process_keeps_others_out_and_a_killed_one_does_not(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is writing"):
            RunFolder(tmp_path, "a.command", {"a": 1})
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / ".lock").exists()  # stale: nobody holds it
    with opened(tmp_path, {"a": 1}) as folder:
        assert not folder.complete
    assert not (tmp_path / ".lock").exists()


def test_a_lock_taken_on_a_removed_file_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process opens .lock just before its holder removes it: it must end with the lock on the file that is there."""
    first = RunFolder(tmp_path, "a.command", SETTINGS)
    flock, calls = fcntl.flock, []

    def late(file: int, operation: int) -> None:
        if not calls:
            first.close()  # between our open and our lock
        calls.append(operation)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second = RunFolder(tmp_path, "a.command", SETTINGS)
    assert calls.count(fcntl.LOCK_EX | fcntl.LOCK_NB) >= 2
    with pytest.raises(UserError, match="another process is writing"):
        RunFolder(tmp_path, "a.command", SETTINGS)
    second.close()


def test_closing_twice_does_not_take_away_anothers_lock(tmp_path: Path) -> None:
    first = RunFolder(tmp_path, "a.command", SETTINGS)
    first.close()
    with opened(tmp_path):
        first.close()
        with pytest.raises(UserError, match="another process is writing"):
            RunFolder(tmp_path, "a.command", SETTINGS)


# ---- nothing secret


def test_nothing_of_the_environment_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecret")
    with opened(tmp_path) as folder:
        folder.finish()
    assert set(manifest(tmp_path)) == {
        "schema_version", "command", "settings", "versions", "status", "wall_seconds", "peak_memory_bytes",
    }  # fmt: skip
    assert "verysecret" not in (tmp_path / "manifest.json").read_text()
