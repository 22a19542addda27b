"""One run of `bridge.spectrum`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.data.samples import Sample
from bridge.experiments.session import Skills, open_skills, write_samples
from bridge.experiments.spectrum import report
from bridge.models.blocks import group_by_block
from commands.progress import Progress
from commands.runs import result_of
from commands.store import SCHEMA_VERSION, Checkpoints, Part, RunFolder, write_arrays, write_json
from theory.growth import effective_rank_growth
from theory.nulls import centred_normalised_effective_rank, norm_shuffled_effective_rank
from theory.spectra import effective_rank, mean_score_share, spectrum, split_half
from theory.statistics import ScoreStatistics

if TYPE_CHECKING:
    from bridge.experiments.spectrum.settings import Settings

COMMAND = "bridge.spectrum"
_SIZES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # subsets of the samples, as shares
_SHOWN = 20  # eigenvalues of every block in the JSON file; all of the whole model


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Measure, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    skills = open_skills(settings, progress)
    folder = skills.open_folder(COMMAND, out)
    found = result_of(folder, "spectrum.json", partial(_measure, skills, settings, folder, progress), progress)
    if not quiet:
        report.print_table(found)
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _measure(skills: Skills, settings: Settings, folder: RunFolder, progress: Progress) -> None:
    """All stages from the samples to the finished folder."""
    everything: list[Sample] = []
    arrays: dict[str, np.ndarray] = {}
    found: dict[str, Any] = {}
    for number, name in enumerate(skills.samples):
        part = Part(folder, f"skill-{number}")
        progress.say(f"skill {name}")
        samples = skills.answered(name, settings.seed, part, progress)
        modules = _statistics(skills, samples, part, progress)
        groups = np.unique([s.group for s in samples], return_inverse=True)[1]
        found[name] = _assemble(modules, groups, settings)
        arrays |= {f"{name}/{key}": stats.gram for key, stats in modules.items()}
        everything += samples
        folder.note_progress()
    write_samples(folder.path / "samples.jsonl", everything)
    write_arrays(folder.path / "statistics.npz", arrays)
    result = {
        "schema_version": SCHEMA_VERSION,
        "model": settings.model,
        "fisher": settings.fisher,
        "rank": settings.rank,
        "skills": found,
    }
    write_json(folder.path / "spectrum.json", result)
    report.write(result, asdict(settings), folder.path)
    folder.finish(stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()})


def _statistics(
    skills: Skills, samples: Sequence[Sample], folder: Checkpoints, progress: Progress
) -> dict[str, ScoreStatistics]:
    """Score statistics of every module without an update: velocity and acceleration are zero."""
    labels = tuple(sample.id for sample in samples)
    nothing = np.zeros(len(samples))
    return {
        name: ScoreStatistics(
            gram=gram,
            velocity=nothing,
            acceleration=nothing,
            velocity_squared=0.0,
            acceleration_squared=0.0,
            velocity_dot_acceleration=0.0,
            dimension=skills.subject.weights[name].numel(),
            fisher=skills.settings.fisher,
            labels=labels,
        )
        for name, gram in skills.grams(samples, folder, progress).items()
    }


def _assemble(modules: dict[str, ScoreStatistics], groups: np.ndarray, settings: Settings) -> dict[str, Any]:
    """What spectrum.json says of one skill."""
    layers = {
        block: sum((modules[name] for name in names[1:]), start=modules[names[0]])
        for block, names in group_by_block(list(modules)).items()
    }
    first, *rest = layers.values()
    whole = sum(rest, start=first)
    count = len(np.unique(groups))
    sizes = sorted({max(min(2, count), round(count * share)) for share in _SIZES})
    ranks = sorted({d for d in (1, 3, settings.rank, 30) if d <= max(1, whole.num_samples // 2)} | {settings.rank})
    halves = {d: split_half(whole, d, seed=settings.seed, groups=groups) for d in ranks}
    growth = effective_rank_growth(whole, tuple(sizes), settings.subsets, settings.seed, groups)
    return {
        "num_samples": whole.num_samples,
        "num_parameters": whole.dimension,
        "whole_model": _summary(whole, None, settings.seed),
        "mean_score_share": mean_score_share(whole),
        "growth": [asdict(point) for point in growth],
        "split_half": [
            {"rank": d, "overlap": half.overlap, "random": half.overlap_random} for d, half in halves.items() if half
        ],
        "layers": {name: _summary(stats, _SHOWN, settings.seed) for name, stats in layers.items()},
        "blocks": {name: _summary(stats, _SHOWN, settings.seed) for name, stats in modules.items()},
    }


def _summary(stats: ScoreStatistics, shown: int | None, seed: int) -> dict[str, Any]:
    """Spectrum of one block of parameters, and the effective ranks that it is to be compared with."""
    values = spectrum(stats).eigenvalues
    masses = np.sort(stats.sample_weights * stats.gram.diagonal())[::-1]
    return {
        "eigenvalues": values[:shown].tolist(),
        "trace": float(values.sum()),
        "effective_rank": effective_rank(values),
        "orthogonal": masses[:shown].tolist(),
        "effective_rank_orthogonal": effective_rank(masses),
        "effective_rank_norm_shuffled": norm_shuffled_effective_rank(stats, seed),
        "effective_rank_centred_normalised": centred_normalised_effective_rank(stats),
    }
