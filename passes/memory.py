"""Which results of a graph are in the same memory, with each other or with an input.

    return %h, %add, %view(%add)        the first is in an input's memory; the other two share theirs

Fake tensors tell: a view has the storage of what it views. A rewrite moves a result into the memory of the site's value. There it
may share memory only with what it shared memory with before. `Memory` is made once for all rewrites of a pass, and each rewrite
tells it what moved: to look at all inputs and results again for each site would make a pass quadratic.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from .nodes import arg, behind, fake, is_backward, is_cast, leaves, writes


class Move(NamedTuple):
    """A node whose memory changes: its storages `before` and `after`, and the node that is read in its place, or itself."""

    node: Node
    reads: Node
    before: frozenset[Any]
    after: frozenset[Any]


# A tensor of these layouts has no storage of its own, but those of its parts, which it may share.
PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def storages(node: Node) -> frozenset[Any]:
    """Identities of the memory that a node's fake tensors are in."""
    return frozenset(stored(node))


def stored(node: Node) -> dict[Any, torch.UntypedStorage]:
    """The memory that a node's fake tensors are in, by its identity."""
    tensors = [leaf for leaf in leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)]
    return {storage._cdata: storage for leaf in tensors for storage in _storages(leaf)}


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    if hasattr(value, "__tensor_flatten__"):  # a subclass made of other tensors: the storage it shows is empty
        names, _ = value.__tensor_flatten__()
        parts = [getattr(value, name) for name in names]
    else:
        parts = [getattr(value, name)() for name in PARTS.get(value.layout, ())]
    for part in parts:
        yield from _storages(part)
    if not parts:
        with contextlib.suppress(NotImplementedError):  # opaque to torch itself (mkldnn until 2.13): nothing views it
            yield value.untyped_storage()


def views(root: Node) -> Iterator[Node]:
    """`root`, and the nodes computed from it that are in its memory."""
    memory, stack, seen = storages(root), [root], {root}
    while stack:
        yield (node := stack.pop())
        found = [user for user in node.users if user not in seen and not memory.isdisjoint(storages(user))]
        seen.update(found)
        stack += found


def readers(root: Node) -> Iterator[Node]:
    """The users of `root` and of its views."""
    for view in views(root):
        yield from view.users


class Memory:
    """Who is in which memory: the results of a graph, by their position, and its inputs and what is written to them at its end,
    by name. (Inductor may compute what is written to an input in the input's own memory.)"""

    def __init__(self, graph: Graph) -> None:
        self.held: dict[Any, set[str | int]] = defaultdict(set)
        self.names: dict[Node, set[str | int]] = {}
        inputs = graph.find_nodes(op="placeholder")
        for node in (*inputs, *(arg(write, 1) for write in writes(graph))):
            self._hold(node, node.name)
        for position, node in enumerate(leaves(graph.output_node().args)):
            if isinstance(node, Node):
                self._hold(node, position)
        self.of_inputs = frozenset[Any]().union(*map(storages, inputs))
        # The partitioner may save any value of a joint graph for the backward. It then is one more result of the forward graph.
        self.may_save = any(map(is_backward, inputs))

    def _hold(self, node: Node, name: str | int) -> None:
        self.names.setdefault(node, set()).add(name)
        for storage in storages(node):
            self.held[storage].add(name)

    def is_result(self, root: Node) -> bool:
        """Whether the graph returns the memory of `root`: itself, or a view. Asked of its views, which are few, and not of the
        results, of which a joint graph has one for each parameter."""
        return any(isinstance(name, int) for view in views(root) for name in self.names.get(view, ()))

    def is_free(self, node: Node) -> bool:
        """Whether a result may be in the memory of `node`: no other result or input is."""
        return not (self.may_save or any(self.held.get(storage) for storage in storages(node)))

    def is_cast_back(self, root: Node, value: Node) -> bool:
        """Whether a cast back would make a result alias another tensor. `value`, which will be read in the place of `root`, is a
        cast of some `origin`; a result casts `root` back to the dtype of `origin`, and must not be in its memory. Inductor drops
        both casts and returns `origin` itself (`pointless_convert`, 2.11 to 2.15)."""
        origin: Node = behind(value, is_cast)
        if origin is value or self.is_free(origin):
            return False
        return any(is_cast(user) and fake(user).dtype == fake(origin).dtype and self.is_result(user) for user in root.users)

    def is_input(self, node: Node) -> bool:
        return not self.of_inputs.isdisjoint(storages(node))

    def move(self, moves: Iterable[Move]) -> bool:
        """Note where nodes are now. False, with nothing noted, where a result would share memory with an input or a result that
        it did not share with before. (What is written to an input may come from anywhere: it is copied.)"""
        moves = [move for move in moves if move.node in self.names]
        company = {before: {name for storage in before for name in self.held[storage]} for _, _, before, _ in moves}
        leave = {name for move in moves for name in self.names[move.node]}
        joined = {storage: self.held[storage] - leave for move in moves for storage in move.after}
        results = set()
        for node, _, before, after in moves:
            for storage in after:
                joined[storage] |= self.names[node]
            if any(isinstance(name, int) for name in self.names[node]):
                results.add((before, after))
        if any(not joined[storage] <= company[before] for before, after in results for storage in after):
            return False
        for storage in {storage for move in moves for storage in move.before}:
            self.held[storage] -= leave
        self.held.update(joined)
        for node, reads, _, _ in moves:
            self.names.setdefault(reads, set()).update(self.names.pop(node))
        return True
