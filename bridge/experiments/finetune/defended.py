"""The part of a fine-tuning run that a defence adds: the skill's responses, the defence, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from bridge.data.chat import ChatFormat
from bridge.data.encode import check_positions, encode, token_hash
from bridge.data.rows import RowSet
from bridge.data.samples import Sample
from bridge.generation.drawing import Drawing, draw_samples
from bridge.models.identity import positions_of
from bridge.models.load import LoadedModel
from bridge.training.defences.plan import DefencePlan
from commands.progress import Progress
from commands.store import Part, RunFolder, write_atomically
from theory.statistics import Scalar

if TYPE_CHECKING:
    from bridge.estimators.probe import Probe
    from bridge.experiments.finetune.settings import Settings
    from bridge.training.defences.defence import Defence


@dataclass
class Defended:
    """A defence in one run: the skill's rows, their responses once drawn, and the defence once the model is there."""

    plan: DefencePlan
    rows: RowSet
    prompts: Sequence[Sample]  # those of the probe, then those held out
    loaded: LoadedModel
    chat: ChatFormat
    max_length: int
    seed: int
    progress: Progress
    _samples: list[Sample] = field(default_factory=list)
    _defence: Defence | None = None

    @property
    def identity(self) -> dict[str, object]:
        """What of the skill decides the numbers."""
        return {"skill_tokens": token_hash(self.prompts), "skill_sha256": self.rows.sha256}

    def draw(self, folder: RunFolder) -> None:
        """Draw the base's responses, one a prompt, and write skill.jsonl; before the model has changed."""
        how = Drawing(1, self.plan.max_new_tokens, self.max_length, self.plan.batch_size, self.seed)
        part = Part(folder, "skill")
        self._samples = draw_samples(self.loaded, self.chat, self.prompts, how, part, self.progress)
        lines = "".join(sample.to_json() + "\n" for sample in self._samples)
        write_atomically(folder.path / "skill.jsonl", lines.encode())

    def make_hook(self, model: Any) -> Defence:
        """The defence of the model as it is trained; its weights must be the base's still."""
        from bridge.estimators.probe import Probe, trained_subject
        from bridge.training.defences.defence import Defence

        subject = trained_subject(
            model,
            pad_id=int(self.loaded.tokenizer.pad_token_id),
            batch_size=self.plan.batch_size,
            memory_bytes=int(self.plan.memory * 2**30),
        )
        if not hasattr(model, "peft_config"):
            self.progress.say(
                f"defence: the {len(subject.modules)} linear modules of the blocks are trained, all else is frozen"
            )
        self._defence = Defence(
            self.plan.kind,
            Probe(subject, self._samples[: self.plan.num_skill]),
            rank=self.plan.rank,
            refresh=self.plan.refresh,
            max_utility_loss=self.plan.max_utility_loss,
            measure_every=self.plan.measure_every,
            say=self.progress.say,
        )
        return self._defence

    def result(self, training: Sequence[Sample], seconds: float) -> dict[str, Any]:
        """The field `defence` of finetune.json, measured on the trained model.

        Args:
            training: the rows that were trained on, for the loss reached.
            seconds: of the training in all, the defence included.

        """
        from bridge.estimators.probe import Probe
        from bridge.training.defences.record import summary

        defence = self._defence
        if defence is None:
            raise ValueError("the model has not been trained yet")
        probe = defence.probe
        probes = {"probe": probe}
        if self.plan.held_out:
            probes["held_out"] = Probe(probe.subject, self._samples[self.plan.num_skill :], probe.base)
        with self.progress.stage("utility loss on the skill", 1):
            exact = {name: _with_error(part.utility_loss()) for name, part in probes.items()}
            quadratic = {name: _with_error(_quadratic_loss(part)) for name, part in probes.items()}
            reached = _mean_loss(Probe(probe.subject, training, probe.base))
        return {
            **asdict(self.plan),
            "trained_modules": len(probe.subject.modules),
            "trained_weights": sum(weight.numel() for weight in probe.subject.weights.values()),
            "utility_loss": {"probe": None, "held_out": None} | exact,
            "quadratic_loss": {"probe": None, "held_out": None} | quadratic,
            "loss_reached": reached,
            "summary": dict(summary(defence.records)),
            "steps": [asdict(record) for record in defence.records],
            "extra_seconds": round(defence.seconds, 2),
            "extra_share": defence.seconds / max(seconds - defence.seconds, 1e-9),
        }


def prepare(loaded: LoadedModel, chat: ChatFormat, settings: Settings, progress: Progress) -> Defended | None:
    """Choose and tokenise the skill's prompts; None for a run without a defence.

    Raises:
        UserError: the rows cannot be used, or leave no room for responses.

    """
    from bridge.data.rows import load_rows

    plan = settings.defence
    if plan is None:
        return None
    rows = load_rows(plan.skill, skip_bad_rows=settings.skip_bad_rows)
    prompts = encode(
        "--skill",
        rows,
        chat,
        count=plan.num_skill + plan.held_out,
        max_length=settings.max_length,
        seed=settings.plan.seed,
        skip_bad_rows=settings.skip_bad_rows,
        progress=progress,
    )
    check_positions(positions_of(loaded), [], prompts, plan.max_new_tokens)
    order = np.random.default_rng((settings.plan.seed, 1)).permutation(len(prompts))  # chosen at random, but sorted
    return Defended(
        plan, rows, [prompts[i] for i in order], loaded, chat, settings.max_length, settings.plan.seed, progress
    )


def _quadratic_loss(probe: Probe) -> Float[np.ndarray, " N"]:
    """Half the square of each response's change of log-probability, whose mean is the utility loss's leading order.

    Unlike the exact divergence it holds only what the probe's own scores see: what a projection off them controls.
    """
    with probe.at(probe.base):
        before = probe.log_likelihood()
    return (probe.log_likelihood() - before) ** 2 / 2


def _mean_loss(probe: Probe) -> float:
    """Mean negative log-likelihood in nats per response token."""
    tokens = sum(batch.num_tokens for batch in probe.batches)
    return float(-probe.log_likelihood().sum() / tokens)


def _with_error(values: Float[np.ndarray, " N"]) -> dict[str, Scalar | int | None]:
    """Mean over the responses, in nats a response, its standard error (None for one response), and their number."""
    count = len(values)
    error = float(values.std(ddof=1) / count**0.5) if count > 1 else None
    return {"mean": float(values.mean()), "standard_error": error, "responses": count}
