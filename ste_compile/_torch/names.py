"""Which private names are needed, for what, and what happens on a torch that lacks one. Read against 2.11, 2.13, 2.14 and 2.15.

    what every backend needs    `imports`, `SETTINGS`, `INDUCTOR`    a backend raises one error that says so (`check`)
    what one feature needs      `FEATURES`                           the compile goes on without it, with one warning (`can`)

A name is written "module:path". In a path, "()" is an instance of the class: some attributes are set by `__init__` alone.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule
from torch.torch_version import TorchVersion

from .imports import LACKING

OLDEST, NEWEST = "2.11", "2.15"  # on a newer torch, `ste_compile.trial` first tries each feature on a tiny graph

# What a backend needs besides `imports`.
SETTINGS = (
    "torch._dynamo.config:compiled_autograd",
    "torch._inductor.config:joint_custom_pre_pass",
    "torch._inductor.config:post_grad_custom_pre_pass",
)
# What the lowerings of this package's operators need. It is looked up inside a compile: importing it takes seconds.
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
# What `ste_compile.testing` needs besides.
TESTING = (
    "torch._dynamo.config:accumulated_recompile_limit",
    "torch._dynamo.config:recompile_limit",
    "torch._functorch.aot_autograd:aot_export_joint_simple",
    "torch._functorch.config:enable_autograd_cache",
    "torch._inductor.config:emulate_precision_casts",
    "torch._inductor.config:fallback_random",
    "torch._inductor.config:fx_graph_cache",
    "torch.utils._python_dispatch:TorchDispatchMode",
)
# What `python -m ste_compile run` needs besides.
RUN = (
    "torch._inductor.compile_fx:compile_fx",
    "torch._inductor.config:force_disable_caches",
    "torch._inductor.config:fx_graph_cache",
    "torch._inductor.runtime.cache_dir_utils:cache_dir",
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
            "torch._inductor.graph:GraphLowering().layout_opt",
            "torch._inductor.utils:is_mkldnn_bf16_supported",
            "torch._inductor.utils:is_mkldnn_fp16_supported",
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
    "suggestions": (
        "`explain(suggest=True)` suggests nothing",
        (
            "torch._dynamo.backends.distributed:DDPOptimizer",
            "torch._dynamo.config:accumulated_recompile_limit",
            "torch._dynamo.config:optimize_ddp",
            "torch._dynamo.config:recompile_limit",
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
# feature -> how it failed its trial (`ste_compile.trial`); the feature "" is the lowering of this package's operators.
failed: dict[str, str] = {}


def check(names: Sequence[str] = SETTINGS) -> None:
    """Raise a `RuntimeError` where this torch is too old, lacks one of `imports` or of `names`, or failed to lower this package's
    operators. To be called before anything that needs them."""
    lacking = LACKING or next(filter(None, map(_missing, names)), "")
    said = f", which lacks a private name: {lacking}" if lacking else f", which {failed['']}" if "" in failed else ""
    if said or TorchVersion(torch.__version__) < OLDEST:
        found = f"this is torch {torch.__version__}{said}"
        raise RuntimeError(f"ste-compile needs torch {OLDEST} or newer, and has been tried up to {NEWEST}; {found}")


@functools.cache
def can(feature: str) -> bool:
    """Whether this torch has what a feature needs. Where it has not, the first call warns of what is lost."""
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


# "Class()" in a path -> how to make an instance of the class.
EMPTY: dict[str, Callable[[Any], Any]] = {
    "GraphLowering()": lambda graph_lowering: graph_lowering(_empty_graph()),
    "TracingContext()": lambda tracing_context: tracing_context(None),
}
