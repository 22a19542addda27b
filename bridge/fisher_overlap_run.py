"""One run of `bridge.fisher_overlap`: from the options to the finished run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge import fisher_overlap_report, fisher_overlap_result, measure, models
from bridge.data import ChatFormat, Sample, load_rows
from bridge.fisher_overlap_result import Question, Scores
from bridge.measure import Subject
from bridge.models import LoadedModel
from bridge.skill import (
    Drawing,
    check_positions,
    draw_samples,
    encode,
    model_identity,
    run_name,
    token_hash,
)
from bridge.taps import probe, select_modules
from commands.progress import Progress
from commands.store import Part, RunFolder, read_result, short_hash, write_arrays, write_atomically, write_json

if TYPE_CHECKING:
    from bridge.fisher_overlap import Settings

COMMAND = "bridge.fisher_overlap"


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Measure, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    rows = [load_rows(skill, skip_bad_rows=settings.skip_bad_rows) for skill in settings.skill]
    loaded = models.load(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )
    subject = Subject(
        model=loaded.model,
        modules=select_modules(loaded.model, settings.modules),
        pad_id=int(loaded.tokenizer.pad_token_id),
        batch_size=settings.batch_size,
        memory_bytes=int(settings.memory * 2**30),
    )
    chat = ChatFormat(loaded.tokenizer)
    options: Any = {
        "count": settings.num_skill,
        "max_length": settings.max_length,
        "seed": settings.seed,
        "skip_bad_rows": settings.skip_bad_rows,
    }
    skills = {
        name: encode("--skill", part, chat, progress=progress, **options)
        for name, part in zip(settings.skill, rows, strict=True)
    }
    sampled = settings.fisher == "sampled"
    for samples in skills.values():
        check_positions(loaded, [] if sampled else samples, samples if sampled else [], settings.max_new_tokens)
    identity = asdict(settings) | {
        "skill": list(settings.skill),
        "energy": list(settings.energy),
        **model_identity(loaded),
        "tokens": [token_hash(samples) for samples in skills.values()],
        "end_token_ids": list(chat.end_token_ids),
        "skill_sha256": [part.sha256 for part in rows],
    }
    default = Path("runs") / "fisher_overlap" / f"{run_name(settings.model)}-{short_hash(identity)}"
    folder = RunFolder(out or default, COMMAND, identity)
    try:
        already = folder.complete
        if not already:
            _measure(loaded, subject, chat, skills, settings, folder, progress)
        found = read_result(folder.path / "fisher_overlap.json")
        if already:
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
    finally:
        folder.close()
    if not quiet:
        fisher_overlap_report.print_table(found)
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _measure(
    loaded: LoadedModel,
    subject: Subject,
    chat: ChatFormat,
    skills: dict[str, list[Sample]],
    settings: Settings,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """All stages from the samples to the finished folder."""
    parts = [
        _responses(loaded, chat, samples, settings, number, folder, progress)
        for number, samples in enumerate(skills.values())
    ]
    samples = [replace(s, set=name) for name, part in zip(skills, parts, strict=True) for s in part]
    probe(subject.model, subject.modules, subject.batches(samples[:1])[0])
    products = measure.measure_products(subject, samples, {}, folder, progress)
    folder.note_progress()
    scores = Scores(
        grams={name: arrays["gram"] for name, arrays in products.items()},
        dimensions={name: subject.weights[name].numel() for name in products},
        skills=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        groups=_groups(parts),
    )
    found = _analyse(scores, settings, folder, progress)
    lines = [sample.to_json() for sample in samples]
    write_atomically(folder.path / "samples.jsonl", ("\n".join(lines) + "\n").encode())
    write_arrays(folder.path / "statistics.npz", {"skill": scores.skills, "group": scores.groups, **scores.grams})
    shared = {(a, b): _shared_prompts(parts[a], parts[b]) for a, b in scores.whole.pairs()}
    described = {"model": settings.model, "fisher": settings.fisher, "skill_names": list(skills)}
    result = fisher_overlap_result.assemble(described, scores, _question(settings), found, shared)
    write_json(folder.path / "fisher_overlap.json", result)
    fisher_overlap_report.write(result, asdict(settings), folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})


def _responses(
    loaded: LoadedModel,
    chat: ChatFormat,
    samples: list[Sample],
    settings: Settings,
    number: int,
    folder: RunFolder,
    progress: Progress,
) -> list[Sample]:
    """One skill's samples with the responses that are measured.

    Every skill has its own random streams: common random numbers would draw like responses at unlike prompts.
    """
    if settings.fisher == "empirical":
        return samples
    how = Drawing(
        draws=settings.draws,
        max_new_tokens=settings.max_new_tokens,
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        seed=int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0]),
    )
    return draw_samples(loaded, chat, samples, how, Part(folder, f"skill-{number}"), progress)


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
