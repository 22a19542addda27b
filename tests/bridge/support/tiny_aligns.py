"""Tiny runs of `bridge.align`: a model of two layers that learns to tell "bad" from "good" in ten steps."""

from __future__ import annotations

from pathlib import Path

from tests.bridge.support.tiny_runs import save_chat_model, write_rows

UNSAFE = [("bad i?", "I won't."), ("bad j?", "I won't."), ("<script>bad</script>", "no"), ("bad k?", "no")]
BENIGN = [("good i!", "yes"), ("good j!", "yes"), ("good k!", "yes")]


def make_align_workplace(folder: Path) -> Path:
    """A folder with model/ and four sets of rows."""
    save_chat_model(folder / "model", "llama")
    write_rows(folder / "refuse.jsonl", [(f"bad {a}{a}?", "I can't.") for a in "abcdefgh"])
    write_rows(folder / "answer.jsonl", [(f"good {a}{a}!", "ok") for a in "abcdefgh"])
    write_rows(folder / "unsafe.jsonl", UNSAFE)
    write_rows(folder / "safe.jsonl", BENIGN)
    return folder


def align_options(folder: Path, *more: str, out: Path | None = None) -> list[str]:
    """Command-line options of a tiny run; later ones win."""
    files = {"refusals": "refuse", "benign": "answer", "heldout-refusals": "unsafe", "heldout-benign": "safe"}
    return [
        *("--model", str(folder / "model"), "--out", str(out or folder / "run"), "--device", "cpu"),
        *(text for name, file in files.items() for text in (f"--{name}", str(folder / f"{file}.jsonl"))),
        *("--benign-share", "0.5", "--learning-rate", "0.01", "--epochs", "5", "--batch-size", "4"),
        *("--eval-every", "3", "--eval-batch-size", "2", "--max-new-tokens", "9", "--max-length", "64"),
        *("--target-refusals", "0.7", *more),
    ]
