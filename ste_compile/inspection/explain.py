"""`explain`: compile a model twice, with the passes and without, and say what each site is worth.

What a site frees is read off stock's compiled graphs: the nodes that only it keeps in the forward (`passes.freed`) are marked in
stock's joint graph, and the marks are found again on the kernels, the matrix products and the saved tensors that come of them.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from .. import _torch
from ..backends import compile_with
from ..hooks import JOINT, POST_GRAD
from ..options import chained, inductor_options
from ..passes import levels
from ..passes.levels import Levels
from ..passes.meta import OWNER
from ..state import modules_of, state_kept
from .breaks import graph_breaks
from .describe import bytes_of, count, line, saved_by
from .figures import NOT_MEASURED, NOTHING, Figures
from .graph_record import STOCK, Record
from .progress import doing
from .record import Recorder, recording
from .report import Report
from .values import ValueMeter

Site = tuple[int, int]  # (which record, which site of it)


def explain(fn: Callable[..., Any], /, *args: Any, numerics: Levels = "exact", values: bool = False, **kwargs: Any) -> Report:
    """Compile `fn` afresh, run one forward and one backward, and report every site: what it is, what was done, and why.

    Args:
        fn: a module, a function, or what `torch.compile` made of one.
        args, kwargs: what to call it with. Grad mode, autocast and `torch._dynamo.mark_dynamic` count as they do in any call.
        numerics: "exact", "finite" or "algebraic", or one for each module, by its path (see `ste_compile.passes.levels`).
        values: also run the forward once more, on eager's own kernels, and say of each site how far eager's result is from the
            value that the estimator stands for.

    A line on the terminal, if there is one, says how far it is.

    Returns:
        A `Report`: print it, or `to_json`, or `to_html`. Kernels and bytes are Inductor's for this machine's device.

    Raises:
        ValueError: `numerics` is not a level, or has a key that is no module path or that matches no site.
        TypeError: `fn` cannot be called.
        Exception: whatever `fn` itself, or the compiler, raises.

    What the caller has is as it was afterwards: parameters, buffers and attributes of the modules (of a function, those it closes
    over or is a method of), gradients, tensors among the arguments, torch's random streams, and what is compiled already (from
    torch 2.13 on).

        >>> report = explain(lambda h, s: h + (s.exp() - s.exp().detach()), torch.ones(4), torch.ones(4), numerics="finite")
        >>> [(site.value.node, site.action, site.frees.operators) for site in report.sites]
        [('arg1_1', 'cancelled', 3)]
    """
    rules = levels.check(numerics)
    if not callable(fn):
        raise TypeError(f"fn must be a module or a function, got {type(fn).__name__}")
    fn = _torch.uncompiled(fn)
    recorder, ours = Recorder(), _Meter()
    options = inductor_options(numerics=rules)
    with recording(recorder), graph_breaks() as breaks, doing(f"compiling with numerics={str(rules)!r}, 1 of 2"):
        _run(fn, args, kwargs, {**options, **_after_fusion(ours.scheduled)})
    if rules.by_module:
        levels.check_matched(rules, recorder.report().modules())
    for each in recorder.records:
        for kind, counted in each.parts.items():
            each.parts[kind] = counted | ours.totals.get((each.compilation, kind), NOT_MEASURED)
    stock = _StockMeter(recorder.records)
    hooks = {hook: chained(options[hook], _plain(last)) for hook, last in ((JOINT, stock.mark), (POST_GRAD, stock.count))}
    with doing("compiling as stock does, 2 of 2"):
        _run(fn, args, kwargs, {**hooks, **_after_fusion(stock.scheduled)})
    with doing("counting what each site frees"):
        stock.finish()
        report = replace(recorder.report(), numerics=str(rules), breaks=breaks())
    if not values:
        return report
    meter = ValueMeter()
    with doing("running the forward on eager's kernels"):
        _call(fn, args, kwargs, meter)
    return meter.fill_in(report)


def _plain(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of its own: Inductor deep-copies its config (2.13), with a bound method its object, but a function never."""
    return lambda argument: method(argument)


def _after_fusion(look: Callable[[Any], Any]) -> dict[str, Any]:
    return {_torch.POST_FUSION: _plain(look)} if _torch.can("counts") else {}


class _Meter:
    """What Inductor makes of each graph, by (compilation, kind)."""

    def __init__(self) -> None:
        self.totals: dict[tuple[Any, str], Figures] = {}

    def scheduled(self, nodes: Sequence[Any]) -> Sequence[Any]:
        """As Inductor's post-fusion pass: look, and change nothing."""
        kind, kernels, _ = _torch.kernels(nodes)
        key, traffic = (_torch.compilation(), kind), _traffic(kernels)
        self.totals[key] = self.totals[key] + traffic if key in self.totals else traffic  # a region is a graph of its own
        return nodes


class _StockMeter:
    """The same of stock's graphs, and of each what the marked nodes come to."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.marked = 0  # joint graphs met
        self.current: dict[Any, Record] = {}  # by stock's compilation
        self.frees: dict[Site, Figures] = defaultdict(lambda: NOTHING)

    def mark(self, graph: Graph) -> None:
        """As a joint pass: mark what each site keeps. Both compilations trace alike, node for node."""
        index, self.marked = self.marked, self.marked + 1
        if index < len(self.records) and [n.name for n in graph.nodes] == [n.name for n in self.records[index].graph.nodes]:
            each = self.current[_torch.compilation()] = self.records[index]
            owner = {node.name: site for site, nodes in each.frees.items() for node in nodes}
            for node in graph.nodes:
                if node.name in owner:
                    node.meta[OWNER] = (index, owner[node.name])

    def count(self, graph: Graph) -> None:
        """As a post-grad pass: operators, matrix products, saved tensors."""
        each = self.current.get(_torch.compilation())
        if each is None:
            return
        kind = each.kind_of(graph)
        each.stock[kind] = each.stock.get(kind, NOT_MEASURED) | count(graph.nodes)
        each.views[STOCK[kind]] = [line(node) for node in graph.nodes]
        if kind == "backward":
            return
        for site, nodes in _by_owner(graph.nodes).items():
            self.frees[site] += count(nodes) | Figures(kernels=0, bytes_read=0, bytes_written=0, bytes_saved=0)
        if kind == "forward":
            each.stock[kind] |= Figures(bytes_saved=bytes_of(saved_by(graph)))
            for site, nodes in _by_owner(saved_by(graph)).items():
                freed = [node for node in nodes if not (self._cancelled(site) and node.name in each.saved)]
                self.frees[site] += Figures(0, 0, 0, 0, 0, bytes_of(freed))

    def scheduled(self, nodes: Sequence[Any]) -> Sequence[Any]:
        """As Inductor's post-fusion pass: kernels and their traffic."""
        kind, kernels, made_by = _torch.kernels(nodes)
        if (each := self.current.get(_torch.compilation())) is None:
            return nodes
        each.stock[kind] = each.stock.get(kind, NOT_MEASURED) | _traffic(kernels)
        for kernel in kernels if kind != "backward" else ():
            whole = self._owner(kernel.origins)
            if whole:
                self.frees[whole] += Figures(0, 0, 1, 0, 0, 0)
            for side, amounts in (("bytes_read", kernel.reads), ("bytes_written", kernel.writes)):
                for buffer, amount in amounts.items():
                    if site := whole or self._surrogate_of(made_by.get(buffer, frozenset())):
                        self.frees[site] += NOTHING | Figures(**{side: amount})
        return nodes

    def finish(self) -> None:
        for index, each in enumerate(self.records):
            each.measured = {i: self.frees[index, i] for i in range(len(each.sites))}

    def _owner(self, nodes: frozenset[Node]) -> Site | None:
        """The site that keeps all of `nodes`: where they belong to several, the one cancelled last."""
        owners: list[Site] = [node.meta[OWNER] for node in nodes if OWNER in node.meta]
        last = max(owners, key=lambda site: (not self._cancelled(site), -site[1]), default=None)
        return last if len(owners) == len(nodes) else None

    def _surrogate_of(self, nodes: frozenset[Node]) -> Site | None:
        """The site for which a kernel that stays reads or writes a buffer. Where that holds the site's own result, the kernel
        will read the value in its place."""
        site = self._owner(nodes)
        return None if site is None or any(n.name == self._root(n.meta[OWNER]) for n in nodes) else site

    def _root(self, site: Site) -> str:
        return self.records[site[0]].sites[site[1]].root.name

    def _cancelled(self, site: Site) -> bool:
        return self.records[site[0]].outcomes[site[1]].action == "cancelled"


def _traffic(kernels: Sequence[_torch.Kernel]) -> Figures:
    read, written = (sum(sum(getattr(kernel, side).values()) for kernel in kernels) for side in ("reads", "writes"))
    return Figures(kernels=len(kernels), bytes_read=read, bytes_written=written)


def _by_owner(nodes: Any) -> dict[Site, list[Node]]:
    grouped: dict[Site, list[Node]] = defaultdict(list)
    for node in nodes:
        if OWNER in node.meta:
            grouped[node.meta[OWNER]].append(node)
    return grouped


def _run(fn: Callable[..., Any], args: Any, kwargs: Any, options: dict[str, Any]) -> None:
    """One forward and backward, compiled for this call alone."""
    _call(fn, args, kwargs, lambda gm, inputs: compile_with(gm, inputs, options), backward=True)


def _call(fn: Callable[..., Any], args: Any, kwargs: Any, backend: Callable[..., Any], backward: bool = False) -> None:
    args, kwargs = _torch.pytree.tree_map_only(Tensor, _own_graph, (args, kwargs))
    with kept(fn, args, kwargs):
        outputs = _torch.pytree.tree_leaves(_torch.compiled_apart(fn, backend)(*args, **kwargs))
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
