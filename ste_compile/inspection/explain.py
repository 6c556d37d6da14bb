"""`explain`: compile a model twice, with the passes and without, and say what each site is worth.

What a site frees is read off stock's compiled graphs: the nodes that only it keeps in the forward (`passes.freed`) are marked in
stock's joint graph, and the marks are found again on the kernels, the matrix products and the saved tensors that come of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch.fx import Graph, Node

from .. import _torch
from ..hooks import JOINT, POST_GRAD
from ..options import chained, check_flag, inductor_options
from ..passes import levels
from ..passes.levels import Levels
from ..passes.meta import OWNER
from .breaks import graph_breaks
from .calls import Call, after_fusion, called, plain, run, traffic, with_passes
from .describe import bytes_of, count, line, saved_by
from .edits import Seen, Tracing
from .figures import NOT_MEASURED, NOTHING, Figures
from .graph_record import STOCK, Record
from .progress import doing
from .record import Recorder
from .report import Report
from .suggest import suggested
from .values import ValueMeter

Site = tuple[int, int]  # (which record, which site of it)


def explain(
    fn: Callable[..., Any], /, *args: Any, numerics: Levels = "exact", values: bool = False, suggest: bool = False, **kwargs: Any
) -> Report:
    """Compile `fn` afresh, run one forward and one backward, and report every site: what it is, what was done, and why.

    Args:
        fn: a module, a function, or what `torch.compile` made of one.
        args, kwargs: what to call it with. Grad mode, autocast and `torch._dynamo.mark_dynamic` count as they do in any call.
        numerics: "exact", "finite" or "algebraic", or one for each module, by its path (see `ste_compile.passes.levels`).
        values: also run the forward once more, on eager's own kernels, and say of each site how far eager's result is from the
            value that the estimator stands for.
        suggest: also look for edits that would free more, and compile the forward once more for each, for eight at most, to see
            what it would free: `report.suggestions` (`ste_compile.inspection.suggestion`).

    A line on the terminal, if there is one, says how far it is.

    Returns:
        A `Report`: print it, or `to_json`, or `to_html`. Kernels and bytes are Inductor's for this machine's device.

    Raises:
        ValueError: `numerics` is not a level, or has a key that is no module path or that matches no site.
        TypeError: `fn` cannot be called, or `values` or `suggest` is not a bool.
        Exception: whatever `fn` itself, or the compiler, raises.

    What the caller has is as it was afterwards: parameters, buffers and attributes of the modules (of a function, those it closes
    over or is a method of), gradients, tensors among the arguments, torch's random streams, and what is compiled already (from
    torch 2.13 on).

        >>> report = explain(lambda h, s: h + (s.exp() - s.exp().detach()), torch.ones(4), torch.ones(4), numerics="finite")
        >>> [(site.value.node, site.action, site.frees.operators) for site in report.sites]
        [('arg1_1', 'cancelled', 3)]

    What another level would free:

        >>> report = explain(lambda h, s: h + (s.exp() - s.exp().detach()), torch.ones(4), torch.ones(4), suggest=True)
        >>> [(each.kind, each.edit.split(" for ")[1], each.frees.kernels, each.tried) for each in report.suggestions]
        [('level', 'numerics="finite"', 0, True)]
    """
    rules = levels.check(numerics)
    if not callable(fn):
        raise TypeError(f"fn must be a module or a function, got {type(fn).__name__}")
    check_flag("values", values)
    check_flag("suggest", suggest)
    fn = _torch.uncompiled(fn)
    call, recorder = Call(fn, args, kwargs), Recorder()
    traced = Tracing(recorder)
    with graph_breaks() as breaks, doing(f"compiling with numerics={str(rules)!r}, 1 of 2"):
        with_passes(call, rules, recorder, traced if suggest else None)
    if rules.by_module:
        levels.check_matched(rules, recorder.report().modules())
    stock = _StockMeter(recorder.records)
    options = inductor_options(numerics=rules)
    hooks = {hook: chained(options[hook], plain(last)) for hook, last in ((JOINT, stock.mark), (POST_GRAD, stock.count))}
    with doing("compiling as stock does, 2 of 2"):
        run(call, {**hooks, **after_fusion(stock.scheduled)}, backward=True)
    with doing("counting what each site frees"):
        stock.finish()
        report = replace(recorder.report(), numerics=str(rules), breaks=breaks())
    if suggest:
        report = suggested(Seen(call, rules, report, recorder.records, traced.graphs()))
    if values:
        meter = ValueMeter()
        with doing("running the forward on eager's kernels"):
            called(call, meter)
        report = meter.fill_in(report)
    return report


class _StockMeter:
    """Measures stock's graphs, and what the nodes that a site alone keeps amount to in them."""

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
        each.stock[kind] = each.stock.get(kind, NOT_MEASURED) | traffic(kernels)
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
        """The site that keeps all of `nodes`. Where they belong to several sites, the last in the order of `passes.freed`."""
        owners: list[Site] = [node.meta[OWNER] for node in nodes if OWNER in node.meta]
        last = max(owners, key=lambda site: (not self._cancelled(site), -site[1]), default=None)
        return last if len(owners) == len(nodes) else None

    def _surrogate_of(self, nodes: frozenset[Node]) -> Site | None:
        """The site that frees a buffer made by `nodes`, which a kernel that stays reads or writes. None where the buffer holds
        the site's own result: the kernel will read the value in its place."""
        site = self._owner(nodes)
        return None if site is None or any(n.name == self._root(n.meta[OWNER]) for n in nodes) else site

    def _root(self, site: Site) -> str:
        return self.records[site[0]].sites[site[1]].root.name

    def _cancelled(self, site: Site) -> bool:
        return self.records[site[0]].outcomes[site[1]].action == "cancelled"


def _by_owner(nodes: Any) -> dict[Site, list[Node]]:
    grouped: dict[Site, list[Node]] = defaultdict(list)
    for node in nodes:
        if OWNER in node.meta:
            grouped[node.meta[OWNER]].append(node)
    return grouped
