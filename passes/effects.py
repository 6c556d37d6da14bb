"""Keep what a cancelled surrogate also *did*: draw random numbers, mutate, call code of the user's, read what is then mutated.

    %rand = aten.rand([4])                              %rand = aten.rand([4])
    %mul = aten.mul(%seed, %rand)                 ->    %mul = aten.mul(%seed, %rand)
    %add = aten.add(%host, aten.sub(%mul, %alias))      %after = ste_compile.after(%host, [%rand])
    return %add                                         return %after

With the site cancelled, only the backward reads `%mul`. The partitioner moves a random operator to the backward like any other.
There it draws after whatever the host draws, so that neither gets the numbers it had; in inference Inductor drops it altogether.
A buffer that the forward updates would be read in the backward, when it holds another value. So `keep` puts the operator `after`
between one result and the end of the graph: it returns that result and reads what must have run. `release` takes it out of the
partitioned graphs again, where by then something else reads the same nodes, most often what is saved for the backward.
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
from .meta import TURN
from .new_nodes import emit
from .nodes import ancestors, arg, is_backward, is_copy, is_pure, tensor, writes
from .ops import ops


def effects(graph: Graph, *, all_of_it: bool = False) -> dict[Node, None]:
    """The nodes that the forward's results are computed from and that must stay where they are: they are random, they mutate, or
    they read what is then mutated. In graph order. With `all_of_it`, every node that the results are computed from."""
    readers = _readers_of_mutated(graph)
    needed = ancestors(graph, (value for _, value in _ends(graph)))
    return {
        node: None
        for node in graph.nodes
        if node in needed and node.op == "call_function" and (all_of_it or node in readers or not is_pure(node))
    }


def keep(graph: Graph, before: dict[Node, None]) -> None:
    """Let one result of the forward wait for those nodes of `before` (see `effects`) that the forward no longer reads itself."""
    if not before:
        return
    # A node of `before` may be gone from the graph: a cancelled site that read an input which is then mutated.
    missing = (before.keys() - effects(graph, all_of_it=True).keys()) & set(graph.nodes)
    readers = _readers_of_mutated(graph)
    # Skip a pure node that only other missing nodes read: holding those keeps it in the forward too.
    ends = [n for n in before if n in missing and (n in readers or not is_pure(n) or not missing.issuperset(n.users))]
    lost = [item for node in ends if (item := _tensor_of(graph, node))]
    for node in readers.intersection(lost):  # else the partitioner may recompute it in the backward, after the mutation
        node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    if lost:
        for turn, node in enumerate(graph.nodes):
            if node.op == "call_function" and not is_pure(node):
                node.meta[TURN] = turn
        reader, value = _unshared(graph)
        reader.replace_input_with(value, emit(graph, reader, ops.after.default, (value, lost), like=value))


def release(graph: Graph) -> None:
    """Take `after` out of a graph about to be compiled, except where a node would be dead without it."""
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
    """A result that shares its memory with no input and no other result, and who reads it. `after` copies it, and a copy would
    share nothing. The first result where all of them share."""
    ends = [*_ends(graph)]
    held = Counter(s for node in (*graph.find_nodes(op="placeholder"), *(value for _, value in ends)) for s in storages(node))
    return next((end for end in ends if all(held[s] == 1 for s in storages(end[1]))), ends[0])


def _readers_of_mutated(graph: Graph) -> set[Node]:
    """The nodes that read an input which the graph later writes to. A view of the input counts as the input. So does a copy:
    Inductor removes copies that look like no-ops."""
    readers: set[Node] = set()
    stack = [arg(node) for node in writes(graph)]
    while stack:
        memory = storages(node := stack.pop())
        views = {user for user in node.users if not memory.isdisjoint(storages(user))}
        stack += views | {user for user in node.users if is_copy(user)}
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
