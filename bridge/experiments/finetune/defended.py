"""The part of a fine-tuning run that a defence adds: the skill's responses, the defence, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from jaxtyping import Float
from torch.nn import Module

from bridge.data.encode import token_hash
from bridge.data.rows import RowSet
from bridge.data.samples import Sample
from bridge.estimators.probe import Probe, trained_subject
from bridge.experiments.finetune.result import DefenceResult, MeanLoss, SkillLoss
from bridge.experiments.finetune.settings import Settings
from bridge.experiments.session import Session, write_samples
from bridge.generation.drawing import Drawing, draw_samples
from bridge.training.defences.defence import Defence
from bridge.training.defences.plan import DefencePlan
from bridge.training.defences.record import summary
from commands.store import Folder, Part


class Defended:
    """A defence in one run: the skill's rows, their responses once drawn, and the defence once the model is there."""

    def __init__(self, session: Session, settings: Settings, plan: DefencePlan, rows: RowSet) -> None:
        """Choose and tokenise the skill's prompts: those of the probe, then those held out.

        Raises:
            UserError: the rows cannot be used, or leave no room for responses.

        """
        self.session, self.settings, self.plan, self.rows = session, settings, plan, rows
        prompts = session.encode("skill", rows, plan.num_skill + plan.held_out)
        session.check_positions([], prompts, plan.max_new_tokens)
        order = np.random.default_rng((settings.seed, 1)).permutation(len(prompts))  # chosen, but sorted
        self.prompts = [prompts[i] for i in order]
        self._samples: list[Sample] = []
        self._defence: Defence | None = None

    @property
    def identity(self) -> dict[str, object]:
        """What of the skill decides the numbers."""
        return {"skill_tokens": token_hash(self.prompts), "skill_sha256": self.rows.sha256}

    def draw(self, folder: Folder) -> None:
        """Draw the base's responses, one a prompt, and write skill.jsonl; before the model has changed."""
        session, settings = self.session, self.settings
        how = Drawing(1, self.plan.max_new_tokens, settings.max_length, self.plan.batch_size, settings.seed)
        part = Part(folder, "skill")
        self._samples = draw_samples(session.loaded, session.chat, self.prompts, how, part, session.progress)
        if not session.lent.in_memory:
            write_samples(folder.path / "skill.jsonl", self._samples)

    def make_hook(self, model: Module) -> Defence:
        """The defence of the model as it is trained; its weights must be the base's still."""
        plan, say = self.plan, self.session.progress.say
        subject = trained_subject(
            model,
            pad_id=int(self.session.loaded.tokenizer.pad_token_id),
            batch_size=plan.batch_size,
            memory_bytes=int(plan.memory * 2**30),
        )
        if not hasattr(model, "peft_config"):
            say(f"defence: the {len(subject.modules)} linear modules of the blocks are trained, all else is frozen")
        self._defence = Defence(
            plan.kind,
            Probe(subject, self._samples[: plan.num_skill]),
            rank=plan.rank,
            refresh=plan.refresh,
            max_utility_loss=plan.max_utility_loss,
            measure_every=plan.measure_every,
            say=say,
        )
        return self._defence

    def result(self, training: Sequence[Sample], seconds: float) -> DefenceResult:
        """What came of the defence, measured on the trained model.

        Args:
            training: the rows that were trained on, for the loss reached.
            seconds: of the training in all, the defence included.

        """
        defence, plan = self._defence, self.plan
        if defence is None:
            raise ValueError("the model has not been trained yet")
        probe = defence.probe
        held_out = Probe(probe.subject, self._samples[plan.num_skill :], probe.base) if plan.held_out else None
        with self.session.progress.stage("utility loss on the skill", 1):
            exact = _skill_loss(Probe.utility_loss, probe, held_out)
            quadratic = _skill_loss(_quadratic_loss, probe, held_out)
            reached = _mean_loss(Probe(probe.subject, training, probe.base))
        return DefenceResult(
            **asdict(plan),
            trained_modules=len(probe.subject.modules),
            trained_weights=sum(weight.numel() for weight in probe.subject.weights.values()),
            utility_loss=exact,
            quadratic_loss=quadratic,
            loss_reached=reached,
            summary=summary(defence.records),
            steps=list(defence.records),
            extra_seconds=round(defence.seconds, 2),
            extra_share=defence.seconds / max(seconds - defence.seconds, 1e-9),
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


def _skill_loss(loss: Callable[[Probe], np.ndarray], probe: Probe, held_out: Probe | None) -> SkillLoss:
    """Means of a loss (N,) of every response."""
    return SkillLoss(_mean(loss(probe)), None if held_out is None else _mean(loss(held_out)))


def _mean(values: Float[np.ndarray, " N"]) -> MeanLoss:
    count = len(values)
    error = float(values.std(ddof=1) / count**0.5) if count > 1 else None
    return MeanLoss(float(values.mean()), error, count)
