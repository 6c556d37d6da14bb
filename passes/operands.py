"""The operands of a site, rounded as eager rounds them.

    %mul = aten.mul(%a, %b)                                     bf16
    %wide = prims.convert_element_type(%mul, float32)           ->   %wide = prims.convert_element_type(rounded(%mul), float32)

In generated code a cast to fp32 is given the fp32 number that Inductor holds: what eager rounds to 16 bits is not rounded there.
Casts and multiples that a site reads are part of its arithmetic, so whatever they read is rounded. An input of the graph is in
memory, and so rounded already.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Graph, Node

from .linear_form import summed
from .new_nodes import emit
from .nodes import arg, is_cast, is_copy, is_view
from .ops import ops
from .rounding import contracts, is_narrow, is_rounded, may_be_product


def rounded_operand(graph: Graph, reader: Node, operand: Node, made: list[Node]) -> Node:
    """What `reader` is to read in the place of `operand`: the same rounded to its dtype, and on a GPU a product rounded before it
    is added. New nodes are added to `made`."""
    return _rounded(graph, reader, operand, made, _may_miss_a_rounding)


def rounded_inside(graph: Graph, reader: Node, operand: Node) -> Node:
    """As `rounded_operand`, for a reader that rounds its operands itself: only what their casts and multiples read is rounded."""
    return _rounded(graph, reader, operand, [], lambda node: False)


def _may_miss_a_rounding(node: Node) -> bool:
    """Whether what reads a node in the same kernel may be given it unrounded. (Of a product and its multiple by a power of two
    ptxas makes one instruction, `FMUL.D2`, which does not overflow between the two.)"""
    return is_narrow(node) or (contracts(node) and may_be_product(node))


def _rounded(graph: Graph, reader: Node, node: Node, made: list[Node], rounds: Callable[[Node], bool]) -> Node:
    """`node`, rounded where `rounds` says so. A view is not rounded but made again, on its rounded base: a rounded copy of an
    expanded tensor would have other strides."""
    new, below = node, _below(node)
    if below is not None:
        inside = rounds if is_view(node) else is_narrow if is_cast(node) else _may_miss_a_rounding
        under = _rounded(graph, reader, below, made, inside)
        if under is not below:
            args = tuple(under if each is below else each for each in node.args)
            made.append(new := emit(graph, reader, node.target, args, node.kwargs, like=node))
    if node.op == "call_function" and not is_view(node) and not is_rounded(node) and rounds(new):
        made.append(new := emit(graph, reader, ops.rounded.default, (new,), like=node))
    return new


def _below(node: Node) -> Node | None:
    """The tensor that a node is a view, a cast or a multiple of."""
    if is_copy(node):
        return None
    parts = [arg(node)] if is_view(node) or is_cast(node) else [each for _, each in summed(node)]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], Node) else None
