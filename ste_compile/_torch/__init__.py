"""All that ste_compile uses of private torch. Nothing outside this package imports it or reaches into it.

*Private* is a module of torch with a part of its path that begins with an underscore (`torch._inductor.config`,
`torch.utils._pytree`), and whatever is reached through such a part (`torch._guards.TracingContext`, `torch._C`). An operator is
not, whatever its name: `torch.ops.aten._to_copy` is in the schema that torch publishes.

imports      what every backend needs, imported with the package
names        which names are needed, for what; `check` and `can` look them up
dynamo       Dynamo's graphs, and what `torch.compile` returns
aot          AOTAutograd's joint graphs, its partitioner, the context of a compilation
lowering     what the lowerings of this package's operators need of Inductor
scheduling   Inductor's layouts, kernels, and their order
logs         graph breaks, and the artifacts of TORCH_TRACE
run          for `python -m ste_compile run`
testing      for `ste_compile.testing` and `ste_compile.trial`
cuda_code        the code that Inductor generates for a GPU that is not there
pretended_cuda   the answers of that GPU; only `ste_compile.testing.gpu` imports these two

Differences between versions of torch are dealt with here. What one feature needs is imported in the function that uses it, and
only after `can` has found it; so are Inductor's lowerings, which take seconds to import. A module that uses this package calls
`_torch.name`, through this namespace: tests replace a name here.
"""

from __future__ import annotations

from .aot import compilation, context, differentiable, forward_outputs, partition_again, saved
from .dynamo import (
    backward_is_traced,
    buckets,
    compile_id,
    compiled_apart,
    cut_indices,
    gradient_switches,
    parameter_indices,
    recompiling,
    uncompiled,
    without_buckets,
)
from .imports import (
    CustomGraphPass,
    CustomPartitionerFn,
    InductorBackend,
    TorchDispatchMode,
    aot_autograd,
    inductor_config,
    min_cut_rematerialization_partition,
    pytree,
)
from .logs import GRAPH_BREAK_LOG, break_in_words, dynamo_utils, graph_break_reason, trace_artifact, trace_enabled
from .lowering import (
    ROUNDS_ON_REQUEST,
    convolved,
    inductor_ir,
    is_stored,
    lowered_node,
    narrowed_to,
    rounded_to,
    rounds_products,
    settled,
    stores_narrowed,
)
from .names import FEATURES, INDUCTOR, NEWEST, OLDEST, RUN, SETTINGS, TESTING, can, check, failed
from .run import compiled_by, inductor_cache
from .scheduling import POST_FUSION, Kernel, channels_last, contiguous_dtypes, kernels, run_after
from .testing import compiling_alone, fake_inputs, joint_graph, lower

__all__ = [
    "FEATURES",
    "GRAPH_BREAK_LOG",
    "INDUCTOR",
    "NEWEST",
    "OLDEST",
    "POST_FUSION",
    "ROUNDS_ON_REQUEST",
    "RUN",
    "SETTINGS",
    "TESTING",
    "CustomGraphPass",
    "CustomPartitionerFn",
    "InductorBackend",
    "Kernel",
    "TorchDispatchMode",
    "aot_autograd",
    "backward_is_traced",
    "break_in_words",
    "buckets",
    "can",
    "channels_last",
    "check",
    "compilation",
    "compile_id",
    "compiled_apart",
    "compiled_by",
    "compiling_alone",
    "context",
    "contiguous_dtypes",
    "convolved",
    "cut_indices",
    "differentiable",
    "dynamo_utils",
    "failed",
    "fake_inputs",
    "forward_outputs",
    "gradient_switches",
    "graph_break_reason",
    "inductor_cache",
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
    "pytree",
    "recompiling",
    "rounded_to",
    "rounds_products",
    "run_after",
    "saved",
    "settled",
    "stores_narrowed",
    "trace_artifact",
    "trace_enabled",
    "uncompiled",
    "without_buckets",
]
