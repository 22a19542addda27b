"""Run folders of `bridge.harmfulness` with stored responses, made without a model, and its command on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.evaluation.records import NAME, Record, read_records, write_records

ROOT = Path(__file__).parents[3]
KEY = "sk-Secret+of/the=user"
QUICK = ("--attempts", "6", "--timeout", "2", "--backoff", "0.01", "--longest-wait", "5")


def stored_run(folder: Path, count: int) -> Path:
    """A complete run whose items are "item 0: ..." and so on, judged by nobody but the offline judge."""
    settings: dict[str, Any] = {
        "model": "some/model", "delta": None, "prompts": "p.jsonl", "num_prompts": 0, "preset": "aic",
        "max_new_tokens": 8, "dtype": None, "device": None,
    }  # fmt: skip
    prompts = {"name": "p", "sha256": "0" * 64, "rows": count, "skipped": [], "left_out": 0}
    about = {"model": "some/model", "delta": None, "prompts": prompts, "decoding": {}, "max_new_tokens": 8,
             "items": count}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        json.dumps({"command": "bridge.harmfulness", "status": "complete", "settings": settings})
    )
    (folder / "harmfulness.json").write_text(json.dumps(about))
    details = {"refused": False, "pattern": None}
    write_records(
        folder / NAME,
        [Record(f"p:{k + 1}", f"item {k}: how?", f"answer {k}", 4, 2, True, 0.1, judge="refusal", status="checked",
                details=details) for k in range(count)],
    )  # fmt: skip
    return folder


def start(environment: Mapping[str, str], *options: str) -> subprocess.Popen[str]:
    """The command as its own process, with a key for both providers and the server's addresses."""
    keys = {"OPENAI_API_KEY": KEY, "GOOGLE_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bridge.harmfulness", *options],
        cwd=ROOT, env=os.environ | keys | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=_heed_interrupts,
    )  # fmt: skip


def _heed_interrupts() -> None:
    """Tests started in the background of a shell script are deaf to interrupts, and so would the command be."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def number(record: Record) -> int:
    """The number by which the judge server knows a record's item."""
    return int(record.item.removeprefix("p:")) - 1


def final(folder: Path) -> dict[int, Record]:
    """The items that have a verdict on disk."""
    path = folder / NAME
    found = read_records(path) if path.exists() else []
    return {number(record): record for record in found if record.status != "failed"}
