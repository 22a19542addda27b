from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from bridge.models import hub
from bridge.models import hub as models_hub
from bridge.models.load import load_model
from commands.errors import UserError
from tests.bridge.support.tiny_models import save_model, tiny_llama_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WITHOUT = "what works without it: --model smollm2-135m"


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the hub does: serves the files of a folder as org/tiny, refuses the rest as they deserve."""

    folder: Path
    served: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(("/api/models/org/tiny/tree/", f"/org/tiny/resolve/{COMMIT}/", "/api/models/org/tiny")):
            self._serve_tiny(path)
        elif "org/gated" in path:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "org/broken" in path:
            self._answer(503, b"")
        elif "org/token" in path:
            self._answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _serve_tiny(self, path: str) -> None:
        files = sorted(file for file in self.folder.rglob("*") if file.is_file())
        names = [str(file.relative_to(self.folder)) for file in files]
        if "/tree/" in path:
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name, file in zip(names, files, strict=True)
            ]
            self._answer(200, json.dumps(tree).encode())
        elif "/resolve/" in path:
            name = path.partition(COMMIT + "/")[2]
            if self.command == "GET":
                self.served.append(name)
            content = (self.folder / name).read_bytes()
            self._answer(
                200,
                content,
                {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(name.encode()).hexdigest()}"'},
            )
        else:
            about = {
                "id": "org/tiny",
                "modelId": "org/tiny",
                "sha": COMMIT,
                "siblings": [{"rfilename": n} for n in names],
            }
            self._answer(200, json.dumps(about).encode())

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


@pytest.fixture
def fake_hub(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    folder = save_model(tiny_llama_model(), tmp_path / "repository")
    for name in ("pytorch_model.bin", "original/model.safetensors", "modeling_own.py", "tf_model.h5"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not wanted")
    handler = type("Handler", (FakeHub,), {"folder": folder, "served": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def no_network(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        yield


def test_only_what_is_needed_is_downloaded_and_then_it_is_cached(
    fake_hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    loaded = load_model("org/tiny", device="cpu", report=said.append)
    assert said == ["Fetching org/tiny from the Hugging Face hub ..."]
    needed = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(fake_hub.served) == needed
    assert loaded.source == f"org/tiny from the Hugging Face hub, commit {COMMIT}"
    expected = tiny_llama_model().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
    monkeypatch.setattr(models_hub, "download_snapshot", lambda *_: pytest.fail("asked the hub again"))
    assert load_model("org/tiny", device="cpu").weights_hash == loaded.weights_hash


def test_a_part_of_a_model_in_the_cache_is_completed(fake_hub: type[FakeHub]) -> None:
    load_model("org/tiny", device="cpu", report=print)
    snapshot = hub.cached_snapshot("org/tiny")
    assert snapshot is not None
    (snapshot / "model.safetensors").resolve().unlink()
    (snapshot / "model.safetensors").unlink()
    fake_hub.served.clear()
    load_model("org/tiny", device="cpu", report=print)
    assert fake_hub.served == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/gated", "accept its licence at http.*/org/gated, log in with `hf auth login`"),
        ("org/qwen3-1.7", "neither a local folder nor on http.*; did you mean qwen3-1.7b"),
        ("org/broken", f"status 503.*{WITHOUT}"),
        ("org/token", "log in again with `hf auth login`"),
    ],
)
def test_what_the_hub_refuses(fake_hub: type[FakeHub], name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_a_token_is_never_shown(fake_hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecretsecretsecretsecr")
    for name in ("org/gated", "org/missing", "org/broken", "org/token"):
        with pytest.raises(UserError) as caught:
            load_model(name)
        assert "secret" not in f"{caught.value} {caught.value.__cause__}"


def test_a_hub_that_cannot_be_reached(no_network: None) -> None:
    with pytest.raises(UserError, match=f"Qwen/Qwen3-1.7B is not in .* could not be reached .*; {WITHOUT}"):
        load_model("qwen3-1.7b")


def test_a_hub_that_never_answers(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HUB_PATIENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match=f"could not be reached .*; {WITHOUT}"):
            load_model("qwen3-1.7b")


def test_a_hub_that_the_environment_forbids(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the environment sets HF_HUB_OFFLINE"):
        load_model("qwen3-1.7b")
