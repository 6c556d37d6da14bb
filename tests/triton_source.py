"""The Triton code Inductor generates for an H100, on a machine without a GPU: whatever it asks of the device is answered here, and
it is stopped once the source exists. Needs the `triton` package beside torch; nothing is launched."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._inductor.config as inductor_config
import torch.utils._triton as torch_triton
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ste_compile import lowering
from ste_compile.hooks import run_joint, run_post_grad

H100 = SimpleNamespace(
    name="H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    L2_cache_size=50 << 20,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    gcnArchName="",
)


class _Generated(Exception):
    pass


@contextlib.contextmanager
def _h100() -> Iterator[None]:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": H100,
        "get_device_capability": (9, 0),
        "_lazy_init": None,
        "synchronize": None,
        "set_device": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "_get_device_properties": H100,
    }
    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0)
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *a, answer=answer: answer, create=True))
        stack.enter_context(mock.patch.object(CudaInterface, "get_compute_capability", staticmethod(lambda *a: 90)))
        stack.enter_context(mock.patch.object(CudaInterface, "is_available", staticmethod(lambda *a: True)))
        stack.enter_context(mock.patch.object(torch_triton, "triton_hash_with_backend", lambda: "none"))
        stack.enter_context(mock.patch.object(driver, "_active", target))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda device: None))  # a CUDA build's (2.11)
        stack.enter_context(inductor_config.patch(force_disable_caches=True, compile_threads=1))
        folder = stack.enter_context(
            tempfile.TemporaryDirectory()
        )  # which torch would leave behind, as it is stopped by an error
        stack.enter_context(mock.patch.dict("os.environ", TORCHINDUCTOR_CACHE_DIR=folder))
        yield


def triton_source(fn: Callable[..., Any], specs: Sequence[tuple[Any, torch.dtype]], numerics: str | None) -> str:
    """What Inductor generates for `fn` in inference, with the passes at a level or without: the kernels, without their tuning
    metadata, and the calls, in order."""
    return _essence(whole_source(fn, specs, numerics))


def whole_source(fn: Callable[..., Any], specs: Sequence[tuple[Any, torch.dtype]], numerics: str | None) -> str:
    """The module that Inductor generates for `fn`, the same way."""
    sources: list[str] = []

    def codegen(self: Any) -> Any:
        code = original(self)[0]
        sources.append(getattr(code, "value", code))
        raise _Generated

    original = GraphLowering.codegen
    lowering.register()
    with _h100(), mock.patch.object(GraphLowering, "codegen", codegen), FakeTensorMode():
        args = [torch.empty(shape, dtype=dtype, device="cuda") for shape, dtype in specs]
        gm = make_fx(lambda *a: out if isinstance(out := fn(*a), tuple) else (out,), decomposition_table=select_decomp_table())(
            *args
        )
        if numerics:
            run_joint(gm.graph, numerics)
            gm.graph.eliminate_dead_code()
            gm.recompile()
        try:
            with inductor_config.patch(post_grad_custom_pre_pass=run_post_grad if numerics else None):
                compile_fx_inner(gm, args)
        except Exception:
            if not sources:
                raise
    return sources[0]


def _essence(source: str) -> str:
    kernels = re.findall(r"@triton\.jit\n(.*?)\n'''", source, re.DOTALL)
    calls = [line.strip() for line in source.splitlines() if re.search(r"\.run\(|= extern_kernels\.|extern_kernels\.\w+\(", line)]
    return "\n\n".join([*kernels, "\n".join(calls)])
