"""Write down what the passes see and do while a graph is compiled, for whoever asks: nothing is written where nobody does.

Inductor hands the passes one joint or inference graph, then each graph compiled from it, perhaps much later and on another thread
(the backward on CUDA). A `Record` is what is known of one joint graph; the graphs compiled from it find it by the keys that `tag`
left on its sites, or else by the compilation they belong to.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import torch
from torch.fx import Graph, GraphModule, Node

from . import _torch, report, source
from .describe import bytes_of, casts, edges, figures, line, notes, operand, saved_by, with_regions
from .passes import LEVEL, REGION, Outcome, Site, freed, needed
from .passes.values import is_backward

log = logging.getLogger("ste_compile")

_recorders: ContextVar[tuple[Recorder, ...]] = ContextVar("ste_compile_recorders", default=())
# Which inputs of the graph from Dynamo are parameters, and which come from a part that DDPOptimizer cut off.
_inputs: ContextVar[tuple[frozenset[int], frozenset[int]]] = ContextVar("ste_compile_inputs", default=(frozenset(), frozenset()))
# Torch keeps one context for a graph from Dynamo and, on whatever thread that is compiled, for its backward; it is gone when no
# backward can come any more. Who watches is decided once for it, and it keeps the records alive, which are found by id.
_watchers: WeakKeyDictionary[Any, tuple[Recorder, ...]] = WeakKeyDictionary()
_waiting: WeakKeyDictionary[Any, list[Record]] = WeakKeyDictionary()
_done: deque[tuple[ref[Any], int]] = deque()  # (context, record) whose backward is compiled: that context may live on for long
_outside: deque[Record] = deque(maxlen=8)  # records made outside any context
_records: WeakValueDictionary[int, Record] = WeakValueDictionary()
_ids = itertools.count()
CUT = report.Break("", 0, "DDPOptimizer's between buckets of gradients (`bucket_cap_mb`, `torch._dynamo.config.optimize_ddp`)")
VIEWS = ["stock forward", "forward", "stock inference", "inference", "before", "after", "stock backward", "backward"]


@dataclass(eq=False)
class Record:
    """One joint or inference graph, and what is compiled from it. `graph` is a copy, made before any pass; `sites` and `owner`
    (node -> index of the site that frees it) are about that copy."""

    numerics: str
    graph: Graph
    copied: dict[Node, Node]
    recorders: tuple[Recorder, ...]
    name: str
    compilation: Any
    id: int = field(default_factory=_ids.__next__)
    sites: tuple[Site, ...] = ()
    stacks: tuple[tuple[source.Frame, ...], ...] = ()  # of each site; read at once, before somebody edits the file
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    owner: dict[Node, int] = field(default_factory=dict)
    frees: dict[int, list[Node]] = field(default_factory=lambda: defaultdict(list))  # `owner` by site: its work
    stays: set[Node] = field(default_factory=set)  # what the forward runs all the same
    foreign: set[Node] = field(default_factory=set)  # inputs that are no parameters
    started_by: report.Break | None = None
    views: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    parts: dict[str, report.Figures] = field(default_factory=dict)
    stock: dict[str, report.Figures] = field(default_factory=dict)  # with `measured` (what a site frees), filled in by `explain`
    measured: dict[int, report.Figures] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)  # names of the tensors its forward saves
    logged: set[int] = field(default_factory=set)

    @property
    def training(self) -> bool:
        return any(map(is_backward, self.graph.find_nodes(op="placeholder")))

    def describe(self) -> report.Graph:
        """All of it, as data."""
        sites = tuple(map(self.site, range(len(self.sites))))
        # Beside each other first: stock's graph and ours where there are both, else before and after.
        shown, counted = dict(self.views), dict(self.parts)  # as they are now: another thread may be compiling the backward
        compared = any(name.startswith("stock") for name in shown)
        names = sorted(shown, key=VIEWS.index) if compared else list(shown)
        known = {which: {name for name, _, _ in lines} for which, lines in shown.items()}
        views = tuple(report.View(name, tuple(self._lines(name, known))) for name in names)
        parts = tuple(report.Part(kind, ours, self.stock.get(kind, report.Figures())) for kind, ours in counted.items())
        return report.Graph(self.name, self.training, self.numerics, sites, parts, views, self.started_by)

    def site(self, index: int) -> report.Site:
        site, outcome = self.sites[index], self.outcomes[index]
        stack = self.stacks[index]
        user, inner = source.users_frame(stack), stack[-1] if stack else None
        frees = self.measured.get(index) or figures(self.frees[index])
        return report.Site(
            index=index, node=site.root.name, file=user.file if user else "", line=user.line if user else 0,
            code=user.code if user else "", expression=inner.code if inner else "", value=operand(site.value),
            surrogates=tuple(map(operand, site.surrogates)), casts=casts(site), needs=site.needs, order=site.order or "",
            action=outcome.action, reason=outcome.reason, frees=frees,
            operator=outcome.result.name if outcome.action == "fused" else "",
            notes=notes(site, outcome.action, frees, self.frees[index], self.stays, self.foreign, self.started_by),
            stack=stack, edges=edges(site),
        )  # fmt: skip

    def _lines(self, view: str, names: dict[str, set[str]]) -> Iterator[report.Line]:
        cancelled = {node.name for node, index in self.owner.items() if self.outcomes[index].action == "cancelled"}
        fused = {n.name for i, site in enumerate(self.sites) if self.outcomes[i].action == "fused" for n in site.tree}
        beside = names.get("after" if view == "before" else view.removeprefix("stock "), set())  # what stands to the right of it
        for name, text, where in self.views[view]:
            if "= ste_compile." in text or (beside is not names[view] and name in fused):
                state = "fused"
            elif name in cancelled:
                state = "deferred" if name in beside else "removed"
            else:
                state = "kept" if name in names["before"] or "backward" in view else "new"
            yield report.Line(name, text, state, where)


class Recorder:
    """Collects the records of what is compiled inside `recording`, or has `changed` called with each whenever it has grown. They
    hold their graphs as text where `graphs`, and also as Python code where `code`."""

    def __init__(self, changed: Callable[[Record], None] | None = None, *, graphs: bool = True, code: bool = False) -> None:
        self.records: list[Record] = []
        self.changed, self.graphs, self.code = changed, graphs, code

    def sites(self) -> tuple[report.Site, ...]:
        """The sites found so far."""
        return tuple(record.site(index) for record in self.records for index in range(len(record.sites)))

    def report(self) -> report.Report:
        """What has been compiled so far."""
        numerics = ", ".join(dict.fromkeys(record.numerics for record in self.records))
        return report.Report(numerics, str(torch.__version__), tuple(record.describe() for record in self.records))


@contextlib.contextmanager
def recording(*recorders: Recorder) -> Iterator[None]:
    """Record what starts to be compiled inside the block."""
    token = _recorders.set((*_recorders.get(), *recorders))
    try:
        yield
    finally:
        _recorders.reset(token)


@contextlib.contextmanager
def compiling(gm: GraphModule, recorders: Sequence[Recorder] = ()) -> Iterator[None]:
    """Around the compilation of a graph from Dynamo, which alone knows which of its inputs are parameters."""
    cut = _torch.cut_indices(gm) if _torch.can("reports") else frozenset()
    token = _inputs.set((_torch.parameter_indices(gm), cut))
    if (context := _torch.context()) is not None:  # the same graph may be compiled again, and watched by others
        _watchers.pop(context, None)
    try:
        with recording(*recorders):
            yield
    finally:
        _inputs.reset(token)


@contextlib.contextmanager
def collect(*, graphs: bool = True) -> Iterator[Recorder]:
    """A `Recorder` of every graph whose compilation starts inside the block: ask it for a `report()`, or just the `sites()`.
    Unlike `explain` it compiles nothing by itself. Without `graphs` the report holds no graph as text.

        >>> fn = torch.compile(lambda h, s: h + (s - s.detach()), backend="ste_aot_eager", options={"numerics": "finite"})
        >>> with collect() as recorder:
        ...     _ = fn(torch.ones(2), torch.ones(2))
        >>> [site.action for site in recorder.sites()]
        ['cancelled']
    """
    recorder = Recorder(graphs=graphs)
    with recording(recorder):
        yield recorder


def watchers(more: Sequence[Recorder] = ()) -> tuple[Recorder, ...]:
    """Who records the compilation under way, `more` among them. Decided when it starts: the backward, which may be compiled after
    their block has ended, has the same."""
    now = tuple(dict.fromkeys((*_recorders.get(), *more)))
    context = _torch.context()
    return now if context is None else _watchers.setdefault(context, now)


def begin(graph: Graph, numerics: str, recorders: tuple[Recorder, ...] = ()) -> Record | None:
    """A record of a joint or inference graph that no pass has touched yet; None where nobody asked for one."""
    if not (recorders or log.isEnabledFor(logging.DEBUG) or _torch.trace_enabled()):
        return None
    source.forget_edited()
    copy = Graph()
    copied: dict[Node, Node] = {}
    copy.output(copy.graph_copy(graph, copied)).meta = graph.output_node().meta
    record = Record(numerics, copy, copied, recorders, _torch.compile_id(), _torch.compilation())
    _look(record, "before", graph)
    _keep(record)
    for recorder in recorders:
        if recorder.changed is None:
            recorder.records.append(record)
    return record


def _keep(record: Record) -> None:
    """Hold a record until what comes of its graph is compiled. One whose backward is goes when the next one begins: graphs inside
    a backward (of higher-order operators) are compiled before it, and look like one."""
    with contextlib.suppress(IndexError):
        while True:
            where, number = _done.popleft()
            before, done = where(), _records.get(number)
            held = _waiting.get(before, []) if before is not None else []
            if done in held:
                held.remove(done)
    _records[record.id] = record
    context = _torch.context()
    if context is None:
        _outside.append(record)
    else:
        _waiting.setdefault(context, []).append(record)


def end(record: Record, graph: Graph, sites: Sequence[Site], outcomes: Sequence[Outcome]) -> None:
    """What was found and done in the graph that `record` began with."""
    record.sites = tuple(_translated(site, record.copied) for site in sites)
    record.stacks = tuple(source.frames(site.root) for site in record.sites)
    record.copied.clear()  # or the graph itself would live as long as its copy
    record.outcomes = dict(enumerate(outcomes))
    parameters, cut = _inputs.get()
    record.started_by = next(filter(None, map(_break_before, record.stacks)), CUT if cut else None)
    cancelled = {index for index, outcome in record.outcomes.items() if outcome.action == "cancelled"}
    inputs = record.graph.find_nodes(op="placeholder")
    record.foreign = {node for i, node in enumerate(inputs) if (i in cut if record.started_by is CUT else i not in parameters)}
    outputs = _torch.forward_outputs(record.graph)
    record.owner = freed(record.graph, record.sites, cancelled, outputs)
    names = {node.name for node in record.graph.nodes}
    for node, index in record.owner.items():
        # A root whose stand-in has to be computed is no work saved.
        if node is not record.sites[index].root or index not in cancelled or outcomes[index].result.name in names:
            record.frees[index].append(node)
    record.stays = needed(record.graph, outputs) - record.owner.keys()
    _look(record, "after", graph)
    _trace(record, "before", "after")
    _tell(record, final=lambda outcome: outcome.action == "cancelled")


def compiled(graph: Graph, outcomes: Sequence[Outcome]) -> None:
    """What was done in a graph that is about to be compiled."""
    record = _record_of(outcomes)
    if record is None:
        return
    for outcome in outcomes:
        index = outcome.key[1] if outcome.key else -1
        before = record.outcomes.get(index)
        if before and before.action != "fused":  # one recomputed in the backward is met twice
            also = "" if before.reason.startswith(LEVEL) else f"; not cancelled: {before.reason}"
            record.outcomes[index] = replace(outcome, reason=outcome.reason + also)
    if graph.output_node().meta.get(REGION):
        return  # shown, and counted, where it is called
    kind = kind_of(graph, record)
    _look(record, kind, graph)
    record.parts[kind] = record.parts.get(kind, report.Figures()) | figures(with_regions(graph))
    if kind == "forward":
        record.saved = {node.name for node in saved_by(graph)}
        record.parts[kind] |= report.Figures(bytes_saved=bytes_of(saved_by(graph)))
    if kind == "backward" and (context := _torch.context()) is not None:
        _done.append((ref(context), record.id))
    _trace(record, kind)
    if kind != "backward" and record.sites:
        sites = range(len(record.sites))
        _torch.trace_artifact("ste_compile_sites", "json", lambda: json.dumps([asdict(record.site(i)) for i in sites], indent=1))
    _tell(record, final=lambda outcome: True)


def kind_of(graph: Graph, record: Record) -> str:
    """ "forward", "backward" or "inference"."""
    backward = any(map(is_backward, graph.find_nodes(op="placeholder")))
    return "backward" if backward else "forward" if record.training else "inference"


def key(record: Record | None, index: int) -> Any:
    """What `tag` is to leave on a site, so that `compiled` finds it again."""
    return record and (record.id, index)


def _record_of(outcomes: Sequence[Outcome]) -> Record | None:
    if ids := {outcome.key[0] for outcome in outcomes if outcome.key}:
        return next(filter(None, map(_records.get, sorted(ids, reverse=True))), None)
    context, compilation = _torch.context(), _torch.compilation()
    records = [] if context is None else _waiting.get(context, [])
    return next((record for record in reversed(tuple(records)) if record.compilation == compilation is not None), None)


def _translated(site: Site, copied: dict[Node, Node]) -> Site:
    value = copied.get(site.value, site.value) if isinstance(site.value, Node) else site.value
    surrogates, tree = (tuple(copied[node] for node in nodes) for nodes in (site.surrogates, site.tree))
    return replace(site, root=copied[site.root], value=value, surrogates=surrogates, tree=tree)


def _break_before(stack: Sequence[source.Frame]) -> report.Break | None:
    """The graph break after which one of a site's frames was resumed."""
    for frame in stack:
        if frame.resumed_at is not None:
            reason = _torch.graph_break_reason(frame.file, frame.resumed_at)
            return report.Break(frame.file, frame.resumed_at, reason or "for a reason Dynamo did not keep")
    return None


def _look(record: Record, name: str, graph: Graph) -> None:
    if any(recorder.graphs for recorder in record.recorders):
        record.views[name] = [line(node) for node in with_regions(graph)]
    if _torch.trace_enabled() or any(recorder.code for recorder in record.recorders):
        record.code[name] = graph.python_code("self", verbose=True, include_stride=True, include_device=True).src


def _tell(record: Record, final: Callable[[Outcome], bool]) -> None:
    for index, outcome in record.outcomes.items():
        if index not in record.logged and final(outcome) and log.isEnabledFor(logging.DEBUG):
            record.logged.add(index)
            log.debug("%s", record.site(index))
    for recorder in record.recorders:
        if recorder.changed is not None:
            recorder.changed(record)


def _trace(record: Record, *names: str) -> None:
    """To TORCH_TRACE, for `tlparse`; nothing where it is not set."""
    for name in names if record.sites else ():
        _torch.trace_artifact(f"ste_compile_{name}", "string", partial(record.code.__getitem__, name))
