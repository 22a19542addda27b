"""Small networks, trained from scratch in seconds, whose own samples are the skill.

Both are pure functions of one flat parameter vector, in float64, smooth, and written in operations that torch.func
differentiates forward as often as it is asked (no fused attention, no fused normalisation).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sim.skills import Function, SoftmaxSkill

_LEARNING_RATE = 1e-2  # of Adam over the full batch
_POINTS = 30  # that a classifier is trained on
_EXAMPLES = 24  # that a transformer is trained on


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the parameters inside a flat vector.

    Attributes:
        shapes: by name, in the order of the vector.
        tables: names of the matrices whose rows are looked up, so that their fan-in is 1.
    """

    shapes: dict[str, tuple[int, ...]]
    tables: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """n."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def unpack(self, theta: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """Views of the vector by name."""
        parts = theta.split([math.prod(shape) for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def random(self, generator: torch.Generator) -> Float[Tensor, " n"]:
        """Normal entries over the square root of the fan-in; vectors, which are biases, start at 0."""
        parts = []
        for name, shape in self.shapes.items():
            fan_in = 1 if name in self.tables else shape[-1]
            draw = torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5
            parts.append(draw if len(shape) > 1 else torch.zeros_like(draw))
        return torch.cat([part.flatten() for part in parts])


@dataclass(frozen=True)
class Perceptron:
    """A classifier with tanh layers.

    Attributes:
        inputs: features.
        widths: of the hidden layers.
        classes: K.
    """

    inputs: int = 8
    widths: tuple[int, ...] = (48, 48)
    classes: int = 3

    @property
    def layout(self) -> Layout:
        """The parameters."""
        sizes = [self.inputs, *self.widths, self.classes]
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
            shapes |= {f"weight{i}": (narrow, wide), f"bias{i}": (narrow,)}
        return Layout(shapes)

    def logits(self, theta: Float[Tensor, " n"], features: Float[Tensor, "X f"]) -> Float[Tensor, "X K"]:
        """Unnormalised log-probabilities of the classes."""
        p = self.layout.unpack(theta)
        x = features
        for i in range(len(self.widths)):
            x = torch.tanh(x @ p[f"weight{i}"].T + p[f"bias{i}"])
        last = len(self.widths)
        return x @ p[f"weight{last}"].T + p[f"bias{last}"]


@dataclass(frozen=True)
class Transformer:
    """A causal transformer, pre-norm, RMS normalisation, GELU, tied nothing.

    Attributes:
        vocabulary: tokens.
        context: longest sequence.
        width: of the residual stream.
        heads: attention heads; they divide the width.
        layers: blocks.
    """

    vocabulary: int = 6
    context: int = 6
    width: int = 24
    heads: int = 2
    layers: int = 2

    def __post_init__(self) -> None:
        """Validate."""
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"the heads must divide the width {self.width}, got {self.heads}")

    @property
    def layout(self) -> Layout:
        """The parameters."""
        w, v = self.width, self.vocabulary
        shapes: dict[str, tuple[int, ...]] = {"embedding": (v, w), "position": (self.context, w)}
        for i in range(self.layers):
            shapes |= {f"qkv{i}": (3 * w, w), f"out{i}": (w, w), f"up{i}": (2 * w, w), f"down{i}": (w, 2 * w)}
        return Layout(shapes | {"head": (v, w)}, tables=("embedding", "position"))

    def logits(self, theta: Float[Tensor, " n"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Unnormalised log-probabilities of the next token at every position.

        Raises:
            ValueError: if the sequences are longer than the context.
        """
        if tokens.shape[1] > self.context:
            raise ValueError(f"the context holds {self.context} tokens, got {tokens.shape[1]}")
        p = self.layout.unpack(theta)
        x = p["embedding"][tokens] + p["position"][: tokens.shape[1]]
        for i in range(self.layers):
            x = x + self._attention(_normalised(x) @ p[f"qkv{i}"].T) @ p[f"out{i}"].T
            x = x + torch.nn.functional.gelu(_normalised(x) @ p[f"up{i}"].T) @ p[f"down{i}"].T
        return _normalised(x) @ p["head"].T

    def _attention(self, qkv: Tensor) -> Tensor:
        batch, length, _ = qkv.shape
        q, k, v = qkv.reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, heads, T, w/heads)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(future, -math.inf).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).reshape(batch, length, -1)

    def response_log_probabilities(
        self, theta: Float[Tensor, " n"], prompts: Int[Tensor, "X P"], length: int
    ) -> Float[Tensor, "X K"]:
        """Log-probabilities of all ``K = V^length`` responses to each prompt, in lexicographic order.

        Raises:
            ValueError: if there is no token to respond with, or no prompt, or they do not fit the context.
        """
        if length < 1 or prompts.shape[1] < 1:
            raise ValueError(f"expected 1 or more tokens of prompt and response, got {prompts.shape[1]} and {length}")
        responses = torch.tensor(list(itertools.product(range(self.vocabulary), repeat=length)))
        count, size = len(prompts), len(responses)
        tokens = torch.cat([prompts.repeat_interleave(size, 0), responses.repeat(count, 1)], dim=1)
        start = prompts.shape[1] - 1
        log_p = torch.log_softmax(self.logits(theta, tokens[:, :-1])[:, start:], dim=-1)
        return log_p.gather(-1, tokens[:, start + 1 :, None]).sum(dim=(1, 2)).reshape(count, size)


def _normalised(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def train(loss: Function, start: Float[Tensor, " n"], steps: int) -> Float[Tensor, " n"]:
    """Full-batch Adam with a cosine schedule.

    Raises:
        ValueError: unless there is a step to make.
    """
    if steps < 1:
        raise ValueError(f"expected 1 or more training steps, got {steps}")
    theta = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([theta], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(theta).backward()
        optimizer.step()
        schedule.step()
    return theta.detach()


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network trained on one task, its skill, and the loss of a second task.

    Attributes:
        skill: the network's own policy on the prompts of the first task, so that Assumption 1 holds exactly.
        loss: mean cross-entropy on the second task.
        accuracy: share of the first task's examples that the network gets right.
    """

    skill: SoftmaxSkill
    loss: Function
    accuracy: float


def trained_perceptron(
    seed: int, network: Perceptron | None = None, prompts: int = 6, steps: int = 300
) -> TrainedNetwork:
    """A classifier trained on Gaussian clusters; the second task has other clusters with other labels.

    Raises:
        ValueError: if the number of prompts or steps is impossible.
    """
    _check_within("prompts", prompts, _POINTS)
    net = network or Perceptron()
    rng = torch.Generator().manual_seed(seed)
    (x, y), (other_x, other_y) = _clusters(net, rng), _clusters(net, rng)
    theta = train(_cross_entropy(lambda t: net.logits(t, x), y), net.layout.random(rng), steps)
    accuracy = float((net.logits(theta, x).argmax(dim=1) == y).double().mean())
    other = _cross_entropy(lambda t: net.logits(t, other_x), other_y)
    return TrainedNetwork(_uniform_skill(lambda t: net.logits(t, x[:prompts]), prompts, theta), other, accuracy)


def trained_transformer(
    seed: int, network: Transformer | None = None, prompts: int = 4, response: int = 2, steps: int = 80
) -> TrainedNetwork:
    """A transformer trained to repeat its prompt; the second task is to repeat it backwards.

    The skill's outcomes are all responses of ``response`` tokens, so that sequence-level expectations are exact.

    Raises:
        ValueError: if the number of prompts, response tokens or steps is impossible.
    """
    net = network or Transformer()
    _check_within("prompts", prompts, _EXAMPLES)
    _check_within("response", response, net.context // 2)
    rng = torch.Generator().manual_seed(seed)
    shown = net.context - response
    first, second = (torch.randint(net.vocabulary, (_EXAMPLES, shown), generator=rng) for _ in range(2))
    taught, other = (
        _repeats(net, a, b) for a, b in ((first, first[:, :response]), (second, second.flip(1)[:, :response]))
    )
    theta = train(taught, net.layout.random(rng), steps)
    best = net.response_log_probabilities(theta, first, response).argmax(dim=1)
    powers = net.vocabulary ** torch.arange(response - 1, -1, -1)
    accuracy = float((best == first[:, :response] @ powers).double().mean())
    asked = first[:prompts]
    return TrainedNetwork(
        _uniform_skill(lambda t: net.response_log_probabilities(t, asked, response), prompts, theta),
        other,
        accuracy,
    )


def _check_within(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ValueError(f"{name} must lie in 1..{most}, got {value}")


def _repeats(net: Transformer, prompts: Tensor, responses: Tensor) -> Function:
    """Cross-entropy of the responses."""
    tokens = torch.cat([prompts, responses], dim=1)[:, :-1]
    start = prompts.shape[1] - 1
    return _cross_entropy(lambda theta: net.logits(theta, tokens)[:, start:].flatten(0, 1), responses.flatten())


def _uniform_skill(logits: Function, prompts: int, base: Tensor) -> SoftmaxSkill:
    return SoftmaxSkill(logits, torch.full((prompts,), 1 / prompts, dtype=torch.float64), base)


def _clusters(net: Perceptron, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points, as many from each of K Gaussian clusters, with their labels, shuffled."""
    labels = torch.arange(_POINTS) % net.classes
    centres = torch.randn(net.classes, net.inputs, generator=rng, dtype=torch.float64)
    points = centres[labels] + 0.5 * torch.randn(_POINTS, net.inputs, generator=rng, dtype=torch.float64)
    order = torch.randperm(_POINTS, generator=rng)
    return points[order], labels[order]


def _cross_entropy(logits: Callable[[Tensor], Tensor], labels: Tensor) -> Function:
    return lambda theta: torch.nn.functional.cross_entropy(logits(theta), labels)
