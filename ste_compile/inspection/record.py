"""Write down what the passes see and do while a graph is compiled, for whoever asks. Where nobody does, nothing is written.

Inductor hands the passes one joint or inference graph (`begin`, `end`), then each graph that is compiled from it (`compiled`),
perhaps much later and on another thread. One `Record` holds what is known of all of these. Whoever asks has a `Recorder`.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from torch.fx import Graph, GraphModule, Node

from .. import _torch
from ..passes import Outcome, Reason, Site, Sum, freed, needed
from ..passes.levels import Rules
from ..passes.meta import REGION
from . import contexts, report, source
from .breaks import CUT, break_before
from .describe import bytes_of, count, line, saved_by, with_regions
from .figures import NOT_MEASURED, Figures
from .graph_record import Record

log = logging.getLogger("ste_compile")

_recorders: ContextVar[tuple[Recorder, ...]] = ContextVar("ste_compile_recorders", default=())
# Which inputs of the graph from Dynamo are parameters or buffers, and which DDPOptimizer made when it cut the graph into parts.
_inputs: ContextVar[tuple[frozenset[int], frozenset[int]] | None] = ContextVar("ste_compile_inputs", default=None)


class Recorder:
    """Collects the records of what is compiled inside `recording`. With `changed`, it collects none: `changed` is
    called with a record each time there is more in it. Records hold their graphs as text where `graphs`, and as Python code where
    `code`. Inductor's caches are bypassed unless `with_caches`: no pass runs on a graph that comes from a cache."""

    def __init__(
        self,
        changed: Callable[[Record], None] | None = None,
        *,
        graphs: bool = True,
        code: bool = False,
        with_caches: bool = False,
    ) -> None:
        self.records: list[Record] = []
        self.changed, self.graphs, self.code, self.with_caches = changed, graphs, code, with_caches

    def sites(self) -> tuple[report.Site, ...]:
        """The sites found so far."""
        return tuple(record.site(index) for record in self.records for index in range(len(record.sites)))

    def report(self) -> report.Report:
        """What has been compiled so far."""
        return report.Report.of(record.describe() for record in self.records)


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
    contexts.decide_again()
    contexts.place(gm)
    try:
        with recording(*recorders):
            yield
    finally:
        _inputs.reset(token)


def under_way() -> bool:
    """Whether one of this package's backends is compiling a graph from Dynamo."""
    return _inputs.get() is not None


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
    """Who records the compilation under way, `more` among them. It is decided when the compilation starts: the backward has the
    same recorders, even if it is compiled after their `recording` block has ended."""
    return contexts.decided(tuple(dict.fromkeys((*_recorders.get(), *more))))


def begin(graph: Graph, numerics: Rules, recorders: tuple[Recorder, ...] = ()) -> Record | None:
    """A record of a joint or inference graph that no pass has touched yet; None where nobody asked for one."""
    if not (recorders or log.isEnabledFor(logging.DEBUG) or _torch.trace_enabled()):
        return None
    source.forget_edited()
    copy = Graph()
    copied: dict[Node, Node] = {}
    copy.output(copy.graph_copy(graph, copied)).meta = graph.output_node().meta
    record = Record(numerics, copy, copied, recorders, _torch.compile_id(), _torch.compilation())
    _look(record, "before", graph)
    contexts.keep(record)
    for recorder in recorders:
        if recorder.changed is None:
            recorder.records.append(record)
    return record


def end(record: Record, graph: Graph, sites: Sequence[Site], outcomes: Sequence[Outcome]) -> None:
    """What was found and done in the graph that `record` began with."""
    record.sites = tuple(_translated(site, record.copied) for site in sites)
    record.stacks = tuple(source.frames(site.root) for site in record.sites)
    record.copied.clear()  # or the graph itself would live as long as its copy
    record.outcomes = dict(enumerate(outcomes))
    parameters, cut = _inputs.get() or (frozenset(), frozenset())
    record.started_by = next(filter(None, map(break_before, record.stacks)), CUT if cut else None)
    cancelled = {index for index, outcome in record.outcomes.items() if outcome.action == "cancelled"}
    inputs = record.graph.find_nodes(op="placeholder")
    record.foreign = {node for i, node in enumerate(inputs) if (i in cut if record.started_by is CUT else i not in parameters)}
    outputs = _torch.forward_outputs(record.graph)
    record.owner = freed(record.graph, record.sites, cancelled, outputs)
    names = {node.name for node in record.graph.nodes}
    for node, index in record.owner.items():
        # The sum of a cancelled site is work saved only where a node of the graph has its value; else a new node computes that.
        if node is not record.sites[index].root or index not in cancelled or outcomes[index].result.name in names:
            record.frees[index].append(node)
    record.stays = needed(record.graph, outputs) - record.owner.keys()
    _look(record, "after", graph)
    _trace(record, "before", "after")
    _tell(record, final=lambda outcome: outcome.action == "cancelled")


def compiled(graph: Graph, outcomes: Sequence[Outcome]) -> None:
    """What was done in a graph that is about to be compiled."""
    record = contexts.find({outcome.key[0] for outcome in outcomes if outcome.key})
    if record is None:
        return
    for outcome in outcomes:
        index = outcome.key[1] if outcome.key else -1
        before = record.outcomes.get(index)
        if before and before.action != "fused":  # a site that is recomputed in the backward is met twice
            also = "" if before.why.reason is Reason.LEVEL else f"; not cancelled: {before.why}"
            record.outcomes[index] = replace(outcome, why=replace(outcome.why, words=f"{outcome.why}{also}"))
    if graph.output_node().meta.get(REGION):
        return  # shown, and counted, where it is called
    kind = record.kind_of(graph)
    _look(record, kind, graph)
    record.parts[kind] = record.parts.get(kind, NOT_MEASURED) | count(with_regions(graph))
    if kind == "forward":
        record.saved = {node.name for node in saved_by(graph)}
        record.parts[kind] |= Figures(bytes_saved=bytes_of(saved_by(graph)))
    if kind == "backward":
        contexts.backward_compiled(record)
    _trace(record, kind)
    if kind != "backward" and record.sites:
        sites = range(len(record.sites))
        _torch.trace_artifact("ste_compile_sites", "json", lambda: json.dumps([asdict(record.site(i)) for i in sites], indent=1))
    _tell(record, final=lambda outcome: True)


def key(record: Record | None, index: int) -> Any:
    """What `tag` is to leave on a site, so that `compiled` finds it again."""
    return record and (record.id, index)


def _translated(site: Site, copied: dict[Node, Node]) -> Site:
    """A site of a graph, as one of its copy."""
    value = site.value
    if isinstance(value, Node):
        value = copied.get(value, value)
    elif isinstance(value, Sum):
        value = Sum(tuple((sign, copied.get(each, each)) for sign, each in value.addends))
    surrogates, tree = (tuple(copied[node] for node in nodes) for nodes in (site.surrogates, site.tree))
    return replace(site, root=copied[site.root], value=value, surrogates=surrogates, tree=tree)


def _look(record: Record, name: str, graph: Graph) -> None:
    """Write a graph down, as text and as code, for those who want it."""
    if any(recorder.graphs for recorder in record.recorders):
        record.views[name] = [line(node) for node in with_regions(graph)]
    if _torch.trace_enabled() or any(recorder.code for recorder in record.recorders):
        record.code[name] = graph.python_code("self", verbose=True, include_stride=True, include_device=True).src


def _tell(record: Record, final: Callable[[Outcome], bool]) -> None:
    """Log each site once, when its outcome is `final`, and tell the recorders that there is more."""
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
