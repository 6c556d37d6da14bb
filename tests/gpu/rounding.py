"""The arithmetic of PTX, each operation rounded as the instruction rounds it, on arrays of numbers or of their bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Bits = Any  # an array of unsigned integers, or, for a predicate, of bool

INTEGERS = {
    **{f"b{n}": np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64)},
    **{f"u{n}": np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64)},
    **{f"s{n}": np.dtype(f"i{n // 8}") for n in (8, 16, 32, 64)},
}
FLOATS = {"f32": np.dtype("f4"), "f64": np.dtype("f8"), "f16": np.dtype("f2")}


def decoded(bits: Bits, kind: str) -> Any:
    """The numbers that bits are. Those of bf16 come as float32."""
    if kind == "pred":
        return bits
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    dtype = INTEGERS.get(kind) or FLOATS[kind]
    return bits.astype(f"u{dtype.itemsize}").view(dtype)


def encoded(numbers: Any, kind: str) -> Bits:
    """The bits of numbers, rounded to nearest even. A float64 that is odd where it is inexact is rounded once."""
    if kind == "pred":
        return numbers
    if kind == "bf16":
        bits = _to_odd_float32(numbers).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(numbers), np.uint32(0x7FFF), rounded).astype(np.uint16)
    dtype = INTEGERS.get(kind) or FLOATS[kind]
    return np.ascontiguousarray(numbers).astype(dtype).view(f"u{dtype.itemsize}")


def _to_odd_float32(x: Any) -> Any:
    return x.astype(np.float32) if x.dtype.itemsize < 8 else _odd(x.astype(np.float32), x - x.astype(np.float32))


def _odd(rounded: Any, error: Any) -> Any:
    """`rounded`, with a last bit of 1 where it is inexact, `error` being what was rounded away: another rounding is then right."""
    bits = rounded.view(f"u{rounded.itemsize}")
    fix = np.isfinite(rounded) & np.isfinite(error) & (error != 0) & (bits & 1 == 0)
    step = np.where((error > 0) == (rounded > 0), 1, -1).astype(bits.dtype)
    return np.where(fix, bits + step, bits).view(rounded.dtype)


def _total(a: Any, b: Any) -> Any:
    """`a + b` of float64, odd where it is inexact."""
    total = a + b
    back = total - a
    return _odd(total, (a - (total - back)) + (b - back))


def _sum(a: Any, b: Any) -> Any:
    return a + b if a.dtype == np.float64 else _total(a.astype(np.float64), b.astype(np.float64))


def _product(a: Any, b: Any) -> Any:
    return a.astype(np.float64) * b.astype(np.float64)  # exact, but of float64


def _fused(a: Any, b: Any, c: Any) -> Any:
    """`a * b + c`, rounded once. (In float64 the sum of two errors is rounded too, which decides where they make a tie.)"""
    if a.dtype != np.float64:
        return _total(_product(a, b), c.astype(np.float64))
    (high_a, low_a), (high_b, low_b) = _halves(a), _halves(b)
    product = a * b
    error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    total = product + c
    back = total - product
    exact = total + (((product - (total - back)) + (c - back)) + error)
    return np.where(np.isfinite(exact), exact, total)


def _halves(a: Any) -> tuple[Any, Any]:
    """A float64 as a sum of two, of 26 bits each."""
    high = a * 134217729.0 - (a * 134217729.0 - a)
    return high, a - high


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": _sum,
    "sub": lambda a, b: _sum(a, -b),
    "mul": _product,
    "fma": _fused,
    "neg": lambda a: -a,
    "abs": np.abs,
    "max": np.fmax,
    "min": np.fmin,
}
INTEGER: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mad": lambda a, b, c: a * b + c,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "bfe": lambda a, start, length: a << (8 * a.itemsize - start - length) >> (8 * a.itemsize - length),
}
COMPARE: dict[str, Callable[..., Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a != b) & ~unordered(a, b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "nan": lambda a, b: unordered(a, b),
    "num": lambda a, b: ~unordered(a, b),
}
COMPARE |= {f"{name}u": lambda a, b, f=f: f(a, b) | unordered(a, b) for name, f in COMPARE.items() if name not in ("nan", "num")}


def unordered(a: Any, b: Any) -> Any:
    return np.isnan(a) | np.isnan(b)


def flushed(lanes: list[Any]) -> list[Any]:
    """float32 without its subnormal numbers."""
    return [np.where(np.abs(lane) < np.finfo(np.float32).tiny, np.copysign(np.zeros_like(lane), lane), lane) for lane in lanes]
