"""One run of `bridge.fisher_overlap`: from the options to the finished run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.data.samples import Sample
from bridge.experiments.fisher_overlap import report
from bridge.experiments.fisher_overlap import result as fisher_overlap_result
from bridge.experiments.fisher_overlap.result import Question, Scores
from bridge.experiments.session import Skills, open_skills, write_samples
from commands.progress import Progress
from commands.runs import result_of
from commands.store import Part, RunFolder, write_arrays, write_json
from theory.split_overlap import skill_seed

if TYPE_CHECKING:
    from bridge.experiments.fisher_overlap.settings import Settings

COMMAND = "bridge.fisher_overlap"


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Measure, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    skills = open_skills(settings, progress)
    folder = skills.open_folder(COMMAND, out)
    measure = partial(_measure, skills, settings, folder, progress)
    found = result_of(folder, "fisher_overlap.json", measure, progress)
    if not quiet:
        report.print_table(found)
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _measure(skills: Skills, settings: Settings, folder: RunFolder, progress: Progress) -> None:
    """All stages from the samples to the finished folder."""
    parts = [
        # Every skill has its own random streams: common random numbers would draw like responses at unlike prompts.
        skills.answered(name, skill_seed(settings.seed, number), Part(folder, f"skill-{number}"), progress)
        for number, name in enumerate(skills.samples)
    ]
    samples = [sample for part in parts for sample in part]
    grams = skills.grams(samples, folder, progress)
    folder.note_progress()
    scores = Scores(
        grams=grams,
        dimensions={name: skills.subject.weights[name].numel() for name in grams},
        skills=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        groups=_groups(parts),
    )
    found = _analyse(scores, settings, folder, progress)
    write_samples(folder.path / "samples.jsonl", samples)
    write_arrays(folder.path / "statistics.npz", {"skill": scores.skills, "group": scores.groups, **scores.grams})
    shared = {(a, b): _shared_prompts(parts[a], parts[b]) for a, b in scores.whole.pairs()}
    described = {"model": settings.model, "fisher": settings.fisher, "skill_names": list(skills.samples)}
    result = fisher_overlap_result.assemble(described, scores, _question(settings), found, shared)
    write_json(folder.path / "fisher_overlap.json", result)
    report.write(result, asdict(settings), folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})


def _groups(parts: Sequence[Sequence[Sample]]) -> np.ndarray:
    """A number for every prompt of every skill, shared by the samples drawn at it."""
    keys = [f"{number}/{sample.group}" for number, part in enumerate(parts) for sample in part]
    return np.unique(keys, return_inverse=True)[1]


def _shared_prompts(a: Sequence[Sample], b: Sequence[Sample]) -> int:
    """How many prompts two skills have in common."""
    return len({s.prompt_ids for s in a} & {s.prompt_ids for s in b})


def _question(settings: Settings) -> Question:
    return Question(
        rank=settings.rank,
        most=settings.most,
        energies=settings.energy,
        splits=settings.splits,
        jackknife=settings.jackknife,
        permutations=settings.permutations,
        simulations=settings.simulations,
        seed=settings.seed,
    )


def _analyse(scores: Scores, settings: Settings, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """The parts of the result that take time, each kept once it is there."""
    jobs = fisher_overlap_result.jobs(scores, _question(settings))
    files = {name: folder.checkpoint(f"overlaps-{number}.json") for number, name in enumerate(jobs)}
    found: dict[str, Any] = {}
    with progress.stage("overlaps", len(jobs), sum(file.exists() for file in files.values())) as tick:
        for name, job in jobs.items():
            if not files[name].exists():
                write_json(files[name], job(found))
                tick()
            found[name] = json.loads(files[name].read_text())
    return found
