"""A few samples of a skill on which a model is watched while it is trained: scores, and utility loss.

A `Probe` holds N samples of the skill with the base model's own responses, and computes with the weights that the
model has at that moment: the gram of the samples' scores, their inner products with a change of the weights, a
weighted sum of the scores, and the utility loss since the probe was made. Nothing of size N x n is held (n: number of
weights): the gram takes the two sweeps of `bridge.estimators.taps`, inner products one forward and one backward pass,
the weighted sum one of each. The passes leave the training as it was: mode, gradients, random numbers.

The responses are the base's throughout, since the utility loss is a mean over the base policy. They also serve a
subspace that is refreshed in the course of training: if s_i . theta' = 0 for each of them, l_theta of each stays what
it was, whichever policy drew it, and so does the base's mean of l_base - l_theta; and as long as the utility loss is
small, the two policies agree on what they would draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bridge.data.samples import Sample
from bridge.deltas.factors import Factors
from bridge.estimators import taps
from bridge.estimators.batches import Batch, log_probabilities, response_logits, sum_by_row
from bridge.estimators.scores import Parts, blocks_at_once
from bridge.estimators.theta import Subject
from bridge.estimators.utility_loss import token_divergence
from bridge.models import blocks as models_blocks
from bridge.models.blocks import inner_model
from commands.errors import UserError

Weights = Mapping[str, Tensor]
"""The weight matrices of theta by module name."""


def trained_subject(model: torch.nn.Module, *, pad_id: int, batch_size: int, memory_bytes: int) -> Subject:
    """Theta of a model in training: its adapters' A and B where it has some (peft), else its blocks' linear modules.

    Args:
        model: a causal language model, or a PeftModel around one; probes run the model inside.
        pad_id: any id of the vocabulary.
        batch_size: samples computed at a time.
        memory_bytes: what may be kept between passes: inputs and gradients of blocks, logits of the base.

    Raises:
        UserError: where `bridge.estimators.taps.select_modules` cannot tell the linear modules.

    """
    inner = inner_model(model)
    modules = taps.select_modules(inner, None if inner is model else r"\.lora_[AB]\.")
    return Subject(inner, modules, pad_id, batch_size, memory_bytes)


class Probe:
    """N samples of a skill, and what the model's current weights make of them.

    Parameters outside theta (the subject's modules) must stay as they are while the probe is used: the base is told
    apart from the current model by theta alone.
    """

    def __init__(self, subject: Subject, samples: Sequence[Sample], base: Weights | None = None) -> None:
        """Take the model as it is now for the base.

        Args:
            subject: the model and theta.
            samples: N samples, with responses drawn from the base.
            base: theta of the base, where another probe holds a copy already.

        Raises:
            UserError: a module is not called exactly once in a forward pass.

        """
        if not samples:
            raise ValueError("a probe needs at least one sample")
        self.subject, self.samples = subject, tuple(samples)
        self.batches = subject.batches(samples)
        self.base: Weights = self.copy_weights() if base is None else base
        self._logits: dict[int, Tensor] = {}  # of the base, as many batches as fit
        with measuring(subject.model):
            taps.probe(subject.model, subject.modules, self.batches[0])

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.samples)

    @property
    def precision(self) -> float:
        """What the gram knows of its largest eigenvalue, for each sample.

        Scores are multiplied in float32 or wider. Weights in less make scores that are rounded to their own eps, each
        entry by itself: that adds about eps^2 of a score's square to the gram.
        """
        dtypes = {weight.dtype for weight in self.subject.weights.values()}
        multiplied = (torch.finfo(torch.promote_types(dtype, torch.float32)).eps for dtype in dtypes)
        return float(max(*multiplied, *(torch.finfo(dtype).eps ** 2 for dtype in dtypes)))

    # -------------------------------------------------------------------------------------- weights

    def copy_weights(self) -> dict[str, Tensor]:
        """Copies of theta as it is now."""
        return {name: weight.detach().clone() for name, weight in self.subject.weights.items()}

    @contextmanager
    def at(self, weights: Weights) -> Iterator[None]:
        """Theta is `weights` inside, and the same memory as before after it: nothing is added and subtracted again.

        Args:
            weights: a tensor of each module's shape, dtype and device.

        """
        parameters = self.subject.weights
        kept = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = weights[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = kept[name]

    # --------------------------------------------------------------------------------------- scores

    def gram(self) -> Float[np.ndarray, "N N"]:
        """Inner products s_i . s_j of the scores at the current weights, over all of theta.

        Raises:
            UserError: the log-probabilities are not finite.

        """
        subject = self.subject
        blocks = models_blocks.group_by_block(list(subject.modules))
        order, size = list(blocks), blocks_at_once(subject, self.batches)
        total = torch.zeros(self.num_samples, self.num_samples, dtype=torch.float64, device=subject.device)
        with measuring(subject.model):
            for first in range(0, len(order), size):
                tape = taps.record(subject.model, order[first : first + size], self.batches)
                for block in order[first : first + size]:
                    modules = {name: subject.modules[name] for name in blocks[block]}
                    records = tape.records.pop(block)
                    found = taps.contract_block(
                        subject.model, block, modules, records, self.batches, [], subject.chunk_bytes
                    )
                    for scores in found.values():
                        total += scores.gram
        return total.cpu().numpy()

    def inner(self, *directions: Parts) -> Float[np.ndarray, "K N"]:
        """Inner products s_i . b of the scores at the current weights with each of K vectors b.

        One forward and one backward pass, and as many operations as a forward pass for each vector:
        s_i . b = sum_t delta_t . (B x_t), summed over the modules.

        Args:
            directions: give a module's part of b in the layout of its weight (dense or as factors), or None where b
                does not move it.

        """
        subject = self.subject
        out = torch.zeros(len(directions), self.num_samples, dtype=torch.float64, device=subject.device)
        with measuring(subject.model), torch.enable_grad():
            for batch in self.batches:
                with self._contracting(directions, out, batch):
                    log_probabilities(response_logits(subject.model, batch), batch).sum().backward()
        _require_finite("inner products of the skill's scores with the update", out)
        return out.cpu().numpy()

    @contextmanager
    def _contracting(self, directions: Sequence[Parts], out: Tensor, batch: Batch) -> Iterator[None]:
        """Add each module's share to `out` as soon as the gradient of its output is known."""
        rows = torch.tensor(batch.indices, device=out.device)

        def entering(module: torch.nn.Module, args: tuple) -> tuple:
            return (args[0].detach().requires_grad_(), *args[1:])  # the graph starts here: no parameter asks for it

        def leaving(name: str) -> Callable[..., None]:
            def hook(module: torch.nn.Module, args: tuple, output: Tensor) -> None:
                x = args[0].detach()

                def contract(delta: Tensor) -> None:
                    for k, direction in enumerate(directions):
                        part = direction(name)
                        if part is not None:
                            moved = _apply(part, x, module).double() * delta.double()
                            out[k].index_add_(0, rows, moved.sum(tuple(range(1, moved.ndim))))

                output.register_hook(contract)

            return hook

        with ExitStack() as stack:
            modules = self.subject.modules
            first = self.subject.model.get_submodule(next(iter(models_blocks.group_by_block(list(modules)))))
            stack.callback(first.register_forward_pre_hook(entering).remove)
            for name, module in modules.items():
                stack.callback(module.register_forward_hook(leaving(name)).remove)
            yield

    def weighted_scores(self, coefficients: Float[np.ndarray, " N"]) -> dict[str, Tensor]:
        """sum_i c_i s_i at the current weights, by module: the gradient of sum_i c_i l_i, in one pass.

        Raises:
            UserError: it is not finite.

        """
        subject, weights = self.subject, self.subject.weights
        scale = float(np.abs(coefficients).max()) or 1.0  # float32 has a narrow range
        found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        shares = torch.from_numpy(coefficients / scale).to(subject.device)
        with measuring(subject.model, asking=weights.values()), torch.enable_grad():
            for batch in self.batches:
                tokens = log_probabilities(response_logits(subject.model, batch), batch)
                total = sum_by_row(tokens, batch) @ shares[list(batch.indices)].to(tokens.dtype)
                for sums, part in zip(found.values(), torch.autograd.grad(total, [*weights.values()]), strict=True):
                    sums += part
        for sums in found.values():
            sums *= scale
            _require_finite("weighted sum of the skill's scores", sums)
        return found

    # --------------------------------------------------------------------------------- utility loss

    @torch.no_grad()
    def utility_loss(self) -> Float[np.ndarray, " N"]:
        """Measured utility loss of each sample since the base: sum_t KL(base_t, current_t), in nats.

        One forward pass; two where the base's logits do not fit in half of the subject's memory.

        Raises:
            UserError: the logits are not finite.

        """
        values = torch.zeros(self.num_samples, dtype=torch.float64, device=self.subject.device)
        with measuring(self.subject.model):
            for k, batch in enumerate(self.batches):
                moved = response_logits(self.subject.model, batch)
                _require_finite("logits on the skill", moved)
                values[list(batch.indices)] = sum_by_row(token_divergence(self._base_logits(k), moved), batch)
        return values.cpu().numpy()

    def _base_logits(self, number: int) -> Tensor:
        if number in self._logits:
            return self._logits[number]
        with self.at(self.base):
            found = response_logits(self.subject.model, self.batches[number])
        held = sum(logits.nbytes for logits in self._logits.values())
        if held + found.nbytes <= self.subject.memory_bytes // 2:
            self._logits[number] = found
        return found

    @torch.no_grad()
    def log_likelihood(self) -> Float[np.ndarray, " N"]:
        """l of each sample's response at the current weights, in nats."""
        values = torch.zeros(self.num_samples, dtype=torch.float64, device=self.subject.device)
        with measuring(self.subject.model):
            for batch in self.batches:
                tokens = log_probabilities(response_logits(self.subject.model, batch).double(), batch)
                values[list(batch.indices)] = sum_by_row(tokens, batch)
        return values.cpu().numpy()


def _apply(part: taps.Part, x: Tensor, module: torch.nn.Module) -> Tensor:
    """What a module with the weight `part` makes of its input; Conv1D stores (in, out)."""
    transposed = not isinstance(module, torch.nn.Linear)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if isinstance(part, Factors):
        left, right = part.left.to(x.device, x.dtype), part.right.to(x.device, x.dtype)
        return x @ left @ right if transposed else x @ right.T @ left.T
    dense = part.to(x.device, x.dtype)
    return x @ dense if transposed else x @ dense.T


def _require_finite(what: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise UserError(f"expected finite {what}, got nan or inf: lower --learning-rate, or check the rows and model")


@contextmanager
def measuring(model: torch.nn.Module, asking: Iterable[Tensor] = ()) -> Iterator[None]:
    """A model in training as it is measured: evaluation mode, its own forward in its weights' own precision.

    No parameter asks for a gradient inside, but for those in `asking`; all is put back. A trainer that wraps the
    forward of a model (mixed precision, a loss of its own) does so on the object; the class's own is used here.
    """
    modes = [(module, module.training) for module in model.modules()]
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wrapped = model.__dict__.pop("forward", None)
    device = next(model.parameters()).device.type
    try:
        model.eval()
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        for weight in asking:
            weight.requires_grad_(True)
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, before in asked:
            parameter.requires_grad_(before)
        if wrapped is not None:
            model.__dict__["forward"] = wrapped


def root_mean_square(values: Float[np.ndarray, " N"]) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))
