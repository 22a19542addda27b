"""What a run of `bridge.harmfulness` left for others to judge again: its responses, and the verdicts that it has.

A complete run has them in its records. One that was stopped while its responses were judged has the responses among
its checkpoints, and in its records the verdicts that there were until then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridge.evaluation.records import NAME, Record, read_records, write_records
from bridge.experiments.harmfulness.result import About, HarmfulnessResult, PromptSummary
from bridge.generation.decodings import Decoding
from commands.errors import UserError
from commands.store import CHECKPOINTS, Checkpoints, write_json

_RESPONSES = "responses.jsonl"
_RESULT = HarmfulnessResult.FILE


@dataclass(frozen=True)
class StoredRun:
    """Another run: its options, what describes its prompts and responses, these, and every verdict on them."""

    settings: Mapping[str, Any]
    about: About
    responses: list[Record]
    verdicts: list[Record]

    def of_judges(self, judges: Mapping[str, Mapping[str, object]]) -> list[Record]:
        """The verdicts of judges that were what they are now: their part of a run's identity is the same."""
        made = self.settings.get("judges", {})
        same = {name for name, now in judges.items() if made.get(name) == now}
        return [record for record in self.verdicts if record.judge in same and record.status != "failed"]


def stored(path: Path) -> list[Record]:
    """The records of a file, for every judge and item the last."""
    return list({(record.judge, record.item): record for record in read_records(path)}.values())


def generated(records: Sequence[Record]) -> list[Record]:
    """The responses in stored records, without any judge's verdict."""
    kept = {record.item: record for record in records}
    return [
        Record(r.item, r.prompt, r.response, r.prompt_tokens, r.response_tokens, r.finished, r.latency)
        for r in kept.values()
    ]


def leave(folder: Checkpoints, about: About, responses: Sequence[Record]) -> None:
    """Keep the responses of a run that is not judged yet where `read_run` finds them."""
    write_records(folder.checkpoint(_RESPONSES), responses)
    write_json(folder.checkpoint(_RESULT), {**asdict(about), "items": len(responses)})


def read_run(folder: Path, command: str) -> StoredRun:
    """What a run of `command` left in its folder, complete or stopped while it was judged.

    Raises:
        UserError: there is no such run, it was stopped before it had its responses, or records are missing.

    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        settings, status, made = dict(manifest["settings"]), manifest["status"], manifest["command"]
        place = folder if status == "complete" else folder / CHECKPOINTS
        if made != command or not (status == "complete" or (place / _RESULT).exists()):
            raise UserError(
                f"--rescore: expected a run of {command} that has all its responses, got a {status} one of {made}: "
                f"{folder}"
            )
        found = json.loads((place / _RESULT).read_text())
        items = found["items"]
        about = About(
            **{name: found[name] for name in ("model", "delta", "max_new_tokens")},
            prompts=PromptSummary(**found["prompts"]),
            decoding=Decoding(**found["decoding"]),
            rescored=str(folder),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--rescore: expected the folder of a run of {command}, got {folder} ({type(error).__name__}: {error})"
        ) from error
    verdicts = stored(folder / NAME) if (folder / NAME).exists() or place == folder else []
    responses = generated(verdicts if place == folder else read_records(place / _RESPONSES))
    if len(responses) != items:
        raise UserError(
            f"--rescore: expected the {items} items of {folder}, got {len(responses)}: its records are not whole"
        )
    return StoredRun(settings, about, responses, verdicts)
