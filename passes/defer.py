"""Run the deferred forward of cancelled surrogates as a forward: in a region of its own, ahead of what reads it in the backward.

    %conv = aten.convolution(%host, %weight, ...)          %deferred = invoke_subgraph(%deferred_0, "deferred_0", %host, %weight)
    %view = aten.view(%conv, ...)                    ->    %conv = getitem(%deferred, 0)
    %mul = aten.mul(%tangent, %view)                       %view = aten.view(%conv, ...)
                                                           %mul = aten.mul(%tangent, %view)

Once a surrogate cancels, only the backward needs its forward, and the partitioner moves it there. Inductor then fuses it with
whatever has loops of the same size: a group norm's statistics with the gradients of the host, one channels-last and one not, in
a kernel that takes longer than both did (steps of up to 1.06 times stock's on the CPU, torch 2.13).

Stock compiles that forward well, so it is compiled as in stock. The partitioner is asked once more, for what stock would have
saved of the surrogate. What these tensors are computed from is put into *regions*, subgraphs of the backward: nothing is fused
across a region's edge, and its layout is chosen for itself. Regions that do not depend on each other stay apart. Each runs just
before its first reader, so that one surrogate's activations are freed before the next one's are made.

A surrogate without a matrix product or convolution stays as the partitioner left it: all of it can be fused into the gradients
that read it, which costs less than to store and load.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection

import torch
from torch.fx import Graph, GraphModule, Node

from .nodes import arg, aten, is_backward, is_matmul, is_pure, tensor
from .regions import ChannelsLast, Part, forced, is_worth_it, make_region, parts_of
from .rounding import ROUNDED_DTYPES

# (the module that holds a joint graph's attributes, the joint graph, how many of its results are the forward's)
# -> the forward module and the backward module
Partition = Callable[[GraphModule, Graph, int], tuple[GraphModule, GraphModule]]


def defer(
    forward: GraphModule,
    backward: GraphModule,
    partition: Partition,
    channels_last: ChannelsLast,
    contiguous: Collection[torch.dtype] = ROUNDED_DTYPES,
) -> GraphModule:
    """The backward, with the forward that was deferred to it in regions; `backward` itself where there is nothing to gain.

    `partition` is stock's partitioner. `channels_last` says which nodes of a graph the compiler will lay out channels-last,
    whatever their fake values say; the results of a region get these strides, because they are read with them. In the dtypes of
    `contiguous`, convolutions around group norms stay so (see `layout`). Neither module is changed.
    """
    later = _after_tangents(backward.graph)
    moved = _moved(forward.graph, backward.graph, later)
    if not any(map(is_matmul, moved)):
        return backward
    ahead, _ = partition(backward, _joint(backward.graph, moved, later), 1)
    kept = {node.name for node in arg(ahead.graph.output_node())[1:]}
    saved = {node for node in backward.graph.nodes if node.name in kept}
    parts = [part for part in parts_of(backward.graph, saved) if is_worth_it(part)]
    for part in parts:
        make_region(backward, part, channels_last, contiguous)
    parts = [part for part in parts if part.module]
    return _joined(backward, later, saved, parts) if parts else backward


def _moved(forward: Graph, backward: Graph, later: set[Node]) -> set[Node]:
    """The nodes of the forward that run in the backward and nowhere else. What both run is recomputed, as in stock."""
    runs = {node.name for node in forward.nodes}
    return {
        node
        for node in backward.nodes
        if node.op == "call_function" and node.name not in runs and node not in later and not is_backward(node)
    }


def _after_tangents(graph: Graph) -> set[Node]:
    found: set[Node] = set()
    for node in graph.nodes:
        if (node.op == "placeholder" and is_backward(node)) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _joint(backward: Graph, moved: set[Node], later: set[Node]) -> Graph:
    """A joint graph whose forward is what was `moved`: the partitioner decides on it which of these nodes are saved.

    It holds only the nodes that can change that decision: those that do not depend on a tangent, and the first ones that do. To a
    minimum cut these first ones are the sink; the partitioner's heuristics ask of them only whether they can be fused with what
    they read. So a single tangent stands for whatever else they read. What is computed from them, which is most of a backward, is
    left out. So is an input that only gradients read: it would be saved in any case.
    """
    graph = Graph()
    tangent = graph.placeholder("tangents_1")
    copied: dict[Node, Node] = {}
    results: list[Node] = []
    for node in backward.nodes:
        if node.op == "output":
            results += [copied[used] for used in node.all_input_nodes if used in copied]
        elif node in later and not copied.keys().isdisjoint(node.all_input_nodes):
            results.append(graph.node_copy(node, lambda used: copied.get(used, tangent)))
        elif node not in later and not (node.op == "placeholder" and later.issuperset(node.users)):
            copied[node] = graph.node_copy(node, copied.__getitem__)
    for node in graph.nodes:
        # A checkpoint's tag: the first partition has obeyed it, and what this one saves is short-lived.
        node.meta.pop("recompute", None)
    ends = [copied[n] for n in backward.nodes if n in moved and tensor(n) is not None and not moved.issuperset(n.users)]
    # The one result is a sum of all `ends`. The partitioner takes a result for stored anyway: were each end one, to save it would
    # seem cheaper than it is.
    result = ends[0]
    for end in ends[1:]:
        meta, result = result.meta, graph.call_function(aten.add.Tensor, (result, end))
        result.meta = dict(meta)
    graph.output((result, *results))
    return graph


def _joined(backward: GraphModule, later: set[Node], saved: set[Node], parts: list[Part]) -> GraphModule:
    """The backward, with each region just ahead of its first reader. A saved node that is in no region is placed likewise. Where
    a convolution stays contiguous, the output gradient that its backward reads is made contiguous too."""
    graph = Graph()
    made = {node: graph.node_copy(node) for node in backward.graph.find_nodes(op="placeholder")}
    part_of = {node: part for part in parts for node in part.outputs}
    contiguous = {node.args[:2] for part in parts for node in part.contiguous}
    modules: dict[str, GraphModule] = {}

    def bring(node: Node) -> None:
        stack = [node]
        while stack:
            node = stack[-1]
            part = part_of.get(node)
            waiting = [used for used in (part.inputs if part else node.all_input_nodes) if used not in made]
            if waiting:
                stack += waiting
                continue
            if part and node not in made:
                call(part)
            elif node not in made:
                made[node] = copy = graph.node_copy(node, made.__getitem__)
                if node.target is aten.convolution_backward.default and node.args[1:3] in contiguous:
                    gradient = forced(graph, copy, arg(copy), torch.contiguous_format)
                    copy.args = (gradient or copy.args[0], *copy.args[1:])
            stack.pop()

    def call(part: Part) -> None:
        name, module = f"deferred_{len(modules)}", part.module
        assert module is not None
        modules[name] = module
        operands = [made[node] for node in part.inputs]
        results = arg(module.graph.output_node())
        node = graph.call_function(torch.ops.higher_order.invoke_subgraph, (graph.get_attr(name), name, *operands))
        node.meta["val"] = tuple(map(tensor, results))
        for index, (output, result) in enumerate(zip(part.outputs, results)):
            made[output] = graph.call_function(operator.getitem, (node, index))
            made[output].meta = dict(result.meta)

    # Gradients keep their order. A pure node that stands ahead of all of them moves down to its first reader.
    order = {node: index for index, node in enumerate(backward.graph.nodes)}
    first = min((order[node] for node in later if node.op != "placeholder"), default=len(order))
    turn: dict[Node, int] = {}
    for node in reversed(order):
        if node in turn or not is_pure(node):
            turn[node] = turn[node] if order[node] < first and is_pure(node) else order[node]
            for used in node.all_input_nodes:
                if used not in saved:
                    turn[used] = min(turn[node], turn.get(used, turn[node]))
    for node in sorted(turn, key=lambda node: (turn[node], order[node])):
        for each in (*node.all_input_nodes, node):
            bring(each)
    theirs = {node.target for node in graph.find_nodes(op="get_attr")} - modules.keys()
    return GraphModule({**modules, **{target: operator.attrgetter(target)(backward) for target in theirs}}, graph)
