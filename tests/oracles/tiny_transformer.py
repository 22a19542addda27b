"""A small pure-torch transformer whose every operation stays in the dtype of its weights.

transformers' Llama computes norms, rotary tables and eager softmax in float32 even in a float64 model, so
strict float64 comparisons need this one: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head = heads, key_heads, width // heads
        self.q_proj = nn.Linear(width, heads * self.head)
        self.k_proj = nn.Linear(width, key_heads * self.head, bias=False)
        self.v_proj = nn.Linear(width, key_heads * self.head, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self._rotate(self.q_proj(x).view(b, t, self.heads, self.head).transpose(1, 2))
        k = self._rotate(self.k_proj(x).view(b, t, self.key_heads, self.head).transpose(1, 2))
        v = self.v_proj(x).view(b, t, self.key_heads, self.head).transpose(1, 2)
        k, v = (y.repeat_interleave(self.heads // self.key_heads, dim=1) for y in (k, v))
        scores = q @ k.transpose(-2, -1) / self.head**0.5
        weights = torch.softmax(scores.masked_fill(~mask[:, None], -torch.inf), -1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, t, -1))

    def _rotate(self, x: Tensor) -> Tensor:
        half = self.head // 2
        rates = 100.0 ** (-torch.arange(half, dtype=x.dtype) / half)
        angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * rates
        cos, sin = torch.cos(angle), torch.sin(angle)
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, key_heads: int, inner: int) -> None:
        super().__init__()
        self.before, self.after = RMSNorm(width), RMSNorm(width)
        self.self_attn, self.mlp = Attention(width, heads, key_heads), MLP(width, inner)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.before(x), mask=mask)
        return x + self.mlp(self.after(x))


class TinyTransformer(nn.Module):
    """Causal language model in float64 with the calling convention of a Hugging Face one."""

    def __init__(self, vocabulary: int = 13, width: int = 8, layers: int = 2, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed_tokens = nn.Embedding(vocabulary, width)
            self.layers = nn.ModuleList(Block(width, 2, 1, 12) for _ in range(layers))
            self.norm = RMSNorm(width)
            self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.double().eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> SimpleNamespace:
        x = self.embed_tokens(input_ids)
        size = input_ids.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool).tril()
        mask = causal & attention_mask[:, None, :].bool()
        for layer in self.layers:
            x = layer(x, mask=mask)
        return SimpleNamespace(logits=self.lm_head(self.norm(x)))
