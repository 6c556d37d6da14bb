"""Inductor's lowerings: what `ste_compile.lowering` needs to generate code that rounds where eager does.

`x` is a value inside a generated kernel, which holds 16-bit numbers in fp32; `ops` is Inductor's handler of operations on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.torch_version import TorchVersion

from .imports import inductor_config

# Whether a C++ kernel rounds to 16 bits where a lowering asks for it, and not only where it stores.
ROUNDS_ON_REQUEST = TorchVersion(torch.__version__) >= "2.13"


def inductor_ir() -> tuple[Any, Any, Any, Any]:
    """(`ir`, `ops`, `lowerings`, `register_lowering`). To import them takes seconds."""
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings, register_lowering
    from torch._inductor.virtualized import ops

    return ir, ops, lowerings, register_lowering


def lowered_node() -> Node:
    """The node that Inductor lowers at this moment."""
    from torch._inductor.virtualized import V

    node: Node = V.graph.current_node
    return node


def is_stored(x: Any) -> bool:
    """Whether a tensor of Inductor's is certain to be read from memory: a graph input, or the result of a library call, with
    which nothing is fused. Any other may be fused with its reader, and reach it in a register."""
    from torch._inductor import ir

    while isinstance(x, (ir.TensorBox, ir.StorageBox, ir.BaseView)):
        x = x.data
    return isinstance(x, (ir.InputBuffer, ir.ExternKernel))


def narrowed_to(ops: Any, x: Any, dtype: torch.dtype) -> Any:
    """`x`, held in fp32 by a C++ kernel, as a variable of the 16-bit `dtype`.

    The C++ backend remembers what a 16-bit variable was cast from, and returns that when the variable is cast up again. With
    `use_compute_types=False` it does not (from 2.13), but it reuses an equal cast, which a store may have made without. The
    product with 1, which costs no instruction, makes this cast a different one.
    """
    return ops.to_dtype(ops.mul(x, ops.constant(1.0, torch.float32)), dtype, use_compute_types=False)


def rounded_to(ops: Any, x: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """`x`, held in fp32 by a kernel, rounded to the 16-bit `dtype` and held in fp32 again. Before 2.13 the C++ backend returns
    `x` itself in place of that, unless the way back is through fp64."""
    if device.type != "cpu":
        return ops.to_dtype(ops.to_dtype(x, dtype, use_compute_types=False), torch.float32)
    x = narrowed_to(ops, x, dtype)
    return ops.to_dtype(x if ROUNDS_ON_REQUEST else ops.to_dtype(x, torch.float64), torch.float32)


def stores_narrowed(device: torch.device) -> bool:
    """Whether a kernel for `device` stores what `narrowed_to` makes as it is, and gives a fused reader no unrounded number
    (from 2.13)."""
    return device.type == "cpu" and ROUNDS_ON_REQUEST


def settled(ops: Any, x: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """`x`, a number of `dtype`, behind an instruction that changes no number, so that no compiler knows it for a product.

    LLVM and ptxas make one FMA of a product and the sum that reads it, and the product is not rounded. For CUDA the instruction
    adds -0.0: ptxas contracts no addition with `.rn`, but looks through a `mov`; `libdevice.add_rn` would flush subnormals. On
    AMD there is only LLVM, which does not look into inline assembly: an empty statement is enough."""
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


def rounds_products(device: torch.device) -> bool:
    """Whether generated code for `device` rounds `x * y` in `x * y - z`, and makes no FMA of it (2.11 to 2.15)."""
    cpp = inductor_config.cpp
    return device.type == "cpu" and inductor_config.cpu_backend == "cpp" and cpp.enable_floating_point_contract_flag == "off"


def convolved(input: Any, weight: Any, *arguments: Any) -> Any:
    """Inductor's convolution of two tensors as contiguous ones, whatever its layout optimisation does with others (2.11 to 2.15:
    `layout_opt` of the graph being lowered decides)."""
    from torch._inductor.virtualized import V

    ir, _, lowerings, _ = inductor_ir()
    before = V.graph.layout_opt
    V.graph.layout_opt = False
    try:
        for each in (input, weight):
            each.realize()  # else it would be copied
        operands = [ir.ExternKernel.require_contiguous(each) for each in (input, weight)]
        return lowerings[torch.ops.aten.convolution.default](*operands, *arguments)
    finally:
        V.graph.layout_opt = before
