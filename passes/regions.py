"""Regions: the parts of a deferred forward that are compiled apart, as modules of their own (see `defer`)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, GraphModule, Node

from .layout import stay_contiguous
from .memory import storages
from .meta import REGION
from .new_nodes import emit
from .nodes import ancestors, arg, aten, fake, is_matmul, is_pure, prims, tensor
from .ops import ops

ChannelsLast = Callable[[GraphModule], set[Node]]  # the nodes of a graph that the compiler will lay out channels-last


@dataclass(eq=False)
class Part:
    """Nodes of the forward that are computed together, from `inputs` to `outputs`; as a `module`, they are a region."""

    nodes: list[Node]
    outputs: list[Node]
    inputs: dict[Node, None]  # a set in order
    module: GraphModule | None = None
    contiguous: set[Node] = field(default_factory=set)  # convolutions that stay so, against the compiler's layout


def parts_of(graph: Graph, saved: set[Node]) -> list[Part]:
    """What is saved and all that it is computed from, in parts that do not depend on each other. Arithmetic on symbolic sizes is
    in none of them."""
    origins = {origin for origin in map(_origin, saved) if origin.op != "placeholder"}
    needed = ancestors(graph, origins)
    nodes = [node for node in graph.nodes if node in needed and node.op != "placeholder" and not _is_size(node)]
    root: dict[Node, Node] = {node: node for node in nodes}

    def find(node: Node) -> Node:
        while root[node] is not node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for node in nodes:
        for used in node.all_input_nodes:
            if used in root:
                root[find(used)] = find(node)
    parts: dict[Node, Part] = {}
    for node in nodes:
        part = parts.setdefault(find(node), Part([], [], {}))
        part.nodes.append(node)
        part.outputs += [node] if node in origins else []
        part.inputs |= dict.fromkeys(used for used in node.all_input_nodes if used not in root)
    return list(parts.values())


def _origin(node: Node) -> Node:
    """The node that a saved view looks into: the region returns that node, and the view is taken outside. A region must not
    return one memory twice, nor that of an input: Inductor takes a subgraph's results for buffers of their own, and would reuse
    one while another is still read."""
    origin: Node = node
    while base := next((used for used in node.all_input_nodes if not storages(used).isdisjoint(storages(node))), None):
        node = base
        origin = node if tensor(node) is not None else origin  # the tuple of a multi-output operator holds its results' memory
    return origin


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))


def is_worth_it(part: Part) -> bool:
    return any(map(is_matmul, part.nodes)) and all(map(is_pure, part.nodes)) and any(tensor(n) is not None for n in part.inputs)


def make_region(backward: GraphModule, part: Part, channels_last: ChannelsLast, dtypes: Collection[torch.dtype]) -> None:
    """Give a part a module of its own, in which convolutions of `dtypes` may stay contiguous (see `layout`). The part gets none
    where the layout of a result has to be forced and its strides are symbolic."""
    graph = Graph()
    copied: dict[Node, Node] = {}
    for node in part.inputs:
        copied[node] = graph.placeholder(node.name)
        copied[node].meta = dict(node.meta)
    for node in part.nodes:
        copied[node] = graph.node_copy(node, copied.__getitem__)
        if node.target is aten.view.default:  # a changed layout may admit no view; Inductor does the same where it changes one
            copied[node].target = aten.reshape.default
    output = graph.output(tuple(copied[node] for node in part.outputs))
    output.meta[REGION] = True
    module = GraphModule(backward, graph)
    laid_out = channels_last(module)
    contiguous = stay_contiguous(graph, laid_out, dtypes)
    if contiguous:  # the compiler is asked again, about the convolutions that are left
        laid_out = channels_last(module)
        part.contiguous = {node for node in part.nodes if copied[node].target is ops.convolution.default}
    results = list(arg(output))
    for index, node in enumerate(results):
        if fake(node).ndim == 4 and (node in laid_out or node in contiguous):  # (see `GraphLowering.run_node`, 2.11 to 2.15)
            layout = torch.contiguous_format if node in contiguous else torch.channels_last
            if (result := forced(graph, output, node, layout)) is None:
                return
            results[index] = result
    output.args = (tuple(results),)
    module.recompile()
    part.module = module


def forced(graph: Graph, before: Node, node: Node, layout: torch.memory_format) -> Node | None:
    """`node` in a layout; None if its strides are symbolic."""
    strides = fake(node).contiguous(memory_format=layout).stride()
    if not all(isinstance(stride, int) for stride in strides):
        return None
    return emit(graph, before, prims.inductor_force_stride_order.default, (node, list(strides)), like=node)
