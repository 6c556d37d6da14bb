"""An H100 that is not there, for code that is generated and not run: whatever Inductor asks of the device is answered here.

Needs the `triton` package beside torch. Forward code alone needs no more; a backward on a CPU build of torch also needs
`cuda_guard.cpp`, built by `build_guard` and loaded ahead of torch.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from .imports import inductor_config

H100 = SimpleNamespace(
    name="H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    L2_cache_size=50 << 20,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    gcnArchName="",
)


def build_guard(folder: Path) -> Path:
    """Compile `cuda_guard.cpp` for the installed torch; a RuntimeError with the compiler's words where that fails."""
    library, root = folder / "cuda_guard.so", Path(torch.__file__).parent
    if shutil.which("g++") is None:
        raise RuntimeError("a stand-in for CUDA is compiled by g++, which is not there")
    command = ["g++", "-shared", "-fPIC", "-std=c++20", *(f"-I{root}/include{sub}" for sub in ("", "/torch/csrc/api/include"))]
    command += [str(Path(__file__).with_name("cuda_guard.cpp")), "-o", str(library), f"-L{root}/lib", "-lc10", "-ltorch_cpu"]
    done = subprocess.run([*command, f"-Wl,-rpath,{root}/lib"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"no stand-in for CUDA can be built for torch {torch.__version__}: {done.stderr[-2000:]}")
    return library


@contextlib.contextmanager
def pretended_cuda() -> Iterator[None]:
    """Answer for an H100 whatever is asked of the device while code is generated (2.11 to 2.15)."""
    import torch.utils._triton as torch_triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.fx_passes import joint_graph
    from torch._subclasses import fake_tensor
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    answers = {
        "is_available": True,
        "is_initialized": False,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "get_device_properties": H100,
        "get_device_capability": (H100.major, H100.minor),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "_lazy_init": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "_get_device_properties": H100,
    }
    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda"),
    )
    folder: Any = joint_graph.UniformValueConstantFolder
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *a, answer=answer, **k: answer, create=True))
        for owner, name, replacement in (
            (CudaInterface, "get_compute_capability", staticmethod(lambda *a: 90)),
            (CudaInterface, "is_available", staticmethod(lambda *a: True)),
            (torch_triton, "triton_hash_with_backend", lambda: "none"),
            (driver, "_active", target),
            (folder, "_deduce_value", _on_cpu(folder._deduce_value)),
            (joint_graph, "lazy_init", lambda *a: None),
            (fake_tensor, "init_gpu_context", lambda device: None),  # a CUDA build's (2.11)
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement, create=True))
        stack.enter_context(inductor_config.patch(force_disable_caches=True, compile_threads=1, shape_padding=False))
        yield


def _on_cpu(deduce: Callable[..., Any]) -> Callable[..., Any]:
    """Inductor's constant folding creates a constant on its device to learn its value. This lets it do so on the CPU."""

    def deduced(self: Any, node: Any) -> Any:
        kwargs = node.kwargs
        if kwargs.get("device") is not None:
            node.kwargs = {**kwargs, "device": torch.device("cpu")}
        try:
            return deduce(self, node)
        finally:
            node.kwargs = kwargs

    return deduced
