"""What is known of one graph while it is compiled, and that as a `report.Graph`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch.fx import Graph, Node

from ..passes import Outcome, Site, module_paths
from ..passes.levels import Rules
from ..passes.nodes import is_backward
from . import report, source
from .describe import casts, count, edges, notes, operand
from .figures import NOT_MEASURED, Figures

if TYPE_CHECKING:
    from .record import Recorder

_ids = itertools.count()
# Kind of a compiled graph -> the name of the view of stock's graph. (The view of ours is named as its kind.)
STOCK = {kind: f"stock {kind}" for kind in ("forward", "inference", "backward")}
# View -> the one that the page shows to the right of it, for comparison.
BESIDE = {"before": "after"} | {stock: kind for kind, stock in STOCK.items()}
ORDER = ["stock forward", "forward", "stock inference", "inference", "before", "after", "stock backward", "backward"]


@dataclass(eq=False)
class Record:
    """One joint or inference graph, and what is compiled from it. `graph` is a copy, made before any pass; `sites`, `owner`,
    `frees`, `stays` and `foreign` are about that copy, and indices are positions in `sites`."""

    numerics: Rules
    graph: Graph
    copied: dict[Node, Node]  # node of the original -> node of the copy, until the passes have run
    recorders: tuple[Recorder, ...]
    name: str  # Dynamo's compile id
    compilation: Any
    id: int = field(default_factory=_ids.__next__)
    sites: tuple[Site, ...] = ()
    stacks: tuple[tuple[source.Frame, ...], ...] = ()  # of each site; read at once, before somebody edits the file
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    owner: dict[Node, int] = field(default_factory=dict)  # node -> the site that frees it
    frees: dict[int, list[Node]] = field(default_factory=lambda: defaultdict(list))  # site -> the work that it frees
    stays: set[Node] = field(default_factory=set)  # what the forward runs all the same
    foreign: set[Node] = field(default_factory=set)  # inputs that may be computed in another graph (`record.end`)
    started_by: report.Break | None = None
    views: dict[str, list[report.Line]] = field(default_factory=dict)  # as `describe.line` makes them
    code: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Figures] = field(default_factory=dict)
    stock: dict[str, Figures] = field(default_factory=dict)  # `explain` fills this in, and `measured`: what each site frees
    measured: dict[int, Figures] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)  # names of the tensors its forward saves
    logged: set[int] = field(default_factory=set)

    @property
    def training(self) -> bool:
        return any(map(is_backward, self.graph.find_nodes(op="placeholder")))

    def kind_of(self, graph: Graph) -> str:
        """Of a graph compiled from this one: "forward", "backward" or "inference"."""
        backward = any(map(is_backward, graph.find_nodes(op="placeholder")))
        return "backward" if backward else "forward" if self.training else "inference"

    def describe(self) -> report.Graph:
        """All of it, as data."""
        sites = tuple(map(self.site, range(len(self.sites))))
        shown, counted = dict(self.views), dict(self.parts)  # as they are now: another thread may be compiling the backward
        names = sorted(shown, key=ORDER.index) if any(name in shown for name in STOCK.values()) else list(shown)
        nodes = {name: {line.node for line in lines} for name, lines in shown.items()}
        views = tuple(report.View(name, tuple(self._lines(name, nodes))) for name in names)
        parts = tuple(report.Part(kind, ours, self.stock.get(kind, NOT_MEASURED)) for kind, ours in counted.items())
        return report.Graph(self.name, self.training, str(self.numerics), sites, parts, views, self.started_by)

    def site(self, index: int) -> report.Site:
        site, outcome = self.sites[index], self.outcomes[index]
        stack = self.stacks[index]
        user, inner = source.users_frame(stack), stack[-1] if stack else None
        frees = self.measured.get(index) or count(self.frees[index])
        rule = self.numerics.deciding(module_paths(site)) if self.numerics.by_module and not site.refusal else None
        return report.Site(
            index=index, node=site.root.name, file=user.file if user else "", line=user.line if user else 0,
            code=user.code if user else "", expression=inner.code if inner else "", value=operand(site.value),
            surrogates=tuple(map(operand, site.surrogates)), casts=casts(site), needs=site.needs, order=site.order or "",
            action=outcome.action, reason=f"{outcome.why}, by the rule {rule[0]!r}" if rule else str(outcome.why), frees=frees,
            operator=outcome.result.name if outcome.action == "fused" else "",
            notes=notes(site, outcome.action, frees, self.frees[index], self.stays, self.foreign, self.started_by),
            stack=stack, edges=edges(site), why=outcome.why.reason.name.lower(),
            modules=tuple(dict.fromkeys(itertools.chain(*module_paths(site)))),
            rule=rule[0] if rule else None,
        )  # fmt: skip

    def _lines(self, view: str, nodes: dict[str, set[str]]) -> Iterator[report.Line]:
        """The lines of a view, each with what became of its node. `nodes` are the names of the nodes in each view."""
        cancelled = {node.name for node, index in self.owner.items() if self.outcomes[index].action == "cancelled"}
        fused = {n.name for i, site in enumerate(self.sites) if self.outcomes[i].action == "fused" for n in site.tree}
        beside = nodes.get(BESIDE.get(view, view), set())
        backward = view in ("backward", STOCK["backward"])
        for line in self.views[view]:
            if line.state == "fused" or (view in BESIDE and line.node in fused):
                state = "fused"
            elif line.node in cancelled:
                state = "deferred" if line.node in beside else "removed"
            else:
                state = "kept" if backward or line.node in nodes["before"] else "new"
            yield replace(line, state=state)
