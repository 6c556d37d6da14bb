"""How Inductor computes the fused operator: one `Pointwise`, rounding where eager rounds.

Inductor holds 16-bit values in fp32 registers and rounds at a store. Here every operand counts as rounded to its own dtype, and
every intermediate is rounded to the dtype eager would give it; the seed is read in its own dtype, so no cast copy, no difference and no
buffer exists beside the result.
"""

from __future__ import annotations

from typing import Any

import torch

from . import _torch
from .ops import ORDERS

ROUNDED_DTYPES = (torch.float16, torch.bfloat16)


def register() -> None:
    """Teach Inductor both operators; called when a graph first needs them, so that importing the package changes nothing."""
    ir, ops, lowerings, register_lowering = _torch.inductor_ir()
    namespace = torch.ops.ste_compile
    if namespace.straight_through.default in lowerings:
        return

    def computed(x: Any, dtype: torch.dtype, to: torch.dtype) -> Any:
        """`x`, of `dtype`, as a value of `to`, in the dtype Inductor computes `to` in."""
        if to in ROUNDED_DTYPES:
            return ops.to_dtype(ops.to_dtype(x, to, use_compute_types=False), torch.float32)
        return x if dtype == to else ops.to_dtype(x, to, src_dtype=_compute_dtype(dtype))

    def pointwise(size: Any, device: torch.device, dtype: torch.dtype, inner_fn: Any) -> Any:
        return ir.Pointwise.create(device=device, dtype=dtype, inner_fn=inner_fn, ranges=size)

    @register_lowering(namespace.rounded.default, type_promotion_kind=None)
    def rounded(x: Any) -> Any:
        dtype, load = x.get_dtype(), x.make_loader()
        return pointwise(x.get_size(), x.get_device(), dtype, lambda index: computed(load(index), dtype, dtype))

    @register_lowering(namespace.straight_through.default, type_promotion_kind=None, broadcast=True)
    def straight_through(value: Any, surrogate: Any, order: str, dtype: torch.dtype | None = None) -> Any:
        loads = value.make_loader(), surrogate.make_loader()
        dtypes = value.get_dtype(), surrogate.get_dtype()

        def binary(op: Any) -> Any:
            def apply(a: tuple[Any, torch.dtype], b: tuple[Any, torch.dtype]) -> tuple[Any, torch.dtype]:
                common = torch.promote_types(a[1], b[1])
                return computed(op(computed(*a, common), computed(*b, common)), common, common), common

            return apply

        def inner_fn(index: Any) -> Any:
            v, s = ((computed(load(index), own, own), own) for load, own in zip(loads, dtypes))
            s = (computed(*s, dtype), dtype) if dtype is not None else s
            return ORDERS[order](v, s, binary(ops.add), binary(ops.sub))[0]

        result = torch.promote_types(dtypes[0], dtype or dtypes[1])
        return pointwise(value.get_size(), value.get_device(), result, inner_fn)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in ROUNDED_DTYPES else dtype
