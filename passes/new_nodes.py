"""New nodes in a graph that has metadata, and their fake values."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.fx import Graph, Node, map_arg

from .meta import TAG
from .nodes import aten, prims, tensor


def emit(graph: Graph, before: Node, target: Any, args: tuple[Any, ...], kwargs: Any = None, *, like: Node | None = None) -> Node:
    """A new node ahead of `before`, with the metadata (source, recompute and partitioner tags) of `like`, which is `before`
    unless given, and a fake value of its own."""
    with graph.inserting_before(before):
        node = graph.create_node("call_function", target, args, kwargs or {}, name=target.__name__.split(".")[0])
    like = like or before
    node.meta = {key: entry for key, entry in like.meta.items() if key not in ("val", "tensor_meta", TAG)}
    try:
        node.meta["val"] = fake_value(node, tensor(like))
    except BaseException:  # a node without a value would fail whatever reads the graph next
        graph.erase_node(node)
        raise
    return node


def fake_value(node: Node, like: torch.Tensor | None) -> Any:
    target: Any = node.target
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with getattr(like, "fake_mode", None) or contextlib.nullcontext():
        return target(*args, **kwargs)


def cast_as_eager(graph: Graph) -> None:
    """Cast with ATen's operator in place of the prim, whose own eager kernel gives a result that requires a gradient if its input
    does, also in inference (2.11 to 2.15), and which runtimes other than Inductor may not know."""
    for node in graph.find_nodes(op="call_function", target=prims.convert_element_type.default):
        node.target, node.args, node.kwargs = aten._to_copy.default, node.args[:1], {"dtype": node.args[1]}
