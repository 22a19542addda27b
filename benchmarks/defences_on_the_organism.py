"""Fine-tunes of one model with each defence, side by side: what is lost, what is learnt, and what it costs.

    python benchmarks/defences_on_the_organism.py --model smollm2-135m-refusal --data benign --out runs/defences
    python benchmarks/defences_on_the_organism.py --optimizer sgd --learning-rate 0.01 --refresh 1 2 4 8 16 32

Each run is a folder of bridge.finetune below OUT, so that the same command again goes on where it was stopped. Every
run trains the same parameters on the same rows in the same order. For each: the utility loss on the probe and on
held-out responses, the held-out prompts that are refused (greedy answers), the loss reached on the training rows,
and the extra time. Writes defences.json, defences.md and defences.png; the picture lays the
losses over the law of tracked defences under gradient descent, which grows as the square of --refresh.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bridge.data.chat import ChatFormat
from bridge.data.rows import Row, load_rows
from bridge.deltas.changed_model import open_changed
from bridge.evaluation.refusals import refusal_rate
from bridge.experiments.finetune.run import run
from bridge.experiments.finetune.settings import Settings
from bridge.generation.generate import generate_texts
from bridge.models.names import resolve
from bridge.reports.drawing import DARK, LIGHT, MID, new_figure, png_of
from bridge.reports.numbers import number
from bridge.training.defences.plan import make_defence
from bridge.training.presets import DEFAULT_PRESET, make_plan
from commands.progress import Progress
from commands.store import short_hash, write_atomically, write_json


def configurations(options: argparse.Namespace) -> Iterator[tuple[str, Settings]]:
    """Every run by name: each method and seed with each defence, tracked and budget ones with each refresh."""
    for method in options.methods:
        for seed in options.seeds:
            for kind in options.defences:
                for refresh in options.refresh if kind in ("tracked", "budget") else [None]:
                    parts = [method, kind, *([f"every-{refresh}"] if refresh else []), f"seed-{seed}"]
                    yield "-".join(parts), settings_of(options, method, kind, refresh, seed)


def settings_of(options: argparse.Namespace, method: str, kind: Any, refresh: int | None, seed: int) -> Settings:
    given = {
        "learning_rate": options.learning_rate, "max_steps": options.max_steps, "epochs": options.epochs,
        "batch_size": options.batch_size, "seed": seed,
    }  # fmt: skip
    overrides: dict[str, Any] = {}
    if options.optimizer == "sgd":
        overrides = {"optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0}
    defence = make_defence(
        kind, options.skill, refresh=refresh, rank=None if kind == "none" else options.rank,
        num_skill=options.num_skill, held_out=options.held_out, max_new_tokens=options.max_new_tokens,
        max_utility_loss=options.max_utility_loss if kind == "budget" else None,
        measure_every=None if kind == "budget" else options.measure_every,
    )  # fmt: skip
    return Settings(
        model=options.model, data=options.data, rows=options.rows, mix=None, share=0.0, max_length=options.max_length,
        preset=DEFAULT_PRESET, plan=make_plan(DEFAULT_PRESET, method, given, overrides), dtype=options.dtype,
        device=options.device, skip_bad_rows=False, defence=defence,
    )  # fmt: skip


def refusals(options: argparse.Namespace, run: Path, kept: Path, moved: bool) -> dict[str, Any]:
    """How many of the run's held-out prompts its base or its moved model refuses, greedily.

    Kept in a file beside what decides it; a file of other prompts or weights is made anew.
    """
    samples = [json.loads(line) for line in (run / "skill.jsonl").read_text().splitlines()]
    held = [sample["group"] for sample in samples[options.num_skill :]][: options.prompts]
    rows = {row.line: row for row in load_rows(options.skill).rows}
    chosen = [rows[line] for line in held]
    of = decided_by(options, run, chosen, moved)
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if known.get("of") != of:
        loaded = open_changed(options.model, run if moved else None, dtype=options.dtype, device=options.device)
        answers = generate_texts(loaded, ChatFormat(loaded.tokenizer), chosen, max_new_tokens=options.max_new_tokens)
        known = {"of": of, "refusals": asdict(refusal_rate([answer.text for answer in answers]))}
        write_json(kept, known)
    found: dict[str, Any] = known["refusals"]
    return found


def decided_by(options: argparse.Namespace, run: Path, chosen: Sequence[Row], moved: bool) -> dict[str, Any]:
    """What decides a count of refusals, by the run's manifest: the prompts, and the base or all that moved it."""
    settings = json.loads((run / "manifest.json").read_text())["settings"]
    names = ("weights_sha256", "config", "dtype", "device", "threads", "end_token_ids", "skill_tokens")
    base = {name: settings[name] for name in names}
    return {
        "prompts": short_hash([row.messages for row in chosen]),
        "max_new_tokens": options.max_new_tokens,
        "model": short_hash(settings if moved else base),
    }


def measured(name: str, settings: Settings, found: dict[str, Any], refused: dict[str, Any] | None) -> dict[str, Any]:
    """One row of the table."""
    defence, plan = found["defence"], settings.defence
    tracks = plan is not None and plan.kind in ("tracked", "budget")
    return {
        "name": name,
        "method": found["method"],
        "defence": defence["kind"],
        "refresh": defence["refresh"] if tracks else None,
        "seed": settings.plan.seed,
        "steps": found["steps"],
        "utility_loss": defence["utility_loss"],
        "quadratic_loss": defence["quadratic_loss"],
        "refusals": refused,
        "loss_reached": defence["loss_reached"],
        "update_norm": found["update"]["norm"],
        "summary": defence["summary"],
        "seconds": found["seconds"],
        "extra_seconds": defence["extra_seconds"],
        "extra_share": defence["extra_share"],
    }


def markdown(options: argparse.Namespace, rows: Sequence[dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    head = [
        "method", "defence", "every", "seed", "utility loss, probe", "held out", "refused", "loss reached",
        "updates inside", "extra time",
    ]  # fmt: skip
    lines = [
        f"{options.model} fine-tuned on {options.data}, {options.optimizer} at {options.learning_rate:g}, "
        f"{rows[0]['steps']} steps; utility loss of {options.skill} in nats a response.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    lines += [f"| base | | | {seed} | 0 | 0 | {refused(rate)} | | | |" for seed, rate in base.items()]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    losses, inside = row["utility_loss"], row["summary"]["inside"]
    return [
        row["method"],
        row["defence"],
        "" if row["refresh"] is None else str(row["refresh"]),
        str(row["seed"]),
        with_error(losses["probe"]),
        with_error(losses["held_out"]),
        refused(row["refusals"]),
        f"{row['loss_reached']:.4f}",
        "" if inside is None else f"{100 * inside:.3g} %",
        f"{100 * row['extra_share']:.0f} %",
    ]


def refused(rate: dict[str, Any] | None) -> str:
    return "" if rate is None else f"{rate['refused']} of {rate['total']}"


def with_error(loss: dict[str, Any] | None) -> str:
    if loss is None:
        return ""
    error = loss["standard_error"]
    return number(loss["mean"]) + ("" if error is None else f" ± {number(error)}")


def picture(rows: Sequence[dict[str, Any]]) -> bytes:
    """A row a method: the held-out utility loss, and the probe's leading order of it, against the refresh."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = new_figure(len(methods), 2, (10.0, 4.2 * len(methods)))
    for pair, method in zip(np.reshape(axes, (-1, 2)), methods, strict=True):
        of_method = [row for row in rows if row["method"] == method]
        panel(pair[0], of_method, "utility_loss", "held_out", f"{method}: utility loss, held out, nats")
        panel(pair[1], of_method, "quadratic_loss", "probe", f"{method}: half mean square change of l, probe, nats")
    return png_of(figure)


def panel(axis: Any, rows: Sequence[dict[str, Any]], field: str, where: str, label: str) -> None:
    """Level lines for none and static; for tracked, of the probe's own leading order, the square law as well."""

    def points(kind: str) -> list[tuple[int | None, float]]:
        return sorted((row["refresh"], row[field][where]["mean"]) for row in rows if row["defence"] == kind)

    for kind, color, style in (("none", LIGHT, "--"), ("static", MID, ":")):
        for k, (_, value) in enumerate(points(kind)):
            axis.axhline(value, color=color, ls=style, label=kind if k == 0 else None)
    for kind, color, marker in (("tracked", DARK, "o"), ("budget", MID, "s")):
        if points(kind):
            axis.plot(*zip(*points(kind), strict=True), marker, color=color, ms=5, label=kind)
    refreshes = sorted({row["refresh"] for row in rows if row["refresh"]})
    if field == "quadratic_loss" and len(points("tracked")) > 1:
        last, value = points("tracked")[-1]
        law = [value * (refresh / last) ** 2 for refresh in refreshes]  # type: ignore[operator]
        axis.plot(refreshes, law, "-", color=DARK, lw=0.8, label="square of the refresh")
    axis.set(xlabel="steps between refreshes", ylabel=label, xscale="log")
    values = [row[field][where]["mean"] for row in rows]
    if max(values) > 3 * min(values) > 0:
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, 1.2 * max(values))
    if refreshes:
        axis.set_xticks(refreshes, [str(refresh) for refresh in refreshes])
        axis.set_xticks([], minor=True)
    axis.legend(frameon=False, fontsize=8)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="smollm2-135m-refusal")
    add("--data", default="benign")
    add("--skill", default="refusals")
    add("--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    add("--defences", nargs="+", default=["none", "static", "tracked"], choices=["none", "static", "tracked", "budget"])
    add("--refresh", nargs="+", type=int, default=[1, 4, 16])
    add("--rank", type=int)
    add("--max-utility-loss", type=float, default=1.0, help="of the defence budget, nats a response")
    add("--optimizer", default="adamw", choices=["adamw", "sgd"])
    add("--learning-rate", type=float, default=1e-5)
    add("--rows", type=int, default=64)
    add("--epochs", type=float, default=1.0)
    add("--max-steps", type=int)
    add("--batch-size", type=int, default=8)
    add("--seeds", nargs="+", type=int, default=[0])
    add("--num-skill", type=int, default=48)
    add("--held-out", type=int, default=48)
    add("--max-new-tokens", type=int, default=32)
    add("--measure-every", type=int, default=10**6, help="steps between measurements of the probe; the end always is")
    add("--prompts", type=int, default=40, help="of those held out, answered for the refusals; 0 for none")
    add("--max-length", type=int, default=256)
    add("--dtype")
    add("--device")
    add("--out", type=Path, default=Path("runs/defences"))
    options = parser.parse_args()
    if options.held_out < 1:
        parser.error("--held-out: expected at least 1")
    return options


def main() -> None:
    options = parse()
    resolve(options.model)
    progress, rows = Progress(), []
    base: dict[int, dict[str, Any]] = {}  # by seed, which chooses the prompts
    for name, settings in configurations(options):
        progress.say(f"== {name}")
        folder = run(settings, options.out / name, quiet=True)
        refused_there, seed = None, settings.plan.seed
        if options.prompts:
            if seed not in base:
                base[seed] = refusals(options, folder, options.out / f"refusals-base-seed-{seed}.json", moved=False)
            refused_there = refusals(options, folder, options.out / f"refusals-{name}.json", moved=True)
        rows.append(measured(name, settings, json.loads((folder / "finetune.json").read_text()), refused_there))
        shown = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        write_json(options.out / "defences.json", {"options": shown, "base": base, "runs": rows})
        write_atomically(options.out / "defences.md", markdown(options, rows, base).encode())
        write_atomically(options.out / "defences.png", picture(rows))
    print((options.out / "defences.md").read_text())


if __name__ == "__main__":
    main()
