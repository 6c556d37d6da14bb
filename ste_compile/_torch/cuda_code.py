"""The code of a compiled model for a GPU that is not there: the whole of torch.compile on fake CUDA tensors. It is stopped once
the source exists, and nothing is launched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from .imports import functorch_config, inductor_config
from .pretended_cuda import pretended_cuda
from .scheduling import POST_FUSION, Kernel, kernels, kind_of


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
    `call` is given: a parameter or buffer of the model by its name, an input of the model as "input 0", a result of the forward
    as "result 0", and any other tensor as "tangent"; `results` counts what it returns. Under a mode that asks for CUDA graphs,
    `cuda_graphs` are the reasons for which none is made of it; under any other mode it is None."""

    kind: str
    source: str
    arguments: tuple[str, ...]
    results: int
    launches: tuple[Launch, ...]
    cuda_graphs: tuple[str, ...] | None


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
    """Note each graph's code instead of loading it. In the place of the loaded module is one that returns fake tensors."""
    from torch._inductor import output_code
    from torch._inductor.graph import GraphLowering

    kept: list[Any] = []  # storages are told apart by address: a freed one's may be given to another
    launches: list[Launch] = []
    reasons: list[tuple[str, ...] | None] = []  # of each graph

    def count(nodes: Any) -> Any:
        launches.extend(map(_launch, kernels(nodes)[1]))
        return nodes

    def compile_to_module(self: Any) -> Any:
        launches.clear()
        code, _ = self.codegen()
        source, seen = getattr(code, "value", code), tuple(launches)
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
            found.append(CudaCode(kind_of(self), source, tuple(given), len(results), seen, reasons[number]))
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
