"""Value numbering: which nodes of a graph hold the same value, bit for bit.

Two numberings are made in one walk. They differ only in how they see a detach marker:

    s1 = s.to(bf16);  d = s1.detach();  s2 = s.to(bf16);  e = s.detach().to(bf16)

    number    s1 == s2 == d == e            the same value
    spelling  s1 == s2, but d and e differ  the same value, reached through the same markers

A copy into another layout is the same value, and so is what is computed from it element by element. An operator that adds
elements up does so in the order in which they lie: what it makes of two layouts differs in the last bits, and has two numbers.

A term that cancels between two spellings is what makes a straight-through estimator; a term that cancels within one
spelling (`k - k`) is arithmetic the user asked for.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

aten, prims = torch.ops.aten, torch.ops.prims

# What is left of `.detach()` and `.data`: `detach` in plain ATen graphs (in 2.15, `alias` there too), `alias` under Inductor's
# decompositions.
MARKERS = {aten.detach.default, aten.alias.default}
COPIES = {aten.clone.default}
# These give the elements of their input in its order, and may copy them.
RESHAPES = {aten.reshape.default, aten._unsafe_view.default, aten._reshape_copy.default}
# Everything a cast may carry without doing more than changing the dtype.
CASTS = {prims.convert_element_type.default, aten._to_copy.default, aten.to.dtype}

# Operators that a matrix unit or a library does, not a generated kernel.
MATMULS = {
    "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "dot", "addmv", "convolution", "convolution_backward", "linear", "matmul",
    "_scaled_mm", "_grouped_mm", "_int_mm",
}  # fmt: skip


NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)  # what the value of a node may be beside tensors


def tensor(node: Any) -> torch.Tensor | None:
    """The fake tensor of a node, or None where it holds no tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def fake(node: Any) -> torch.Tensor:
    """The fake tensor of a node that is known to hold one."""
    value = tensor(node)
    if value is None:
        raise TypeError(f"{node} holds no tensor")
    return value


def arg(node: Node, index: int = 0) -> Any:
    """An argument of a node: what it may be depends on its operator, which no type checker knows."""
    return node.args[index]


def without_markers(given: Any) -> Any:
    """The node behind the detach markers; any other argument as it is."""
    while isinstance(given, Node) and given.target in MARKERS:
        given = arg(given)
    return given


def is_cast(node: Any) -> bool:
    """Whether a node changes the dtype of its input and nothing else."""
    if not isinstance(node, Node) or node.target not in CASTS:
        return False
    source, result = tensor(node.args[0]), tensor(node)
    return source is not None and result is not None and source.device == result.device


def is_backward(node: Node) -> bool:
    """Whether a node of a joint graph belongs to the backward by what AOTAutograd says of it. Of its inputs the tangents do: it
    tags them too (2.11 to 2.15). By name alone they would also be found in an inference graph, whose inputs have any name; by tag
    alone, all inputs of a nested region that was partitioned in a backward."""
    if node.op == "placeholder" and "tangents" not in str(node.target):
        return False
    return str(node.meta.get("partitioner_tag", "")).endswith("backward")


def is_pure(node: Node) -> bool:
    """Whether equal inputs give equal outputs and nothing else happens: what may be numbered, and dropped when unused."""
    if node.op == "get_attr":
        return True
    if node.op != "call_function" or is_collective(node) or (node.is_impure() and not _is_still(node)):
        return False  # (impure: mutates, is random, asserts)
    if isinstance(node.target, torch._ops.OpOverload):
        return True
    name = getattr(node.target, "__name__", "")  # arithmetic on symbolic sizes, and `getitem`
    return getattr(operator, name, None) is node.target or name.startswith("sym_")


def _is_still(node: Node) -> bool:
    """Whether a random operator draws nothing: attention without dropout. It has the tag all the same (2.11 to 2.15)."""
    if node.is_impure(impure_random=False) or not isinstance(node.target, torch._ops.OpOverload):
        return False
    names = [each.name for each in node.target._schema.arguments]
    given = {**dict(zip(names, node.args)), **node.kwargs}
    return "dropout_p" in names and bool(given.get("dropout_p", 0.0) == 0.0)


@functools.cache
def _name(target: Any) -> str:
    """An operator's name, without namespace and overload; "" of what is none."""
    return target._schema.name.split("::")[1] if isinstance(target, torch._ops.OpOverload) else ""


def is_view(node: Node) -> bool:
    """Whether a node views its first input: by itself, or as one of several views (`getitem` of a split)."""
    target = arg(node).target if node.target is operator.getitem else node.target
    return isinstance(target, torch._ops.OpOverload) and target.is_view


def is_made(node: Node) -> bool:
    """Whether a tensor is made of nothing, or of another's shape: `full`, `rand`, `zeros_like`, a literal of the user's code."""
    if node.op == "get_attr":
        return _is_literal(node)
    if not isinstance(node.target, torch._ops.OpOverload) or tensor(node) is None:
        return False
    name = _name(node.target)
    sizes = (each.meta.get("val") for each in node.all_input_nodes)
    return name.endswith("_like") or name.startswith("new_") or all(isinstance(each, NUMBERS) for each in sizes)


def is_collective(node: Node) -> bool:
    """Whether the ranks of a job meet in an operator: one that dropped or moved it alone would leave the others waiting. (To FX,
    only the `wait_tensor` that most of them end with has an effect, 2.11 to 2.15.)"""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace in ("_c10d_functional", "_dtensor")


def is_matmul(node: Node) -> bool:
    name = _name(node.target)
    return name in MATMULS or name.startswith(("_scaled_dot_product", "_flash_attention", "_efficient_attention"))


def mutates(node: Node) -> bool:
    """Whether a node writes to one of its inputs (in functional graphs: the `copy_` epilogue of mutated inputs)."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def writes(graph: Graph) -> list[Node]:
    """The epilogue of a functional graph: each node that copies a result into an input."""
    return graph.find_nodes(op="call_function", target=aten.copy_.default)


def ancestors(graph: Graph, nodes: Iterable[Node]) -> set[Node]:
    """`nodes`, and whatever they are computed from."""
    found = set(nodes)
    for node in reversed(graph.nodes):
        if node in found:
            found.update(node.all_input_nodes)
    return found


def hint(size: Any) -> int:
    """A size; of a symbolic one, what it was when traced (0 if that depends on data)."""
    return size if isinstance(size, int) else size.node.hint or 0


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
        if node.target in MARKERS:
            self.number[node] = self.number[arg(node)]
            self.spelling[node] = self.marked(self.spelling[arg(node)])
        elif node.target in COPIES or (is_cast(node) and fake(node).dtype == fake(arg(node)).dtype):
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
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or target in RESHAPES or (target.is_view and target is not aten.as_strided.default)


def _layout(node: Node) -> Any:
    """The strides of a tensor where they are seen; None where it has none."""
    value = tensor(node)
    if value is None or value.layout is not torch.strided:
        return None
    return tuple("" if isinstance(size, int) and size == 1 else str(stride) for stride, size in zip(value.stride(), value.shape))


def _is_literal(node: Node) -> bool:
    """A tensor literal of the user's code, as `make_fx` names it; parameters and buffers may also be `get_attr` (AOTInductor)."""
    return str(node.target).startswith("_tensor_constant")


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
