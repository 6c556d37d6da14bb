"""Inductor's graph and scheduler: layouts, the order of kernels, and what each kernel reads and writes."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.torch_version import TorchVersion

from .imports import inductor_config

POST_FUSION = "_post_fusion_custom_pass"  # the option of Inductor's whose function is given the scheduler's nodes after fusion


def channels_last(gm: GraphModule) -> set[Node]:
    """The nodes of `gm` that Inductor will lay out channels-last, whatever the strides of their fake tensors."""
    from torch._inductor.graph import GraphLowering

    if not GraphLowering.decide_layout_opt(gm, is_inference=False):
        return set()
    lowering: Any = types.SimpleNamespace(module=gm)  # the method reads no more of one
    return set(GraphLowering.find_nodes_prefer_channels_last(lowering))


def contiguous_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes in which a convolution beside a group norm may be faster contiguous than channels-last, on a CPU. In these,
    Inductor's loops over blocks of channels are slow channels-last (from 2.13: 2.11 vectorises them over a block's channels), and
    oneDNN's convolutions are not slow contiguous. There are none where the user forces the layout optimisation."""
    from torch._inductor.utils import is_mkldnn_bf16_supported, is_mkldnn_fp16_supported

    slow = TorchVersion(torch.__version__) >= "2.13" and not inductor_config.force_layout_optimization
    if not (slow and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return ()
    supported = {torch.bfloat16: is_mkldnn_bf16_supported, torch.float16: is_mkldnn_fp16_supported}
    return tuple(dtype for dtype, is_supported in supported.items() if is_supported("cpu"))


@dataclass(frozen=True)
class Kernel:
    """What Inductor launches as one: a generated kernel, or a call into a library where `library`. `origins` are the graph nodes
    computed there; `reads` and `writes` are bytes by buffer (not the results of a call that has several)."""

    origins: frozenset[Node]
    reads: dict[str, int]
    writes: dict[str, int]
    library: bool


def kernels(scheduled: Sequence[Any]) -> tuple[str, list[Kernel], dict[str, frozenset[Node]]]:
    """Of the scheduler's nodes after fusion (`POST_FUSION`): the graph's kind ("forward", "backward" or "inference"), its
    kernels, and for each buffer the graph nodes that made it. Counted as `GraphLowering.count_bytes` counts."""
    from torch._inductor import ir
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
    from torch._inductor.virtualized import V

    found: list[Kernel] = []
    made_by: dict[str, frozenset[Node]] = {}
    for each in scheduled:
        for inner in each.get_nodes():
            origins = frozenset(inner.node.get_origins()) if inner.node is not None else frozenset()
            made_by.update((buffer.get_name(), origins) for buffer in inner.get_outputs())
        if isinstance(each, NopKernelSchedulerNode) or isinstance(each.node, (ir.InvokeSubgraph, _reader())):
            continue  # (what a subgraph launches is scheduled there)
        if isinstance(each, ExternKernelSchedulerNode) and isinstance(each.node, ir.MultiOutput):
            continue  # one result of a kernel that is in the list itself
        origins = frozenset[Node]().union(*(inner.node.get_origins() for inner in each.get_nodes() if inner.node is not None))
        reads = each.get_read_write_buffer_accesses(include_reads=True, include_writes=False)
        writes = each.get_read_write_buffer_accesses(include_reads=False, include_writes=True)
        found.append(Kernel(origins, reads, writes, isinstance(each, ExternKernelSchedulerNode)))
    return kind_of(V.graph), found, made_by


def kind_of(lowering: Any) -> str:
    """Of which graph a `GraphLowering` is: "forward", "backward" or "inference"."""
    return "backward" if lowering.is_backward else "inference" if lowering.is_inference else "forward"


def run_after(x: Any, effects: Sequence[Any], turn: str) -> None:
    """Have the scheduler run `effects`, and the calls that draw random numbers or mutate for them, before it computes `x`, though
    nothing else reads their results. `x` and `effects` are Inductor's values.

    Inductor may drop a generated kernel among `effects`: its effect was that of the calls it reads, such as the one that takes
    seeds from the generator. So it is the calls that are kept. They run in the order of `node.meta[turn]`."""
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    x.realize()
    names = [*dict.fromkeys(ir.ExternKernel.realize_input(each).get_name() for each in effects)]
    calls, seen = [], set(names)
    for name in names:  # grows as it is walked
        buffer: Any = V.graph.try_get_buffer(name)
        operation = buffer and buffer.get_defining_op()
        if isinstance(operation, ir.ExternKernel):
            calls.append(buffer)
        elif operation is not None:  # (an input has none)
            names += [each for each in operation.get_read_names() if each not in seen]
            seen.update(names)
    reader = _reader()(None, ir.NoneLayout(device=x.get_device()), calls)
    name = V.graph.register_buffer(reader, set_name=True)
    V.graph.register_operation(reader)
    V.graph.additional_buffer_deps[x.data.data.get_operation_name()].add(name)
    # Torch 2.11 moves a random operator next to what reads it: make each call wait for the one before.
    origins = [(each.get_origin_node(), each) for each in V.graph.operations if isinstance(each, ir.FallbackKernel)]
    turns = [(node.meta[turn], each) for node, each in origins if node is not None and turn in node.meta]
    for (_, earlier), (_, later) in itertools.pairwise(sorted(turns, key=lambda each: each[0])):
        V.graph.additional_buffer_deps[later.get_operation_name()].add(earlier.get_name())


@functools.cache
def _reader() -> Any:
    """The class of a kernel that reads its inputs, is never dropped as dead, and generates no code; as `ir.AssertScalar` is (2.11
    to 2.15). `V.graph.additional_star_deps` would do until 2.14."""
    from torch._inductor import ir

    class Reader(ir.ExternKernel):
        def should_allocate(self) -> bool:
            return False

        def has_side_effects(self) -> bool:
            return True

        def codegen(self, wrapper: Any) -> None:
            pass

    return Reader
