"""The pilot of a fine-tune: its own first steps, the skill measured along them, and the end forecast from them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.data.chat import ChatFormat
from bridge.data.encode import check_positions, encode, token_hash
from bridge.data.mixtures import select_samples
from bridge.data.rows import load_rows
from bridge.estimators.theta import subject_of
from bridge.generation.drawing import Drawing, draw_samples
from bridge.models.identity import model_identity, positions_of
from bridge.models.load import load_model
from bridge.training.pilot import check_length, pilot_result, run_pilot
from commands.progress import Progress
from commands.store import RunFolder

if TYPE_CHECKING:
    from bridge.experiments.finetune.settings import Settings

COMMAND = "bridge.study, pilot"


def run(settings: Settings, skill: dict[str, Any], steps: int, out: Path, progress: Progress) -> Path:
    """Take the first steps of a fine-tune, measure the skill after each, and write pilot.json; returns the folder.

    The rows, their order, the optimizer and its schedule are the fine-tune's, so that these are its very steps; the
    skill's samples are those that `bridge.overlap` draws with the same options.

    Args:
        settings: of the fine-tune, without a defence.
        skill: `StudySettings.skill_options`.
        steps: of the pilot.
        out: the run folder.
        progress: where to show the stages.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used; a fine-tune that is not
            longer than its pilot.

    """
    rows = load_rows(skill["skill"])
    loaded = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.plan.seed, report=progress.say
    )
    chat = ChatFormat(loaded.tokenizer)
    chosen = select_samples(
        settings.data,
        chat,
        count=settings.rows or None,
        max_length=settings.max_length,
        seed=settings.plan.seed,
        skip_bad_rows=settings.skip_bad_rows,
    )
    common = {"count": skill["num_skill"], "max_length": skill["max_length"], "seed": skill["seed"]}
    asked = encode("skill", rows, chat, **common, skip_bad_rows=False, progress=progress)
    check_positions(positions_of(loaded), chosen.samples, asked, skill["max_new_tokens"])
    total = settings.plan.steps(len(chosen.samples))
    check_length(steps, total)
    identity = asdict(settings) | {
        **model_identity(loaded),
        "skill": dict(skill),
        "pilot_steps": steps,
        "tokens": token_hash([*asked, *chosen.samples]),
        "end_token_ids": list(chat.end_token_ids),
    }
    folder = RunFolder(out, COMMAND, identity)
    try:
        if not folder.complete:
            how = Drawing(
                **{key: skill[key] for key in ("draws", "max_new_tokens", "max_length", "batch_size", "seed")}
            )
            samples = draw_samples(loaded, chat, asked, how, folder, progress)
            subject = subject_of(loaded, skill["modules"], skill["batch_size"], skill["memory"])
            batches = subject.batches(samples)
            points, log = run_pilot(
                loaded, chosen.samples, batches, settings.plan, steps, False, subject.memory_bytes, folder, progress
            )
            pilot_result(points, log, settings.plan, steps, total).write(folder.path)
            folder.finish()
    finally:
        folder.close()
    return folder.path
