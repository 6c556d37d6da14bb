"""The private names that every backend needs, imported with the package.

Where this torch lacks one of them the package imports all the same: a model may call `ste_forward` in eager, which needs none.
`LACKING` then says what is missing, and `names.check` raises it when a backend is called. The names are placeholders then.
"""

from __future__ import annotations

try:
    from torch import _TorchCompileInductorWrapper as InductorBackend  # wraps, checks and merges Inductor's `mode` and `options`
    from torch._dynamo import config as dynamo_config
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch import config as functorch_config
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor import config as inductor_config
    from torch._inductor.custom_graph_pass import CustomGraphPass
    from torch.utils import _pytree as pytree
except ImportError as error:
    LACKING = str(error)
    InductorBackend = None  # type: ignore[assignment, misc]
    aot_autograd = min_cut_rematerialization_partition = None  # type: ignore[assignment]
    dynamo_config = functorch_config = inductor_config = pytree = None  # type: ignore[assignment]
    CustomGraphPass = object  # type: ignore[assignment, misc]
else:
    LACKING = ""

# Base classes of classes in ste_compile, each needed for one thing alone: the feature "regions", and `ste_compile.testing`.
try:
    from torch._inductor.custom_graph_pass import CustomPartitionerFn
except ImportError:
    CustomPartitionerFn = object  # type: ignore[assignment, misc]
try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:
    TorchDispatchMode = object  # type: ignore[assignment, misc]

__all__ = [
    "LACKING",
    "CustomGraphPass",
    "CustomPartitionerFn",
    "InductorBackend",
    "TorchDispatchMode",
    "aot_autograd",
    "dynamo_config",
    "functorch_config",
    "inductor_config",
    "min_cut_rematerialization_partition",
    "pytree",
]
