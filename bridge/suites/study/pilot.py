"""The pilot of a fine-tune: its own first steps, the skill measured along them, and the end forecast from them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from bridge.data.encode import token_hash
from bridge.data.mixtures import Selection, select_samples
from bridge.data.samples import Sample
from bridge.experiments.finetune.settings import Settings as FinetuneSettings
from bridge.experiments.overlap.settings import Settings as OverlapSettings
from bridge.experiments.session import Lent, MeasuringSession
from bridge.models.load import load_model
from bridge.training.pilot import PilotResult, check_length, pilot_result, run_pilot
from bridge.training.plan import Plan
from commands.progress import Progress
from commands.runs import result_of
from commands.store import RunFolder

COMMAND = "bridge.study, pilot"


def run(
    settings: FinetuneSettings,
    skill: OverlapSettings,
    skill_options: Mapping[str, object],
    steps: int,
    out: Path,
    progress: Progress,
) -> PilotResult:
    """Take the first steps of a fine-tune, measure the skill after each, and write pilot.json.

    The rows, their order, the optimizer and its schedule are the fine-tune's, so that these are its very steps; the
    skill's samples are those that `bridge.overlap` draws with the same options.

    Args:
        settings: of the fine-tune, without a defence.
        skill: what the skill is, and how it is measured.
        skill_options: the options that say so, by name.
        steps: of the pilot.
        out: the run folder.
        progress: where to show the stages.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used; a fine-tune that is not
            longer than its pilot.

    """
    loaded = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )
    session = MeasuringSession(COMMAND, skill, progress, Lent(loaded=loaded))
    rows = session.rows("skill", skill.skill)
    chosen = select_samples(
        settings.data,
        session.chat,
        count=settings.rows or None,
        max_length=settings.max_length,
        seed=settings.seed,
        skip_bad_rows=settings.skip_bad_rows,
    )
    asked = session.encode("skill", rows, skill.num_skill)
    session.check_positions(chosen.samples, asked, skill.max_new_tokens)
    check_length(steps, settings.plan.steps(len(chosen.samples)))
    identity = {
        **settings.identity(),
        **session.model_identity(),
        "skill": dict(skill_options),
        "pilot_steps": steps,
        "tokens": token_hash([*asked, *chosen.samples]),
    }
    folder = RunFolder(out, COMMAND, identity)
    measure = partial(_measure, session, settings.plan, chosen, asked, steps, folder)
    return result_of(folder, PilotResult.read, measure, progress)


def _measure(
    session: MeasuringSession, plan: Plan, chosen: Selection, asked: list[Sample], steps: int, folder: RunFolder
) -> PilotResult:
    """All stages from the samples to the finished folder."""
    batches = session.subject.batches(session.answered(asked, folder))
    points, log = run_pilot(
        session.loaded, chosen.samples, batches, plan, steps, False, session.subject.memory_bytes, folder,
        session.progress,
    )  # fmt: skip
    found = pilot_result(points, log, plan, steps, plan.steps(len(chosen.samples)))
    found.write(folder.path)
    folder.finish()
    return found
