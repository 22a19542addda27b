"""The commands that tests kill everywhere: how each is run, where it dies, and what it must leave."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bridge.support import (
    tiny_finetunes,
    tiny_fisher_overlaps,
    tiny_overlaps,
    tiny_risks,
    tiny_subspaces,
)
from tests.bridge.support.tiny_activations import activation_options
from tests.bridge.support.tiny_aligns import align_options
from tests.bridge.support.tiny_experiments import write_experiment
from tests.bridge.support.tiny_finetunes import DEFENDED, RESULTS, defence_options, finetune_options
from tests.bridge.support.tiny_onsets import onset_options
from tests.bridge.support.tiny_runs import options
from tests.bridge.support.tiny_studies import write_study
from tests.bridge.support.tiny_tables import write_table


@dataclass(frozen=True)
class KillCase:
    """A command to be killed.

    module: what `python -m` takes; arguments: the command line, of the folder it works in and the output folder;
    leaves: the files that an undisturbed run leaves beside manifest.json and settings.toml, or some of them
    (`and_more`); one that was killed leaves the same, byte for byte but for `normal`. moments: where it dies; of those
    that differ in a number alone the first, where the number is #. With none it dies once in every kind of moment but
    those that match `alike`: pictures and the time before a rename are mostly like another. often: after how many
    moments a run is killed that is killed again and again, and how many more each time. every_step: every step of a
    sum or a training is a checkpoint.
    """

    module: str
    arguments: Callable[[Path, Path], Sequence[str]]
    leaves: Sequence[str]
    often: tuple[int, int] = (3, 4)
    moments: Collection[str] = ()
    alike: str = ""
    normal: Callable[[str, bytes], bytes] = lambda name, content: content
    every_step: bool = False
    and_more: bool = False

    def chosen(self, moments: Sequence[str]) -> list[str]:
        """Those at which it is killed, of all that a run goes through."""
        found: dict[str, str] = {}
        for moment in moments:
            kind = re.sub(r"\d+", "#", re.sub(r"\w+\.png", "PICTURE", moment))
            if moment in self.moments:
                found.setdefault(moment, moment)
            elif kind in self.moments or not (self.moments or re.fullmatch(self.alike, moment)):
                found.setdefault(kind, moment)
        return list(found.values())


def without_seconds(name: str, content: bytes) -> bytes:
    """A fine-tune's files without the times that it took."""
    if name == "report.html":
        return re.sub(rb"<tr><td>extra time.*?</tr>", b"", content)
    if name != "finetune.json":
        return content
    found = json.loads(content)
    found.pop("seconds")
    for timed in ("extra_seconds", "extra_share"):
        (found["defence"] or {}).pop(timed, None)
    return json.dumps(found).encode()


def without_time_and_place(name: str, content: bytes) -> bytes:
    """The files of a run of many commands without seconds, memory, and the paths of the run itself."""
    content = re.sub(rb"/(?:undisturbed|killed-\d+|often)/", b"/RUN/", content)
    if name.endswith(".jsonl"):
        return re.sub(rb'"latency": [0-9.e-]+', b"", content)
    if name.endswith(("manifest.json", "finetune.json")):
        found = json.loads(content)
        for key in ("seconds", "wall_seconds", "peak_memory_bytes", "stage_seconds"):
            found.pop(key, None)
        return json.dumps(found).encode()
    return content


def _finetune(method: str, moments: Collection[str], often: tuple[int, int], *defended: str) -> KillCase:
    def arguments(folder: Path, out: Path) -> list[str]:
        more = defence_options(folder, *defended) if defended else ()
        return finetune_options(folder, method, out, *more)

    leaves = (*tiny_finetunes.COMPARED, *RESULTS[method], *(DEFENDED if defended else ()))
    return KillCase("bridge.finetune", arguments, leaves, often, moments, normal=without_seconds, every_step=True)


def _subspaces(leaves: Sequence[str], often: tuple[int, int], *more: str) -> KillCase:
    """`more`: the part and its options; a file of the workplace is @NAME."""

    def arguments(folder: Path, out: Path) -> list[str]:
        part, *given = (text.replace("@", f"{folder}/") for text in more)
        alignment = str(folder / "alignment.safetensors")
        return [part, "--alignment", alignment, "--device", "cpu", *given, "--out", str(out)]

    alike = r"before .*(?<!\.json)(?<!model)|.*(\.png|manifest\.json)"  # results, or a model's folder, about to appear
    return KillCase("bridge.subspaces", arguments, leaves, often, alike=alike)


def _sequence(
    module: str, result: str, moments: Collection[str], often: tuple[int, int], settings: Callable[[Path], Path]
) -> KillCase:
    """A command that runs others, from the settings file that `settings` writes."""

    def arguments(folder: Path, out: Path) -> list[str]:
        return ["--settings", str(settings(folder)), "--out", str(out)]

    return KillCase(module, arguments, (result,), often, moments, normal=without_time_and_place, and_more=True)


def _short_experiment(folder: Path) -> Path:
    top = 'fractions = [0.5]\nenergies = [0.5]\nbases = ["top-k", "random"]\nschemes = ["orthogonal"]\n'
    top += "contamination = 0\n"
    return write_experiment(folder, "killed.toml", top=top)


def _short_study(folder: Path) -> Path:
    """One method and one set, without a risk."""
    path = write_study(folder, "killed.toml")
    text = path.read_text().replace('"lora", "full"', '"full"').replace("pilot_steps", "risk = false\npilot_steps")
    path.write_text(text[: text.index("[[sets]]", text.index("[[sets]]") + 1)])
    return path


def _short_table(folder: Path) -> Path:
    """One method and one set, without the overlap."""
    path = write_table(folder, "killed.toml", second=None)
    text = path.read_text().replace('"lora", "full"', '"full"')
    path.write_text(text[: text.index("[overlap]")])
    return path


CASES = {
    "activations": KillCase(
        "bridge.activations",
        lambda folder, out: activation_options(folder, out, "--token", "generated", "--batch-size", "4"),
        ("activations.json", "activations.npz", "prompts.jsonl", "energies.png", "layers.png", "report.html"),
        (5, 15),
        (  # one of each stage
            "after set-0-responses-0.json", "after set-1-states-0.npz", "after overlaps-1.npz", "after activations.npz",
            "before activations.json", "after report.html",
        ),
    ),
    "align": KillCase(
        "bridge.align",
        lambda folder, out: align_options(folder, "--name", out.name, out=out),
        (*RESULTS["full"], "delta.json", "samples.jsonl", "align.json", "responses.jsonl", "trajectory.png",
         "report.html"),
        (20, 15),
        (  # the cases of `bridge.finetune` die inside the training
            "after answers-0-refusals-1.json", "after answers-6-benign-0.json", "before count-9.json", "before model",
            "after align.json",
        ),
        every_step=True,
    ),
    "estimate_aic": KillCase(
        "bridge.estimate_aic",
        lambda folder, out: options(
            folder, "--optimizer", "adamw", "--adam-batch-size", "2", "--batch-size", "3", "--out", str(out)
        ),
        ("aic.json", "samples.jsonl", "statistics.npz", "report.html", "spectrum.png", "coupling.png",
         "prediction.png"),
        alike=r"before (?!velocity\.safetensors|aic\.json).*",
        every_step=True,
    ),
    # what both methods share is tried with one of them
    "finetune, lora": _finetune(
        "lora",
        (
            "writing rng_state.pth", "before whole.json", "tick of training", "before adapter", "after adapter",
            "after delta.json", "after report.html",
        ),
        (10, 5),
    ),
    "finetune, full": _finetune(
        "full",
        (
            "after base.safetensors", "writing optimizer.pt", "tick of training", "before delta.safetensors",
            "before model", "after model",
        ),
        (10, 5),
    ),
    "finetune, defended": _finetune(
        "full",
        (
            "after skill-responses-0.json", "after skill.jsonl", "after defence-gram.npz", "before defence.json",
            "after defence.json", "tick of training", "after defence.png",
        ),
        (15, 14),
        "tracked", "--refresh", "2",
    ),
    "fisher_overlap": KillCase(
        "bridge.fisher_overlap",
        lambda folder, out: tiny_fisher_overlaps.options(folder, out, "--memory", "1e-6"),
        tiny_fisher_overlaps.COMPARED,
        (4, 11),
        alike=r"before (?!fisher_overlap\.json).*|after (manifest\.json|skill-0-responses-0\.json|samples\.jsonl)",
    ),
    "onset": KillCase(
        "bridge.onset",
        lambda folder, out: onset_options(
            folder, out, "--remove-overlap", "--at", "0.1,0.3", "--learning-rate", "0.015", "--pilot-steps", "3",
            "--pilot-batch-size", "2",
        ),
        ("onset.json", "onset.png", "pilot.png", "report.html", "samples.jsonl", "statistics.npz"),
        (25, 30),
        (
            "after probe-scores-0.npz", "after lanczos.safetensors", "before position.safetensors",
            "after point-0-skill-loss-0-0.npz", "after pilot-1.json", "after whole.json",
        ),
        every_step=True,
    ),
    "overlap": KillCase(
        "bridge.overlap",
        lambda folder, out: tiny_overlaps.overlap_options(
            folder, out, "--refusals", str(folder / "prompts.jsonl"), "--estimator", "rademacher", "--dim", "16",
            "--memory", "1e-6",
        ),
        tiny_overlaps.COMPARED,
        (3, 25),
        alike=r"before (?!overlap\.json).*",
    ),
    "risk": KillCase(
        "bridge.risk",
        lambda folder, out: tiny_risks.risk_options(
            folder, out, "--clean", "2", "--clean-candidate", "other", "--memory", "1e-6"
        ),
        (*tiny_risks.COMPARED, "cleaned.jsonl"),
        (9, 20),
        (
            "after set-#-velocity.safetensors", "tick of scores of the rows", "after set-#-rows-#.npz",
            "before set-#.npz", "after set-#.npz", "after risk.json", "before cleaned.jsonl", "after cleaned.jsonl",
        ),
    ),
    "energy": _subspaces(
        tiny_subspaces.ENERGY, (5, 30),
        "energy", "--task", "full=@full.safetensors", "--fractions", "0.3,1", "--repeats", "2",
    ),
    "mso": _subspaces(
        tiny_subspaces.MSO, (5, 30),
        "mso", "--update", "full=@full.safetensors", "--energies", "0.5,0.9", "--permutations", "3",
    ),
    "project": _subspaces(
        tiny_subspaces.PROJECT, (5, 9),
        "project", "--task", "full=@full.safetensors", "--fraction", "0.3", "--aligned", "@aligned", "--save-model",
    ),
    "safety_subspaces": _sequence(
        "bridge.safety_subspaces", "safety_subspaces.json", ("after useful-finetuned.json", "tick of models measured"),
        (60, 60), _short_experiment,
    ),
    "study": _sequence("bridge.study", "study.json", ("before pilot.json", "after row.json"), (20, 40), _short_study),
    "table1": _sequence(
        "bridge.table1", "table1.json", ("before row.json", "after table1.json", "after delta.json"), (15, 30),
        _short_table,
    ),
}  # fmt: skip
