"""One run of `bridge.estimate_aic`: from the options to the finished run folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bridge import measure, models, pictures, report, result
from bridge.data import ChatFormat, RowSet, Sample, encode_rows, load_rows, with_response
from bridge.measure import Subject
from bridge.models import LoadedModel
from bridge.sampling import draw_responses, stream
from bridge.taps import probe, select_modules
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder, library_versions, short_hash, write_arrays, write_atomically, write_json
from theory.statistics import ScoreStatistics

if TYPE_CHECKING:
    from bridge.estimate_aic import Settings

COMMAND = "bridge.estimate_aic"


def run(settings: Settings, out: Path | None = None, quiet: bool = False) -> Path:
    """Measure, write the run folder, print the closing table; returns the folder.

    Raises:
        UserError: for anything in the options, the data or the model that cannot be used.

    """
    settings.check()
    progress = Progress(quiet)
    rows = {
        name: load_rows(getattr(settings, name), skip_bad_rows=settings.skip_bad_rows) for name in ("skill", "finetune")
    }
    loaded = models.load(
        settings.model, dtype=settings.dtype, device=settings.device, seed=settings.seed, report=progress.say
    )
    subject = _subject(loaded, settings)
    chat = ChatFormat(loaded.tokenizer)
    skill, finetune = (_encode(name, rows[name], chat, settings, progress) for name in ("skill", "finetune"))
    _check_positions(loaded, skill, finetune, settings)
    identity = asdict(settings) | {
        "dtype": loaded.dtype,
        "device": loaded.device,
        "threads": _threads(loaded.device),
        "weights_sha256": loaded.weights_hash,
        "config": short_hash(json.loads(loaded.model.config.to_json_string())),
        # What the tokenizer and its chat template made of the rows is part of what is measured.
        "tokens": short_hash([[s.id, s.input_ids, s.response_mask, s.group] for s in [*skill, *finetune]]),
        "end_token_ids": list(chat.end_token_ids),
        "skill_sha256": rows["skill"].sha256,
        "finetune_sha256": rows["finetune"].sha256,
    }
    name = settings.model.strip("/").replace("/", "--").replace(":", "-")
    folder = RunFolder(out or Path("runs") / "estimate_aic" / f"{name[-60:]}-{short_hash(identity)}", COMMAND, identity)
    try:
        already = folder.complete
        if not already:
            if settings.fisher == "sampled":
                skill = _draw(loaded, chat, skill, settings, folder, progress)
            _measure(loaded, subject, skill, finetune, settings, folder, progress)
        found = _read_result(folder.path / "aic.json")
        if already:
            progress.say(f"complete already: {folder.path}{folder.made_with()}")
    finally:
        folder.close()
    if not quiet:
        report.print_table(found, asdict(settings))
        print(f"\n{folder.path / 'report.html'}")
    return folder.path


def _read_result(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--out: a complete run, but {path} cannot be read; delete the folder and run again") from error
    return found


def _subject(loaded: LoadedModel, settings: Settings) -> Subject:
    return Subject(
        model=loaded.model,
        modules=select_modules(loaded.model, settings.modules),
        pad_id=int(loaded.tokenizer.pad_token_id),
        batch_size=settings.batch_size,
        memory_bytes=int(settings.memory * 2**30),
    )


def _threads(device: str) -> int | None:
    """Threads decide the order of the CPU's sums, and so the last digits."""
    return torch.get_num_threads() if device == "cpu" else None


def _encode(name: str, rows: RowSet, chat: ChatFormat, settings: Settings, progress: Progress) -> list[Sample]:
    count = getattr(settings, f"num_{name}")
    try:
        encoded = encode_rows(rows, chat, count, settings.max_length, settings.seed, settings.skip_bad_rows)
    except UserError as error:
        raise UserError(f"--{name}: {error}") from error
    for line in encoded.skipped:
        progress.say(f"left out: {line}")
    return list(encoded.samples)


def _check_positions(
    loaded: LoadedModel, skill: Sequence[Sample], finetune: Sequence[Sample], settings: Settings
) -> None:
    """Refuse rows beyond the model's last position: learned positions end there, others are untrained."""
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    for sample in finetune if settings.fisher == "sampled" else [*skill, *finetune]:
        if len(sample.input_ids) > limit:
            raise UserError(
                f"--max-length: expected at most {limit}, the positions that the model has, got {sample.id} of "
                f"{len(sample.input_ids)} tokens"
            )
    longest = max(len(sample.prompt_ids) for sample in skill)
    if settings.fisher == "sampled" and longest + settings.max_new_tokens > limit:
        raise UserError(
            f"--max-new-tokens: expected at most {max(limit - longest, 0)}, since the model has {limit} positions and "
            f"the longest prompt {longest} tokens, got {settings.max_new_tokens}"
        )


def _draw(
    loaded: LoadedModel,
    chat: ChatFormat,
    samples: Sequence[Sample],
    settings: Settings,
    folder: RunFolder,
    progress: Progress,
) -> list[Sample]:
    """Replace every sample's response by the model's own, `draws` times a prompt."""
    wanted = [(row, draw) for row in range(len(samples)) for draw in range(settings.draws)]
    size = 8 * settings.batch_size  # no backward pass: longer batches than elsewhere
    groups = [wanted[k : k + size] for k in range(0, len(wanted), size)]
    files = [folder.checkpoint(f"responses-{k}.json") for k in range(len(groups))]
    out: list[Sample] = []
    with progress.stage("responses of the model", len(groups), sum(f.exists() for f in files)) as tick:
        for group, file in zip(groups, files, strict=True):
            if not file.exists():
                drawn = draw_responses(
                    loaded.model,
                    [samples[row].prompt_ids for row, _ in group],
                    [stream(settings.seed, row, draw) for row, draw in group],
                    max_new_tokens=settings.max_new_tokens,
                    end_token_ids=chat.end_token_ids,
                    pad_id=int(loaded.tokenizer.pad_token_id),
                )
                write_json(file, drawn)
                tick()
            for (row, draw), response in zip(group, json.loads(file.read_text()), strict=True):
                base = samples[row]
                room = settings.max_length - len(base.prompt_ids)
                label = base.id if settings.draws == 1 else f"{base.id}#{draw + 1}"
                out.append(
                    with_response(
                        base.prompt_ids, response[:room], set_name=base.set, sample_id=label, group=base.group
                    )
                )
    return out


def _measure(
    loaded: LoadedModel,
    subject: Subject,
    skill: Sequence[Sample],
    finetune: Sequence[Sample],
    settings: Settings,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """All stages from the samples to the finished folder."""
    lines = [replace(s, set=name).to_json() for name, part in (("skill", skill), ("finetune", finetune)) for s in part]
    write_atomically(folder.path / "samples.jsonl", ("\n".join(lines) + "\n").encode())
    probe(subject.model, subject.modules, subject.batches(finetune[:1])[0])
    update = measure.measure_update(subject, finetune, settings.optimizer, settings.adam_batch_size, folder, progress)
    folder.note_progress()
    modules = measure.measure_scores(subject, skill, update, settings.fisher, folder, progress)
    folder.note_progress()
    question = result.Question(
        rank=settings.rank,
        energy=settings.energy,
        horizon=settings.learning_rate * settings.steps,
        resamples=settings.bootstrap,
        seed=settings.seed,
    )
    times = result.prediction_times(result.whole_model(modules), question.horizon)
    moments = measure.measure_output_space(subject, skill, update, times, folder, progress)
    groups = np.unique([s.group for s in skill], return_inverse=True)[1]
    with progress.stage("intervals", 1):
        found = {
            "model": settings.model,
            **result.assemble(modules, update, moments, times, groups, question),
        }
    _write_statistics(folder, modules, update.gradient_squared, moments.to_arrays(), times)
    write_json(folder.path / "aic.json", found)
    _write_report(loaded, found, result.whole_model(modules), skill, settings, folder)
    folder.finish(
        device_name=_device_name(loaded.device),
        stage_seconds={k: round(v, 2) for k, v in progress.seconds.items()},
    )


def _write_statistics(
    folder: RunFolder,
    modules: Mapping[str, ScoreStatistics],
    gradient_squared: Mapping[str, float],
    moments: Mapping[str, np.ndarray],
    times: np.ndarray,
) -> None:
    """statistics.npz: every module's statistics under its name, and the policy's under `output_space`."""
    arrays = {f"output_space/{name}": values for name, values in moments.items()} | {"output_space/times": times}
    for name, stats in modules.items():
        arrays |= stats.to_arrays(f"{name}/")
        arrays[f"{name}/gradient_squared"] = np.array(gradient_squared[name])
    write_arrays(folder.path / "statistics.npz", arrays)


def _write_report(
    loaded: LoadedModel,
    found: dict[str, Any],
    whole: ScoreStatistics,
    skill: Sequence[Sample],
    settings: Settings,
    folder: RunFolder,
) -> None:
    drawn = {
        "spectrum": pictures.spectrum(found, whole.gram.diagonal()),
        "coupling": pictures.coupling(found),
        "prediction": pictures.prediction(found, settings.learning_rate),
    }
    for name, png in drawn.items():
        write_atomically(folder.path / f"{name}.png", png)
    texts = [str(loaded.tokenizer.decode(list(sample.input_ids))) for sample in skill[:5]]
    page = report.render(found, asdict(settings), library_versions(), drawn, texts)
    write_atomically(folder.path / "report.html", page)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
