"""Give a detach marker to what eager detaches without one.

    with torch.no_grad():                       d = sub(q, x)
        d = q - x                      ->       d_1 = d.detach()
    return x + d                                add(x, d_1)

AOTAutograd's graphs show `.detach()` and `.data`, but neither a block without gradients nor `detach_()`. The graph from Dynamo,
which a backend is handed first, shows both. For a block inside another `no_grad` Dynamo writes nothing (2.11 to 2.15), so that
nothing is marked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from . import _torch


def mark(gm: GraphModule) -> None:
    """Mark, in place, in a graph from Dynamo and in those of its higher-order operators. What it computes stays the same.

    >>> seen = []
    >>> def backend(gm, inputs):
    ...     mark(gm)
    ...     seen.extend(node.name for node in gm.graph.find_nodes(op="call_method", target="detach"))
    ...     return gm
    >>> def model(x, q):
    ...     with torch.no_grad():
    ...         d = q - x
    ...     return x + d
    >>> _ = torch.compile(model, backend=backend)(torch.ones(2, requires_grad=True), torch.ones(2)); seen
    ['detach']
    """
    for each in gm.modules() if _torch.can("marks") else ():
        if isinstance(each, GraphModule) and _mark(each.graph):
            each.recompile()


def _mark(graph: Graph) -> bool:
    """Mark one graph, in place. Returns whether anything was marked."""
    set_enabled, enter_inference, exit_inference = _torch.gradient_switches()
    marked = False
    without: set[Node] = set()  # what was computed without gradients
    off = False
    entered: dict[Node, bool] = {}  # the call that entered inference mode -> whether gradients were off before
    order = {node: index for index, node in enumerate(graph.nodes)}
    readers: dict[Node, list[Node]] = {}  # value computed without gradients -> its readers with gradients
    for node in order:
        if node.target is set_enabled:
            off = not node.args[0]
        elif node.target is enter_inference:
            entered[node], off = off, bool(node.args[0]) or off
        elif node.target is exit_inference:
            off = entered.get(node.args[0], False)
        elif node.op == "call_method" and node.target == "detach_" and node.args[0].op != "placeholder":
            value: Any = node.args[0]
            later = [user for user in (*value.users, *node.users) if order.get(user, -1) > order[node]]
            marked |= detach(value, later, {value, node}, order)
        elif off:
            without.add(node)
        else:
            for value in without.intersection(node.all_input_nodes):
                readers.setdefault(value, []).append(node)
    for value, later in readers.items():
        marked |= detach(value, later, {value}, order)
    return marked


def detach(value: Node, readers: Iterable[Node], names: set[Node], order: dict[Node, int]) -> bool:
    """Have `readers` read `value.detach()` in the place of `value`, or of any other node in `names`, which hold the same tensor.
    Nothing is changed where the value is no floating-point or complex tensor, or where it requires a gradient after all, as an
    in-place operator may make it do. (A reader that writes to the detached tensor writes to the value itself, as before.)"""
    tensor = value.meta.get("example_value")
    later = sorted({reader for reader in readers if reader.op != "output"}, key=order.__getitem__)
    if not later or not isinstance(tensor, torch.Tensor) or tensor.requires_grad:
        return False
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    with value.graph.inserting_before(later[0]):
        detached = value.graph.call_method("detach", (value,))
    detached.meta = {**value.meta, "example_value": tensor.detach()}
    for reader in later:
        for name in names:
            reader.replace_input_with(name, detached)
    return True
