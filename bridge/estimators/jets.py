"""Second-order forward-mode differentiation of a model's logits along a path of its weights.

A `Jet` carries x(tau) = x0 + tau x1 + tau^2/2 x2 through the model's own forward pass. It is what two nested
forward-mode passes in the scalar tau compute, with each mixed term computed once: a linear layer on the path
W + tau V + tau^2/2 A costs six products (three inputs with W, two with V, one with A) instead of nine.

A jet enters at the first layer whose weight moves (`moving_weights`) and spreads from there through
`__torch_function__`. Operations without a rule below fall back to nested `torch.func.jvp` of that operation
alone, so that a new architecture needs no new code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp

from commands.errors import UserError

Derivatives = tuple[Tensor, Tensor, Tensor]
Result = Tensor | tuple[Tensor, ...]


class Jet(torch.Tensor):
    """Value, first and second derivative in tau of one tensor; shape, dtype and device are the value's."""

    parts: Derivatives

    @staticmethod
    def __new__(cls, value: Tensor, first: Tensor, second: Tensor) -> Jet:
        """Bundle three tensors of one shape."""
        jet: Jet = torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device=value.device)
        jet.parts = (value, first.expand_as(value), second.expand_as(value))
        return jet

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Apply the rule of `func`, or differentiate that one operation twice by nested forward mode."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _IN_PLACE and isinstance(args[0], Jet):
            args[0].parts = _RULES[name](_IN_PLACE[name], args, kwargs).parts
            return args[0]
        func = _IN_PLACE.get(name, func)  # a plain tensor cannot hold the result: `x += jet` makes x a jet
        return _RULES.get(name, _nested)(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> NoReturn:
        """Refuse silently dropping derivatives where an operation bypasses `__torch_function__`."""
        raise UserError(
            f"expected operations with a second derivative, got {func}: choose --modules after it in the model"
        )

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        """Name the shape only: printing must not trigger the rules."""
        return f"Jet(shape={tuple(self.shape)})"


def parts_of(x: Tensor) -> Derivatives:
    """Value and derivatives of a jet; a plain tensor does not move."""
    if isinstance(x, Jet):
        return x.parts
    zero = torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)
    return x, zero, zero


# ---------------------------------------------------------------------------------------------- rules


def _each_part(func: Callable, args: tuple, kwargs: dict) -> Result:
    """Linear operations of the first argument (views, sums, casts): the same operation on each of its parts.

    Every other jet among the arguments gives a shape or a dtype only (type_as, view_as).
    """
    x, (rest, kwargs) = args[0], _map_jets(lambda jet: jet.parts[0], (args[1:], kwargs))
    if not isinstance(x, Jet):
        return func(x, *rest, **kwargs)
    outs = [func(part, *rest, **kwargs) for part in x.parts]
    if isinstance(outs[0], Tensor):
        return Jet(*outs)
    return tuple(Jet(*parts) for parts in zip(*outs, strict=True))


def _joined(func: Callable, args: tuple, kwargs: dict) -> Jet:
    """Concatenate and stack: linear in a list of tensors of which some may not move."""
    parts = [parts_of(x) for x in args[0]]
    return Jet(*(func([p[k] for p in parts], *args[1:], **kwargs) for k in range(3)))


def _add(func: Callable, args: tuple, kwargs: dict) -> Result:
    if kwargs or len(args) != 2:
        return _nested(func, args, kwargs)
    return _linear_pair(torch.add, *args)


def _subtract(func: Callable, args: tuple, kwargs: dict) -> Result:
    if kwargs or len(args) != 2:
        return _nested(func, args, kwargs)
    return _linear_pair(torch.sub, *args)


def _reverse_subtract(func: Callable, args: tuple, kwargs: dict) -> Jet:
    return _linear_pair(torch.sub, args[1], args[0])


def _linear_pair(op: Callable, a: Tensor | int | float, b: Tensor | int | float) -> Jet:
    if isinstance(a, Jet) and isinstance(b, Jet):
        return Jet(*(op(x, y) for x, y in zip(a.parts, b.parts, strict=True)))
    if isinstance(a, Jet):
        return Jet(op(a.parts[0], b), a.parts[1], a.parts[2])
    assert isinstance(b, Jet)
    return Jet(op(a, b.parts[0]), op(0, b.parts[1]), op(0, b.parts[2]))


def _product(func: Callable, args: tuple, kwargs: dict) -> Jet:
    """Leibniz rule for any bilinear operation (mul, matmul, bmm)."""
    a, b = args[:2]
    if isinstance(a, Jet) and isinstance(b, Jet):
        (a0, a1, a2), (b0, b1, b2) = a.parts, b.parts
        cross = func(a1, b1)
        return Jet(func(a0, b0), func(a1, b0) + func(a0, b1), func(a2, b0) + cross + cross + func(a0, b2))
    if isinstance(a, Jet):
        return Jet(*(func(x, b) for x in a.parts))
    return Jet(*(func(a, x) for x in b.parts))


def _divide(func: Callable, args: tuple, kwargs: dict) -> Result:
    if isinstance(args[1], Jet) or kwargs:
        return _nested(func, args, kwargs)
    return Jet(*(func(x, args[1]) for x in args[0].parts))


def _linear(func: Callable, args: tuple, kwargs: dict) -> Jet:
    """F.linear with a weight that does not move: the bias belongs to the value only."""
    x, weight = args[:2]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    stacked = F.linear(torch.stack(x.parts), weight)
    return Jet(stacked[0] if bias is None else stacked[0] + bias, stacked[1], stacked[2])


def _softmax(func: Callable, args: tuple, kwargs: dict) -> Jet:
    """p' = p (x' - E x'), p'' = p (x'' + c^2 - E[x'' + c^2]) with c = x' - E x' and E under p."""
    x = args[0]
    dim = args[1] if len(args) > 1 else kwargs["dim"]
    dtype = kwargs.get("dtype") or x.dtype
    value, first, second = (part.to(dtype) for part in x.parts)
    p = torch.softmax(value, dim)
    centred = first - (p * first).sum(dim, keepdim=True)
    bent = second + centred * centred
    return Jet(p, p * centred, p * (bent - (p * bent).sum(dim, keepdim=True)))


def _attention(func: Callable, args: tuple, kwargs: dict) -> Tensor:
    """scaled_dot_product_attention written out; its fused kernels have no forward mode."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False)) | kwargs
    query, key, value, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
    if given.get("enable_gqa"):
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    scale = given.get("scale") or 1.0 / math.sqrt(query.shape[-1])
    scores = torch.matmul(query, key.transpose(-2, -1)) * scale
    if given.get("is_causal"):
        size = (query.shape[-2], key.shape[-2])
        mask = torch.ones(size, dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, -math.inf)
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, -1), value)


def _layer_norm(func: Callable, args: tuple, kwargs: dict) -> Tensor:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    x, dims = given["input"], tuple(range(-len(given["normalized_shape"]), 0))
    centred = x - x.mean(dims, keepdim=True)
    out = centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + given.get("eps", 1e-5))
    if given.get("weight") is not None:
        out = out * given["weight"]
    return out if given.get("bias") is None else out + given["bias"]


def _elementwise(derivatives: Callable[..., Derivatives]) -> Callable:
    """Chain rule y' = f' x', y'' = f'' x'^2 + f' x'' for a function that returns (f, f', f'')."""

    def rule(func: Callable, args: tuple, kwargs: dict) -> Jet:
        value, first, second = args[0].parts
        f, slope, bend = derivatives(value, *args[1:], **kwargs)
        return Jet(f, slope * first, bend * first * first + slope * second)

    return rule


def _silu(x: Tensor, inplace: bool = False) -> Derivatives:
    s = torch.sigmoid(x)
    ds = s * (1 - s)
    return x * s, s + x * ds, ds * (2 + x * (1 - 2 * s))


def _sigmoid(x: Tensor) -> Derivatives:
    s = torch.sigmoid(x)
    ds = s * (1 - s)
    return s, ds, ds * (1 - 2 * s)


def _tanh(x: Tensor) -> Derivatives:
    t = torch.tanh(x)
    dt = 1 - t * t
    return t, dt, -2 * t * dt


def _exp(x: Tensor) -> Derivatives:
    e = torch.exp(x)
    return e, e, e


def _rsqrt(x: Tensor) -> Derivatives:
    r = torch.rsqrt(x)
    cube = r * r * r
    return r, -0.5 * cube, 0.75 * cube * r * r


def _pow(x: Tensor, exponent: int | float) -> Derivatives:
    n = exponent
    first, second = (c * x**k if c else torch.zeros_like(x) for c, k in ((n, n - 1), (n * (n - 1), n - 2)))
    return x**n, first, second


def _power(func: Callable, args: tuple, kwargs: dict) -> Result:
    fixed = isinstance(args[0], Jet) and len(args) == 2 and isinstance(args[1], int | float)
    return (_elementwise(_pow) if fixed else _nested)(func, args, kwargs)


def _relu(x: Tensor, inplace: bool = False) -> Derivatives:
    return torch.relu(x), (x > 0).to(x.dtype), torch.zeros_like(x)


def _gelu(x: Tensor, approximate: str = "none") -> Derivatives:
    if approximate == "tanh":
        c = math.sqrt(2 / math.pi)
        t, dt, ddt = _tanh(c * (x + 0.044715 * x * x * x))
        du, ddu = c * (1 + 3 * 0.044715 * x * x), c * 6 * 0.044715 * x
        first = 0.5 * (1 + t) + 0.5 * x * dt * du
        return 0.5 * x * (1 + t), first, dt * du + 0.5 * x * (ddt * du * du + dt * ddu)
    cdf = 0.5 * torch.erfc(-x / math.sqrt(2))
    pdf = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * cdf, cdf + x * pdf, pdf * (2 - x * x)


def _nested(func: Callable, args: tuple, kwargs: dict) -> Result:
    """Two nested forward-mode derivatives of one operation (its jets may sit anywhere in its arguments)."""
    found: list[Jet] = []

    def collect(jet: Jet) -> Jet:
        found.append(jet)
        return jet

    _map_jets(collect, (args, kwargs))
    primals = [jet.parts[0] for jet in found]

    def along(tau: Tensor) -> Result:
        moved = iter(
            p + tau.to(p.dtype) * v + 0.5 * tau.to(p.dtype) ** 2 * a
            for p, (_, v, a) in zip(primals, (jet.parts for jet in found), strict=True)
        )
        new_args, new_kwargs = _map_jets(lambda _: next(moved), (args, kwargs))
        return func(*new_args, **new_kwargs)

    zero = torch.zeros((), dtype=primals[0].dtype, device=primals[0].device)
    one = torch.ones_like(zero)
    try:
        value_and_first, first_and_second = jvp(lambda t: jvp(along, (t,), (one,)), (zero,), (one,))[:2]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch has no forward mode for the operation
        name = getattr(func, "__name__", str(func))
        raise UserError(
            f"expected operations with a second derivative, got {name} in the model's forward pass: {error}"
        ) from error
    (value, first), (_, second) = value_and_first, first_and_second
    if isinstance(value, Tensor):
        return _moving(value, first, second)
    return tuple(_moving(*parts) for parts in zip(value, first, second, strict=True))


def _moving(value: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A jet, unless the value is of integers (indices), which do not move."""
    return Jet(value, first, second) if value.is_floating_point() else value


def _map_jets(change: Callable[[Jet], Tensor], tree: Any) -> Any:
    if isinstance(tree, Jet):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _map_jets(change, item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map_jets(change, item) for item in tree)
    return tree


def _query(func: Callable, args: tuple, kwargs: dict) -> object:
    """Shape, dtype, device and the like are the value's; attributes that are tensors (.T) go part by part."""
    answer = func(args[0].parts[0], *args[1:], **kwargs)
    return _each_part(func, args, kwargs) if isinstance(answer, Tensor) else answer


_QUERY_NAMES = (
    "__get__ size dim ndimension numel nelement stride is_contiguous is_floating_point is_complex element_size "
    "get_device __len__"
)
_PART_NAMES = (
    "view reshape transpose permute contiguous to float double half bfloat16 type type_as clone detach expand "
    "expand_as unsqueeze squeeze flatten unflatten split chunk unbind narrow select index_select repeat "
    "repeat_interleave sum mean neg __neg__ __getitem__ movedim swapaxes view_as reshape_as roll flip t mT "
    "gather take_along_dim tensor_split cumsum"
)
_RULES: dict[str, Callable] = {
    **dict.fromkeys(_PART_NAMES.split(), _each_part),
    **dict.fromkeys(_QUERY_NAMES.split(), _query),
    **dict.fromkeys(["cat", "concat", "concatenate", "stack"], _joined),
    **dict.fromkeys(["add", "__add__", "__radd__", "add_", "__iadd__"], _add),
    **dict.fromkeys(["sub", "subtract", "__sub__", "sub_", "__isub__"], _subtract),
    **dict.fromkeys(["rsub", "__rsub__"], _reverse_subtract),
    **dict.fromkeys(
        ["mul", "multiply", "__mul__", "__rmul__", "mul_", "__imul__", "matmul", "__matmul__", "bmm", "mm"], _product
    ),
    **dict.fromkeys(["div", "true_divide", "__truediv__", "div_", "__itruediv__"], _divide),
    "linear": _linear,
    "softmax": _softmax,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "silu": _elementwise(_silu),
    "gelu": _elementwise(_gelu),
    "relu": _elementwise(_relu),
    "sigmoid": _elementwise(_sigmoid),
    "tanh": _elementwise(_tanh),
    "exp": _elementwise(_exp),
    "rsqrt": _elementwise(_rsqrt),
    **dict.fromkeys(["pow", "__pow__"], _power),
    "dropout": lambda func, args, kwargs: args[0],  # models are in eval mode
}


# An in-place operation must not touch a part before the products that still need it.
_IN_PLACE: dict[str, Callable] = {
    **dict.fromkeys(["add_", "__iadd__"], torch.add),
    **dict.fromkeys(["sub_", "__isub__"], torch.sub),
    **dict.fromkeys(["mul_", "__imul__"], torch.mul),
    **dict.fromkeys(["div_", "__itruediv__"], torch.div),
}


# ------------------------------------------------------------------------------------ moving weights


@contextmanager
def moving_weights(
    modules: Mapping[str, torch.nn.Module], velocity: Mapping[str, Tensor], acceleration: Mapping[str, Tensor]
) -> Iterator[None]:
    """Within the context each named linear module computes on W + tau V + tau^2/2 A and returns a `Jet`.

    Args:
        modules: torch.nn.Linear or GPT-2's Conv1D by name.
        velocity: V by module name, in the shape of the module's weight.
        acceleration: A by module name, likewise.

    """
    try:
        for name, module in modules.items():
            module.forward = _moving_forward(module, velocity[name], acceleration[name])
        yield
    finally:
        for module in modules.values():
            module.__dict__.pop("forward", None)


def _moving_forward(module: torch.nn.Module, v: Tensor, a: Tensor) -> Callable[[Tensor], Jet]:
    transposed = not isinstance(module, torch.nn.Linear)  # Conv1D stores (in, out)

    def times(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight if transposed else F.linear(x, weight)

    def forward(x: Tensor) -> Jet:
        weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
        v_cast, a_cast = v.to(weight.dtype), a.to(weight.dtype)
        if isinstance(x, Jet):
            still = times(torch.stack(x.parts), weight)
            turned = times(torch.stack(x.parts[:2]), v_cast)
            value, first = still[0], still[1] + turned[0]
            second = still[2] + 2 * turned[1] + times(x.parts[0], a_cast)
        else:
            value, first, second = times(x, weight), times(x, v_cast), times(x, a_cast)
        return Jet(value if bias is None else value + bias, first, second)

    return forward
