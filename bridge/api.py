"""The interface for Python: a model, what it says and is taught, and what all commands find of it, in a session.

Every method takes the options of its command (`python -m bridge.NAME --help`) as keywords, and gives the same numbers
as the command, to the last bit. Without `folder` nothing is written; with it, a run is kept there and resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from bridge.data.in_memory import Rows
from bridge.data.rows import RowSet
from bridge.experiments.callers import (
    SAMPLING,
    Change,
    Data,
    Given,
    SampleOptions,
    Samples,
    change,
    changes,
    named_rows,
    place,
    python_names,
    take_samples,
)
from bridge.reports.results import Result
from commands.errors import UserError
from commands.progress import Progress
from commands.settings import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bridge.data.samples import Sample
    from bridge.experiments.activations.result import ActivationsResult
    from bridge.experiments.estimate_aic.result import AicResult
    from bridge.experiments.finetune.result import FinetuneResult
    from bridge.experiments.fisher_overlap.result import FisherOverlapResult
    from bridge.experiments.harmfulness.result import HarmfulnessResult
    from bridge.experiments.onset.result import OnsetResult
    from bridge.experiments.overlap.result import OverlapResult
    from bridge.experiments.risk.result import RiskResult
    from bridge.experiments.session import Lent
    from bridge.experiments.spectrum.result import SpectrumResult
    from bridge.experiments.subspaces.result import EnergyResult, MsoResult, ProjectResult
    from bridge.experiments.utility.result import UtilityResult
    from bridge.models.load import LoadedModel

Found = TypeVar("Found", bound=Result)
Place = str | Path | None
"""A folder in which a run is kept; None for none."""


class Model:
    """A language model, by its name or from memory, on which everything is measured."""

    def __init__(
        self,
        model: str | Path | PreTrainedModel = "smollm2-135m",
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        dtype: str | None = None,
        device: str | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        """Take a model; one that is given by its name is loaded when it is first needed.

        Args:
            model: alias, hub name, local folder, GGUF file or random:ALIAS, or a model of transformers or peft that
                is in memory: it is measured where it stands, and left as it was.
            tokenizer: of a model in memory.
            dtype: of a model by name: float32 (the default), bfloat16, float16 or float64.
            device: of a model by name: cpu, cuda, cuda:N (default: the GPU if there is one).
            seed: of the weights of `random:` names.
            progress: whether stages are shown on standard error.

        Raises:
            UserError: an unknown name, what is no causal language model, or a model in memory without tokenizer.

        """
        self._progress, self._seed, self._dtype, self._device = progress, seed, dtype, device
        self._given = None if isinstance(model, str | Path) else (model, tokenizer)
        self._answers: tuple[str, dict[str, list[Sample]]] = ("", {})  # whose they are, and what it drew
        if self._given is None:
            from bridge.models.names import check_device_name, resolve

            with python_names(SampleOptions):
                resolve(str(model))
                check_device_name(device)
                SampleOptions.read({"dtype": dtype, "seed": seed})
            if tokenizer is not None:
                raise UserError("tokenizer: expected none with the name of a model, which has its own")
            self.name = str(model)
        else:
            from bridge.experiments.borrowed import name_of, require_usable

            require_usable(model, tokenizer)
            if dtype is not None or device is not None:
                raise UserError("dtype, device: expected none with a model in memory, which has its own")
            self.name = name_of(model)

    def __repr__(self) -> str:
        return f"bridge.Model({self.name!r}{'' if self._given is None else ', in memory'})"

    # ------------------------------------------------------------------------------------------- samples

    def samples(
        self,
        data: str | Path | Rows,
        count: int = 64,
        *,
        responses: Literal["model", "rows"] = "model",
        **options: object,
    ) -> Samples:
        """Choose rows of a set, tokenise them, and let the model answer their prompts.

        Args:
            data: a set's NAME, NAME=FILE, FILE.jsonl, a list of messages or mappings, or a `datasets.Dataset`.
            count: how many rows, chosen by the seed.
            responses: "model" draws them from the model (the sampled Fisher), "rows" takes the data's.
            options: draws, max_new_tokens, max_length, seed, batch_size, skip_bad_rows.

        Raises:
            UserError: a set or a row that cannot be used, or an option.

        """
        fisher = {"model": "sampled", "rows": "empirical"}.get(responses) if isinstance(responses, str) else None
        if fisher is None:
            raise UserError(f"responses: expected 'model' or 'rows', got {responses!r}")
        faults = [unknown(name, ("count", "responses", *SAMPLING)) for name in options if name not in SAMPLING]
        if faults:
            raise UserError("; ".join(faults))
        with python_names(SampleOptions, num_skill="count", fisher="responses"):
            settings = SampleOptions.read({**self._own(), "num_skill": count, "fisher": fisher, **options})
            settings.check()
            name, rows = named_rows("data", data, "drawn" if responses == "model" else "given", settings.skip_bad_rows)
            with self._lent({} if rows is None else {name: rows}) as lent:
                return take_samples(settings, name, lent, self._answers[0])

    # -------------------------------------------------------------------------------------- measurements

    def estimate_aic(
        self,
        skill: Data = "refusals",
        finetune: Data = "benign",
        *,
        folder: Place = None,
        **options: object,
    ) -> AicResult:
        """Measure how a planned fine-tune would start to move a skill (`python -m bridge.estimate_aic`).

        Args:
            skill: what to protect: `samples`, or a set.
            finetune: what to train on: `samples` with responses="rows", or a set.
            folder: keeps the run.
            options: learning_rate, steps, rank, optimizer, bootstrap, ...

        """
        from bridge.experiments.estimate_aic.run import run
        from bridge.experiments.estimate_aic.settings import Settings

        given = Given(Settings, options).skill(skill).rows_of("finetune", finetune, "num_finetune")
        return self._run(given, run, folder)

    def spectrum(self, *skills: Data, folder: Place = None, **options: object) -> SpectrumResult:
        """The spectrum of the Fisher information of one or several skills (`python -m bridge.spectrum`)."""
        from bridge.experiments.spectrum.run import run
        from bridge.experiments.spectrum.settings import Settings

        return self._run(Given(Settings, options).skills(skills or ("refusals",)), run, folder)

    def fisher_overlap(self, *skills: Data, folder: Place = None, **options: object) -> FisherOverlapResult:
        """Measure whether sharp directions of skills are of one alone (`python -m bridge.fisher_overlap`)."""
        from bridge.experiments.fisher_overlap.run import run
        from bridge.experiments.fisher_overlap.settings import Settings

        return self._run(Given(Settings, options).skills(skills), run, folder)

    def overlap(
        self,
        skill: Data = "refusals",
        delta: Change | Mapping[str, Change] | Sequence[Change] = "",
        *,
        folder: Place = None,
        **options: object,
    ) -> OverlapResult:
        """Measure how far weight changes moved into a skill's sensitive directions (`python -m bridge.overlap`).

        Args:
            skill: what to protect: `samples`, or a set.
            delta: a weight change of this model, or several, by label or under their own names.
            folder: keeps the run.
            options: rank, utility_loss, refusals, estimator, ...

        """
        from bridge.experiments.overlap.run import run
        from bridge.experiments.overlap.settings import Settings

        given = Given(Settings, options | {"delta": changes("delta", delta)}).skill(skill)
        return self._run(given, run, folder, moves=True)

    def utility_loss(self, skill: Data = "refusals", delta: Change = "", **options: object) -> float:
        """The utility loss of a weight change on a skill, in nats a response: token-exact KL, mean over samples.

        Options are those of `overlap`, which says more at the same cost.
        """
        asked = {"bootstrap": 0, "rank": 1, **options, "utility_loss": True}
        found = self.overlap(skill, {"change": change("delta", delta)}, folder=None, **asked)
        loss = found.deltas["change"].utility_loss
        assert loss is not None  # it was asked for
        return loss.mean

    def risk(
        self,
        skill: Data = "refusals",
        candidates: Mapping[str, Data] | Sequence[str | Path] = (),
        *,
        folder: Place = None,
        **options: object,
    ) -> RiskResult:
        """Rank fine-tuning sets by what they would cost a skill, before any training (`python -m bridge.risk`).

        Args:
            skill: what to protect: `samples`, or a set.
            candidates: sets by label, or a list of sets.
            folder: keeps the run.
            options: num_rows, optimizer, equal, ...

        """
        from bridge.experiments.risk.run import run
        from bridge.experiments.risk.settings import Settings

        given = Given(Settings, options).skill(skill).candidates(candidates)
        return self._run(given, run, folder)

    def onset(
        self,
        skill: Data = "refusals",
        finetune: Data = "benign",
        *,
        folder: Place = None,
        **options: object,
    ) -> OnsetResult:
        """Small real steps beside the prediction from the start (`python -m bridge.onset`)."""
        from bridge.experiments.onset.run import run
        from bridge.experiments.onset.settings import Settings

        given = Given(Settings, options).skill(skill).rows_of("finetune", finetune, "num_finetune")
        return self._run(given, run, folder, moves=True)

    def activations(
        self,
        sets: Mapping[str, Data] | Sequence[str | Path] | None = None,
        *,
        folder: Place = None,
        **options: object,
    ) -> ActivationsResult:
        """Overlaps of the subspaces of activations on several sets (`python -m bridge.activations`)."""
        from bridge.experiments.activations.run import run
        from bridge.experiments.activations.settings import Settings

        given = Given(Settings, options)
        return self._run(given if sets is None else given.prompt_sets(sets), run, folder, moves="delta" in options)

    # ------------------------------------------------------------------------------ training and answers

    def finetune(self, data: Data = "benign", *, folder: str | Path, **options: object) -> FinetuneResult:
        """Fine-tune a copy of the model and keep what changed in a folder (`python -m bridge.finetune`)."""
        from bridge.experiments.finetune.run import run
        from bridge.experiments.finetune.settings import Settings

        return self._run(Given(Settings, options).rows_of("data", data, "rows"), run, place(folder), moves=True)

    def harmfulness(
        self,
        prompts: Data | None = None,
        *,
        delta: Change | None = None,
        folder: Place = None,
        **options: object,
    ) -> HarmfulnessResult:
        """Let the model, or a changed one, answer harmful prompts, and judge it (`python -m bridge.harmfulness`)."""
        from bridge.experiments.harmfulness.run import run
        from bridge.experiments.harmfulness.settings import Settings

        if "rescore" in options:
            raise UserError(
                "rescore: expected none, since no model is asked: python -m bridge.harmfulness --rescore RUN"
            )
        given = Given(Settings, options if delta is None else options | {"delta": change("delta", delta)})
        given = given if prompts is None else given.prompts("prompts", prompts, "num_prompts")
        return self._run(given, run, folder, moves=delta is not None)

    def utility(
        self,
        data: Data | None = None,
        *,
        delta: Change | None = None,
        folder: Place = None,
        **options: object,
    ) -> UtilityResult:
        """Count right numeric answers of the model, or of a changed one (`python -m bridge.utility`)."""
        from bridge.experiments.utility.run import run
        from bridge.experiments.utility.settings import Settings

        given = Given(Settings, options if delta is None else options | {"delta": change("delta", delta)})
        given = given if data is None else given.rows_of("data", data, None)
        return self._run(given, run, folder, moves=delta is not None)

    # -------------------------------------------------------------------------------------------- inside

    def _own(self) -> dict[str, object]:
        """The options that the model itself decides."""
        dtype = self._dtype
        if self._given is not None:
            from bridge.experiments.borrowed import uncompiled

            dtype = str(uncompiled(self._given[0]).dtype).removeprefix("torch.")
        drawn = {"seed": self._seed} if self.name.lower().startswith("random:") else {}
        known = {"model": self.name, "dtype": dtype, "device": self._device, **drawn}
        return {name: value for name, value in known.items() if value is not None}

    def _run(self, given: Given, run: Callable[..., Found], folder: Place, moves: bool = False) -> Found:
        """Run a command on this model, or where it moves weights on a copy."""
        path = None if folder is None else place(folder)
        with python_names(given.kind):
            settings = given.settings(self._own())
            with self._lent(given.rows, folder is None, moves) as lent:
                for option, samples in given.samples:
                    if samples.answered_by not in (None, self._answers[0]):
                        raise UserError(
                            f"{option}: the model has changed since it answered these samples; take them anew"
                        )
                return run(settings, path, quiet=True, lent=lent)

    @contextmanager
    def _lent(self, rows: Mapping[str, RowSet], in_memory: bool = True, moves: bool = False) -> Iterator[Lent]:
        """What a run gets in place of names; where it moves weights, a model of its own."""
        from bridge.experiments.borrowed import borrowed, copied, fingerprint, undisturbed
        from bridge.experiments.session import Lent

        with undisturbed(), nullcontext(self._loaded) if self._given is None else borrowed(*self._given) as loaded:
            state = f"{loaded.source} {loaded.dtype} {loaded.device} "
            if self._given is not None:
                state += fingerprint(loaded.model)
            if state != self._answers[0]:
                self._answers = (state, {})  # weights in memory may have been trained meanwhile
            progress = Progress(quiet=not self._progress)
            yield Lent(copied(loaded) if moves else loaded, dict(rows), self._answers[1], in_memory, progress)

    @cached_property
    def _loaded(self) -> LoadedModel:
        from bridge.models.load import load_model

        with python_names():
            return load_model(
                self.name, dtype=self._dtype, device=self._device, seed=self._seed,
                report=None if self._progress else lambda line: None,
            )  # fmt: skip


# ---------------------------------------------------------------------------------------------- functions


def load_result(folder: str | Path) -> Result:
    """The result of a complete run of any command, from its folder.

    Raises:
        UserError: the folder holds no run, or one whose result cannot be read.

    """
    path = place(folder)
    wanted = f"{path}: expected the folder of a run, with its manifest.json"
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        command, status = str(manifest["command"]), manifest["status"]
    except OSError as error:
        raise UserError(f"{wanted} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{wanted}, which is no manifest of a run ({type(error).__name__}: {error})") from None
    from bridge.suites.kinds import KINDS

    if command not in KINDS:
        raise UserError(f"{path}: expected a run of {', '.join(KINDS)}, got one of {command}")
    if status != "complete":
        raise UserError(f"{path}: the run is not complete; the same command goes on with it")
    return KINDS[command].read(path)


def finetune(
    model: str | Path,
    data: Data = "benign",
    *,
    folder: str | Path,
    dtype: str | None = None,
    device: str | None = None,
    seed: int = 0,
    **options: object,
) -> FinetuneResult:
    """Fine-tune a model by its name, and keep what changed in a folder: `Model.finetune`."""
    trained = Model(model, dtype=dtype, device=device, seed=seed, progress=True)
    return trained.finetune(data, folder=folder, seed=seed, **options)


def energy(
    task: Change | Mapping[str, Change] | Sequence[Change], *, folder: str | Path, **options: object
) -> EnergyResult:
    """Measure how much of task updates the alignment update's subspaces keep (`python -m bridge.subspaces energy`)."""
    from bridge.experiments.subspaces.energy import run
    from bridge.experiments.subspaces.settings import EnergySettings

    with python_names(EnergySettings):
        return run(EnergySettings.read({"task": changes("task", task), **options}), place(folder), quiet=True)


def project(task: Change, *, folder: str | Path, **options: object) -> ProjectResult:
    """Write the part of a task update in or outside such a subspace (`python -m bridge.subspaces project`)."""
    from bridge.experiments.subspaces.project import run
    from bridge.experiments.subspaces.settings import ProjectSettings

    with python_names(ProjectSettings):
        return run(ProjectSettings.read({"task": change("task", task), **options}), place(folder), quiet=True)


def mso(update: Mapping[str, Change] | Sequence[Change], *, folder: str | Path, **options: object) -> MsoResult:
    """Mode subspace overlap of pairs of updates (`python -m bridge.subspaces mso`)."""
    from bridge.experiments.subspaces.mso import run
    from bridge.experiments.subspaces.settings import MsoSettings

    with python_names(MsoSettings):
        return run(MsoSettings.read({"update": changes("update", update), **options}), place(folder), quiet=True)
