"""Each rule of the jets against derivatives by reverse mode, and whole models of other architectures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bridge.estimators.curvature import twice_differentiable_attention
from bridge.estimators.jets import Jet, moving_weights, parts_of
from commands.errors import UserError
from tests.oracles.brute_force import derivatives

MASK = torch.ones(5, 5, dtype=torch.bool).tril()
OTHER = torch.linspace(0.5, 1.5, 30, dtype=torch.float64).view(5, 6)
WEIGHT = torch.linspace(-1, 1, 42, dtype=torch.float64).view(7, 6)


def in_place(x: Tensor) -> Tensor:
    y = x * 1.5
    y += x
    y *= x
    y -= 0.5 * x
    y.div_(2.0)
    return y


def added(y: Tensor, x: Tensor) -> Tensor:
    y += x * x
    return y


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda x: x + OTHER + 1 + x,
    "add broadcasts": lambda x: x[0] + OTHER,
    "scaled add": lambda x: torch.add(x, x * x, alpha=3.0),
    "subtract": lambda x: (2 - x) - (x - OTHER) - (OTHER - x * x) + (x - x * x),
    "multiply": lambda x: x * OTHER * x * 3,
    "divide": lambda x: x / OTHER / 2 + OTHER / (x + 3) + x / (x + 4),
    "matmul": lambda x: x @ x.T @ OTHER @ x.transpose(0, 1),
    "linear": lambda x: F.linear(x * x, WEIGHT, WEIGHT[:, 0]),
    "linear without bias": lambda x: F.linear(x, WEIGHT),
    "views": lambda x: torch.cat([x[1:], OTHER[:1], -x[:1]]).reshape(3, 2, 6).permute(2, 0, 1).flatten(1).contiguous(),
    "chunks": lambda x: x.chunk(2, -1)[0] * torch.split(x, 3, dim=-1)[1],
    "stack and sums": lambda x: torch.stack([x, x * x]).sum(0) + x.mean(-1, keepdim=True) + x.cumsum(0),
    "attributes": lambda x: x.T.mT.to(torch.float64) + x.shape[0] * x.size(-1) + x.dim(),
    "softmax": lambda x: torch.softmax(x * x, -1),
    "softmax with dtype": lambda x: F.softmax(x, dim=0, dtype=torch.float64),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": lambda x: F.relu(x - 0.1) ** 2,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "rsqrt": lambda x: torch.rsqrt(x * x + 1),
    "powers": lambda x: x**2 + x.pow(3) + torch.pow(x, 4.0) + (x * x + 1) ** 0.5 + x**1,
    "powers at zero": lambda x: (0 * x + x - x) ** 1 + (x - x) ** 2 + (x - x) ** 0 + (x - x) ** 3,
    "tensor power": lambda x: (x * x + 1) ** OTHER,
    "layer norm": lambda x: F.layer_norm(x, (6,), OTHER[0], OTHER[1], 1e-3),
    "plain layer norm": lambda x: F.layer_norm(x, (6,)),
    "no rule of its own": lambda x: torch.sin(x) + torch.log1p(x * x) + torch.where(OTHER > 1, x, x * x),
    "in place on a plain tensor": lambda x: added(torch.ones_like(OTHER), x),
    "clamp": lambda x: torch.clamp(x, -0.5, 0.5) * x,
    "in place": in_place,
    "dropout in evaluation": lambda x: F.dropout(x, 0.5, training=False) * x,
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None] * 2, x[None] * x[None], is_causal=True),
    "masked attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=MASK, scale=0.3),
    "biased attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=OTHER @ OTHER.T),
    "grouped attention": lambda x: F.scaled_dot_product_attention(
        torch.stack([x, x * x])[None], x[None, None], x[None, None], enable_gqa=True
    ),
}


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_rule_equals_reverse_mode_twice(name: str) -> None:
    generator = torch.Generator().manual_seed(7)
    x0, x1, x2 = (torch.randn(5, 6, dtype=torch.float64, generator=generator) for _ in range(3))
    operation = OPERATIONS[name]
    with twice_differentiable_attention():
        expected = derivatives(lambda t: operation(x0 + t * x1 + t**2 / 2 * x2), torch.float64)
    with torch.no_grad():
        found = parts_of(operation(Jet(x0, x1, x2)))
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-10, atol=1e-10)


def test_two_outputs_without_a_rule_stay_apart() -> None:
    x = Jet(*(torch.randn(4, 3, dtype=torch.float64) for _ in range(3)))
    low, high = torch.aminmax(x, dim=0)
    k = int(x.parts[0][:, 1].argmax())
    for part, wanted in zip(high.parts, x.parts, strict=True):
        assert part[1] == wanted[k, 1]
    assert (low.parts[0] <= high.parts[0]).all()


def test_an_operation_that_cannot_be_differentiated_is_named() -> None:
    x = Jet(*(torch.randn(3, 3, dtype=torch.float64) for _ in range(3)))
    with pytest.raises(UserError, match="gammainc"):
        torch.special.gammainc(x.abs() + 1, x.abs())


def test_integer_results_do_not_move() -> None:
    x = Jet(*(torch.randn(3, 3, dtype=torch.float64) for _ in range(3)))
    assert torch.equal(torch.argmax(x, dim=1), x.parts[0].argmax(1))
    assert isinstance(torch.topk(x, 2, dim=1)[0], Jet)


def test_wrong_derivatives_would_be_seen() -> None:
    """The comparison is able to fail: a softmax that forgets the second-order term of p is rejected."""
    x = Jet(*(torch.randn(5, 6, dtype=torch.float64) for _ in range(3)))
    value, first, second = x.parts
    right = parts_of(torch.softmax(x, -1))[2]
    p = torch.softmax(value, -1)
    forgetful = p * (second - (p * second).sum(-1, keepdim=True))
    assert (right - forgetful).abs().max() > 1e-3
    assert first.shape == value.shape


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


def test_moving_weights_follows_the_path_and_leaves_no_trace() -> None:
    net = Net().double().requires_grad_(False)
    x = torch.randn(5, 4, dtype=torch.float64)
    modules = {"up": net.up, "down": net.down}
    v, a = ({n: torch.randn_like(m.weight) for n, m in modules.items()} for _ in range(2))

    def path(t: Tensor) -> Tensor:
        moved = {f"{n}.weight": m.weight + t * v[n] + t**2 / 2 * a[n] for n, m in modules.items()}
        return torch.func.functional_call(net, moved, (x,))

    expected = derivatives(path, torch.float64)
    with torch.no_grad(), moving_weights(modules, v, a):
        found = parts_of(net(x))
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-12, atol=1e-12)
    assert type(net(x)) is Tensor
    with pytest.raises(RuntimeError, match="stop"), moving_weights(modules, v, a):
        raise RuntimeError("stop")
    assert type(net(x)) is Tensor


ARCHITECTURES = {
    "Qwen2": {}, "Qwen3": {"head_dim": 4}, "Mistral": {}, "Gemma2": {"head_dim": 4, "query_pre_attn_scalar": 4},
    "Phi3": {"pad_token_id": 0}, "GPTNeoX": {}, "Olmo2": {},
}  # fmt: skip


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_other_architectures(name: str) -> None:
    """Second derivatives of the logits against a central difference of the first: no oracle shares a rule."""
    import transformers

    torch.manual_seed(3)
    fields = {
        "vocab_size": 17, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.3,
    } | ARCHITECTURES[name]  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**fields)
    model = getattr(transformers, f"{name}ForCausalLM")(config).double().eval().requires_grad_(False)
    from bridge.estimators.taps import select_modules

    modules = select_modules(model)
    v, a = ({n: torch.randn_like(m.weight) * 0.1 for n, m in modules.items()} for _ in range(2))
    ids = torch.randint(0, 17, (2, 6))

    def jet_at(t: float) -> tuple[Tensor, Tensor, Tensor]:
        base = {n: m.weight.clone() for n, m in modules.items()}
        for n, m in modules.items():
            m.weight += t * v[n] + t**2 / 2 * a[n]
        along = {n: v[n] + t * a[n] for n in modules}
        with moving_weights(modules, along, a):
            out = parts_of(model(input_ids=ids, use_cache=False).logits)
        for n, m in modules.items():
            m.weight.copy_(base[n])
        return out

    with torch.no_grad():
        h = 1e-3
        (z0, first, second), (zp, fp, _), (zm, fm, _) = jet_at(0.0), jet_at(h), jet_at(-h)
        plain = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(z0, plain, rtol=1e-5, atol=1e-5)
    scale = second.abs().max()
    # Differences of values that round to float32 inside are good to about 1e-7 / h.
    torch.testing.assert_close((zp - zm) / (2 * h), first, rtol=0, atol=2e-3 * float(first.abs().max()))
    torch.testing.assert_close((fp - fm) / (2 * h), second, rtol=0, atol=5e-3 * float(scale))
