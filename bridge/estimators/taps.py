"""Exact per-sample scores of linear layers, without storing them: grams and inner products.

For a linear layer with input x_t and output gradient delta_t the score of sample i is
G_i = sum_t delta_t x_t^T, over all tokens t of its sequence. The gram of one layer needs the scores of all
samples at once, but only of that layer. So two sweeps: the first runs the model forwards and backwards and
keeps what enters each block of layers and the gradient of what leaves it; the second re-runs one block at a
time over all samples, forms the G_i of one layer, contracts them, and drops them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import Tensor

from bridge.deltas.factors import Factors
from bridge.estimators.batches import Batch, log_probabilities, response_logits
from bridge.models.blocks import _BLOCK, group_by_block
from commands.errors import UserError

Part = Tensor | Factors
"""One module's part of a direction: dense, or as a product of two thin matrices."""


def linear_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """All linear maps of a model by name: torch.nn.Linear and GPT-2's Conv1D."""
    return {name: module for name, module in model.named_modules() if _is_linear(module)}


def _is_linear(module: torch.nn.Module) -> bool:
    if not isinstance(module, torch.nn.Linear) and type(module).__name__ != "Conv1D":
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()


def select_modules(model: torch.nn.Module, pattern: str | None = None) -> dict[str, torch.nn.Module]:
    """The linear modules whose weights are theta.

    Args:
        model: a causal language model.
        pattern: regular expression searched in module names; None takes every linear module inside the
            numbered blocks, which are the attention and MLP projections.

    Raises:
        UserError: if nothing matches, the pattern is no regular expression, or a weight is shared with
            another parameter (its score would need the other use as well).

    """
    linear = linear_modules(model)
    try:
        regex = re.compile(pattern or _BLOCK.pattern)
    except re.error as error:
        raise UserError(f"--modules: expected a regular expression, got {pattern!r} ({error})") from error
    chosen = {name: module for name, module in linear.items() if regex.search(name)}
    if not linear:
        raise UserError("--modules: expected a model with linear modules, got one without any")
    if not chosen:
        near = get_close_matches(pattern or "", linear, n=3, cutoff=0.0)
        raise UserError(
            f"--modules: no linear module of the model matches {pattern!r}; names look like {', '.join(near)}"
        )
    _refuse_shared(model, chosen)
    if pattern is None:
        _refuse_partial(model, chosen)
    return chosen


def _refuse_partial(model: torch.nn.Module, chosen: Mapping[str, torch.nn.Module]) -> None:
    """By default theta is all projections of the blocks: experts kept as one stacked tensor are not among them."""
    owned = {id(module.weight) for module in chosen.values()}
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        convolution = isinstance(owner, torch.nn.modules.conv._ConvNd)
        if parameter.ndim > 2 and id(parameter) not in owned and _BLOCK.match(name) and not convolution:
            raise UserError(
                f"--modules: expected projections that are linear modules, got the stacked weights {name}, which "
                f"cannot be measured yet; choose a part of the model with --modules, such as --modules self_attn"
            )


def _refuse_shared(model: torch.nn.Module, chosen: Mapping[str, torch.nn.Module]) -> None:
    uses: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(name.removesuffix(".weight"))
    for name, module in chosen.items():
        others = [use for use in uses[id(module.weight)] if use != name]
        if others:
            raise UserError(
                f"--modules: {name} shares its weight with {', '.join(others)}, so its score is not one "
                f"layer's alone; choose a pattern that leaves it out"
            )


@torch.no_grad()
def probe(model: torch.nn.Module, modules: Mapping[str, torch.nn.Module], batch: Batch) -> None:
    """Run the model once and check that every selected module, and every block that holds one, is called once.

    A module that is not called has its weight used some other way, or not at all, and one that is called twice has
    two inputs: its score would be wrong.

    Raises:
        UserError: naming the module.

    """
    names = [*modules, *group_by_block(list(modules))]
    calls = dict.fromkeys(names, 0)

    def counting(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    handles = [model.get_submodule(name).register_forward_hook(counting(name)) for name in calls]
    try:
        response_logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, count in calls.items():
        if count != 1:
            raise UserError(
                f"--modules: expected modules that a forward pass calls once, got {name}, which it calls {count} "
                f"times; choose a pattern that leaves it out"
            )


# ----------------------------------------------------------------------------------------- first sweep


@dataclass
class BlockRecord:
    """One block's call on one batch: what entered, how it was called, and the gradient of what left."""

    args: tuple
    kwargs: dict[str, object]
    gradient: Tensor | None = None  # of the summed log-probabilities, with respect to the block's output


@dataclass
class Tape:
    """Records of every batch for some blocks."""

    records: dict[str, list[BlockRecord]] = field(default_factory=dict)


def record(model: torch.nn.Module, blocks: Sequence[str], batches: Sequence[Batch]) -> Tape:
    """First sweep: one forward and backward pass of sum_i l_i, recording the named blocks."""
    tape = Tape({name: [] for name in blocks})
    for batch in batches:
        with _recording(model, tape), torch.enable_grad():
            tokens = log_probabilities(response_logits(model, batch), batch)
            _leaf_gradients(tokens.sum())
        if not torch.isfinite(tokens).all():
            raise UserError(
                "expected finite log-probabilities of the skill's responses, got nan or inf: use --dtype "
                "float32, or look for broken weights"
            )
    return tape


def _leaf_gradients(total: Tensor) -> None:
    if total.requires_grad:
        total.backward()


@contextmanager
def _recording(model: torch.nn.Module, tape: Tape) -> Iterator[None]:
    handles = []
    for index, name in enumerate(tape.records):
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(_entering(tape, name, index == 0), with_kwargs=True))
        handles.append(module.register_forward_hook(_leaving(tape, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entering(tape: Tape, name: str, is_first: bool) -> Callable:
    def hook(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if not args:
            raise UserError(f"expected the block {name} to be called with its hidden states first, got none")
        # The graph starts where the first recorded block does: nothing below it is differentiated.
        hidden = args[0].detach().requires_grad_() if is_first else args[0]
        tape.records[name].append(BlockRecord((hidden.detach(), *args[1:]), kwargs))
        return (hidden, *args[1:]), kwargs

    return hook


def _leaving(tape: Tape, name: str) -> Callable:
    def hook(module: torch.nn.Module, args: tuple, output: Tensor | tuple) -> None:
        entry = tape.records[name][-1]

        def keep(gradient: Tensor) -> None:
            entry.gradient = gradient.detach()

        _hidden(output).register_hook(keep)

    return hook


def _hidden(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


# ---------------------------------------------------------------------------------------- second sweep


@dataclass(frozen=True)
class ModuleScores:
    """Contractions of one module's scores over all N samples, in float64."""

    gram: Tensor  # (N, N) s_i . s_j
    inner: tuple[Tensor, ...]  # one (N,) s_i . b for each direction b


def contract_block(
    model: torch.nn.Module,
    block: str,
    modules: Mapping[str, torch.nn.Module],
    records: Sequence[BlockRecord],
    batches: Sequence[Batch],
    directions: Sequence[Callable[[str], Part | None]],
    chunk_bytes: int,
) -> dict[str, ModuleScores]:
    """Second sweep for one block: the contractions of each of its modules.

    Args:
        model: the model that was recorded.
        block: name of the block.
        modules: the selected modules inside it, by name.
        records: the block's calls, one a batch.
        batches: the batches, in the same order.
        directions: give a module's part of a vector b whose inner products with the scores are wanted, in the layout
            of its weight, or None where b does not move the module. Asked once a module, so that a large b can be
            read from its file part by part.
        chunk_bytes: how much of the scores of one module may stand in memory at once.

    """
    taps = tap_block(model, block, modules, records)
    order = [i for batch in batches for i in batch.indices]
    out = {}
    for name, module in modules.items():
        parts = [direction(name) for direction in directions]
        out[name] = contract_pairs(taps.pop(name), order, module, parts, chunk_bytes)
    return out


def tap_block(
    model: torch.nn.Module, block: str, modules: Mapping[str, torch.nn.Module], records: Sequence[BlockRecord]
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Inputs (B, T, in) and output gradients (B, T, out) of each of the block's modules, one pair a batch."""
    taps: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}
    for entry in records:
        for name, pair in _tap(model.get_submodule(block), modules, entry).items():
            taps[name].append(pair)
    return taps


def _tap(
    block: torch.nn.Module, modules: Mapping[str, torch.nn.Module], entry: BlockRecord
) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs (B, T, in) and output gradients (B, T, out) of the block's modules on one batch."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    handles = []

    def catching(name: str) -> Callable:
        def hook(module: torch.nn.Module, args: tuple, output: Tensor) -> None:
            if name in inputs:
                raise UserError(f"--modules: {name} is used more than once in a forward pass; leave it out")
            inputs[name], outputs[name] = args[0].detach(), output

        return hook

    for name, module in modules.items():
        handles.append(module.register_forward_hook(catching(name)))
    try:
        with torch.enable_grad():
            hidden = entry.args[0].detach().requires_grad_()
            left = _hidden(block(hidden, *entry.args[1:], **entry.kwargs))
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(left, list(outputs.values()), entry.gradient)
    return {name: (inputs[name], delta) for name, delta in zip(outputs, gradients, strict=True)}


def score_chunks(
    pairs: Sequence[tuple[Tensor, Tensor]], module: torch.nn.Module, count: int, chunk_bytes: int
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of a module's weight, and the scores of all samples there: (N, rows, columns), in the batches' order.

    With G_i = sum_t delta_t x_t^T in the weight's own layout. The next chunk overwrites the scores of the one before.

    Args:
        pairs: what :func:`tap_block` gives for the module.
        module: the module.
        count: N.
        chunk_bytes: how much of the scores may stand in memory at once.

    """
    weight = module.get_parameter("weight")
    rows, columns = weight.shape
    precision = torch.promote_types(weight.dtype, torch.float32)
    step = max(1, min(rows, chunk_bytes // (count * columns * precision.itemsize)))
    # One piece of memory for all chunks: asking the system for fresh pages takes far longer than the products.
    memory = torch.empty(count * step * columns, dtype=precision, device=weight.device)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        scores = memory[: count * (part.stop - start) * columns].view(count, -1, columns)
        filled = 0
        for x, delta in pairs:
            left, right = (x, delta) if _transposed(module) else (delta, x)
            of_rows = left[..., part].transpose(1, 2).to(precision)
            torch.bmm(of_rows, right.to(precision), out=scores[filled : filled + len(x)])
            filled += len(x)
        yield part, scores


def contract_pairs(
    pairs: Sequence[tuple[Tensor, Tensor]],
    order: Sequence[int],
    module: torch.nn.Module,
    directions: Sequence[Part | None],
    chunk_bytes: int,
) -> ModuleScores:
    """One module's gram and inner products, some rows of the weight's shape at a time.

    Args:
        pairs: its inputs (B, T, in) and output gradients (B, T, out), a pair a batch.
        order: which sample each row is, batch after batch.
        module: the module.
        directions: its parts of vectors b whose inner products are wanted, or None where b does not move it.
        chunk_bytes: how much of the scores may stand in memory at once.

    """
    count, weight = len(order), module.get_parameter("weight")
    gram = torch.zeros(count, count, dtype=torch.float64, device=weight.device)
    inner = [_thin_inner(pairs, count, weight, _transposed(module), direction) for direction in directions]
    dense = {k: direction for k, direction in enumerate(directions) if isinstance(direction, Tensor)}
    for part, scores in score_chunks(pairs, module, count, chunk_bytes):
        flat = scores.flatten(1)
        gram += (flat @ flat.T).double()
        for k, direction in dense.items():
            inner[k] += (flat @ _on(direction, weight)[part].to(flat.dtype).flatten()).double()
    back = torch.argsort(torch.tensor(order, device=weight.device))
    gram = (gram + gram.T)[back][:, back] / 2  # the product of a matrix with itself rounds asymmetrically
    return ModuleScores(gram, tuple(total[back] for total in inner))


def _transposed(module: torch.nn.Module) -> bool:
    """Conv1D stores its weight as (in, out)."""
    return not isinstance(module, torch.nn.Linear)


def _on(direction: Tensor, weight: Tensor) -> Tensor:
    return direction if direction.device == weight.device else direction.to(weight.device)


def _thin_inner(
    pairs: Sequence[tuple[Tensor, Tensor]], count: int, weight: Tensor, transposed: bool, direction: Part | None
) -> Tensor:
    """<G_i, L R> = sum_t (L^T delta_t) . (R x_t) for a product, without forming it; zeros for anything else."""
    if not isinstance(direction, Factors):
        return torch.zeros(count, dtype=torch.float64, device=weight.device)
    precision = torch.promote_types(weight.dtype, torch.float32)
    left, right = (f.to(weight.device, precision) for f in (direction.left, direction.right))
    values = []
    for x, delta in pairs:
        rows, columns = (x, delta) if transposed else (delta, x)
        moved = (rows.to(precision) @ left).double() * (columns.to(precision) @ right.T).double()
        values.append(moved.sum((1, 2)))
    return torch.cat(values)
