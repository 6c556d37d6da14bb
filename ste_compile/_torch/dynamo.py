"""Dynamo: the graph it captures, and the functions that `torch.compile` returns."""

from __future__ import annotations

import contextlib
import logging
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule
from torch.torch_version import TorchVersion

from .imports import dynamo_config


def compile_id() -> str:
    """Dynamo's name of the graph being compiled, "0/0"; "" outside a compilation."""
    return str(torch._guards.CompileContext.current_compile_id() or "")


def parameter_indices(gm: GraphModule) -> frozenset[int]:
    """Which inputs of a graph from Dynamo are parameters or buffers. AOTAutograd keeps the order of the inputs."""
    inputs = gm.graph.find_nodes(op="placeholder")
    tagged = (node.meta.get("tensor_dict", {}) for node in inputs)
    return frozenset(i for i, tags in enumerate(tagged) if "_dynamo_static_input_type" in tags)


def cut_indices(gm: GraphModule) -> frozenset[int]:
    """Which inputs of a graph are computed in another part of the graph from Dynamo: DDPOptimizer cut it in several."""
    context = torch._guards.TracingContext.try_get()
    if context is None or context.ddp_optimizer_ctx is None:
        return frozenset()
    inputs = gm.graph.find_nodes(op="placeholder")
    return frozenset(i for i, node in enumerate(inputs) if "grapharg" not in node.meta)  # Dynamo's own inputs have one


def backward_is_traced() -> bool:
    """Whether compiled autograd is on: Dynamo then traces the backward once more, and breaks the graph at an `invoke_subgraph`
    (2.13)."""
    return bool(dynamo_config.compiled_autograd)


def recompiling() -> contextlib.AbstractContextManager[None]:
    """Inside, the same code may be compiled any number of times: the limits on recompiles are raised. (Before torch 2.13 each
    `compiled_apart` of it counts as one more recompile.)"""
    patched: contextlib.AbstractContextManager[None] = dynamo_config.patch(
        recompile_limit=1 << 16, accumulated_recompile_limit=1 << 16
    )
    return patched


def gradient_switches() -> tuple[Any, Any, Any]:
    """What switches gradients in a graph from Dynamo: the call that sets grad mode, and those that enter and leave inference
    mode."""
    from torch.autograd.grad_mode import _enter_inference_mode, _exit_inference_mode

    return torch._C._set_grad_enabled, _enter_inference_mode, _exit_inference_mode


def compiled_apart(fn: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile(fn, backend=backend)`, kept apart from other compiled versions of the same code where torch can do that
    (from 2.13)."""
    apart: dict[str, Any] = {"isolate_recompiles": True} if TorchVersion(torch.__version__) >= "2.13" else {}
    return torch.compile(fn, backend=backend, **apart)


def uncompiled(fn: Any) -> Any:
    """The original of `fn`, where `torch.compile` returned `fn` or `Module.compile` changed it; else `fn` itself."""
    if isinstance(fn, torch.nn.Module):
        fn = getattr(fn, "_orig_mod", fn)
        return fn._call_impl if getattr(fn, "_compiled_call_impl", None) is not None else fn
    return getattr(fn, "_torchdynamo_orig_callable", fn)


def without_buckets() -> contextlib.AbstractContextManager[None]:
    """Inside, DDPOptimizer cuts no graph."""
    patched: contextlib.AbstractContextManager[None] = dynamo_config.patch(optimize_ddp=False)
    return patched


def buckets(gm: GraphModule, cap: int) -> list[tuple[int, set[str]]]:
    """How DDPOptimizer would cut a graph from Dynamo, first part first: of each bucket the bytes of its parameters, and the names
    of its nodes. `cap` is DDP's `bucket_bytes_cap`.

    DDPOptimizer notes the buckets before it cuts the graph. The cut fails here, since it is given no `GraphModule` but a stand-in
    with the same nodes; the buckets are known by then (2.11 to 2.15)."""
    from torch._dynamo.backends.distributed import DDPOptimizer

    backend: Any = lambda *args, **kwargs: None  # noqa: E731
    optimizer: Any = DDPOptimizer(cap, backend)
    log = logging.getLogger(DDPOptimizer.__module__)
    looked_at = types.SimpleNamespace(graph=gm.graph, get_submodule=gm.get_submodule)
    disabled, log.disabled = log.disabled, True  # it warns of each odd bucket
    try:
        with contextlib.suppress(Exception):
            optimizer.compile_fn(looked_at, [])
    finally:
        log.disabled = disabled
    return [(bucket.size, {node.name for node in bucket.nodes}) for bucket in optimizer.buckets]
