"""Naive transcriptions of every measured quantity: per-sample autograd, dense F, dense Hessian, no batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, jacrev

from bridge.data.samples import Sample


class BruteForce:
    """Dense quantities of a small model over theta = the flattened weights of the named modules."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        self.model = model
        self.names = [f"{name}.weight" for name in names]
        self.base = [dict(model.named_parameters())[name].detach().clone() for name in self.names]
        self.sizes = [w.numel() for w in self.base]
        self.theta = torch.cat([w.flatten() for w in self.base])

    def slices(self) -> dict[str, slice]:
        """Where each module's weight stands in theta."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return {
            name.removesuffix(".weight"): slice(end - size, end)
            for name, size, end in zip(self.names, self.sizes, ends, strict=True)
        }

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split(self.sizes)
        return {
            name.removesuffix(".weight"): part.view_as(w)
            for name, part, w in zip(self.names, parts, self.base, strict=True)
        }

    def token_logits(self, theta: Tensor, sample: Sample) -> Tensor:
        """Logits of the response tokens of one unpadded sample, (R, V)."""
        params = {f"{name}.weight": w for name, w in self.unflatten(theta).items()}
        ids = torch.tensor([sample.input_ids])
        out = functional_call(self.model, params, (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        positions = [t for t, on in enumerate(sample.response_mask) if on and t > 0]
        return out.logits[0, torch.tensor(positions) - 1]

    def targets(self, sample: Sample) -> Tensor:
        return torch.tensor([y for t, y in enumerate(sample.input_ids) if sample.response_mask[t] and t > 0])

    def log_probability(self, theta: Tensor, sample: Sample) -> Tensor:
        logits = self.token_logits(theta, sample)
        return torch.log_softmax(logits, -1).gather(1, self.targets(sample)[:, None]).sum()

    def scores(self, samples: Sequence[Sample]) -> Tensor:
        """(N, n) gradients of log pi."""
        return torch.stack([jacrev(self.log_probability)(self.theta, s) for s in samples])

    def loss(self, theta: Tensor, samples: Sequence[Sample]) -> Tensor:
        """Mean negative log-likelihood over all response tokens."""
        tokens = sum(len(self.targets(s)) for s in samples)
        return -sum(self.log_probability(theta, s) for s in samples) / tokens

    def gradient(self, samples: Sequence[Sample]) -> Tensor:
        return jacrev(self.loss)(self.theta, samples)

    def hessian(self, samples: Sequence[Sample]) -> Tensor:
        return jacrev(jacrev(self.loss))(self.theta, samples)

    def adam_diagonal(self, samples: Sequence[Sample], batch: int) -> Tensor:
        grads = [self.gradient(samples[k : k + batch]) for k in range(0, len(samples), batch)]
        return 1 / (torch.stack(grads).pow(2).mean(0).sqrt() + 1e-8)

    def sample_hessians(self, samples: Sequence[Sample]) -> Tensor:
        """(N, n, n) Hessians of log pi."""
        return torch.stack([jacrev(jacrev(self.log_probability))(self.theta, s) for s in samples])

    def logit_derivatives(self, v: Tensor, a: Tensor, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """z, z', z'' along theta + tau v + tau^2/2 a."""

        def path(tau: Tensor) -> Tensor:
            return self.token_logits(self.theta + tau * v + tau**2 / 2 * a, sample)

        return derivatives(path, self.theta.dtype)

    def utility_loss(self, theta: Tensor, samples: Sequence[Sample]) -> float:
        """Mean over samples of the summed token KL(base, moved), in its stable form."""
        total = 0.0
        for sample in samples:
            p = torch.log_softmax(self.token_logits(self.theta, sample), -1)
            d = torch.log_softmax(self.token_logits(theta, sample), -1) - p
            total += float((p.exp() * (torch.expm1(d) - d)).sum())
        return total / len(samples)


def derivatives(path: Callable[[Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative at 0 of a function of one number, by reverse mode twice."""
    zero = torch.zeros((), dtype=dtype)
    return path(zero), jacrev(path)(zero), jacrev(jacrev(path))(zero)
