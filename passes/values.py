"""Value numbering: which nodes of a graph hold the same value, bit for bit.

Two numberings are made in one walk. They differ only in how they see a detach marker:

    s1 = s.to(bf16);  d = s1.detach();  s2 = s.to(bf16);  e = s.detach().to(bf16)

    number    s1 == s2 == d == e            the same value
    spelling  s1 == s2, but d and e differ  the same value, reached through the same markers

A copy into another layout is the same value, and so is what is computed from it element by element. An operator that sums
elements does so in their order in memory: its results for two layouts differ in the last bits, and get two numbers.

A term that cancels between two spellings is what makes a straight-through estimator; a term that cancels within one
spelling (`k - k`) is arithmetic the user asked for.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

from .nodes import RESHAPES, OpOverload, arg, aten, fake, is_cast, is_copy, is_made, is_marker, is_pure, tensor


@dataclass
class Values:
    """The two numberings, and for each number the first node that holds it."""

    number: dict[Node, int] = field(default_factory=dict)
    spelling: dict[Node, int] = field(default_factory=dict)
    first: dict[int, Node] = field(default_factory=dict)
    _interned: dict[Any, int] = field(default_factory=dict)
    _constant: set[int] = field(default_factory=set)

    def intern(self, key: Any) -> int:
        return self._interned.setdefault(key, len(self._interned))

    def marked(self, spelling: int, markers: int = 1) -> int:
        """The spelling of the same value behind more markers. A constant has no gradient to cut: it keeps its own."""
        for _ in range(markers if spelling not in self._constant else 0):
            spelling = self.intern(("marked", spelling))
        return spelling

    def add(self, node: Node) -> None:
        if is_marker(node):
            self.number[node] = self.number[arg(node)]
            self.spelling[node] = self.marked(self.spelling[arg(node)])
        elif is_copy(node) or (is_cast(node) and fake(node).dtype == fake(arg(node)).dtype):
            self.number[node], self.spelling[node] = self.number[arg(node)], self.spelling[arg(node)]
        elif is_pure(node):
            self.number[node] = self.intern(self._key(node, self.number))
            self.spelling[node] = self.intern(self._key(node, self.spelling))
            if is_made(node) or (
                node.op != "get_attr" and self._constant.issuperset(map(self.spelling.get, node.all_input_nodes))
            ):
                self._constant.add(self.spelling[node])
        else:
            self.number[node] = self.spelling[node] = self.intern(("node", node.name))
        self.first.setdefault(self.number[node], node)

    def _key(self, node: Node, numbers: dict[Node, int]) -> Any:
        if is_cast(node):
            return "cast", fake(node).dtype, numbers[arg(node)]
        layouts = () if _is_elementwise(node.target) else tuple(map(_layout, node.all_input_nodes))
        return node.target, _freeze(node.args, numbers), _freeze(node.kwargs, numbers), layouts


@functools.cache
def _is_elementwise(target: Any) -> bool:
    """Whether each element of a result is computed from one element of each input, or is one, wherever that lies in memory."""
    if not isinstance(target, OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or target in RESHAPES or (target.is_view and target is not aten.as_strided.default)


def _layout(node: Node) -> Any:
    """The strides of a tensor, without those of dimensions of size 1, which no operator sees; None where it has no strides."""
    value = tensor(node)
    if value is None or value.layout is not torch.strided:
        return None
    return tuple("" if isinstance(size, int) and size == 1 else str(stride) for stride, size in zip(value.stride(), value.shape))


def _freeze(given: Any, numbers: dict[Node, int]) -> Any:
    """A hashable stand-in for an argument; `repr` keeps 1, 1.0, True, 0.0 and -0.0 apart, which compare equal."""
    if isinstance(given, Node):
        return "node", numbers[given]
    if isinstance(given, (list, tuple)):
        return tuple(_freeze(a, numbers) for a in given)
    if isinstance(given, dict):
        return tuple((k, _freeze(given[k], numbers)) for k in sorted(given))
    return type(given).__name__, repr(given)


def number_values(graph: Graph) -> Values:
    """Number every node of `graph`, in one walk. Source: local value numbering, Cocke and Schwartz (1970)."""
    values = Values()
    for node in graph.nodes:
        values.add(node)
    return values
