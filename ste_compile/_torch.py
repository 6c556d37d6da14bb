"""The private torch modules this package stands on; no other file imports one. Read against 2.11, 2.13 and 2.14.

A name that moves between versions is mended here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import config as inductor_config
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

ROUNDS_ON_REQUEST = torch.torch_version.TorchVersion(torch.__version__) >= "2.13"

# What `torch.compile(backend="inductor")` wraps its `mode` and `options` in: checks them, and merges them into a config.
InductorBackend = torch._TorchCompileInductorWrapper

__all__ = [
    "CustomGraphPass",
    "InductorBackend",
    "aot_autograd",
    "get_hash_for_files",
    "inductor_config",
    "inductor_ir",
    "is_stored",
    "min_cut_rematerialization_partition",
    "rounded_to",
]


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


def rounded_to(ops: Any, x: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """`x`, held in fp32 by an Inductor kernel, rounded to the 16-bit `dtype` and held in fp32 again.

    The C++ backend remembers what a 16-bit variable was cast from, and gives that back when the variable is cast up again. Since
    2.13 it does not where `use_compute_types=False`, but the same cast may have been made before, for a store: multiplied by 1,
    which costs no instruction, it is a cast of its own. Before 2.13 it always does; it does not know of the way through fp64.
    """
    if device.type != "cpu":
        return ops.to_dtype(ops.to_dtype(x, dtype, use_compute_types=False), torch.float32)
    x = ops.to_dtype(ops.mul(x, ops.constant(1.0, torch.float32)), dtype, use_compute_types=False)
    return ops.to_dtype(x if ROUNDS_ON_REQUEST else ops.to_dtype(x, torch.float64), torch.float32)
