"""AOTAutograd: joint graphs, what it notes of their inputs and results, the partitioner, and the context of a compilation."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from .imports import functorch_config, min_cut_rematerialization_partition
from .names import can


def compilation() -> Any:
    """A key of the compilation under way: Dynamo's id, and AOTAutograd's number, which is never used twice. A graph from Dynamo
    can have several such numbers: DDPOptimizer cuts it in parts. A backward has its forward's key, however late it is compiled.
    None outside a compilation."""
    from torch._functorch._aot_autograd.logging_utils import get_aot_compilation_context

    compile_id = torch._guards.CompileContext.current_compile_id()
    names, *_ = get_aot_compilation_context()  # ["0_forward"]
    return compile_id and (compile_id, *(name.split("_")[0] for name in names))


def context() -> Any:
    """The `TracingContext` of the graph from Dynamo that is being compiled. It is the same object when its backward is compiled
    later, on another thread, and is freed once no part of that graph can be compiled any more. None outside a compilation, and on
    a torch that lacks what reports need."""
    return torch._guards.TracingContext.try_get() if can("reports") else None


def partition_again(root: GraphModule, joint_graph: Graph, results: int) -> tuple[GraphModule, GraphModule]:
    """Partition a joint graph that AOTAutograd did not make into (forward, backward), by torch's min-cut partitioner. The first
    `results` outputs are the forward's. The user's memory budget does not apply here: the partition of the whole graph, of which
    this is a part, has met it."""
    from torch.fx._lazy_graph_module import _LazyGraphModule

    joint = _LazyGraphModule(root, joint_graph)  # a GraphModule would generate code three times that never runs (2.11 to 2.15)
    with functorch_config.patch(activation_memory_budget=1.0):
        return min_cut_rematerialization_partition(joint, (), num_fwd_outputs=results)


def forward_outputs(graph: Graph) -> list[Node]:
    """The results of a joint graph that are the forward's; of any other graph, all. AOTAutograd describes each (from 2.11)."""
    from torch._functorch._aot_autograd.descriptors import GradAOTOutput

    output = graph.output_node()
    outputs: Any = output.args[0] if isinstance(output.args[0], (list, tuple)) else output.args
    describe = output.meta.get("desc") or [""] * len(outputs)
    forward = itertools.takewhile(lambda each: each is not None and not isinstance(each, GradAOTOutput), describe)
    return [node for node, _ in zip(outputs, forward) if isinstance(node, Node)]


def saved(graph: Graph) -> list[Node]:
    """What a partitioned forward graph saves for the backward: its results after the forward's own. Known only while the graph is
    compiled."""
    context = torch._guards.TracingContext.try_get()
    outputs: Any = graph.output_node().args[0]
    if context is None or context.fw_metadata is None or isinstance(outputs, Node):  # a higher-order operator's graph
        return []
    return [node for node in outputs[context.fw_metadata.num_forward :] if isinstance(node, Node)]


def differentiable(graph: Graph) -> set[Node]:
    """The inputs and attributes of a graph that have a gradient. Inputs of a joint graph: those whose gradient it returns. Of an
    inference graph: those that require one. Of the graph of a higher-order operator: none, as nothing is known of them.

    AOTAutograd describes each input and result (from 2.11). Where it unpacks a tensor subclass, the description of a part names
    the whole."""
    inputs, attributes = graph.find_nodes(op="placeholder"), graph.find_nodes(op="get_attr")
    found = {node for node in attributes if getattr(_attribute(node), "requires_grad", False)}
    if not can("gradients"):
        return found
    from torch._functorch._aot_autograd.descriptors import DifferentiableAOTInput, GradAOTOutput

    whole = {node: _whole(node.meta.get("desc")) for node in inputs}
    results = [_whole(each) for each in graph.output_node().meta.get("desc") or ()]
    with_gradient = {each.grad_of for each in results if isinstance(each, GradAOTOutput)}
    context = torch._guards.TracingContext.try_get()
    if not with_gradient and context and context.fw_metadata:
        known = context.fw_metadata.input_info
        inputs_as_given = list(dict.fromkeys(each for each in whole.values() if isinstance(each, DifferentiableAOTInput)))
        if len(known) == len(inputs_as_given):
            with_gradient = {each for each, info in zip(inputs_as_given, known) if info.requires_grad}
    return found | {node for node in inputs if whole[node] in with_gradient}


def _attribute(node: Node) -> Any:
    found: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        found = getattr(found, name, None)
    return found


def _whole(described: Any) -> Any:
    while hasattr(described, "base"):
        described = described.base
    return described
