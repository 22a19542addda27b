"""One run of `bridge.spectrum`: from the options to the finished run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bridge.data.samples import Sample
from bridge.experiments.session import Lent, write_samples
from bridge.experiments.skills import SkillsSession
from bridge.experiments.spectrum import report
from bridge.experiments.spectrum.result import HalvesAgree, SkillSpectrum, Spectrum, SpectrumResult
from bridge.experiments.spectrum.settings import Settings
from bridge.models.blocks import group_by_block
from commands.progress import Progress
from commands.runs import result_of
from commands.store import Checkpoints, Folder, Part, write_arrays
from theory.growth import effective_rank_growth
from theory.nulls import centred_normalised_effective_rank, norm_shuffled_effective_rank
from theory.spectra import effective_rank, mean_score_share, spectrum, split_half
from theory.statistics import ScoreStatistics

COMMAND = "bridge.spectrum"
_SIZES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # subsets of the samples, as shares
_SHOWN = 20  # eigenvalues of every block in the JSON file; all of the whole model


def run(settings: Settings, out: Path | None = None, quiet: bool = False, lent: Lent | None = None) -> SpectrumResult:
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
    found = result_of(folder, SpectrumResult.read, partial(_measure, session, settings, folder), session.progress)
    if not quiet:
        report.print_result(found, folder)
    return found


def _measure(session: SkillsSession, settings: Settings, folder: Folder) -> SpectrumResult:
    """All stages from the samples to the finished folder."""
    everything: list[Sample] = []
    arrays: dict[str, np.ndarray] = {}
    skills: dict[str, SkillSpectrum] = {}
    for number, name in enumerate(session.samples):
        part = Part(folder, f"skill-{number}")
        session.progress.say(f"skill {name}")
        samples = session.responses(name, settings.seed, part)
        modules = _statistics(session, samples, part)
        groups = np.unique([s.group for s in samples], return_inverse=True)[1]
        skills[name] = _assemble(modules, groups, settings)
        arrays |= {f"{name}/{key}": stats.gram for key, stats in modules.items()}
        everything += samples
        folder.note_progress()
    found = SpectrumResult(settings.model, settings.fisher, settings.rank, skills)
    if not session.lent.in_memory:
        write_samples(folder.path / "samples.jsonl", everything)
        write_arrays(folder.path / "statistics.npz", arrays)
        found.write(folder.path)
        report.write(found, settings, folder.path)
        session.finish(folder)
    return found


def _statistics(session: SkillsSession, samples: Sequence[Sample], folder: Checkpoints) -> dict[str, ScoreStatistics]:
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
            dimension=session.subject.weights[name].numel(),
            fisher=session.options.fisher,
            labels=labels,
        )
        for name, gram in session.grams(samples, folder).items()
    }


def _assemble(modules: Mapping[str, ScoreStatistics], groups: np.ndarray, settings: Settings) -> SkillSpectrum:
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
    return SkillSpectrum(
        num_samples=whole.num_samples,
        num_parameters=whole.dimension,
        whole_model=_summary(whole, None, settings.seed),
        mean_score_share=mean_score_share(whole),
        growth=list(effective_rank_growth(whole, tuple(sizes), settings.subsets, settings.seed, groups)),
        split_half=[HalvesAgree(d, half.overlap, half.overlap_random) for d, half in halves.items() if half],
        layers={name: _summary(stats, _SHOWN, settings.seed) for name, stats in layers.items()},
        blocks={name: _summary(stats, _SHOWN, settings.seed) for name, stats in modules.items()},
    )


def _summary(stats: ScoreStatistics, shown: int | None, seed: int) -> Spectrum:
    """Spectrum of one block of parameters, the `shown` largest eigenvalues of it."""
    values = spectrum(stats).eigenvalues
    masses = np.sort(stats.sample_weights * stats.gram.diagonal())[::-1]
    return Spectrum(
        eigenvalues=values[:shown].tolist(),
        trace=float(values.sum()),
        effective_rank=effective_rank(values),
        orthogonal=masses[:shown].tolist(),
        effective_rank_orthogonal=effective_rank(masses),
        effective_rank_norm_shuffled=norm_shuffled_effective_rank(stats, seed),
        effective_rank_centred_normalised=centred_normalised_effective_rank(stats),
    )
