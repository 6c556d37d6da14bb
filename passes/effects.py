"""Keep what a cancelled surrogate also *did*: draw random numbers, mutate, call code of the user's, read what is then mutated.

    %rand = aten.rand([4])                              %rand = aten.rand([4])
    %mul = aten.mul(%seed, %rand)                 ->    %mul = aten.mul(%seed, %rand)
    %add = aten.add(%host, aten.sub(%mul, %alias))      %after = ste_compile.after(%host, [%rand])
    return %add                                         return %after

With the site cancelled only the backward reads `%mul`, and the partitioner moves a random operator to the backward like any
other: there it draws after whatever the host draws, so that neither gets the numbers it had. In inference Inductor drops it
altogether. A buffer that the forward updates would be read in the backward, when it holds another value. `after` is an operator
between a result and the graph's end that reads what must have run; `release` takes it out of the partitioned graphs, where
something else, most often what is saved for the backward, has the same effect by then.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

from .memory import storages
from .replace import emit
from .values import COPIES, ancestors, arg, is_backward, is_pure, tensor, writes

ops = torch.ops.ste_compile
TURN = "ste_compile_turn"  # the entry of `node.meta` that says in which order what is random or mutates must run


def effects(graph: Graph, *, all_of_it: bool = False) -> dict[Node, None]:
    """The nodes whose place matters among those the forward's results are computed from, in graph order; or all those."""
    readers = _readers_of_mutated(graph)
    needed = ancestors(graph, (value for _, value in _ends(graph)))
    return {
        node: None for node in graph.nodes
        if node in needed and node.op == "call_function" and (all_of_it or node in readers or not is_pure(node))
    }  # fmt: skip


def keep(graph: Graph, before: dict[Node, None]) -> None:
    """Let the forward read, ahead of a result, those of `before` that it no longer reads by itself."""
    if not before:
        return
    # A site itself may read an input that is then mutated: it went.
    missing = (before.keys() - effects(graph, all_of_it=True).keys()) & set(graph.nodes)
    readers = _readers_of_mutated(graph)
    # A pure node that only others of them read is there with those.
    ends = [n for n in before if n in missing and (n in readers or not is_pure(n) or not missing.issuperset(n.users))]
    lost = [item for node in ends if (item := _tensor_of(graph, node))]
    for node in readers.intersection(lost):  # else the partitioner recomputes it where it is cheap
        node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    if lost:
        for turn, node in enumerate(graph.nodes):
            if node.op == "call_function" and not is_pure(node):
                node.meta[TURN] = turn
        reader, value = _unshared(graph)
        reader.replace_input_with(value, emit(graph, reader, ops.after.default, (value, lost), like=value))


def release(graph: Graph) -> None:
    """Take the `after` out of a graph about to be compiled, but for the nodes that would be dead without it."""
    for node in graph.find_nodes(op="call_function", target=ops.after.default):
        value, lost = node.args
        node.update_arg(1, [each for each in lost if len(each.users) == 1])
        if not node.args[1]:
            node.replace_all_uses_with(value)
            graph.erase_node(node)


def _ends(graph: Graph) -> Iterator[tuple[Node, Any]]:
    """(reader, tensor) for every result of the forward: what it returns, and what is written to its inputs."""
    output = graph.output_node()
    yield from ((output, node) for node in output.all_input_nodes if tensor(node) is not None and not is_backward(node))
    yield from ((node, arg(node, 1)) for node in writes(graph))


def _unshared(graph: Graph) -> tuple[Node, Node]:
    """A result that shares no memory with another or with an input, which a copy of it would not; the first, if all do."""
    ends = [*_ends(graph)]
    held = Counter(s for node in (*graph.find_nodes(op="placeholder"), *(value for _, value in ends)) for s in storages(node))
    return next((end for end in ends if all(held[s] == 1 for s in storages(end[1]))), ends[0])


def _readers_of_mutated(graph: Graph) -> set[Node]:
    """What is first computed from an input that the graph goes on to write to, seen through the input's views, and through
    copies too: Inductor takes those out that look like no-ops."""
    readers: set[Node] = set()
    stack = [arg(node) for node in writes(graph)]
    while stack:
        memory = storages(node := stack.pop())
        views = {user for user in node.users if not memory.isdisjoint(storages(user))}
        stack += views | {user for user in node.users if user.target in COPIES}
        readers |= node.users.keys() - views
    return readers


def _tensor_of(graph: Graph, node: Node) -> Node | None:
    """A tensor that is there once `node` has run: its own, or the first of its tuple; None where it gives no tensor."""
    if tensor(node) is not None:
        return node
    items = node.meta["val"] if isinstance(node.meta.get("val"), (tuple, list)) else ()
    for index, item in enumerate(items):
        if isinstance(item, torch.Tensor):
            with graph.inserting_after(node):
                taken = graph.call_function(operator.getitem, (node, index))
            taken.meta = {**node.meta, "val": item}
            return taken
    return None
