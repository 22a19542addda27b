"""Defences of a skill while a model is fine-tuned: the update that is applied is projected off what is sensitive.

After each of the optimizer's steps, with its moments, clipping, weight decay and schedule, the change of the weights
delta is known, and its part inside the top-d eigenspace of the skill's Fisher matrix is taken out of it:
theta + delta - P delta. It is the update and not the gradient that must be orthogonal: the preconditioner of Adam
turns an orthogonal gradient back into the subspace. Its moments know nothing of the projection; they go on seeing the
gradients at the weights as projected, and weight decay is a part of the update like any other.

P delta = S^T C S delta, with the scores S of a `bridge.estimators.probe.Probe` at some anchor weights and the small
matrix C of their gram (`theory.projection_coefficients`): one pass of inner products and one weighted backward pass.

The anchor: the base (static) leaves a utility loss that grows as t^4, since the sensitive directions turn along the
path; the weights before the step (tracked, refreshed each step) leaves what a step of finite size makes of their
turning, and every R steps R^2 times that: of gradient descent with K steps of eta, T = K eta,
Delta u = T^2 (R eta)^2 E[h^2] / 8, h = v^T Hess(l) v along the projected velocity v.

"The Geometry of Alignment Collapse" (arXiv 2602.15799), sections 5 and 6, explains why a static projection fails.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from bridge.estimators.probe import Probe, Weights, root_mean_square
from bridge.training.defences.plan import Kind
from bridge.training.defences.record import StepRecord
from commands.errors import UserError
from commands.store import read_arrays, write_arrays, write_json
from theory.projection_coefficients import SnapshotProjector, snapshot_projector

_PARTS = 16  # the budget's share of the projection is found to one part in this
_STATE, _GRAM, _ANCHOR = "defence.json", "defence-gram.npz", "defence-anchor.safetensors"


@dataclass(frozen=True)
class Subspace:
    """Where updates are projected off: the anchor's weights, and the projector of the probe's scores there."""

    anchor: Weights
    projector: SnapshotProjector


class Defence:
    """Stands around each optimizer step (`bridge.training.hooks.StepHook`) and projects the update that was applied.

    Memory: a copy of theta before the step and of the base, one of P delta, with `refresh` above 1 one of the anchor,
    and in a step that a budget binds two more; nothing of the size of scores x theta.
    """

    def __init__(
        self,
        kind: Kind,
        probe: Probe,
        *,
        rank: int | None = None,
        refresh: int = 1,
        max_utility_loss: float | None = None,
        measure_every: int = 1,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Prepare to defend from the weights as they are now.

        Args:
            kind: see `bridge.training.defences.plan.DefencePlan`.
            probe: the skill's samples; its base is the model before the training.
            rank: d; None for all directions that the probe's scores have above rounding.
            refresh: R, steps between two anchors of kinds "tracked" and "budget".
            max_utility_loss: of kind "budget": the mean over the probe that no step may pass, in nats a response.
            measure_every: steps between two measurements of the probe's utility loss, and of the leak of the update as
                applied; kind "budget" measures at each step whatever this is.
            say: is told once where the scores have fewer directions than were asked for.

        Raises:
            ValueError: for a rank beyond the number of samples, a refresh below 1, or no budget with kind "budget".

        """
        if rank is not None and not 1 <= rank <= probe.num_samples:
            raise ValueError(f"the rank must lie in 1..{probe.num_samples}, got {rank}")
        if refresh < 1 or measure_every < 1 or (kind == "budget" and not (max_utility_loss or 0) > 0):
            raise ValueError("expected refresh and measure_every from 1, and a positive budget with kind budget")
        self.kind, self.probe, self.records, self.seconds = kind, probe, list[StepRecord](), 0.0
        self._rank, self._refresh, self._every = rank, refresh, 1 if kind == "budget" else measure_every
        self._budget = max_utility_loss
        self._say, self._told = say, False
        self._old: dict[str, Tensor] = {}
        self._anchor: Weights | None = probe.base if kind == "static" else None
        self._projector: SnapshotProjector | None = None

    @property
    def trained(self) -> Sequence[torch.nn.Parameter]:
        """Theta: what the probe's scores are of."""
        return [module.get_parameter("weight") for module in self.probe.subject.modules.values()]

    @property
    def _tracks(self) -> bool:
        return self.kind in ("tracked", "budget")

    # --------------------------------------------------------------------------------------- steps

    def before_step(self, done: int) -> None:
        """Keep the weights; every `refresh` steps they are the new anchor."""
        started = self._now()
        weights = self.probe.subject.weights
        if not self._old:
            self._old = self.probe.copy_weights()
        for name, weight in weights.items():
            self._old[name].copy_(weight.detach())
        if self._tracks and done % self._refresh == 0:
            self._projector = None
            self._anchor = self._old if self._refresh == 1 else self.probe.copy_weights()
        self.seconds += self._now() - started

    def _now(self) -> float:
        """Seconds, when the device has done what was asked of it: what came before belongs to the training."""
        if self.probe.subject.device.type == "cuda":
            torch.cuda.synchronize(self.probe.subject.device)
        return time.monotonic()

    @torch.no_grad()
    def after_step(self, done: int) -> None:
        """Project what the optimizer has done, in place, and record it."""
        started = self._now()
        new = {name: weight.data for name, weight in self.probe.subject.weights.items()}
        squared = sum(float((new[name] - old).double().square().sum()) for name, old in self._old.items())
        record = StepRecord.untouched(done + 1, squared)
        if squared > 0:
            record = self._defend_budget(new, record) if self.kind == "budget" else self._defend(new, record)
        if (done + 1) % self._every == 0:
            if record.utility_loss is None:
                record = replace(record, utility_loss=float(self.probe.utility_loss().mean()))
            if record.inside is not None:
                record = replace(record, leak_applied=root_mean_square(self._inner(new)))
        self.records.append(record)
        self.seconds += self._now() - started

    def _inner(self, new: Weights) -> Float[np.ndarray, " N"]:
        """s_i . (new - old) with the scores at the anchor."""
        with self.probe.at(self.subspace().anchor):
            return self.probe.inner(lambda name: new[name] - self._old[name])[0]

    def _defend(self, new: Weights, record: StepRecord) -> StepRecord:
        if self.kind == "none":
            return record
        inner = self._inner(new)
        inside = self._project(inner)
        for name, weight in new.items():
            weight -= inside.pop(name)
        return self._recorded(record, inner, projected=1.0, kept=1.0)

    def _project(self, inner: Float[np.ndarray, " N"]) -> dict[str, Tensor]:
        """P delta by module, from the inner products s_i . delta."""
        subspace = self.subspace()
        with self.probe.at(subspace.anchor):
            return self.probe.weighted_scores(subspace.projector.coefficients(inner))

    def _recorded(
        self, record: StepRecord, inner: Float[np.ndarray, " N"], projected: float, kept: float
    ) -> StepRecord:
        """The record with kept (delta - projected P delta) as applied, by the inner products s_i . delta."""
        projector = self.subspace().projector
        left = kept * ((1 - projected) * inner + projected * projector.remaining(inner))
        return replace(
            record,
            inside=projector.squared_norm(inner) / record.update_squared,
            leak=root_mean_square(inner),
            leak_left=root_mean_square(left),
            projected=projected,
            kept=kept,
            rank=projector.rank,
        )

    def subspace(self) -> Subspace:
        """The anchor and its projector, which is computed where it is first needed.

        Raises:
            UserError: the scores vanish, so that no update changes the skill's responses at first order.

        """
        if self._anchor is None:
            raise ValueError("before_step has not been called yet")
        if self._projector is None:
            with self.probe.at(self._anchor):
                gram = self.probe.gram()
            if not gram.any():
                raise UserError("--defend: the scores of the skill's responses are zero: the model cannot be defended")
            self._projector = snapshot_projector(gram, self._rank, precision=self.probe.precision)
            self._tell(self._projector)
        return Subspace(self._anchor, self._projector)

    def _tell(self, found: SnapshotProjector) -> None:
        if found.rank < min(found.asked, self.probe.num_samples) and not self._told:
            self._told = True
            self._say(
                f"defence: the scores of {self.probe.num_samples} responses have {found.rank} directions above the "
                f"rounding of the weights' dtype (lambda_1 / lambda_{found.rank} = {found.condition:.1e}), "
                f"{found.asked} were asked for: the {found.rank} are used"
            )

    # -------------------------------------------------------------------------------------- budget

    def _defend_budget(self, new: Weights, record: StepRecord) -> StepRecord:
        """As little of the projection as keeps the measured utility loss within the budget.

        old + kept (delta - projected P delta): projected is the smallest multiple of 1/16 that bisection finds to be
        within the budget; where even 1 is not, kept is the largest. Kept 0 is the weights before the step, which were
        within it.
        """
        found = float(self.probe.utility_loss().mean())
        if found <= self._limit:
            return replace(record, utility_loss=found)
        inner = self._inner(new)
        inside = self._project(inner)

        def at(projected: float, kept: float) -> dict[str, Tensor]:
            if kept == 1.0:
                return {name: new[name] - projected * part for name, part in inside.items()}
            return {name: old + kept * ((new[name] - old) - inside[name]) for name, old in self._old.items()}

        def measured(projected: float, kept: float) -> float:
            with self.probe.at(at(projected, kept)):
                return float(self.probe.utility_loss().mean())

        projected, kept = 1.0, 1.0
        if measured(1.0, 1.0) <= self._limit:
            projected = _bisect(lambda share: measured(share, 1.0) <= self._limit, good=1.0, bad=0.0)
        else:
            kept = _bisect(lambda share: measured(1.0, share) <= self._limit, good=0.0, bad=1.0)
        for name, moved in at(projected, kept).items():
            new[name].copy_(moved)
        record = self._recorded(record, inner, projected, kept)
        return replace(record, utility_loss=float(self.probe.utility_loss().mean()))

    @property
    def _limit(self) -> float:
        if self._budget is None:
            raise ValueError("no budget")
        return self._budget

    # ---------------------------------------------------------------------------------- checkpoints

    def save(self, folder: Path) -> None:
        """Write records and seconds, and the subspace where it lasts for more than a step."""
        state = {"records": [asdict(record) for record in self.records], "seconds": self.seconds, "told": self._told}
        if self._lasts and self._projector is not None:
            write_arrays(folder / _GRAM, {"gram": self._projector.gram})
        if self._lasts and self._tracks and self._anchor is not None:
            save_file({name: part.contiguous() for name, part in self._anchor.items()}, folder / _ANCHOR)
        write_json(folder / _STATE, state)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        state = json.loads((folder / _STATE).read_text())
        self.records = [StepRecord(**record) for record in state["records"]]
        self.seconds, self._told = state["seconds"], state["told"]
        if (folder / _ANCHOR).exists():
            self._anchor = load_file(folder / _ANCHOR, str(self.probe.subject.device))
        if (folder / _GRAM).exists():
            gram = read_arrays(folder / _GRAM)["gram"]
            self._projector = snapshot_projector(gram, self._rank, precision=self.probe.precision)

    @property
    def _lasts(self) -> bool:
        return self.kind == "static" or (self._tracks and self._refresh > 1)


def _bisect(holds: Callable[[float], bool], good: float, bad: float) -> float:
    """The multiple of 1/16 nearest to `bad`, where something does not hold, that bisection finds to hold."""
    while abs(good - bad) * _PARTS > 1:
        middle = (good + bad) / 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good
