"""A graph from Dynamo without a use of some of its values: changed as the edit of the code would change it, and only so far.

    detach       what readers read is detached:     cos(seed)    ->    cos(seed.detach())
    leave_out    the readers are removed, with all that is computed from them; a loss loses only such summands
    LeftOut      `leave_out` as a `Change`; an error where a later graph reads what is left out

Nodes are known by name: traced again, the same code gives the same names.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..passes.nodes import hint
from .calls import Compiled

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class Read:
    """The value of a node, and which nodes read it; where the value is a result, the graph's output is one of these."""

    name: str
    readers: frozenset[str]

    def of(self, node: Node) -> bool:
        """Whether it is this node that reads."""
        return node.name in self.readers and any(each.name == self.name for each in node.all_input_nodes)


def is_by_product(graph: Graph, reads: Sequence[Read], roots: Collection[str]) -> bool:
    """Whether all results that would be removed depend on the sites, whose names are `roots`, through these reads alone, and
    nothing that would be removed writes in place to what others read later."""
    main: set[Node] = set()
    for node in graph.nodes:
        if node.name in roots or (not main.isdisjoint(node.all_input_nodes) and not any(read.of(node) for read in reads)):
            main.add(node)
    gone, _ = _gone(graph, reads)
    return not any(each in gone and each in main for each in results(graph)) and not _is_written_for_others(graph, gone)


def _is_written_for_others(graph: Graph, gone: Set[Node]) -> bool:
    """Whether one of the nodes that go writes in place to what others read later."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in gone:
        written = node
        while writes(written):
            written = written.args[0]  # type: ignore[assignment]
        later = [user for user in written.users if order[user] > order[node] and user.op != "output"]
        if written is not node and any(user not in gone for user in later):
            return True
    return False


def writes(node: Node) -> bool:
    """Whether a call writes to its first argument, as `add_` does."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = node.op in ("call_method", "call_function") and (name.endswith("_") or node.target is operator.setitem)
    return in_place and isinstance(next(iter(node.args), None), Node)


def detach(gm: GraphModule, reads: Sequence[Read]) -> None:
    for read in reads:
        node = _named(gm, read.name)
        users = [user for user in node.users if read.of(user)]
        with gm.graph.inserting_after(node):
            detached = gm.graph.call_method("detach", (node,))
        detached.meta = dict(node.meta)
        for user in users:
            user.replace_input_with(node, detached)
    gm.recompile()


def leave_out(gm: GraphModule, reads: Sequence[Read]) -> Callable[[Any], tuple[Any, ...]]:
    """Remove the readers and all that is computed from them. Returns a function from the results that are left to all results,
    with zeros for those that are missing: the code after the graph expects them."""
    graph, output = gm.graph, gm.graph.output_node()
    known = results(graph)
    itself = {_named(gm, read.name) for read in reads if output.name in read.readers}
    gone, sums = _gone(graph, reads)
    missing = {i: _zeros(each) for i, each in enumerate(known) if each in gone or each in itself}
    output.args = (tuple(each for i, each in enumerate(known) if i not in missing),)
    for node, rest in sums.items():
        while rest in sums:
            rest = sums[rest]
        node.replace_all_uses_with(rest)
        graph.erase_node(node)
    for node in reversed(graph.nodes):
        if node in gone:  # (what was computed for these alone AOTAutograd leaves out)
            graph.erase_node(node)
    gm.recompile()

    def finish(left: Any) -> tuple[Any, ...]:
        rest = iter(left)
        return tuple(missing[i]() if i in missing else next(rest) for i in range(len(known)))

    return finish


class LeftOut:
    """A `Change` of the graphs from Dynamo that have such reads, by their numbers."""

    def __init__(self, reads: Mapping[int, Sequence[Read]]) -> None:
        self.reads = reads
        self.zeros: list[Any] = []

    def __call__(self, number: int, gm: GraphModule) -> Callable[[Compiled], Compiled]:
        finish = leave_out(gm, self.reads[number]) if number in self.reads else None

        def wrap(compiled: Compiled) -> Compiled:
            def call(*args: Any) -> Any:
                if any(each is zero for each in args for zero in self.zeros):
                    raise RuntimeError("a later graph reads what would be left out")
                left = compiled(*args)
                if finish is None:
                    return left
                whole = finish(left)
                self.zeros += [each for each in whole if not any(each is other for other in left)]
                return whole

            return call

        return wrap


def results(graph: Graph) -> list[Any]:
    found: Any = graph.output_node().args[0]
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _gone(graph: Graph, reads: Sequence[Read]) -> tuple[set[Node], dict[Node, Node]]:
    """The readers and all that is computed from them; and each loss that loses such a summand, with the summand that is left."""
    gone: set[Node] = set()
    sums: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "output" or not (any(read.of(node) for read in reads) or not gone.isdisjoint(node.all_input_nodes)):
            continue
        rest = [each for each in node.all_input_nodes if each not in gone]
        if node.target in SUMS and not node.kwargs and len(node.args) == 2 and len(rest) == 1 and _is_loss(node, rest[0]):
            sums[node] = rest[0]
        else:
            gone.add(node)
    return gone, sums


def _is_loss(node: Node, summand: Node) -> bool:
    """Whether a sum and its summand are scalars of one dtype, so that the summand can take the place of the sum."""
    total, rest = (each.meta.get("example_value") for each in (node, summand))
    if not isinstance(total, Tensor) or not isinstance(rest, Tensor):
        return False
    return total.ndim == rest.ndim == 0 and total.dtype == rest.dtype


def _named(gm: GraphModule, name: str) -> Node:
    node: Node | None = next((node for node in gm.graph.nodes if node.name == name), None)
    if node is None:
        raise RuntimeError(f"traced again, the graph has no {name}")
    return node


def _zeros(node: Node) -> Callable[[], Tensor]:
    value = node.meta.get("example_value")
    if not isinstance(value, Tensor):
        raise RuntimeError(f"the result {node.name} is no tensor")
    size, dtype, device = [hint(each) for each in value.shape], value.dtype, value.device
    return lambda: torch.zeros(size, dtype=dtype, device=device)
