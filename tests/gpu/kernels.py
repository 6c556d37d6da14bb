"""Generated CUDA code, run without a GPU: the wrapper on CPU tensors as it is, its kernels as PTX by `ptx.run`."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._inductor.runtime import triton_heuristics
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

from . import ptx

KERNEL = re.compile(r"^(\w+) = async_compile\.triton\('(\w+)', '''(.*?)'''[^\n]*$", re.M | re.S)
DROPPED = re.compile(r"^(?:from torch\._C import _cuda_|async_compile\.wait|del async_compile|empty_strided_cuda = ).*$", re.M)
# Two elements a thread: 16-bit values come in pairs, as with more, and all dtypes lie alike, so that none go by shared memory.
BLOCK, WARPS = 256, 4


def call_of(source: str, launcher: Callable[[str], Callable[..., None]]) -> Callable[[list[Tensor]], list[Any]]:
    """The `call` of a generated module, for CPU tensors, with its own checks of sizes and strides. `launcher` makes of a kernel's
    source what runs it."""
    body = DROPPED.sub("", KERNEL.sub("", source)).replace("device='cuda:0'", "device='cpu'")
    names: dict[str, Any] = {
        "__name__": "generated",
        "get_raw_stream": lambda index: 0,
        "empty_strided_cuda": lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype),
    }
    names |= {name: SimpleNamespace(run=launcher(text)) for name, text in kernels(source).items()}
    exec(compile(body, "generated", "exec"), names)

    def call(args: list[Tensor]) -> list[Any]:
        with (
            mock.patch.object(torch.cuda, "_DeviceGuard", contextlib.nullcontext),
            mock.patch.object(torch.cuda, "set_device", lambda index: None),
            torch.no_grad(),
        ):
            return list(names["call"](list(args)))

    return call


def outputs(source: str, capability: int, args: list[Tensor]) -> list[Tensor]:
    """What a generated module returns, its kernels executed as PTX."""
    return call_of(source, lambda text: functools.partial(_launch, compiled(text, capability)))(args)


def kernels(source: str) -> dict[str, str]:
    """The source of each kernel, by the name that the wrapper calls it by."""
    return {name: text for name, _, text in KERNEL.findall(source)}


@functools.lru_cache(None)
def compiled(text: str, capability: int) -> str:
    """The PTX of a pointwise kernel for `sm_{capability}`."""
    with _ptx_alone():
        return compile_for(text, GPUTarget("cuda", capability, 32)).asm["ptx"]


def compile_for(text: str, target: GPUTarget) -> Any:
    kernel, meta = _jitted(text)
    options = {"num_warps": WARPS}
    if "enable_fp_fusion" in meta:
        options["enable_fp_fusion"] = meta["enable_fp_fusion"]
    return triton.compile(
        ASTSource(kernel, meta["signature"], {"XBLOCK": BLOCK}, meta["configs"][0]), target=target, options=options
    )


def _jitted(text: str) -> tuple[Any, dict[str, Any]]:
    """The Triton function in a kernel's source, and what Inductor tells Triton of its arguments."""
    found: list[Any] = []

    def heuristic(**settings: Any) -> Callable[[Any], Any]:
        return lambda kernel: found.append((kernel, settings["triton_meta"]))

    with tempfile.TemporaryDirectory() as folder:  # Triton reads a function's source from its file
        path = Path(folder, "kernel.py")
        path.write_text(text.replace("triton_helpers.set_driver_to_gpu()", ""))
        spec: Any = importlib.util.spec_from_file_location("kernel", path)
        with mock.patch.object(triton_heuristics, "pointwise", heuristic):
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    ((kernel, meta),) = found
    return kernel, meta


@contextlib.contextmanager
def _ptx_alone() -> Iterator[None]:
    """Triton, stopped ahead of ptxas, and with no cache on disk."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict("os.environ", TRITON_CACHE_DIR=folder),
        mock.patch.object(CUDABackend, "make_cubin", lambda *args: b""),
    ):
        yield


def _launch(text: str, *args: Any, stream: int) -> None:
    ptx.run(text, list(args), -(-args[-1] // BLOCK))
