"""Put a value in the place of a node, and change nothing else that anyone could see.

The stand-in has the dtype, shape and strides of the node that it replaces. Where that node is an output of the graph, the
stand-in shares no memory with an input or another output: `out = f(h, s); out.add_(1)` must not change `h`. The rule and its
reason are Inductor's (`torch/_inductor/fx_passes/README.md`, `remove_noop_ops`).

The cost of a rewrite depends on what it changes, not on the size of the graph: what must be known of the whole graph is gathered
once (`Rewrites`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .memory import PARTS, Memory, Move, storages, views
from .new_nodes import emit, fake_value
from .nodes import aten, fake, hint, is_backward, leaves, prims, tensor
from .outcomes import Mismatch, Reason, Refused, Sum
from .unused import is_no_output, return_instead


class Rewrites:
    """What the rewrites of one graph share: who is in which memory, which node holds which symbolic size, and what stands for
    each replaced node. The results of the graph are replaced at the end, all at once (`finish`): to rewrite the output node for
    each site would make the pass quadratic."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.memory = Memory(graph)
        self.replaced: dict[Node, Node] = {}

    @cached_property
    def order(self) -> dict[Node, int]:
        return {node: index for index, node in enumerate(self.graph.nodes)}

    @cached_property
    def sizes(self) -> dict[Any, Node]:
        """Expression of a symbolic size -> the first node that holds it."""
        held = [(_expression(known), node) for node in self.order if isinstance(known := node.meta.get("val"), torch.SymInt)]
        return dict(reversed(held))

    @cached_property
    def input_sizes(self) -> dict[Any, tuple[Node, int]]:
        """Expression of a symbolic size -> the first input of the forward that has it, and its dimension. In an exported program
        no node holds these sizes."""
        nodes = self.graph.find_nodes(op="placeholder")
        inputs = [node for node in nodes if tensor(node) is not None and not is_backward(node)]
        sizes = [(_expression(size), (node, i)) for node in inputs for i, size in enumerate(fake(node).shape)]
        return dict(reversed(sizes))

    def finish(self) -> set[Node]:
        """Let the graph return what stands for its results; returns the nodes dropped, which nobody reads now."""
        return return_instead(self.graph, dict(reversed(self.replaced.items())))


def replace_with_value(rewrites: Rewrites, root: Node, value: Any, negated: bool = False) -> Node:
    """Let every user of `root` read `value` (a node before it, or a Python number) instead. Roots come in graph order. Where
    `value` was itself replaced, its stand-in is read: along a chain of sites each reader moves only once.

    Returns the node they read now. Raises `Refused` where no equal stand-in can be built, and `Mismatch` where the check of the
    stand-in finds a difference that a reader would see; either way the graph is as it was.

        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> traced = make_fx(lambda h, s: (h + s).relu())(torch.ones(2), torch.ones(2))
        >>> h, s, add, relu, output = traced.graph.nodes
        >>> rewrites = Rewrites(traced.graph)
        >>> replace_with_value(rewrites, add, h), relu.args, rewrites.finish()
        (h_1, (h_1,), {add})
    """
    graph, before = rewrites.graph, root.prev
    users = {user: (user.args, user.kwargs) for user in root.users if is_no_output(user)}
    viewed: dict[Node, Any] = {}  # the views of the root, and what they were before they moved
    try:
        stand_in = _stand_in(rewrites, root, rewrites.replaced.get(value, value), negated)
        check_same(root, tensor(root), tensor(stand_in))
        where = {node: storages(node) for node in sorted(views(root), key=rewrites.order.__getitem__)}
        root.replace_all_uses_with(stand_in, delete_user_cb=users.__contains__)
        _move_views([node for node in where if node is not root], viewed)
        for view, was in viewed.items():
            check_same(view, was, view.meta["val"])
        reads = {node: stand_in if node is root else node for node in where}
        if not rewrites.memory.move([Move(node, reads[node], where[node], storages(reads[node])) for node in where]):
            raise Mismatch(f"a result would come to share memory in the place of {root.name}")
    except BaseException:
        for view, was in viewed.items():
            view.meta["val"] = was
        for user, (args, kwargs) in users.items():
            user.args, user.kwargs = args, kwargs
        while root.prev is not before:
            graph.erase_node(root.prev)
        raise
    rewrites.replaced[root] = stand_in
    return stand_in


def check_same(node: Node, was: Any, now: Any) -> None:
    """Raise `Mismatch` unless readers of `node` see the same dtype, device, shape and strides in `now` as in `was`."""
    for before, after in zip(leaves(was), leaves(now), strict=True):
        if isinstance(before, torch.Tensor) and not (
            (before.dtype, before.device) == (after.dtype, after.device)
            and _same(before.shape, after.shape)
            and same_strides(before, after)
        ):
            raise Mismatch(f"{node.name} was {_described(before)} and would be {_described(after)}")


def _described(value: torch.Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)}, strides {tuple(value.stride())} on {value.device}"


def _stand_in(rewrites: Rewrites, root: Node, value: Any, negated: bool) -> Node:
    graph, want, before = rewrites.graph, fake(root), root.prev
    if isinstance(value, Sum):
        value = _emit_sum(rewrites, root, value)
    if not isinstance(value, Node):
        options = {"dtype": want.dtype, "device": want.device}
        value = emit(graph, root, aten.full.default, (_sizes(rewrites, root), -value if negated else value), options)
    elif fake(value).device != want.device:
        raise Refused(Reason.OTHER_DEVICE.of(fake(value).device, want.device))
    elif fake(value).layout != want.layout:
        raise Refused(Reason.OTHER_LAYOUT.of(fake(value).layout, want.layout))
    elif negated:
        value = emit(graph, root, aten.neg.default, (value,))
    if fake(value).dtype != want.dtype:
        value = emit(graph, root, prims.convert_element_type.default, (value, want.dtype))
    fresh = root.prev is not before
    if not _same(fake(value).shape, want.shape):
        value = emit(graph, root, aten.expand.default, (value, _sizes(rewrites, root, value)))
    if not same_strides(fake(value), want):
        value = _restride(graph, root, value)
    elif (not fresh and _would_alias(rewrites.memory, root, value)) or rewrites.memory.is_cast_back(root, value):
        # Inductor drops clones that look like no-ops: even `h = x * 2; return h.clone(), h.clone()` shares memory. It never drops
        # an input's (2.11 to 2.15). Adding 0 stays; a 16-bit value passes through fp32 for it, which takes time.
        if rewrites.memory.is_input(value):
            value = emit(graph, root, aten.clone.default, (value,))
        else:
            value = emit(graph, root, aten.add.Scalar, (value, 0))
    stand_in: Node = value
    return stand_in


def _emit_sum(rewrites: Rewrites, root: Node, value: Sum) -> Node:
    """The value as nodes ahead of `root`, each addend first cast to the root's dtype as the sums of the site would have done."""
    graph, want = rewrites.graph, fake(root)
    total: Any = None
    for sign, addend in value.addends:
        if isinstance(addend, Node):
            addend = rewrites.replaced.get(addend, addend)
            if fake(addend).device != want.device:
                raise Refused(Reason.OTHER_DEVICE.of(fake(addend).device, want.device))
            if fake(addend).dtype != want.dtype:
                addend = emit(graph, root, prims.convert_element_type.default, (addend, want.dtype))
        if total is None:
            total = addend if sign > 0 else emit(graph, root, aten.neg.default, (addend,))
        else:
            total = emit(graph, root, aten.add.Tensor if sign > 0 else aten.sub.Tensor, (total, addend))
    return cast(Node, total)


def _same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return len(left) == len(right) and all(statically_known_true(a == b) for a, b in zip(left, right))


def same_strides(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal strides wherever a dimension has more than one element, which is where a stride is seen. Sparse tensors have none."""
    if left.layout is not right.layout or left.layout in PARTS:
        return left.layout is right.layout
    pairs = zip(left.stride(), right.stride(), right.shape)
    return all(statically_known_true(size == 1) or statically_known_true(a == b) for a, b, size in pairs)


def _sizes(rewrites: Rewrites, root: Node, value: Node | None = None) -> list[Any]:
    """The shape of `root` as arguments for `full` or, with -1 for the dimensions `value` has, for `expand`."""
    want = fake(root).shape
    has = () if value is None else fake(value).shape
    have = [None] * (len(want) - len(has)) + [*has]
    return [
        -1 if there is not None and statically_known_true(here == there) else _size(rewrites, root, here)
        for here, there in zip(want, have)
    ]


def _size(rewrites: Rewrites, root: Node, size: Any) -> Any:
    if isinstance(size, int):
        return size
    sizes, order = rewrites.sizes, rewrites.order
    known = sizes.get(_expression(size))
    held = sizes.values() if known is None else [known]
    for node in held:
        if order[node] < order[root] and statically_known_true(node.meta["val"] == size):
            return node
    if where := rewrites.input_sizes.get(_expression(size)):
        return emit(rewrites.graph, root, aten.sym_size.int, where)
    raise Refused(Reason.UNKNOWN_SIZE.of(size))


def _expression(size: Any) -> Any:
    if isinstance(size, int):
        return size
    return getattr(size.node, "expr", size.node)  # the length of a jagged dimension has none, and is only equal to itself


def _restride(graph: Graph, root: Node, value: Node) -> Node:
    """A copy of `value` with the strides of `root`, which must be dense: permuted so that a contiguous copy has them."""
    want = fake(root)
    order = sorted(range(want.ndim), key=lambda d: (hint(want.stride(d)), hint(want.shape[d]), -d), reverse=True)
    if order == sorted(order):
        value = emit(graph, root, aten.clone.default, (value,), {"memory_format": torch.contiguous_format})
    else:
        value = emit(graph, root, aten.permute.default, (value, order))
        value = emit(graph, root, aten.clone.default, (value,), {"memory_format": torch.contiguous_format})
        value = emit(graph, root, aten.permute.default, (value, [order.index(d) for d in range(want.ndim)]))
    if not same_strides(fake(value), want):
        raise Refused(Reason.OTHER_STRIDES.of(tuple(want.stride())))
    return value


def _would_alias(memory: Memory, root: Node, value: Node) -> bool:
    """Whether a result would come to share memory with an input or another result."""
    return memory.is_result(root) and not memory.is_free(value)


def _move_views(nodes: Iterable[Node], viewed: dict[Node, Any]) -> None:
    """Give the views of a replaced node new fake tensors, in the storage that they now view: this module's check of shared memory
    and Inductor's both read the storage of a fake tensor. `viewed` gets the old fake tensors."""
    for node in nodes:
        viewed[node] = node.meta["val"]
        node.meta["val"] = fake_value(node, tensor(node.all_input_nodes[0]))
