"""Questions to a node: what it holds, what its operator is, and what is behind it.

A node's fake tensor (`meta["val"]`) has its dtype, shape, strides and storage; nothing here runs an operator.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

aten, prims = torch.ops.aten, torch.ops.prims
OpOverload = type(aten.add.Tensor)

# What is left of `.detach()` and `.data`: `detach` in plain ATen graphs (in 2.15, `alias` there too), `alias` under Inductor's
# decompositions.
MARKERS = (aten.detach.default, aten.alias.default)
COPIES = (aten.clone.default,)
# These give the elements of their input in its order, and may copy them.
RESHAPES = (aten.reshape.default, aten._unsafe_view.default, aten._reshape_copy.default)
# These may also be given a device, a layout or a memory format: `is_cast` compares the devices.
CASTS = (prims.convert_element_type.default, aten._to_copy.default, aten.to.dtype)
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


def leaves(nested: Any) -> list[Any]:
    """What a nested argument or result holds, in order."""
    found: list[Any] = []
    map_aggregate(nested, found.append)
    return found


def layers(node: Any, *through: Callable[[Node], bool]) -> list[Any]:
    """`node`, then what it was made from, and so on, as long as one of `through` says that a node is only another form of what it
    was made from: `layers(node, is_cast, is_view)[-1]` is the node under the casts and views of `node`."""
    found = [node]
    while isinstance(node, Node) and node.op == "call_function" and any(is_form(node) for is_form in through):
        operands = [each for each in node.args if isinstance(each, Node) and not isinstance(each.meta.get("val"), NUMBERS)]
        if len(operands) != 1:  # a sum of two, or a tensor of a number alone
            break
        found += operands
        (node,) = operands
    return found


def behind(node: Any, *through: Callable[[Node], bool]) -> Any:
    """The last of `layers`; an argument that is no node is given back as it is."""
    return layers(node, *through)[-1]


def uncast(node: Node) -> Node:
    """The node under the casts, copies and detach markers of this one."""
    found: Node = behind(node, is_marker, is_copy, is_cast)
    return found


def subgraphs(module: GraphModule) -> Iterator[GraphModule]:
    """A graph and those that its higher-order operators call, inner ones first, as Inductor visits them."""
    return (each for each in reversed(list(module.modules())) if isinstance(each, GraphModule))


def is_marker(node: Any) -> bool:
    """Whether a node is a detach marker."""
    return isinstance(node, Node) and node.target in MARKERS


def is_copy(node: Node) -> bool:
    return node.target in COPIES


def is_cast(node: Any) -> bool:
    """Whether a node is a cast that leaves its input on its device. The dtype may be the input's own."""
    if not isinstance(node, Node) or node.target not in CASTS:
        return False
    source, result = tensor(node.args[0]), tensor(node)
    return source is not None and result is not None and source.device == result.device


def is_view(node: Node) -> bool:
    """Whether a node views its first input: by itself, or as one of several views (`getitem` of a split)."""
    target = arg(node).target if node.target is operator.getitem else node.target
    return isinstance(target, OpOverload) and target.is_view


def is_reshape(node: Node) -> bool:
    """Whether a node has its input's elements in their order, perhaps as another dtype's."""
    return node.target in RESHAPES or node.target in (aten.view.default, aten.view.dtype)


def module_path(node: Node) -> str:
    """The module whose code a node is, by its path in `named_modules()` of the module that is compiled; "" for that one itself,
    and outside of modules."""
    return next(reversed(module_stack(node)), "")


def module_stack(node: Node) -> list[str]:
    """The modules that a node is in, each by its path, outermost first. Dynamo's path begins with a variable, `L['self']` or
    `G['model']`, that of an export does not."""
    modules = (node.meta.get("nn_module_stack") or {}).values()
    return [re.sub(r"^[LG]\['\w+'\]\.?", "", path) for path, *_ in modules]


def is_backward(node: Node) -> bool:
    """Whether a node of a joint graph belongs to the backward, by the tag that AOTAutograd gives it. Of the graph's inputs only
    the tangents do (AOTAutograd tags them too, 2.11 to 2.15). They are known by name and tag: the name alone may be that of any
    input of an inference graph, and the tag alone is on all inputs of a nested region that was partitioned in a backward."""
    if node.op == "placeholder" and "tangents" not in str(node.target):
        return False
    return str(node.meta.get("partitioner_tag", "")).endswith("backward")


def is_pure(node: Node) -> bool:
    """Whether equal inputs give equal outputs and nothing else happens: what may be numbered, and dropped when unused."""
    if node.op == "get_attr":
        return True
    if node.op != "call_function" or is_collective(node) or (node.is_impure() and not _draws_nothing(node)):
        return False  # (impure: mutates, is random, asserts)
    if isinstance(node.target, OpOverload):
        return True
    name = getattr(node.target, "__name__", "")  # arithmetic on symbolic sizes, and `getitem`
    return getattr(operator, name, None) is node.target or name.startswith("sym_")


def _draws_nothing(node: Node) -> bool:
    """Whether an operator tagged as random draws nothing: attention has that tag also without dropout (2.11 to 2.15)."""
    if node.is_impure(impure_random=False) or not isinstance(node.target, OpOverload):
        return False
    names = [each.name for each in node.target._schema.arguments]
    given = {**dict(zip(names, node.args)), **node.kwargs}
    return "dropout_p" in names and bool(given.get("dropout_p", 0.0) == 0.0)


@functools.cache
def _name(target: Any) -> str:
    """An operator's name, without namespace and overload; "" of what is none."""
    return target._schema.name.split("::")[1] if isinstance(target, OpOverload) else ""


def is_made(node: Node) -> bool:
    """Whether a tensor is made of nothing, or of another's shape: `full`, `rand`, `zeros_like`, a literal of the user's code."""
    if node.op == "get_attr":  # `make_fx` names literals so; parameters and buffers may also be `get_attr` (AOTInductor)
        return str(node.target).startswith("_tensor_constant")
    if not isinstance(node.target, OpOverload) or tensor(node) is None:
        return False
    name = _name(node.target)
    sizes = (each.meta.get("val") for each in node.all_input_nodes)
    return name.endswith("_like") or name.startswith("new_") or all(isinstance(each, NUMBERS) for each in sizes)


def is_collective(node: Node) -> bool:
    """Whether the ranks of a job meet in an operator: one that dropped or moved it alone would leave the others waiting. (To FX,
    only the `wait_tensor` that most of them end with has an effect, 2.11 to 2.15.)"""
    return isinstance(node.target, OpOverload) and node.target.namespace in ("_c10d_functional", "_dtensor")


def is_matmul(node: Node) -> bool:
    """Whether a node is a matrix product, a convolution or fused attention."""
    name = _name(node.target)
    return name in MATMULS or name.startswith(("_scaled_dot_product", "_flash_attention", "_efficient_attention"))


def mutates(node: Node) -> bool:
    """Whether a node writes to one of its inputs (in functional graphs: the `copy_` epilogue of mutated inputs)."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


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
