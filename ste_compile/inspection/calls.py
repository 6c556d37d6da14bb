"""One call of the user's function, compiled for this call alone: what `explain` measures. The caller's state is afterwards as it
was.

run            a forward, and perhaps a backward, with options of Inductor
with_passes    the same with the passes and a recorder, and what Inductor makes of each graph
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from .. import _torch
from ..backends import compile_with
from ..options import inductor_options
from ..passes.levels import Rules
from ..state import modules_of, state_kept
from .figures import NOT_MEASURED, Figures
from .record import Recorder, recording

Compiled = Callable[..., Any]
# Called with the number of a graph from Dynamo, from 0 on, and the graph, which it may change. Where the changed graph returns
# less than the code after it expects, it returns a wrapper for the compiled graph.
Change = Callable[[int, GraphModule], Callable[[Compiled], Compiled] | None]


@dataclass(frozen=True)
class Call:
    """A function, and what to call it with."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


def with_passes(
    call: Call, rules: Rules, recorder: Recorder, change: Change | None = None, *, backward: bool = True, marks: bool = True
) -> None:
    """Compile and call with the passes at these levels: `recorder` then has its graphs, kernels and bytes among their figures.
    Without `marks` no detach marker is made: as through `inductor_options`."""
    meter = Meter()
    options = {**inductor_options(numerics=rules), **after_fusion(meter.scheduled)}
    with recording(recorder):
        run(call, options, change, backward=backward, marks=marks)
    for each in recorder.records:
        for kind, counted in each.parts.items():
            each.parts[kind] = counted | meter.totals.get((each.compilation, kind), NOT_MEASURED)


def run(call: Call, options: dict[str, Any], change: Change | None = None, *, backward: bool = True, marks: bool = True) -> None:
    """One forward, and one backward where that is asked for, compiled for this call alone."""
    numbers = itertools.count()

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        wrap = change(next(numbers), gm) if change else None
        compiled = compile_with(gm, inputs, options, marks=marks)
        return wrap(compiled) if wrap else compiled

    called(call, backend, backward=backward)


def called(call: Call, backend: Callable[..., Any], *, backward: bool = False) -> None:
    """As `run`, with any backend of `torch.compile`."""
    args, kwargs = _torch.pytree.tree_map_only(Tensor, _own_graph, (call.args, call.kwargs))
    with kept(call.fn, args, kwargs):
        outputs = _torch.pytree.tree_leaves(_torch.compiled_apart(call.fn, backend)(*args, **kwargs))
        if not backward:
            return
        outputs = [t for t in outputs if isinstance(t, Tensor) and t.grad_fn is not None]
        if leaves := _leaves(outputs):  # `grad`, not `backward`: it neither accumulates nor calls the hooks on accumulation
            torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs], allow_unused=True)


def _own_graph(tensor: Tensor) -> Tensor:
    """A tensor whose gradient does not lead into the caller's graph, which one backward would use up."""
    return tensor.detach().requires_grad_() if tensor.requires_grad and not tensor.is_leaf else tensor


def _leaves(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The leaves that `outputs` depend on."""
    found, stack, seen = [], [t.grad_fn for t in outputs], set()
    while stack:
        function = stack.pop()
        if function is not None and function not in seen:
            seen.add(function)
            found += [function.variable] if hasattr(function, "variable") else []
            stack += [below for below, _ in function.next_functions]
    return found


def kept(fn: Callable[..., Any], args: Any, kwargs: Any) -> contextlib.AbstractContextManager[None]:
    """Whatever a call of `fn` with these arguments may change is afterwards as it was."""
    leaves = _torch.pytree.tree_leaves((args, kwargs))
    modules = [*modules_of(fn).values(), *(leaf for leaf in leaves if isinstance(leaf, nn.Module))]
    return state_kept(modules, [leaf for leaf in leaves if isinstance(leaf, Tensor)])


def plain(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The method as a plain function: Inductor deep-copies its config (2.13), which copies a bound method's object as well."""
    return lambda argument: method(argument)


def after_fusion(look: Callable[[Any], Any]) -> dict[str, Any]:
    return {_torch.POST_FUSION: plain(look)} if _torch.can("counts") else {}


class Meter:
    """What Inductor makes of each graph, by (compilation, kind)."""

    def __init__(self) -> None:
        self.totals: dict[tuple[Any, str], Figures] = {}

    def scheduled(self, nodes: Sequence[Any]) -> Sequence[Any]:
        """As Inductor's post-fusion pass: look, and change nothing."""
        kind, kernels, _ = _torch.kernels(nodes)
        key, amount = (_torch.compilation(), kind), traffic(kernels)
        self.totals[key] = self.totals[key] + amount if key in self.totals else amount  # a region is a graph of its own
        return nodes


def traffic(kernels: Sequence[_torch.Kernel]) -> Figures:
    read, written = (sum(sum(getattr(kernel, side).values()) for kernel in kernels) for side in ("reads", "writes"))
    return Figures(kernels=len(kernels), bytes_read=read, bytes_written=written)
