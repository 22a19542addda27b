"""The interface for Python: a model, what it says and is taught, and what all commands find of it, in a session.

Every method takes the options of its command (`python -m bridge.NAME --help`) as keywords, and gives the same numbers
as the command, to the last bit. Without `folder` nothing is written; with it, a run is kept there and resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from bridge.data.in_memory import Rows
from bridge.data.rows import RowSet
from bridge.experiments.callers import Change, Data, Given, SampleOptions, Samples, labelled, python_names, rows_of
from bridge.reports.results import Result
from commands.errors import UserError
from commands.progress import Progress
from commands.settings import fields_of

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
            UserError: an unknown name, or a model in memory without tokenizer.

        """
        self._progress, self._seed, self._dtype, self._device = progress, seed, dtype, device
        self._given = None if isinstance(model, str | Path) else (model, tokenizer)
        self._responses: dict[str, list[Sample]] = {}
        if self._given is None:
            from bridge.models.names import resolve

            resolve(str(model))
            if tokenizer is not None:
                raise UserError("tokenizer: expected none with the name of a model, which has its own")
            self.name = str(model)
        else:
            if tokenizer is None:
                raise UserError("tokenizer: expected the tokenizer of the model in memory, got none")
            if dtype is not None or device is not None:
                raise UserError("dtype, device: expected none with a model in memory, which has its own")
            self.name = str(getattr(model, "name_or_path", "") or type(model).__name__)

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
        from bridge.experiments.session import MeasuringSession
        from commands.store import Scratch

        fisher = {"model": "sampled", "rows": "empirical"}.get(responses)
        if fisher is None:
            raise UserError(f"responses: expected 'model' or 'rows', got {responses!r}")
        with python_names():
            settings = SampleOptions.read({**self._own(), "num_skill": count, "fisher": fisher, **options})
            settings.check()
        name, rows = rows_of(data, settings.skip_bad_rows, answered=True)
        with python_names(), self._lent({} if rows is None else {name: rows}) as lent:
            session = MeasuringSession("bridge.samples", settings, Progress(quiet=True), lent)
            whole = session.rows("data", name)
            samples = session.encode("data", whole, count)
            sampled = fisher == "sampled"
            session.check_positions([] if sampled else samples, samples if sampled else [], settings.max_new_tokens)
            if sampled:
                folder = Scratch()
                try:
                    samples = session.answered(samples, folder)
                finally:
                    folder.close()
            decode = session.loaded.tokenizer.decode
            texts = [
                (str(decode(list(s.prompt_ids))), str(decode(list(s.input_ids)[len(s.prompt_ids) :]))) for s in samples
            ]
        return Samples(name, whole, settings, samples, [a for a, _ in texts], [b for _, b in texts])

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

        given = Given(Settings, options).skill(skill).trained("finetune", finetune, "num_finetune")
        return self._run(given, run, folder)

    def spectrum(self, *skills: Data, folder: Place = None, **options: object) -> SpectrumResult:
        """The spectrum of the Fisher information of one or several skills (`python -m bridge.spectrum`)."""
        from bridge.experiments.spectrum.run import run
        from bridge.experiments.spectrum.settings import Settings

        return self._run(Given(Settings, options).skills(skills), run, folder)

    def fisher_overlap(self, *skills: Data, folder: Place = None, **options: object) -> FisherOverlapResult:
        """Measure whether sharp directions of skills are of one alone (`python -m bridge.fisher_overlap`)."""
        from bridge.experiments.fisher_overlap.run import run
        from bridge.experiments.fisher_overlap.settings import Settings

        return self._run(Given(Settings, options).skills(skills), run, folder)

    def overlap(
        self,
        skill: Data = "refusals",
        delta: Change | Mapping[str, Change] = "",
        *,
        folder: Place = None,
        **options: object,
    ) -> OverlapResult:
        """Measure how far weight changes moved into a skill's sensitive directions (`python -m bridge.overlap`).

        Args:
            skill: what to protect: `samples`, or a set.
            delta: a weight change of this model, or several by label.
            folder: keeps the run.
            options: rank, utility_loss, refusals, estimator, ...

        """
        from bridge.experiments.overlap.run import run
        from bridge.experiments.overlap.settings import Settings

        return self._run(Given(Settings, options | {"delta": labelled(delta)}).skill(skill), run, folder, moves=True)

    def utility_loss(self, skill: Data = "refusals", delta: Change = "", **options: object) -> float:
        """The utility loss of a weight change on a skill, in nats a response: token-exact KL, mean over samples."""
        found = self.overlap(skill, {"change": delta}, folder=None, **{"bootstrap": 0, **options})
        loss = found.deltas["change"].utility_loss
        assert loss is not None  # --utility-loss is the default
        return loss.mean

    def risk(
        self,
        skill: Data = "refusals",
        candidates: Mapping[str, Data] | Sequence[str] = (),
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

        given = Given(Settings, options).skill(skill).sets("candidates", candidates, "num_rows")
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

        given = Given(Settings, options).skill(skill).trained("finetune", finetune, "num_finetune")
        return self._run(given, run, folder, moves=True)

    def activations(
        self, sets: Mapping[str, Data] | None = None, *, folder: Place = None, **options: object
    ) -> ActivationsResult:
        """Overlaps of the subspaces of activations on several sets (`python -m bridge.activations`)."""
        from bridge.experiments.activations.run import run
        from bridge.experiments.activations.settings import Settings

        given = Given(Settings, options)
        return self._run(given if sets is None else given.sets("sets", sets, None, answered=False), run, folder)

    # ------------------------------------------------------------------------------ training and answers

    def finetune(self, data: Data = "benign", *, folder: str | Path, **options: object) -> FinetuneResult:
        """Fine-tune a copy of the model and keep what changed in a folder (`python -m bridge.finetune`)."""
        from bridge.experiments.finetune.run import run
        from bridge.experiments.finetune.settings import Settings

        return self._run(Given(Settings, options).trained("data", data, "rows"), run, folder, moves=True)

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

        given = Given(Settings, options | ({} if delta is None else {"delta": str(delta)}))
        given = given if prompts is None else given.one("prompts", prompts, answered=False)
        return self._run(given, run, folder, moves=True)

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

        given = Given(Settings, options | ({} if delta is None else {"delta": str(delta)}))
        return self._run(given if data is None else given.one("data", data), run, folder, moves=True)

    # -------------------------------------------------------------------------------------------- inside

    def _own(self) -> dict[str, object]:
        """The options that the model itself decides."""
        own: dict[str, object] = {"model": self.name}
        return own | {k: v for k, v in (("dtype", self._dtype), ("device", self._device)) if v is not None}

    def _run(self, given: Given, run: Callable[..., Found], folder: Place, moves: bool = False) -> Found:
        with python_names():
            own = {name: value for name, value in self._own().items() if name in fields_of(given.kind)}
            settings = given.kind.read({**own, **given.options})
            with self._lent(given.rows, in_memory=folder is None, moves=moves) as lent:
                return run(settings, None if folder is None else Path(folder), quiet=True, lent=lent)

    @contextmanager
    def _lent(self, rows: Mapping[str, RowSet], in_memory: bool = True, moves: bool = False) -> Iterator[Lent]:
        """What a run gets in place of names; where it moves weights, a model of its own."""
        from bridge.experiments.borrowed import borrowed, copied
        from bridge.experiments.session import Lent

        def lent(loaded: LoadedModel) -> Lent:
            one = copied(loaded) if moves else loaded
            return Lent(one, dict(rows), self._responses, in_memory, Progress(not self._progress))

        if self._given is None:
            yield lent(self._loaded)
        else:
            with borrowed(*self._given) as loaded:
                yield lent(loaded)

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
    path = Path(folder).expanduser()
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        command, status = str(manifest["command"]), manifest["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the folder of a run, with its manifest.json ({error})") from error
    from bridge.suites.kinds import KINDS

    if command not in KINDS:
        raise UserError(f"{path}: expected a run of {', '.join(KINDS)}, got one of {command}")
    if status != "complete":
        raise UserError(f"{path}: the run is not complete; the same command goes on with it")
    return KINDS[command].read(path)


def finetune(model: str | Path, data: Data = "benign", *, folder: str | Path, **options: object) -> FinetuneResult:
    """Fine-tune a model by its name, and keep what changed in a folder: `Model.finetune`."""
    return Model(model, progress=True).finetune(data, folder=folder, **options)


def energy(task: Change | Mapping[str, Change], *, folder: str | Path, **options: object) -> EnergyResult:
    """Measure how much of task updates the alignment update's subspaces keep (`python -m bridge.subspaces energy`)."""
    from bridge.experiments.subspaces.energy import run
    from bridge.experiments.subspaces.settings import EnergySettings

    with python_names():
        return run(EnergySettings.read({"task": labelled(task), **options}), Path(folder), quiet=True)


def project(task: Change, *, folder: str | Path, **options: object) -> ProjectResult:
    """Write the part of a task update in or outside such a subspace (`python -m bridge.subspaces project`)."""
    from bridge.experiments.subspaces.project import run
    from bridge.experiments.subspaces.settings import ProjectSettings

    with python_names():
        return run(ProjectSettings.read({"task": str(task), **options}), Path(folder), quiet=True)


def mso(update: Change | Mapping[str, Change], *, folder: str | Path, **options: object) -> MsoResult:
    """Mode subspace overlap of pairs of updates (`python -m bridge.subspaces mso`)."""
    from bridge.experiments.subspaces.mso import run
    from bridge.experiments.subspaces.settings import MsoSettings

    with python_names():
        return run(MsoSettings.read({"update": labelled(update), **options}), Path(folder), quiet=True)
