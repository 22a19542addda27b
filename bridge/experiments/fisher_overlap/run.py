"""One run of `bridge.fisher_overlap`: from the options to the finished run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter

from bridge.data.samples import Sample
from bridge.experiments.fisher_overlap import report
from bridge.experiments.fisher_overlap.assembly import (
    LEVEL,
    Analysis,
    Floor,
    Scores,
    WholeModel,
    describe,
    judged,
)
from bridge.experiments.fisher_overlap.result import FisherOverlapResult, Layer, Pair
from bridge.experiments.fisher_overlap.settings import Settings
from bridge.experiments.session import Lent, write_samples
from bridge.experiments.skills import SkillsSession
from bridge.models.blocks import group_by_block
from commands.progress import Progress
from commands.runs import kept, numbered, result_of
from commands.store import Checkpoints, Folder, Part, write_arrays, write_json
from theory.split_overlap import skill_seed

COMMAND = "bridge.fisher_overlap"
Item = TypeVar("Item")
Kept = TypeVar("Kept", Floor, WholeModel, Layer)


def run(
    settings: Settings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None
) -> FisherOverlapResult:
    """Measure, write the run folder, print the closing table.

    Args:
        settings: the options.
        out: the run folder; None for one in runs/.
        quiet: print nothing.
        lent: what is in memory already.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    session = SkillsSession(COMMAND, settings, Progress(quiet), lent)
    folder = session.open_skills_folder(out)
    measure = partial(_measure, session, settings, folder)
    found = result_of(folder, FisherOverlapResult.read, measure, session.progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def _measure(session: SkillsSession, settings: Settings, folder: Folder) -> FisherOverlapResult:
    """All stages from the samples to the finished folder."""
    parts = [
        # Every skill has its own random streams: common random numbers would draw like responses at unlike prompts.
        session.responses(name, skill_seed(settings.seed, number), Part(folder, f"skill-{number}"))
        for number, name in enumerate(session.samples)
    ]
    samples = [sample for part in parts for sample in part]
    grams = session.grams(samples, folder)
    folder.note_progress()
    scores = Scores(
        grams=grams,
        dimensions={name: session.subject.weights[name].numel() for name in grams},
        skills=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        groups=_groups(parts),
    )
    shared = {(a, b): _shared_prompts(parts[a], parts[b]) for a, b in scores.whole.pairs()}
    found = analyse(Analysis(scores, settings), list(session.samples), shared, folder, session.progress)
    if not session.lent.in_memory:
        write_samples(folder.path / "samples.jsonl", samples)
        write_arrays(folder.path / "statistics.npz", {"skill": scores.skills, "group": scores.groups, **scores.grams})
        found.write(folder.path)
        report.write(found, settings, folder.path)
        session.finish(folder)
    return found


def _groups(parts: Sequence[Sequence[Sample]]) -> np.ndarray:
    """A number for every prompt of every skill, shared by the samples drawn at it."""
    keys = [f"{number}/{sample.group}" for number, part in enumerate(parts) for sample in part]
    return np.unique(keys, return_inverse=True)[1]


def _shared_prompts(a: Sequence[Sample], b: Sequence[Sample]) -> int:
    """Number of prompts that two skills have in common."""
    return len({s.prompt_ids for s in a} & {s.prompt_ids for s in b})


def analyse(
    analysis: Analysis,
    names: Sequence[str],
    shared_prompts: Mapping[tuple[int, int], int],
    folder: Checkpoints,
    progress: Progress,
) -> FisherOverlapResult:
    """The result from the scores; what takes time is kept once it is there.

    Args:
        analysis: the scores of all skills' samples, and what is asked of them.
        names: of the skills.
        shared_prompts: by pair of skills, how many prompts both have.
        folder: keeps what is finished.
        progress: where to show the stages.

    """
    settings, union = analysis.settings, analysis.scores.whole
    blocks = group_by_block(list(analysis.scores.grams))
    files = numbered(folder, ["floor", "uncentred", "centred", *blocks], "overlaps-{}.json")
    (floor,) = _kept(Floor, [0], lambda _: analysis.floor(), files[:1], "overlaps of unrelated scores", progress)
    uncentred, centred = _kept(
        WholeModel, [False, True], lambda c: analysis.whole_model(c, floor), files[1:3], "overlaps", progress
    )
    layers = _kept(Layer, list(blocks.values()), analysis.layer, files[3:], "overlaps by block", progress)
    return FisherOverlapResult(
        model=settings.model,
        fisher=settings.fisher,
        num_parameters=union.dimension,
        rank=settings.rank,
        ranks=list(analysis.asked.ranks),
        energies=list(analysis.asked.energies),
        level=LEVEL,
        splits=settings.splits,
        permutations=settings.permutations,
        simulations=settings.simulations,
        skills={name: describe(union, k, uncentred.skills[k], centred.skills[k]) for k, name in enumerate(names)},
        pairs=[
            Pair(
                a=names[a],
                b=names[b],
                shared_prompts=shared_prompts[a, b],
                uncentred=judged(uncentred.pairs[k], settings.rank),
                centred=judged(centred.pairs[k], settings.rank),
            )
            for k, (a, b) in enumerate(union.pairs())
        ],
        layers=dict(zip(blocks, layers, strict=True)),
    )


def _kept(
    kind: type[Kept],
    items: Sequence[Item],
    compute: Callable[[Item], Kept],
    files: Sequence[Path],
    stage: str,
    progress: Progress,
) -> list[Kept]:
    """Parts of the result, each computed once, as they were read from their files."""
    adapter: TypeAdapter[Kept] = TypeAdapter(kind)

    def write(path: Path, part: Kept) -> None:
        write_json(path, asdict(part))

    def read(path: Path) -> Kept:
        return adapter.validate_python(json.loads(path.read_text()))

    return [part for _, part in kept(items, compute, files, stage, progress, write=write, read=read)]
