"""The private torch modules this package stands on; no other file imports one. Read against 2.11, 2.13, 2.14 and 2.15.

A name that moves between versions is mended here. What every backend needs is imported at the top: where a torch lacks one of
those, a backend raises one error that says so (`check`). What a single feature needs is imported where it is used: where a torch
lacks one of those, the compile goes on without that feature, with one warning (`can`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.torch_version import TorchVersion

OLDEST, NEWEST = "2.11", "2.15"  # a newer one is tried first (`trial`)

try:
    from torch import _TorchCompileInductorWrapper as InductorBackend  # wraps, checks and merges Inductor's `mode` and `options`
    from torch._dynamo import config as dynamo_config
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch import config as functorch_config
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor import config as inductor_config
    from torch._inductor.custom_graph_pass import CustomGraphPass
except ImportError as error:  # a model may import `ste_forward`, which needs none of them, and run in eager
    LACKING = str(error)
    CustomGraphPass = object  # type: ignore[assignment, misc]
else:
    LACKING = ""
try:
    from torch._inductor.custom_graph_pass import CustomPartitionerFn
except ImportError:
    CustomPartitionerFn = object  # type: ignore[assignment, misc]

# What a backend needs beside the imports above, as "module:path"; and, under INDUCTOR, what the lowerings need: it is looked up
# inside a compile, because to import it takes seconds. "()" in a path is an instance.
SETTINGS = (
    "torch._dynamo.config:compiled_autograd",
    "torch._inductor.config:joint_custom_pre_pass",
    "torch._inductor.config:post_grad_custom_pre_pass",
)
INDUCTOR = (
    "torch._inductor.config:cpp.enable_floating_point_contract_flag",
    "torch._inductor.config:cpu_backend",
    "torch._inductor.config:cuda_backend",
    "torch._inductor.graph:GraphLowering().current_node",
    "torch._inductor.ir:BaseView",
    "torch._inductor.ir:ExternKernel",
    "torch._inductor.ir:InputBuffer",
    "torch._inductor.ir:Pointwise.create",
    "torch._inductor.ir:StorageBox",
    "torch._inductor.ir:TensorBox.realize",
    "torch._inductor.lowering:lowerings",
    "torch._inductor.lowering:register_lowering",
    "torch._inductor.ops_handler:OpsHandler.inline_asm_elementwise",
    "torch._inductor.virtualized:V",
    "torch._inductor.virtualized:ops",
)
# What `ste_compile.testing` needs more.
TESTING = (
    "torch._dynamo.config:accumulated_recompile_limit",
    "torch._dynamo.config:recompile_limit",
    "torch._functorch.aot_autograd:aot_export_joint_simple",
    "torch._functorch.config:enable_autograd_cache",
    "torch._inductor.config:emulate_precision_casts",
    "torch._inductor.config:fallback_random",
    "torch._inductor.config:fx_graph_cache",
)
# feature -> (what happens without it, what it needs)
FEATURES = {
    "regions": (
        "cancelled surrogates stay in the forward, as with options={'deferred': False}",
        (
            "torch._functorch.config:activation_memory_budget",
            "torch._inductor.config:custom_partitioner_fn",
            "torch._inductor.custom_graph_pass:CustomPartitionerFn",
            "torch._inductor.graph:GraphLowering.decide_layout_opt",
            "torch._inductor.graph:GraphLowering.find_nodes_prefer_channels_last",
            "torch.fx._lazy_graph_module:_LazyGraphModule",
        ),
    ),
    "effects": (
        "nothing is cancelled in a graph that draws random numbers or updates what it reads",
        (
            "torch._inductor.graph:GraphLowering().additional_buffer_deps",
            "torch._inductor.graph:GraphLowering.register_buffer",
            "torch._inductor.graph:GraphLowering.register_operation",
            "torch._inductor.graph:GraphLowering.try_get_buffer",
            "torch._inductor.ir:Buffer.get_defining_op",
            "torch._inductor.ir:ExternKernel.realize_input",
            "torch._inductor.ir:FallbackKernel.get_origin_node",
            "torch._inductor.ir:NoneLayout",
            "torch._inductor.scheduler:ExternKernelSchedulerNode.has_side_effects",
        ),
    ),
    "gradients": (
        "no surrogate that is an input of its graph is cancelled after reassociation",
        (
            "torch._functorch._aot_autograd.descriptors:DifferentiableAOTInput",
            "torch._functorch._aot_autograd.descriptors:GradAOTOutput",
            "torch._guards:TracingContext().fw_metadata",
            "torch._guards:TracingContext.try_get",
        ),
    ),
    "marks": (
        "what is detached by `torch.no_grad` or `detach_()` alone is no straight-through site",
        (
            "torch._C:_set_grad_enabled",
            "torch.autograd.grad_mode:_enter_inference_mode",
            "torch.autograd.grad_mode:_exit_inference_mode",
        ),
    ),
    "reports": (
        "nothing is recorded for reports, dumps and traces",
        (
            "torch._dynamo.utils:graph_break_reasons",
            "torch._functorch._aot_autograd.descriptors:GradAOTOutput",
            "torch._functorch._aot_autograd.logging_utils:get_aot_compilation_context",
            "torch._guards:CompileContext.current_compile_id",
            "torch._guards:TracingContext().ddp_optimizer_ctx",
            "torch._guards:TracingContext().fw_metadata",
            "torch._guards:TracingContext.try_get",
            "torch._logging._internal:LazyTraceHandler",
            "torch._logging._internal:trace_log",
            "torch._logging._internal:trace_structured",
        ),
    ),
    "breaks": (
        "`explain` lists no graph breaks",
        (
            "torch._dynamo.utils:_compilation_metrics",
            "torch._dynamo.utils:get_compilation_metrics",
            "torch._dynamo.utils:set_compilation_metrics_limit",
        ),
    ),
    "counts": (
        "`explain` counts no kernels and no bytes",
        (
            "torch._inductor.config:_post_fusion_custom_pass",
            "torch._inductor.graph:GraphLowering().is_backward",
            "torch._inductor.graph:GraphLowering().is_inference",
            "torch._inductor.ir:InvokeSubgraph",
            "torch._inductor.ir:MultiOutput",
            "torch._inductor.scheduler:BaseSchedulerNode.get_nodes",
            "torch._inductor.scheduler:BaseSchedulerNode.get_outputs",
            "torch._inductor.scheduler:BaseSchedulerNode.get_read_write_buffer_accesses",
            "torch._inductor.scheduler:ExternKernelSchedulerNode",
            "torch._inductor.scheduler:NopKernelSchedulerNode",
        ),
    ),
}
failed: dict[str, str] = {}  # feature -> what went wrong when it was tried, "" in the place of the feature for a lowering

ROUNDS_ON_REQUEST = TorchVersion(torch.__version__) >= "2.13"

__all__ = [
    "CustomGraphPass",
    "CustomPartitionerFn",
    "InductorBackend",
    "Kernel",
    "aot_autograd",
    "backward_is_traced",
    "can",
    "channels_last",
    "check",
    "compilation",
    "compile_id",
    "compiled_apart",
    "compiling_alone",
    "context",
    "cut_indices",
    "differentiable",
    "dynamo_utils",
    "failed",
    "fake_inputs",
    "forward_outputs",
    "gradient_switches",
    "graph_break_reason",
    "inductor_config",
    "inductor_ir",
    "is_stored",
    "joint_graph",
    "kernels",
    "lower",
    "lowered_node",
    "min_cut_rematerialization_partition",
    "narrowed_to",
    "parameter_indices",
    "partition_again",
    "rounded_to",
    "rounds_products",
    "run_after",
    "saved",
    "settled",
    "stores_narrowed",
    "trace_artifact",
    "trace_enabled",
    "uncompiled",
]


def check(names: Sequence[str] = SETTINGS) -> None:
    """Raise a `RuntimeError`, ahead of whatever would fail on it, where this torch is too old, or lacks a name that this file
    imports at its top, or one of `names`, or cannot lower the operators."""
    lacking = LACKING or next(filter(None, map(_missing, names)), "")
    said = f", which lacks a private name: {lacking}" if lacking else f", which {failed['']}" if "" in failed else ""
    if said or TorchVersion(torch.__version__) < OLDEST:
        found = f"this is torch {torch.__version__}{said}"
        raise RuntimeError(f"ste-compile needs torch {OLDEST} or newer, and has been tried up to {NEWEST}; {found}")


@functools.cache
def can(feature: str) -> bool:
    """Whether this torch has what a feature needs. Where it has not, a warning, the first time, says what is lost."""
    lost, names = FEATURES[feature]
    lacking = next(filter(None, map(_missing, names)), "")
    if why := f"lacks a private name, {lacking}" if lacking else failed.get(feature, ""):
        warnings.warn(f"ste_compile: torch {torch.__version__} {why}: {lost}", stacklevel=2)
    return not why


@functools.cache
def _missing(name: str) -> str:
    """The name, with a dot for its colon, where this torch lacks it; else ""."""
    module, path = name.split(":")
    try:
        found: Any = importlib.import_module(module)
        for each in path.split("."):
            found = getattr(found, each.removesuffix("()"))
            found = EMPTY[each](found) if each in EMPTY else found
    except (ImportError, AttributeError):
        return f"{module}.{path}"
    return ""


def _empty_graph() -> GraphModule:
    graph = Graph()
    graph.output(())
    return GraphModule({}, graph)


# How to make an instance, whose attributes no class has.
EMPTY: dict[str, Callable[[Any], Any]] = {
    "GraphLowering()": lambda graph_lowering: graph_lowering(_empty_graph()),
    "TracingContext()": lambda tracing_context: tracing_context(None),
}


def compilation() -> Any:
    """The compilation under way: Dynamo's id, and AOTAutograd's number, which never comes again and of which one Dynamo graph can
    have several (DDPOptimizer). None outside any. The backward has its forward's, however late it is compiled."""
    from torch._functorch._aot_autograd.logging_utils import get_aot_compilation_context

    compile_id = torch._guards.CompileContext.current_compile_id()
    names, *_ = get_aot_compilation_context()  # ["0_forward"]
    return compile_id and (compile_id, *(name.split("_")[0] for name in names))


def context() -> Any:
    """What torch keeps of the graph from Dynamo that is being compiled: one object, also for a backward that is compiled later on
    another thread. It dies once nothing can be compiled of that graph any more. None outside any compilation, and where torch
    keeps no such object."""
    return torch._guards.TracingContext.try_get() if can("reports") else None


def dynamo_utils() -> Any:
    """Where Dynamo keeps its metrics and the reasons of graph breaks."""
    from torch._dynamo import utils

    return utils


def compile_id() -> str:
    """Dynamo's name of the graph being compiled, "0/0"; "" outside a compilation."""
    return str(torch._guards.CompileContext.current_compile_id() or "")


def parameter_indices(gm: GraphModule) -> frozenset[int]:
    """Which inputs of a graph from Dynamo are parameters or buffers. AOTAutograd keeps the order of the inputs."""
    inputs = gm.graph.find_nodes(op="placeholder")
    tagged = (node.meta.get("tensor_dict", {}) for node in inputs)
    return frozenset(i for i, tags in enumerate(tagged) if "_dynamo_static_input_type" in tags)


def backward_is_traced() -> bool:
    """Whether compiled autograd has Dynamo trace backward graphs once more. It breaks the graph where it meets `invoke_subgraph`
    (2.13)."""
    return bool(dynamo_config.compiled_autograd)


def cut_indices(gm: GraphModule) -> frozenset[int]:
    """Which inputs of a graph are computed in another part of the Dynamo graph that DDPOptimizer cut it from."""
    context = torch._guards.TracingContext.try_get()
    if context is None or context.ddp_optimizer_ctx is None:
        return frozenset()
    inputs = gm.graph.find_nodes(op="placeholder")
    return frozenset(i for i, node in enumerate(inputs) if "grapharg" not in node.meta)  # which every input of Dynamo's has


def partition_again(root: GraphModule, joint_graph: Graph, results: int) -> tuple[GraphModule, GraphModule]:
    """Stock's partition of what is no joint graph of AOTAutograd's, by memory traffic alone: a budget for what is kept has been
    met already."""
    from torch.fx._lazy_graph_module import _LazyGraphModule

    joint = _LazyGraphModule(root, joint_graph)  # or its code would be generated three times, for nobody to run (2.11 to 2.15)
    with functorch_config.patch(activation_memory_budget=1.0):
        return min_cut_rematerialization_partition(joint, (), num_fwd_outputs=results)


def channels_last(gm: GraphModule) -> set[Node]:
    """The nodes that Inductor will lay out channels-last, whatever their fake values say, where it lowers `gm`."""
    from torch._inductor.graph import GraphLowering

    if not GraphLowering.decide_layout_opt(gm, is_inference=False):
        return set()
    lowering: Any = types.SimpleNamespace(module=gm)
    return set(GraphLowering.find_nodes_prefer_channels_last(lowering))


def forward_outputs(graph: Graph) -> list[Node]:
    """Of the results of a joint graph, those of the forward; of any other graph, all. AOTAutograd describes each (from 2.11)."""
    from torch._functorch._aot_autograd.descriptors import GradAOTOutput

    output = graph.output_node()
    outputs: Any = output.args[0] if isinstance(output.args[0], (list, tuple)) else output.args
    describe = output.meta.get("desc") or [""] * len(outputs)
    forward = itertools.takewhile(lambda each: each is not None and not isinstance(each, GradAOTOutput), describe)
    return [node for node, _ in zip(outputs, forward) if isinstance(node, Node)]


def differentiable(graph: Graph) -> set[Node]:
    """The inputs and attributes of a graph that have a gradient: of a joint graph's those whose gradient it returns; of an
    inference graph's those that require one. None of the inputs of a higher-order operator's graph: nothing is known of them.

    AOTAutograd describes each input and result; where it unpacks a subclass, by the part and the whole (from 2.11)."""
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


def gradient_switches() -> tuple[Any, Any, Any]:
    """What switches gradients in a graph from Dynamo: a call with the new state, and the two ends of a block."""
    from torch.autograd.grad_mode import _enter_inference_mode, _exit_inference_mode

    return torch._C._set_grad_enabled, _enter_inference_mode, _exit_inference_mode


def saved(graph: Graph) -> list[Node]:
    """What a partitioned forward graph keeps for the backward, while it is compiled: its results after those the user gets."""
    context = torch._guards.TracingContext.try_get()
    outputs: Any = graph.output_node().args[0]
    if context is None or context.fw_metadata is None or isinstance(outputs, Node):  # a higher-order operator's graph
        return []
    return [node for node in outputs[context.fw_metadata.num_forward :] if isinstance(node, Node)]


def graph_break_reason(file: str, line: int) -> str:
    """Why Dynamo broke the graph at a line, in a sentence, and where that was if it was in a call made there; "" if unknown."""
    for reason in reversed(dynamo_utils().graph_break_reasons):
        stack = list(reason.user_stack)
        if any(frame.filename == file and frame.lineno == line for frame in stack):
            lines = [text.strip() for text in reason.reason.strip().splitlines()]
            explanation = next((text for text in lines if text.startswith("Explanation: ")), "").removeprefix("Explanation: ")
            inner = stack[-1]
            inside = "" if (inner.filename, inner.lineno) == (file, line) else f" (inside, at {inner.filename}:{inner.lineno})"
            return f"{lines[0]}{inside}. {explanation}".strip()
    return ""


def trace_enabled() -> bool:
    """Whether TORCH_TRACE asks for structured artifacts. (Log capture, as pytest's, is a handler too, and asks for nothing.)"""
    from torch._logging._internal import LazyTraceHandler, trace_log

    return any(isinstance(handler, LazyTraceHandler) for handler in trace_log.handlers)


def trace_artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    """A file among those that `tlparse` shows of the graph being compiled; nothing without TORCH_TRACE."""
    from torch._logging._internal import trace_structured

    if trace_enabled():
        trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=payload)


@dataclass(frozen=True)
class Kernel:
    """What Inductor launches as one: a generated kernel, or a call into a library. `origins` are the graph nodes computed there;
    `reads` and `writes` are bytes by buffer."""

    origins: frozenset[Node]
    reads: dict[str, int]
    writes: dict[str, int]


def kernels(scheduled: Sequence[Any]) -> tuple[str, list[Kernel], dict[str, frozenset[Node]]]:
    """Of the scheduler's nodes after fusion (`_post_fusion_custom_pass`): the graph's kind, its kernels, and for each buffer the
    graph nodes that made it. Counted as `GraphLowering.count_bytes` counts."""
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
        found.append(Kernel(origins, reads, writes))
    kind = "backward" if V.graph.is_backward else "inference" if V.graph.is_inference else "forward"
    return kind, found, made_by


def compiled_apart(fn: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile(fn, backend=backend)`, kept apart from other compiled versions of the same code where torch can (2.13)."""
    apart: dict[str, Any] = {"isolate_recompiles": True} if ROUNDS_ON_REQUEST else {}
    return torch.compile(fn, backend=backend, **apart)


def uncompiled(fn: Any) -> Any:
    """What `torch.compile` or `Module.compile` was given, where `fn` is what it returned or changed; else `fn`."""
    if isinstance(fn, torch.nn.Module):
        fn = getattr(fn, "_orig_mod", fn)
        return fn._call_impl if getattr(fn, "_compiled_call_impl", None) is not None else fn
    return getattr(fn, "_torchdynamo_orig_callable", fn)


def inductor_ir() -> tuple[Any, Any, Any, Any]:
    """(`ir`, `ops`, `lowerings`, `register_lowering`), imported late: it starts Inductor, which takes seconds."""
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings, register_lowering
    from torch._inductor.virtualized import ops

    return ir, ops, lowerings, register_lowering


def is_stored(x: Any) -> bool:
    """Whether an Inductor value is read from memory for certain: a graph input, or the result of a kernel that is not generated
    and so not fused. Any other buffer may reach its reader in a register."""
    from torch._inductor import ir

    while isinstance(x, (ir.TensorBox, ir.StorageBox, ir.BaseView)):
        x = x.data
    return isinstance(x, (ir.InputBuffer, ir.ExternKernel))


def run_after(x: Any, effects: Sequence[Any], turn: str) -> None:
    """Have the scheduler compute an Inductor value after `effects`, and call what they draw from or mutate, though nothing else
    reads it. A generated kernel among `effects` may be dead: what it did besides its value was done by the library calls that it
    reads, such as the one that takes seeds from the generator. `turn` is the entry of `node.meta` that orders such calls."""
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
    # Calls with a turn in that order. (2.11 moves a random operator next to what reads it.)
    origins = [(each.get_origin_node(), each) for each in V.graph.operations if isinstance(each, ir.FallbackKernel)]
    turns = [(node.meta[turn], each) for node, each in origins if node is not None and turn in node.meta]
    for (_, earlier), (_, later) in itertools.pairwise(sorted(turns, key=lambda each: each[0])):
        V.graph.additional_buffer_deps[later.get_operation_name()].add(earlier.get_name())


@functools.cache
def _reader() -> Any:
    """A kernel that reads its inputs, is never dead, and has no code, as `ir.AssertScalar` (2.11 to 2.15). Until 2.14,
    `V.graph.additional_star_deps` would do."""
    from torch._inductor import ir

    class Reader(ir.ExternKernel):
        def should_allocate(self) -> bool:
            return False

        def has_side_effects(self) -> bool:
            return True

        def codegen(self, wrapper: Any) -> None:
            pass

    return Reader


def narrowed_to(ops: Any, x: Any, dtype: torch.dtype) -> Any:
    """`x`, held in fp32 by a C++ kernel, as a variable of the 16-bit `dtype`.

    The C++ backend remembers what a 16-bit variable was cast from, and gives that back when the variable is cast up again. Since
    2.13 it does not where `use_compute_types=False`, but the same cast may have been made before, for a store: multiplied by 1,
    which costs no instruction, it is a cast of its own.
    """
    return ops.to_dtype(ops.mul(x, ops.constant(1.0, torch.float32)), dtype, use_compute_types=False)


def rounded_to(ops: Any, x: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """`x`, held in fp32 by an Inductor kernel, rounded to the 16-bit `dtype` and held in fp32 again. Before 2.13 the C++ backend
    gives `x` itself back, whatever was asked for; it does not know of the way through fp64."""
    if device.type != "cpu":
        return ops.to_dtype(ops.to_dtype(x, dtype, use_compute_types=False), torch.float32)
    x = narrowed_to(ops, x, dtype)
    return ops.to_dtype(x if ROUNDS_ON_REQUEST else ops.to_dtype(x, torch.float64), torch.float32)


def settled(ops: Any, x: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """`x`, a number of `dtype` held by an Inductor kernel, but no longer a product: LLVM and ptxas make one instruction of a
    product and the sum that reads it, which does not round the product. To add -0.0 changes no number. ptxas contracts no
    addition with `.rn`, and looks through a `mov`; `libdevice.add_rn` flushes subnormals. For AMD there is LLVM alone, which
    looks into no assembly: there it is empty."""
    if device.type != "cuda" or inductor_config.cuda_backend != "triton":
        return x
    wide = dtype == torch.float64
    if torch.version.hip:
        asm, constraints = "", "=v,0"
    elif wide:
        asm, constraints = "add.rn.f64 $0, $1, 0d8000000000000000;", "=d,d"
    else:
        asm, constraints = "add.rn.f32 $0, $1, 0f80000000;", "=f,f"
    return ops.inline_asm_elementwise(x, asm=asm, constraints=constraints, dtype=dtype if wide else torch.float32)


def stores_narrowed(device: torch.device) -> bool:
    """Whether generated code for `device` stores what `narrowed_to` makes as it is, and gives readers no more (2.13 on)."""
    return device.type == "cpu" and ROUNDS_ON_REQUEST


def lowered_node() -> Node:
    """The node that Inductor lowers at this moment."""
    from torch._inductor.virtualized import V

    node: Node = V.graph.current_node
    return node


def rounds_products(device: torch.device) -> bool:
    """Whether generated code for `device` rounds `x * y` in `x * y - z`, and makes no fused multiply-add of it (2.11 to 2.15)."""
    cpp = inductor_config.cpp
    return device.type == "cpu" and inductor_config.cpu_backend == "cpp" and cpp.enable_floating_point_contract_flag == "off"


@contextlib.contextmanager
def compiling_alone() -> Iterator[None]:
    """Compile as a test must: every pass runs (a graph from a cache has met none), nothing falls back to eager because the same
    code was compiled too often, and under Inductor too random operators draw eager's numbers and 16-bit results are rounded where
    eager rounds them. Inductor else decides that anew in each kernel it fuses, so that no two graphs compare: a last bit becomes
    a step in a quantiser. (On a GPU this forbids fused multiply-adds too: only generated code shows what `settled` does.)"""
    check((*SETTINGS, *TESTING))
    with (
        functorch_config.patch(enable_autograd_cache=False),
        inductor_config.patch(fx_graph_cache=False, fallback_random=True, emulate_precision_casts=True),
        dynamo_config.patch(recompile_limit=1 << 16, accumulated_recompile_limit=1 << 16),
    ):
        yield


def fake_inputs(*shapes: tuple[int, ...]) -> list[Any]:
    """Fake float32 tensors of these shapes, on the CPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv()):
        return [torch.ones(shape) for shape in shapes]


def lower(gm: GraphModule, like: Any) -> None:
    """Have Inductor lower and schedule a graph with fake values, of the fake mode of `like`, and generate no code."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    inputs = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
    lowering = GraphLowering(gm, example_inputs=inputs, shape_env=like.fake_mode.shape_env)
    with V.set_fake_mode(like.fake_mode), V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
        lowering.run(*inputs)
        lowering._update_scheduler()


def joint_graph(fn: Callable[..., Any], args: tuple[Any, ...]) -> GraphModule:
    """AOTAutograd's joint graph of a function that neither mutates an input nor returns one; it raises a RuntimeError else. Nodes
    keep what `torch.fx.traceback.current_meta` says when they are made."""
    from torch._functorch.aot_autograd import aot_export_joint_simple

    with torch.fx.traceback.preserve_node_meta():
        joint: Any = aot_export_joint_simple(fn, args, trace_joint=True)
    assert isinstance(joint, GraphModule)
    return joint
