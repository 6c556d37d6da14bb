"""The operators that the linear form knows: one row each.

    aten.sub.Tensor: Operator(lambda a, b, alpha=1: [(1, a), (-alpha, b)])      a - alpha b adds up a and -alpha b
    aten.mm.default: Operator(zero=(0, 1))                                      an atom, and zero where either factor is

A new operator is a new row: the linear form, the walk that follows zeros and the order of a site's arithmetic all read it here.
Casts and views are known by what they do (`nodes.is_cast`), not by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .nodes import COPIES, MARKERS, aten

Addend = tuple[float, Any]  # (coefficient, node or Python number)


@dataclass(frozen=True)
class Operator:
    """`adds` gives what an operator adds up, from its arguments; None for an atom. `zero` are the positions of arguments: if one
    of these is zero and the others are finite, the result is zero. `bounds` says what the arguments after the first are, 1 for a
    lower bound and -1 for an upper one: zero must lie within. `inside`: where a zero goes through this operator to its site,
    the operator is part of the site's arithmetic, which is fused as a whole where it is not cancelled."""

    adds: Callable[..., list[Addend]] | None = None
    zero: tuple[int, ...] = ()
    bounds: tuple[int, ...] = ()
    inside: bool = False


def is_number(argument: Any) -> bool:
    """A finite real Python number: a coefficient, or an addend of its own."""
    return isinstance(argument, (int, float)) and not isinstance(argument, bool) and math.isfinite(argument)


def _multiplied(a: Any, b: Any) -> list[Addend]:
    return [(b, a)] if is_number(b) else [(a, b)] if is_number(a) else []


def _divided(a: Any, b: Any) -> list[Addend]:
    """By a power of two: to divide by another number is not to multiply by its inverse, to the bit."""
    exact = is_number(b) and abs(math.frexp(b)[0]) == 0.5 and abs(b) < 2.0**100
    return [(1 / b, a)] if exact else []


_MOVES = Operator(zero=(0,), inside=True)  # the elements of its first argument, elsewhere or seen otherwise
_FACTORS = Operator(zero=(0, 1))
_FIRST = Operator(zero=(0,))

OPERATORS: dict[Any, Operator] = {
    aten.add.Tensor: Operator(lambda a, b, alpha=1: [(1, a), (alpha, b)]),
    aten.add.Scalar: Operator(lambda a, b, alpha=1: [(1, a), (alpha, b)]),
    aten.sub.Tensor: Operator(lambda a, b, alpha=1: [(1, a), (-alpha, b)]),
    aten.sub.Scalar: Operator(lambda a, b, alpha=1: [(1, a), (-alpha, b)]),
    aten.rsub.Tensor: Operator(lambda a, b, alpha=1: [(1, b), (-alpha, a)]),
    aten.rsub.Scalar: Operator(lambda a, b, alpha=1: [(1, b), (-alpha, a)]),
    aten.neg.default: Operator(lambda a: [(-1, a)], zero=(0,), inside=True),
    aten.mul.Tensor: Operator(_multiplied, zero=(0, 1), inside=True),
    aten.mul.Scalar: Operator(_multiplied, zero=(0,), inside=True),
    aten.div.Tensor: Operator(_divided, zero=(0,), inside=True),
    aten.div.Scalar: Operator(_divided, zero=(0,), inside=True),
    **dict.fromkeys((*MARKERS, *COPIES), Operator(lambda a, **layout: [(1, a)], zero=(0,), inside=True)),
    aten.view.default: _MOVES,
    aten._unsafe_view.default: _MOVES,
    aten.reshape.default: _MOVES,
    aten.expand.default: _MOVES,
    aten.permute.default: _MOVES,
    aten.transpose.int: _MOVES,
    aten.t.default: _MOVES,
    aten.unsqueeze.default: _MOVES,
    aten.squeeze.dim: _MOVES,
    aten.squeeze.dims: _MOVES,
    aten.slice.Tensor: _MOVES,
    aten.select.int: _MOVES,
    aten.squeeze.default: _FIRST,
    aten.flip.default: _FIRST,
    aten.repeat.default: _FIRST,
    aten.index.Tensor: _FIRST,
    aten.index_select.default: _FIRST,
    aten.gather.default: _FIRST,
    aten.abs.default: _FIRST,
    aten.relu.default: _FIRST,
    aten.sum.default: _FIRST,
    aten.sum.dim_IntList: _FIRST,
    aten.clamp.default: Operator(zero=(0,), bounds=(1, -1)),
    aten.clamp_min.default: Operator(zero=(0,), bounds=(1,)),
    aten.clamp_max.default: Operator(zero=(0,), bounds=(-1,)),
    aten.mm.default: _FACTORS,
    aten.bmm.default: _FACTORS,
    aten.mv.default: _FACTORS,
    aten.dot.default: _FACTORS,
    aten.matmul.default: _FACTORS,
}
_ATOM = Operator()


def operator_of(target: Any) -> Operator:
    """The row of an operator; that of an atom for one that has none."""
    return OPERATORS.get(target, _ATOM)
