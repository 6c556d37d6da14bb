"""Generated CUDA code, whole: its wrapper on CPU tensors, its kernels by Triton's interpreter, what it calls in libraries by ATen.

Needs TRITON_INTERPRET=1 before triton is imported, so a process of its own. The interpreter rounds nothing on the way, knows no
fused multiply-add, and truncates to bfloat16, has no libdevice and no inline assembly: the last three are mended here. So it
shows that wrappers, regions and kernels fit together and compute the right thing; `ptx` shows how they round.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from . import kernels

HEAD = """
import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_helpers import math as tl_math
"""
FOLDER = tempfile.TemporaryDirectory()  # of kernels: the interpreter reads a function's source from its file
TILE = 1 << 14  # elements of a block in one dimension; in several, and beside a reduction, fewer
NARROW = 1 << 7
LIBDEVICE: dict[str, Callable[..., Tensor]] = {
    name: getattr(torch, name) for name in ("isnan", "isinf", "erf", "exp", "rsqrt", "sqrt", "tanh", "log", "log1p", "floor")
} | {"nearbyint": torch.round, "rint": torch.round}
ADD_RN = re.compile(r"add\.rn\.f(32|64) \$0, \$1, .*")  # of -0.0, which changes nothing: `_torch.settled`


def call_of(source: str) -> Callable[[list[Tensor]], list[Any]]:
    """The `call` of a generated module, for CPU tensors."""
    call = kernels.call_of(source, _runner)

    def interpreted(args: list[Tensor]) -> list[Any]:
        with _mended():
            return call(args)

    return interpreted


def _runner(text: str) -> Callable[..., None]:
    """What launches a kernel, over a grid and with blocks that the mask in it, or its lack, allows."""
    source = text[text.index("@triton.jit") :]
    path = Path(FOLDER.name, f"kernel_{len(os.listdir(FOLDER.name))}.py")
    path.write_text(HEAD + source)
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["libdevice"] = SimpleNamespace(**{name: _libdevice(fn) for name, fn in LIBDEVICE.items()})
    kernel = vars(module)[re.findall(r"def (\w+)\(", source)[0]]
    parameters = list(inspect.signature(kernel.fn).parameters)
    several = "YBLOCK" in parameters or "r0_index" in source

    def run(*args: Any, stream: int) -> None:
        given = dict(zip((name for name in parameters if not name.endswith("BLOCK")), args))
        blocks, grid = {}, []
        for axis in ("x", "y", "z", "r0_"):
            count, block = given.get(f"{axis}numel"), f"{axis.upper()}BLOCK"
            if count is None:
                continue
            if block in parameters:
                whole = 1 << (count - 1).bit_length() if f"{axis}index < {axis}numel" in source else count & -count
                blocks[block] = min(whole, NARROW if several and axis != "r0_" else TILE)
            if axis != "r0_":
                grid.append(-(-count // blocks.get(block, 1)))
        kernel[tuple(grid)](*args, **blocks)

    return run


def _torch(handle: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(handle.data))


def _libdevice(fn: Callable[..., Tensor]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        out = fn(*(_torch(each.handle) for each in args))
        dtype = tl.int32 if out.dtype == torch.bool else args[0].type.scalar
        data = out.numpy().astype(interpreter._get_np_dtype(dtype))
        kind = tl.block_type(dtype, list(data.shape)) if args[0].type.is_block() else dtype
        return tl.tensor(interpreter.TensorHandle(data, dtype), kind)

    return call


@contextlib.contextmanager
def _mended() -> Iterator[None]:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast: Any = builder.cast_impl

    def cast_impl(self: Any, source: Any, kind: Any) -> Any:
        there, here = source.dtype.scalar, kind.scalar
        if (there, here) == (tl.float32, tl.bfloat16):
            return handle(_torch(source).bfloat16().view(torch.int16).numpy().view(np.uint16), here)
        if (there, here) == (tl.bfloat16, tl.float32):
            return handle((np.ascontiguousarray(source.data).astype(np.uint32) << 16).view(np.float32), here)
        return cast(self, source, kind)

    def assembly(self: Any, text: str, constraints: str, values: Any, kinds: Any, *rest: Any) -> Any:
        if not ADD_RN.fullmatch(text):
            raise NotImplementedError(text)
        kind = kinds[0] if isinstance(kinds, (list, tuple)) else kinds
        return SimpleNamespace(get_result=lambda index: handle(values[0].data.copy(), kind.scalar))

    with (
        mock.patch.object(builder, "cast_impl", cast_impl),
        mock.patch.object(builder, "create_inline_asm", assembly),
        np.errstate(all="ignore"),
    ):
        yield


assert triton.knobs.runtime.interpret, "TRITON_INTERPRET=1 is to be set before triton is imported"
