"""The custom operators. The fused one is a straight-through site as one value, with the rounding of eager's three kernels.

`ste_compile::straight_through(value, surrogate, order, dtype=None)` is `order` evaluated with v = `value` and
s = `surrogate.to(dtype)`. `ste_compile::rounded(x)` is a copy of `x`; compiled, it forces `x` to its own dtype where Inductor
would hand on an fp32 register, or a GPU's compiler a product that is not rounded. `ste_compile::after(value, effects)` is a copy
of `value`, made after `effects`. `ste_compile::convolution(...)` is `aten::convolution` of contiguous tensors; Inductor's layout
optimisation does not recognise it as a convolution. The passes insert these operators after autograd. Importing this module
registers them, with rules for DTensors (except for `convolution`), and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import sharding

# order -> its arithmetic, given add and subtract. IEEE addition commutes, so these are all there are with one value.
ORDERS: dict[str, Callable[..., Any]] = {
    "v + (s - s)": lambda v, s, add, sub: add(v, sub(s, s)),
    "(v - s) + s": lambda v, s, add, sub: add(sub(v, s), s),
    "(v + s) - s": lambda v, s, add, sub: sub(add(v, s), s),
}


def _evaluate(value: Tensor, surrogate: Tensor, order: str, dtype: torch.dtype | None = None) -> Tensor:
    if order not in ORDERS:
        raise ValueError(f"straight_through: order={order!r} is not known; allowed: {', '.join(map(repr, ORDERS))}")
    cast = surrogate if dtype is None else surrogate.to(dtype)
    result: Tensor = ORDERS[order](value, cast, torch.add, torch.sub)
    return result


@torch.library.custom_op("ste_compile::straight_through", mutates_args=())
def straight_through(value: Tensor, surrogate: Tensor, order: str, dtype: torch.dtype | None = None) -> Tensor:
    """A straight-through estimator as one operator: `value`'s value, gradients to both.

    Args:
        value: any shape, any dtype that can be added to the surrogate's.
        surrogate: any shape that broadcasts with `value`, on the same device.
        order: the arithmetic, "v + (s - s)", "(v - s) + s" or "(v + s) - s"; a `ValueError` names any other.
        dtype: what the surrogate is cast to first; None for no cast.

    Returns:
        A new tensor: broadcast shape, promoted dtype, the strides the eager expression gives.

        >>> value, surrogate = torch.tensor([1.0]), torch.tensor([0.3], requires_grad=True)
        >>> straight_through(value, surrogate, "v + (s - s)").backward()
        >>> surrogate.grad
        tensor([1.])
    """
    return _evaluate(value, surrogate, order, dtype)


@torch.library.custom_op("ste_compile::rounded", mutates_args=())
def rounded(x: Tensor) -> Tensor:
    """A copy of `x`, rounded to its own dtype: in eager every tensor is. Any shape and dtype; the gradient passes through.

    >>> rounded(torch.tensor([0.1], dtype=torch.bfloat16))
    tensor([0.1001], dtype=torch.bfloat16)
    """
    return x.clone()


@torch.library.custom_op("ste_compile::after", mutates_args=())
def after(value: Tensor, effects: Sequence[Tensor]) -> Tensor:
    """A copy of `value`, with its strides, that no compiler may make before `effects` or without them.

    >>> after(torch.tensor([1.0]), [torch.rand(2)])
    tensor([1.])
    """
    return _like(value).copy_(value)


@torch.library.custom_op("ste_compile::convolution", mutates_args=())
def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """`aten::convolution` with its arguments. Input, weight and result are contiguous, whatever their layout was.

    >>> convolution(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1).flatten()
    tensor([1., 1., 1., 1.])
    """
    return _convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


def _convolution(input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    return torch.convolution(input.contiguous(), weight.contiguous(), *arguments).contiguous()


def _like(value: Tensor, effects: Sequence[Tensor] = ()) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


straight_through.register_fake(_evaluate)
rounded.register_fake(torch.clone)
after.register_fake(_like)
convolution.register_fake(_convolution)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.likes = [(t.shape, t.dtype) for t in inputs[:2]]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    def towards(shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        differentiable = dtype.is_floating_point or dtype.is_complex
        return _cast(grad.sum_to_size(shape), dtype) if differentiable else None

    return (*(towards(*like) for like in ctx.likes), None, None)


def _cast(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """As autograd casts a gradient to its input's dtype: a real input of a complex sum gets the real part."""
    return (grad.real if grad.is_complex() and not dtype.is_complex else grad).to(dtype)


ops = torch.ops.ste_compile  # the operators as graphs call them: `ops.rounded.default`
straight_through.register_autograd(_gradients, setup_context=_remember)
rounded.register_autograd(lambda ctx, grad: grad)
sharding.register({
    straight_through._opoverload: sharding.pointwise,
    rounded._opoverload: sharding.pointwise,
    after._opoverload: sharding.as_it_is,
})  # fmt: skip
