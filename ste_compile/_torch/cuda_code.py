"""The code of a compiled model for a GPU that is not there: the whole of torch.compile on fake CUDA tensors.

Whatever Inductor asks of the device is answered here, for an H100, and it is stopped once the source exists. Nothing is launched.
Needs the `triton` package beside torch. Forward code alone needs no more; a backward on a CPU build of torch also needs
`cuda_guard.cpp`, built by `build_guard` and loaded ahead of torch.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from .imports import functorch_config, inductor_config
from .scheduling import POST_FUSION, Kernel, kernels

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


@dataclass(frozen=True)
class Launch:
    """One launch: of a generated kernel, or of a library's. `read` and `written` are bytes; `flops` are those of matrix products,
    convolutions and attention."""

    library: bool
    read: int
    written: int
    flops: int


@dataclass(frozen=True)
class CudaCode:
    """The module that Inductor generates for a graph. `kind` is "forward", "backward" or "inference". `arguments` name what its
    `call` is given: a parameter or buffer of the model by its name, an input of it "input 0", a result of the forward "result 0",
    what else the backward is given "tangent"; `results` counts what it returns. `cuda_graphs` are the reasons for which no CUDA
    graph is made of it, under a mode that would; None under any other."""

    kind: str
    source: str
    arguments: tuple[str, ...]
    results: int
    launches: tuple[Launch, ...]
    cuda_graphs: tuple[str, ...] | None


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
    """Inductor's folding of constants, which makes them on their device, on the CPU."""

    def deduced(self: Any, node: Any) -> Any:
        kwargs = node.kwargs
        if kwargs.get("device") is not None:
            node.kwargs = {**kwargs, "device": torch.device("cpu")}
        try:
            return deduce(self, node)
        finally:
            node.kwargs = kwargs

    return deduced


def cuda_code(
    build: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]],
    compiled: Callable[[nn.Module], Callable[..., Any]],
    *,
    train: bool,
    autocast: bool = True,
) -> list[CudaCode]:
    """What Inductor generates for a model on an H100, under bfloat16 `autocast` or not, in the order of its graphs: the forward
    and the backward of its result's sum, or the inference graph. `build` makes model and inputs, whose values are not read;
    `compiled` is the call of `torch.compile`. Runs in a process of its own: torch remembers whether there is a device."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: list[CudaCode] = []
    names: dict[int, str] = {}
    model, inputs = build()
    with pretended_cuda(), _captured(found, names), FakeTensorMode(allow_non_fake_inputs=True):
        _move(model)
        inputs = tuple(_like(each) for each in inputs)
        for i, each in enumerate(inputs):
            names[_storage(each)] = f"input {i}"
        for name, each in (*model.named_parameters(), *model.named_buffers()):
            names[_storage(each)] = name
        model.train(train)
        with torch.set_grad_enabled(train), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            out = compiled(model)(*inputs)
        if train:
            out.float().sum().backward()
    return found


def _like(tensor: Tensor) -> Tensor:
    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cuda:0")
    return made.requires_grad_(tensor.requires_grad)


def _move(model: nn.Module) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_like(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _like(buffer)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextlib.contextmanager
def _captured(found: list[CudaCode], names: dict[int, str]) -> Iterator[None]:
    """Note each graph's code in the place of loading it. What stands for the loaded module gives empty results."""
    from torch._inductor import output_code
    from torch._inductor.graph import GraphLowering

    kept: list[Any] = []  # a storage that is freed may come back as another's
    launches: list[Launch] = []
    reasons: list[tuple[str, ...] | None] = []  # of each graph

    def count(nodes: Any) -> Any:
        launches.extend(map(_launch, kernels(nodes)[1]))
        return nodes

    def compile_to_module(self: Any) -> Any:
        launches.clear()
        code, _ = self.codegen()
        source, seen = getattr(code, "value", code), tuple(launches)
        kind = "backward" if self.is_backward else "inference" if self.is_inference else "forward"
        values = [
            each.meta["val"] if isinstance(each, torch.fx.Node) else each for each in self.module.graph.output_node().args[0]
        ]
        number = len(reasons)
        reasons.append((self.disable_cudagraphs_reason,) if self.disable_cudagraphs_reason else None)

        def call(args: list[Any]) -> list[Any]:
            given = [names.get(_storage(each), "tangent") if isinstance(each, Tensor) else repr(each) for each in args]
            results = [_like(each) if isinstance(each, Tensor) else each for each in values]
            for i, each in enumerate(results):
                if isinstance(each, Tensor):
                    names.setdefault(_storage(each), f"result {i}")
            kept.extend((*args, *results))
            args.clear()
            found.append(CudaCode(kind, source, tuple(given), len(results), seen, reasons[number]))
            return results

        return SimpleNamespace(call=call, __file__="", runner=None, partitions=[])

    def record(inputs: Any, compiled_graph: Any, *rest: Any) -> None:
        reasons[-1] = tuple(compiled_graph.cudagraph_info.cudagraph_fail_reasons)

    with (
        mock.patch.object(GraphLowering, "compile_to_module", compile_to_module),
        mock.patch.object(output_code, "cudagraph_post_compile", record),
        mock.patch.object(output_code, "cudagraph_partition_post_compile", record),
        mock.patch.object(torch._C, "_cuda_cudaCachingAllocator_is_enabled", lambda: True, create=True),
        inductor_config.patch({POST_FUSION: count}),
        functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
    ):
        yield


def _launch(kernel: Kernel) -> Launch:
    from torch._inductor.fx_utils import count_flops_fx

    flops, written = 0, sum(kernel.writes.values())
    for node in kernel.origins if kernel.library else ():
        if node.op == "call_function" and (own := count_flops_fx(node) or 0) >= flops:
            results = node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else [node.meta["val"]]
            flops, whole = own, sum(each.nbytes for each in results if isinstance(each, Tensor))
            written = written or whole
    return Launch(kernel.library, sum(kernel.reads.values()), written, flops)
