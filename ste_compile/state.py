"""Run someone's model, and leave it as it was."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def modules_of(fn: Callable[..., Any]) -> dict[str, nn.Module]:
    """The modules whose state a call may read or change, by the prefix of their tensors' names: `fn` itself, what it is a method
    of, and what it closes over."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, nn.Module):
        return {"": fn}
    found = {"": getattr(fn, "__self__", None)}
    cells = getattr(fn, "__closure__", None) or ()
    for name, cell in zip(getattr(getattr(fn, "__code__", None), "co_freevars", ()), cells):
        with contextlib.suppress(ValueError):  # a cell not filled yet
            found[f"{name}."] = cell.cell_contents
    return {prefix: module for prefix, module in found.items() if isinstance(module, nn.Module)}


@contextlib.contextmanager
def state_kept(modules: Collection[nn.Module], tensors: Collection[Tensor] = ()) -> Iterator[None]:
    """Attributes, parameters, buffers, gradients and training flags of `modules`, what is in `tensors`, and torch's random state
    are afterwards as they were."""
    parts = dict.fromkeys(part for module in modules for part in module.modules())
    tables = [(table, dict(table)) for part in parts for table in (part.__dict__, part._parameters, part._buffers)]
    own = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]
    held = [(t, t.data, t.grad) for t in own]
    written = {id(t): t for t in (*own, *tensors, *(grad for *_, grad in held if grad is not None))}
    contents = [(t, t.detach().clone(), _version(t)) for t in written.values()]
    copies = {id(b): b.detach().clone() for part in parts for b in part._buffers.values() if b is not None}
    for part in parts:  # buffers are written to in a forward, and a graph that waits for its backward may have saved them
        part._buffers.update({name: b if b is None else copies[id(b)] for name, b in part._buffers.items()})
    devices = {t.device for t in written.values() if t.device.type not in ("cpu", "meta")}
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([]))
            for device in devices:
                stack.enter_context(torch.random.fork_rng([device.index or 0], device_type=device.type))
            yield
    finally:
        for table, entries in tables:
            table.clear()
            table.update(entries)
        for tensor, data, grad in held:
            tensor.data, tensor.grad = data, grad
        for tensor, content, version in contents:
            if version is None or tensor._version != version:  # a needless write would invalidate a graph that waits
                with torch.no_grad():
                    tensor.copy_(content)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
