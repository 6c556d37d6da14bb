"""How Inductor computes the fused operator: one `Pointwise`, rounding where eager rounds.

Inductor holds 16-bit values in fp32 registers and rounds them when it stores. Here every operand is rounded to its own dtype
first, and every intermediate to the dtype that eager gives it. A rounding is left out where it changes nothing: a value that was
stored is rounded already; `s - s` is 0, or NaN where `s` rounds to no finite number; and `v + 0` is as rounded as `v`. The seed
is read in its own dtype, so that there is no copy for the cast, no difference and no buffer beside the result. On a GPU an
operand that may be a product is `settled` first: else the compiler makes one FMA of it and the sum, which rounds only once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch.fx import Node

from . import _torch
from .passes.memory import readers
from .passes.meta import TURN
from .passes.nodes import arg, is_matmul
from .passes.ops import ORDERS
from .passes.ops import ops as namespace
from .passes.rounding import ROUNDED_DTYPES, may_be_product

OVERFLOWS = 1 + 2**-9 + 2**-18  # an fp32 number times this overflows if and only if it rounds to infinity in bf16


@dataclass(eq=False)
class _Value:
    """A value inside a kernel, of which eager's dtype is `dtype`; Inductor holds 16-bit ones in fp32. `held` is the value rounded
    to `dtype`, by `round`, when it is first read. Without a `round`, `unrounded` is rounded already. `zero`: it is 0 or NaN."""

    unrounded: Any
    dtype: torch.dtype
    device: torch.device
    zero: bool = False
    round: Callable[[Any, torch.dtype, torch.device], Any] | None = None

    @cached_property
    def held(self) -> Any:
        return self.round(self.unrounded, self.dtype, self.device) if self.round else self.unrounded


def _is_stored_next(node: Node) -> bool:
    """Whether a kernel must store a node's value: it, or a view of it, is a result of the graph or an operand of a matrix
    product."""
    return any(reader.op == "output" or is_matmul(reader) for reader in readers(node))


def register() -> None:
    """Teach Inductor the operators. Called when a graph first needs them: importing the package changes nothing in torch. Each
    operator has a lowering, since what AOTInductor packages runs where there is no Python kernel to fall back to."""
    ir, ops, lowerings, register_lowering = _torch.inductor_ir()
    if namespace.straight_through.default in lowerings:
        return

    def rounded_to(dtype: torch.dtype, x: Any, device: torch.device) -> _Value:
        return _Value(x, dtype, device, round=partial(_torch.rounded_to, ops) if dtype in ROUNDED_DTYPES else None)

    def cast(x: _Value, dtype: torch.dtype) -> _Value:
        if x.dtype == dtype:
            return x
        held = torch.float32 if dtype in ROUNDED_DTYPES else dtype
        source = torch.float32 if x.dtype in ROUNDED_DTYPES else x.dtype
        return rounded_to(dtype, x.held if source == held else ops.to_dtype(x.held, held, src_dtype=source), x.device)

    def binary(op: Callable[[Any, Any], Any], a: _Value, b: _Value) -> _Value:
        common = torch.promote_types(a.dtype, b.dtype)
        result = op(cast(a, common).held, cast(b, common).held)
        return _Value(result, common, a.device) if a.zero or b.zero else rounded_to(common, result, a.device)

    def subtract(a: _Value, b: _Value) -> _Value:
        return minus_itself(a) if a is b else binary(ops.sub, a, b)

    def minus_itself(x: _Value) -> _Value:
        if x.round and x.dtype == torch.bfloat16 and _torch.rounds_products(x.device):  # 2 instructions in place of 30
            held = ops.mul(x.unrounded, ops.constant(OVERFLOWS, torch.float32))
        else:
            held = x.held
        return _Value(ops.sub(held, held), x.dtype, x.device, zero=True)

    def reader(x: Any, operand: int = 0) -> Callable[[Any], _Value]:
        load, dtype, device, stored = x.make_loader(), x.get_dtype(), x.get_device(), _torch.is_stored(x)
        product = may_be_product(arg(_torch.lowered_node(), operand))

        def read(index: Any) -> _Value:
            if stored:
                return _Value(load(index), dtype, device)
            return rounded_to(dtype, _torch.settled(ops, load(index), dtype, device) if product else load(index), device)

        return read

    def pointwise(like: Any, dtype: torch.dtype, value_at: Callable[[Any], _Value]) -> Any:
        device = like.get_device()
        narrow = dtype in ROUNDED_DTYPES and _torch.stores_narrowed(device) and _is_stored_next(_torch.lowered_node())

        def element(index: Any) -> Any:
            x = value_at(index)
            return _torch.narrowed_to(ops, x.unrounded, dtype) if narrow and x.round else x.held

        result = ir.Pointwise.create(device=device, dtype=dtype, inner_fn=element, ranges=like.get_size())
        if narrow:  # hand the 16-bit value to the store: one held in fp32 would be rounded once more, 20 instructions on a CPU
            result.realize()  # (2.13 does it anyway; inlined into another kernel, a 16-bit variable would meet fp32 ones)
        return result

    def rounded(x: Any) -> Any:
        return pointwise(x, x.get_dtype(), reader(x))

    def after(value: Any, effects: Any) -> Any:
        copy = pointwise(value, value.get_dtype(), reader(value))
        _torch.run_after(copy, effects, TURN)
        return copy

    def straight_through(value: Any, surrogate: Any, order: str, dtype: torch.dtype | None = None) -> Any:
        read_value, read_surrogate = reader(value), reader(surrogate, 1)
        dtype = dtype or surrogate.get_dtype()

        def value_at(index: Any) -> _Value:
            v, s = read_value(index), cast(read_surrogate(index), dtype)
            result: _Value = ORDERS[order](v, s, partial(binary, ops.add), subtract)
            return result

        return pointwise(value, torch.promote_types(value.get_dtype(), dtype), value_at)

    register_lowering(namespace.rounded.default, type_promotion_kind=None)(rounded)
    register_lowering(namespace.after.default, type_promotion_kind=None)(after)
    register_lowering(namespace.convolution.default, type_promotion_kind=None)(_torch.convolved)
    register_lowering(namespace.straight_through.default, type_promotion_kind=None, broadcast=True)(straight_through)
