"""Put a value in the place of a node, and change nothing else that anyone could see.

The stand-in has the dtype, shape and strides of the node it replaces, and where that node is an output of the graph the
stand-in shares no memory with an input or another output: `out = f(h, s); out.add_(1)` must not change `h`. The rule and its
reason are Inductor's (`torch/_inductor/fx_passes/README.md`, `remove_noop_ops`).

A rewrite costs what it changes, whatever else is in the graph: what must be known of all of it is gathered once (`Rewrites`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.fx import Graph, Node, map_arg
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._pytree import tree_leaves

from .memory import PARTS, Memory, Move, storages, views
from .values import aten, fake, hint, is_pure, prims, tensor

UNDONE = "its rewrite was undone"  # how the reason of an outcome begins where the check after the rewrite failed
TAG = "ste_compile"  # the entry of `node.meta` that marks a site's root for `fuse`


class Refused(Exception):
    """A site that must be left as it is; the message says why, in words for the report."""


class Mismatch(Refused):
    """A rewrite that a reader would have seen, found by the check that follows each, and undone. None should be: strict mode
    raises it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{UNDONE}: {what}")


class Rewrites:
    """What the rewrites of one graph share: who is in which memory, which node holds which symbolic size, and what stands for the
    nodes that are replaced. The graph's results are exchanged at the end, all at once (`finish`): there may be as many of them as
    there are rewrites."""

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

    def finish(self) -> set[Node]:
        """Let the graph return what stands for its results; returns the nodes dropped, which nobody reads now."""
        output = self.graph.output_node()
        output.args = map_arg(output.args, lambda node: self.replaced.get(node, node))
        return set().union(*(drop_unused(self.graph, root) for root in reversed(self.replaced)))


def replace_with_value(rewrites: Rewrites, root: Node, value: Any, negated: bool = False) -> Node:
    """Let every user of `root` read `value` (a node before it, or a Python number) instead. Roots come in graph order, and for a
    value that was itself replaced, what stands for it is read: each reader moves once, and not from site to site along a chain.

    Returns the node they read now. Raises `Refused`, with the graph as it was, where no equal stand-in can be built, and
    `Mismatch` where the one that was built turns out to be seen.

        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> traced = make_fx(lambda h, s: (h + s).relu())(torch.ones(2), torch.ones(2))
        >>> h, s, add, relu, output = traced.graph.nodes
        >>> rewrites = Rewrites(traced.graph)
        >>> replace_with_value(rewrites, add, h), relu.args, rewrites.finish()
        (h_1, (h_1,), {add})
    """
    graph, before = rewrites.graph, root.prev
    users = {user: (user.args, user.kwargs) for user in root.users if user.op != "output"}
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
    for before, after in zip(tree_leaves(was), tree_leaves(now), strict=True):
        if isinstance(before, torch.Tensor) and not (
            (before.dtype, before.device) == (after.dtype, after.device)
            and _same(before.shape, after.shape)
            and same_strides(before, after)
        ):
            raise Mismatch(f"{node.name} was {_described(before)} and would be {_described(after)}")


def _described(value: torch.Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)}, strides {tuple(value.stride())} on {value.device}"


def drop_unused(graph: Graph, node: Node) -> set[Node]:
    """Erase `node`, and what only it used, as far as the nodes are pure. Random and mutating nodes stay."""
    dropped: set[Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node in dropped or node.users or not is_pure(node):
            continue
        stack += node.all_input_nodes
        graph.erase_node(node)
        dropped.add(node)
    return dropped


def _stand_in(rewrites: Rewrites, root: Node, value: Any, negated: bool) -> Node:
    graph, want, before = rewrites.graph, fake(root), root.prev
    if not isinstance(value, Node):
        options = {"dtype": want.dtype, "device": want.device}
        value = emit(graph, root, aten.full.default, (_sizes(rewrites, root), -value if negated else value), options)
    elif fake(value).device != want.device:
        raise Refused(f"the value is on {fake(value).device}, the result on {want.device}")
    elif fake(value).layout != want.layout:
        raise Refused(f"the value is {fake(value).layout}, the result {want.layout}")
    elif negated:
        value = emit(graph, root, aten.neg.default, (value,))
    if fake(value).dtype != want.dtype:
        value = emit(graph, root, prims.convert_element_type.default, (value, want.dtype))
    fresh = root.prev is not before
    if not _same(fake(value).shape, want.shape):
        value = emit(graph, root, aten.expand.default, (value, _sizes(rewrites, root, value)))
    if not same_strides(fake(value), want):
        value = _restride(graph, root, value)
    elif not fresh and _would_alias(rewrites.memory, root, value):
        # Inductor drops clones that look like no-ops: even `h = x * 2; return h.clone(), h.clone()` shares memory. It never drops
        # an input's (2.11 to 2.15). Adding 0 stays; a 16-bit value passes through fp32 for it, which takes time.
        if rewrites.memory.is_input(value):
            value = emit(graph, root, aten.clone.default, (value,))
        else:
            value = emit(graph, root, aten.add.Scalar, (value, 0))
    stand_in: Node = value
    return stand_in


def emit(graph: Graph, before: Node, target: Any, args: tuple[Any, ...], kwargs: Any = None, *, like: Node | None = None) -> Node:
    """A new node ahead of `before`, with the metadata (source, recompute and partitioner tags) of `like`, which is `before`
    unless given, and a fake value of its own."""
    with graph.inserting_before(before):
        node = graph.create_node("call_function", target, args, kwargs or {}, name=target.__name__.split(".")[0])
    like = like or before
    node.meta = {key: entry for key, entry in like.meta.items() if key not in ("val", "tensor_meta", TAG)}
    try:
        node.meta["val"] = _fake_value(node, tensor(like))
    except BaseException:  # a node without a value would fail whatever reads the graph next
        graph.erase_node(node)
        raise
    return node


def _fake_value(node: Node, like: torch.Tensor | None) -> Any:
    target: Any = node.target
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with getattr(like, "fake_mode", None) or contextlib.nullcontext():
        return target(*args, **kwargs)


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
    raise Refused(f"the size {size} of the result is known only from a surrogate")


def _expression(size: torch.SymInt) -> Any:
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
        raise Refused(f"the result has strides {tuple(want.stride())}, which no dense copy of the value has")
    return value


def _would_alias(memory: Memory, root: Node, value: Node) -> bool:
    """Whether a result would come to share memory with an input or another result."""
    return memory.is_result(root) and not memory.is_free(value)


def _move_views(nodes: Iterable[Node], viewed: dict[Node, Any]) -> None:
    """Give the views of a replaced node, which are still those of its old memory, fake values in the memory they now view: this
    module's rule on aliasing and Inductor's both read it there. `viewed` is told what they were."""
    for node in nodes:
        viewed[node] = node.meta["val"]
        node.meta["val"] = _fake_value(node, tensor(node.all_input_nodes[0]))
