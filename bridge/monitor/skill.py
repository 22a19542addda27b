"""A skill watched from inside somebody else's training: its responses, the base, and what has become of both.

The base is the model when the watch begins. Kept of it: its logits at the response tokens of the probe, and a copy of
the parameters that are trained. All passes leave the training as it was (`bridge.estimators.probe.measuring`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bridge.data.samples import Sample
from bridge.estimators import taps
from bridge.estimators.batches import log_probabilities, make_batches, response_logits, sum_by_row
from bridge.estimators.probe import Probe, measuring, root_mean_square, trained_subject
from bridge.estimators.scores import Parts
from bridge.estimators.theta import Subject
from bridge.estimators.utility_loss import token_divergence
from bridge.models import blocks as models_blocks
from bridge.models.blocks import inner_model
from commands.errors import UserError
from theory.projection_coefficients import SnapshotProjector, snapshot_projector


@dataclass(frozen=True)
class Damage:
    """Utility loss on the probe in nats a response, and its standard error over the responses (nan for one).

    Both are inf where the model's logits are no numbers any more.
    """

    mean: float
    error: float


@dataclass(frozen=True)
class Subspaces:
    """Where the update lies, over theta.

    share_base, share_current: |P b|^2 / |b|^2 of the update b since the base, with P of the top directions of the
    probe's scores at the base and at the current weights (None where nothing has moved); random_base, random_current:
    what a random direction would have, rank / number of weights. update_norm: |b|. leak: |F^(1/2) d| of the last
    step's change d, F from the scores at the current weights; leak_random: of a random change of its norm,
    |d| (tr F / n)^(1/2); step_norm: |d|. None without a last step.
    """

    share_base: float | None
    share_current: float | None
    random_base: float
    random_current: float
    update_norm: float
    leak: float | None
    leak_random: float | None
    step_norm: float | None


class WatchedSkill:
    """The probe of a skill inside a training.

    Memory beside the model: `logits_bytes` on the CPU, and `weights_bytes` (a copy of what is trained) where the
    model is; theta once more from `keep_step` to `subspaces`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        samples: Sequence[Sample],
        *,
        fill_id: int,
        batch_size: int,
        rank: int | None,
        subspaces: bool = True,
        logits_dtype: torch.dtype | None = None,
        base: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Begin to watch.

        Args:
            model: as the trainer has it: its trained parameters are those that ask for a gradient.
            samples: the probe.
            fill_id: any id of the vocabulary.
            batch_size: samples computed at a time; where all fit into one batch, the scores take one pass less.
            rank: d of the subspaces; None for all directions that the probe has.
            subspaces: whether `subspaces` will be asked for.
            logits_dtype: in which the base's logits are kept; None for that in which they come, float32 at least.
            base: the trained parameters of the base by name, if it is not the model as it is now.

        Raises:
            UserError: nothing is trained, parameters are in pieces on several devices, none of theta is trained, or a
                module's scores cannot be taken.

        """
        self._model, self._inner, self._rank = model, inner_model(model), rank
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        _require_whole(self.trained)
        _require_one_device(model)
        self.samples = tuple(samples)
        device = next(self._inner.parameters()).device
        self._batches = make_batches(samples, batch_size, fill_id, device)
        copied = {name: p.detach().clone() for name, p in self.trained.items()} if base is None else base
        self.base: dict[str, Tensor] = {name: copied[name].to(p.device, p.dtype) for name, p in self.trained.items()}
        with self.at_base():
            self._logits = [logits.to("cpu", logits_dtype or logits.dtype) for logits in self._response_logits()]
        self._probe = self._make_probe(fill_id, batch_size) if subspaces else None
        self._base_projector: SnapshotProjector | None = None
        self._old: dict[str, Tensor] = {}

    def _make_probe(self, fill_id: int, batch_size: int) -> Probe:
        try:
            whole = trained_subject(self._model, pad_id=fill_id, batch_size=batch_size, memory_bytes=2**31)
        except UserError as error:  # of the commands, which have an option for it
            raise UserError(
                "AlignmentMonitor: expected a model whose scores can be taken; with subspaces_every=0 the utility loss "
                f"alone is watched ({error})"
            ) from error
        names = {id(parameter): name for name, parameter in self.trained.items()}
        modules = {name: module for name, module in whole.modules.items() if id(module.weight) in names}
        if not modules:
            raise UserError(
                "AlignmentMonitor: expected some linear module of the blocks to be trained, got none; with "
                "subspaces_every=0 the utility loss alone is watched"
            )
        subject: Subject = replace(whole, modules=modules)
        base = {name: self.base[names[id(module.weight)]] for name, module in modules.items()}
        return Probe(subject, self.samples, base)

    @property
    def logits_bytes(self) -> int:
        """Bytes of the base's logits."""
        return sum(logits.nbytes for logits in self._logits)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the base's weights."""
        return sum(weight.nbytes for weight in self.base.values())

    @property
    def num_weights(self) -> int:
        """n, the number of weights of theta."""
        return 0 if self._probe is None else sum(w.numel() for w in self._probe.subject.weights.values())

    @contextmanager
    def at_base(self) -> Iterator[None]:
        """The trained parameters are the base's inside, and the same memory as before after it."""
        kept = {name: parameter.data for name, parameter in self.trained.items()}
        try:
            for name, parameter in self.trained.items():
                parameter.data = self.base[name]
            yield
        finally:
            for name, parameter in self.trained.items():
                parameter.data = kept[name]

    @torch.no_grad()
    def _response_logits(self) -> Iterator[Tensor]:
        for batch in self._batches:
            with measuring(self._inner), torch.no_grad():
                logits = response_logits(self._inner, batch)
            yield logits

    def utility_losses(self) -> Float[np.ndarray, " N"]:
        """sum_t KL(base_t, current_t) of each sample, exact over the vocabulary, in nats; inf for broken logits.

        It sees all that is trained, embeddings and norms included. One forward pass.
        """
        values = np.zeros(len(self.samples))
        for batch, base, moved in zip(self._batches, self._logits, self._response_logits(), strict=True):
            if torch.isfinite(moved).all():
                found = token_divergence(base.to(moved.device, moved.dtype), moved)
                values[list(batch.indices)] = sum_by_row(found, batch).cpu().numpy()
            else:
                values[list(batch.indices)] = math.inf
        return values

    def damage(self) -> Damage:
        """Mean of `utility_losses` and its standard error."""
        values = self.utility_losses()
        if not np.isfinite(values).all():
            return Damage(math.inf, math.inf)
        count = len(values)
        return Damage(float(values.mean()), float(values.std(ddof=1) / count**0.5) if count > 1 else math.nan)

    # ----------------------------------------------------------------------------------- subspaces

    @torch.no_grad()
    def keep_step(self) -> None:
        """Copy theta before a step whose leak will be asked for."""
        self._old = self._theta_probe().copy_weights()

    def subspaces(self) -> Subspaces:
        """Where the update since the base and the last step lie; forgets what `keep_step` kept.

        Raises:
            UserError: scores or inner products are not finite.

        """
        probe, old = self._theta_probe(), self._old
        weights = {name: weight.detach() for name, weight in probe.subject.weights.items()}

        def update(name: str) -> Tensor:
            return weights[name] - probe.base[name]

        def step(name: str) -> Tensor:
            return weights[name] - old[name]

        gram, inner = scores_at_once(probe, update, *([step] if old else []))
        current = snapshot_projector(gram, self._rank, precision=probe.precision)
        update_squared, step_squared = _squared(update, weights), _squared(step, weights) if old else 0.0
        share_base = None
        if update_squared > 0:
            with self.at_base():
                base = self._base_subspace(probe)
                share_base = base.squared_norm(probe.inner(update)[0]) / update_squared
        number = self.num_weights
        found = Subspaces(
            share_base=share_base,
            share_current=current.squared_norm(inner[0]) / update_squared if update_squared > 0 else None,
            random_base=(current if self._base_projector is None else self._base_projector).rank / number,
            random_current=current.rank / number,
            update_norm=update_squared**0.5,
            leak=root_mean_square(inner[1]) if old else None,
            leak_random=float((step_squared * np.trace(gram) / len(gram) / number) ** 0.5) if old else None,
            step_norm=step_squared**0.5 if old else None,
        )
        self._old = {}
        return found

    def _theta_probe(self) -> Probe:
        if self._probe is None:
            raise ValueError("this skill is watched without subspaces")
        return self._probe

    def _base_subspace(self, probe: Probe) -> SnapshotProjector:
        """Called with the base's weights in place."""
        if self._base_projector is None:
            gram = scores_at_once(probe)[0]
            self._base_projector = snapshot_projector(gram, self._rank, precision=probe.precision)
        return self._base_projector


def _require_whole(trained: Mapping[str, Tensor]) -> None:
    if not trained:
        raise UserError("AlignmentMonitor: expected a model of which some parameters are trained, got none")
    for name, parameter in trained.items():
        if parameter.numel() == 0 or type(parameter.data).__name__ == "DTensor" or parameter.device.type == "meta":
            raise UserError(
                f"AlignmentMonitor: expected whole parameters on each device, got a piece of {name}: models that are "
                "sharded (FSDP, DeepSpeed ZeRO-3) cannot be watched yet; use data parallelism or one device"
            )


def _require_one_device(model: torch.nn.Module) -> None:
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise UserError(
            f"AlignmentMonitor: expected a model on one device, got parts on {', '.join(devices)}: load it without "
            "device_map, or train without the monitor"
        )


def _squared(part: Parts, names: Mapping[str, Tensor]) -> float:
    """Squared norm of a vector given module by module, summed in float64."""
    return math.fsum(float(torch.linalg.vector_norm(part(name), dtype=torch.float64)) ** 2 for name in names)


def scores_at_once(
    probe: Probe, *directions: Parts
) -> tuple[Float[np.ndarray, "N N"], Float[np.ndarray, "K N"]]:  # fmt: skip
    """Gram s_i . s_j of the probe's scores at the current weights, and their inner products with K vectors.

    A probe in one batch takes one forward and one backward pass for all of it: each module's scores are formed when
    the gradient of its output arrives, used, and dropped. Otherwise `Probe.gram` and `Probe.inner`.

    Raises:
        UserError: they are not finite.

    """
    if len(probe.batches) > 1:
        return probe.gram(), probe.inner(*directions)
    subject, batch = probe.subject, probe.batches[0]
    count, device = probe.num_samples, subject.device
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    inner = torch.zeros(len(directions), count, dtype=torch.float64, device=device)

    def entering(module: torch.nn.Module, args: tuple) -> tuple:
        return (args[0].detach().requires_grad_(), *args[1:])  # the graph starts here: no parameter asks for it

    def leaving(name: str) -> Callable[[torch.nn.Module, tuple, Tensor], None]:
        def hook(module: torch.nn.Module, args: tuple, output: Tensor) -> None:
            x = args[0].detach()

            def contract(delta: Tensor) -> None:
                parts = [direction(name) for direction in directions]
                found = taps.contract_pairs([(x, delta)], batch.indices, module, parts, subject.chunk_bytes)
                gram.add_(found.gram)
                for total, share in zip(inner, found.inner, strict=True):
                    total.add_(share)

            output.register_hook(contract)

        return hook

    blocks = models_blocks.group_by_block(list(subject.modules))
    with measuring(subject.model), torch.enable_grad(), ExitStack() as stack:
        first = subject.model.get_submodule(next(iter(blocks)))
        stack.callback(first.register_forward_pre_hook(entering).remove)
        for name, module in subject.modules.items():
            stack.callback(module.register_forward_hook(leaving(name)).remove)
        log_probabilities(response_logits(subject.model, batch), batch).sum().backward()
    if not (torch.isfinite(gram).all() and torch.isfinite(inner).all()):
        raise UserError("expected finite scores of the skill's responses, got nan or inf")
    return gram.cpu().numpy(), inner.cpu().numpy()
