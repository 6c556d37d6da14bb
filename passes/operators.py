"""The operators that the linear form knows: one row each.

    aten.sub.Tensor: Operator(lambda a, b, alpha=1: [(1, a), (-alpha, b)])      a - alpha b adds up a and -alpha b
    aten.mm.default: Operator(zero=(0, 1))                                      an atom, and zero where either factor is
    aten.addmm.default: Operator(product=(1, 2))                                its first argument, where either factor is zero

A new operator is a new row: the linear form, the walk that follows zeros and the order of a site's arithmetic all read it here.
Casts and views are known by what they do (`nodes.is_cast`), not by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .nodes import COPIES, MARKERS, aten, fake

Addend = tuple[float, Any]  # (coefficient, node or Python number)


@dataclass(frozen=True)
class Operator:
    """`adds` gives what an operator adds up, from its arguments; it is None for an atom. The other fields are about zeros, by the
    position of an argument. The result is zero if one of `zero` is zero and the others are finite (and a divisor is not zero), or
    if all of `every` are zero. The result is the first argument if one of `product` is zero and the other factor is finite.
    `only` is what else must hold of the node. `inside`: where a zero goes through this operator to its site, the operator belongs
    to the site's arithmetic, as every operator with `adds` does. A site that is not cancelled is fused with all of its
    arithmetic."""

    adds: Callable[..., list[Addend]] | None = None
    zero: tuple[int, ...] = ()
    every: tuple[int, ...] = ()
    product: tuple[int, ...] = ()
    only: Callable[[Node], bool] = lambda node: True
    inside: bool = False


def is_number(argument: Any) -> bool:
    """A finite real Python number: a coefficient, or an addend of its own."""
    return isinstance(argument, (int, float)) and not isinstance(argument, bool) and math.isfinite(argument)


def _multiplied(a: Any, b: Any) -> list[Addend]:
    return [(b, a)] if is_number(b) else [(a, b)] if is_number(a) else []


def _divided(a: Any, b: Any) -> list[Addend]:
    """Only a division by a power of two is a scale: any other is not, to the bit, a multiplication by the inverse."""
    exact = is_number(b) and abs(math.frexp(b)[0]) == 0.5 and abs(b) < 2.0**100
    return [(1 / b, a)] if exact else []


def is_zero(argument: Any) -> bool:
    """A Python number that is zero, or a tensor made of nothing else."""
    if isinstance(argument, Node) and argument.target in _FILLED:
        position = _FILLED[argument.target]
        given = (0,) if position is None else argument.args[position : position + 1]
        argument = given[0] if given else None
    return is_number(argument) and bool(argument == 0)


def _within(*signs: int) -> Callable[[Node], bool]:
    """Whether zero is within the bounds that follow the first argument, a lower one where the sign is 1."""

    def zero_is_within(node: Node) -> bool:
        bounds: Any = node.args[1:]
        return not node.kwargs and all(
            bound is None or (is_number(bound) and sign * bound <= 0) for sign, bound in zip(signs, bounds)
        )

    return zero_is_within


def _has_elements(node: Node) -> bool:
    """Whether there is something to average: the mean of nothing is NaN."""
    return statically_known_true(fake(node.args[0]).numel() > 0)


def _without_bias(node: Node) -> bool:
    return len(node.args) > 2 and node.args[2] is None


def _is_whole(node: Node) -> bool:
    """Whether an operator adds a finite multiple of its product to its first argument as it is."""
    return bool(node.kwargs.get("beta", 1) == 1) and all(map(is_number, node.kwargs.values()))


# An operator that fills a tensor with one number -> the position of that argument, or None where the number is zero.
_FILLED = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.scalar_tensor.default: 0,
    aten.zeros.default: None,
    aten.zeros_like.default: None,
    aten.new_zeros.default: None,
}
_MOVES = Operator(zero=(0,), inside=True)  # the elements of its first argument, elsewhere or seen otherwise
_FACTORS = Operator(zero=(0, 1))
_FIRST = Operator(zero=(0,))
_MEAN = Operator(zero=(0,), only=_has_elements)
_PRODUCT_ADDED = Operator(product=(1, 2), only=_is_whole)

OPERATORS: dict[Any, Operator] = {
    aten.add.Tensor: Operator(lambda a, b, alpha=1: [(1, a), (alpha, b)]),
    aten.add.Scalar: Operator(lambda a, b, alpha=1: [(1, a), (alpha, b)]),
    aten.sub.Tensor: Operator(lambda a, b, alpha=1: [(1, a), (-alpha, b)]),
    aten.sub.Scalar: Operator(lambda a, b, alpha=1: [(1, a), (-alpha, b)]),
    aten.rsub.Tensor: Operator(lambda a, b, alpha=1: [(1, b), (-alpha, a)]),
    aten.rsub.Scalar: Operator(lambda a, b, alpha=1: [(1, b), (-alpha, a)]),
    aten.neg.default: Operator(lambda a: [(-1, a)], zero=(0,)),
    aten.mul.Tensor: Operator(_multiplied, zero=(0, 1)),
    aten.mul.Scalar: Operator(_multiplied, zero=(0,)),
    aten.div.Tensor: Operator(_divided, zero=(0,)),
    aten.div.Scalar: Operator(_divided, zero=(0,)),
    **dict.fromkeys((*MARKERS, *COPIES), Operator(lambda a, **layout: [(1, a)], zero=(0,))),
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
    aten.mean.default: _MEAN,
    aten.mean.dim: _MEAN,
    aten.clamp.default: Operator(zero=(0,), only=_within(1, -1)),
    aten.clamp_min.default: Operator(zero=(0,), only=_within(1)),
    aten.clamp_max.default: Operator(zero=(0,), only=_within(-1)),
    aten.cat.default: Operator(every=(0,)),
    aten.stack.default: Operator(every=(0,)),
    aten.where.self: Operator(every=(1, 2)),
    aten.masked_fill.Scalar: Operator(every=(0, 2)),
    aten.masked_fill.Tensor: Operator(every=(0, 2)),
    aten.masked_scatter.default: Operator(every=(0, 2)),
    aten.constant_pad_nd.default: Operator(every=(0, 2)),
    aten.mm.default: _FACTORS,
    aten.bmm.default: _FACTORS,
    aten.mv.default: _FACTORS,
    aten.dot.default: _FACTORS,
    aten.matmul.default: _FACTORS,
    aten.convolution.default: Operator(zero=(0, 1), only=_without_bias),
    aten.addmm.default: _PRODUCT_ADDED,
    aten.baddbmm.default: _PRODUCT_ADDED,
    aten.addmv.default: _PRODUCT_ADDED,
    aten.addcmul.default: _PRODUCT_ADDED,
}
_ATOM = Operator()


def operator_of(target: Any) -> Operator:
    """The row of an operator; that of an atom for one that has none."""
    return OPERATORS.get(target, _ATOM)
