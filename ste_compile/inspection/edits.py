"""What the finders of suggestions are given, and what they return: an edit, its words, and how it is tried.

Seen     a call of `explain`, and all that is known of it
Edit     what could be changed for some sites; `words` say what
Try      how to compile as if it had been
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, GraphModule, Node

from ..passes.levels import Rules
from . import source
from .calls import Call, Change
from .figures import NOTHING, Figures
from .graph_record import Record
from .record import Recorder
from .report import Report, Site
from .suggestion import Place

SHOWN = 3  # places that a sentence names
Key = tuple[int, int]  # (which record, which site of it)


@dataclass
class Traced:
    """A graph as it came from Dynamo, before any change, and the records of what was compiled of it."""

    graph: Graph
    records: range

    def named(self, name: str) -> Node | None:
        return next((node for node in self.graph.nodes if node.name == name), None)


class Tracing:
    """A `Change` that changes nothing, and keeps what comes from Dynamo. It is called where a graph's compilation begins."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.begun: list[tuple[Graph, int]] = []  # with how many records there were before

    def __call__(self, number: int, gm: GraphModule) -> None:
        copy = Graph()
        copy.output(copy.graph_copy(gm.graph, {}))
        self.begun.append((copy, len(self.recorder.records)))

    def graphs(self) -> list[Traced]:
        ends = [*(first for _, first in self.begun[1:]), len(self.recorder.records)]
        return [Traced(graph, range(first, end)) for (graph, first), end in zip(self.begun, ends)]


@dataclass(frozen=True)
class Seen:
    """What `explain` has found: its report, and the records and graphs from Dynamo that this is made of."""

    call: Call
    rules: Rules
    report: Report
    records: Sequence[Record]
    traced: Sequence[Traced]

    def sites(self) -> Iterator[tuple[Key, Record, Site]]:
        """Each site that is not refused."""
        for number, (record, graph) in enumerate(zip(self.records, self.report.graphs)):
            for index, site in enumerate(graph.sites):
                if not record.sites[index].refusal:
                    yield (number, index), record, site

    def place(self, key: Key | Place) -> Place:
        if isinstance(key, Place):
            return key
        site = self.report.graphs[key[0]].sites[key[1]]
        return Place(site.file, site.line, site.expression)


@dataclass(frozen=True)
class Try:
    """One more compile and forward: with other levels; with graphs from Dynamo that `change` has changed; inside of `around`; or
    without detach markers made by us. Unless `regrouped`, it must compile as many graphs as before."""

    rules: Rules | None = None
    change: Change | None = None
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    marks: bool = True
    regrouped: bool = False


@dataclass(frozen=True)
class Edit:
    """`sites` are keys or, where no site was recognised, places. `hope` decides what is tried first: more is better. With
    `undone`, the compilation at hand already has what the edit would give, and `attempt` compiles without it, as another way to
    compile would: the edit is worth what the forward then has more."""

    sites: tuple[Key | Place, ...]
    words: str
    attempt: Try | None = None
    why_not: str = ""
    hope: Figures = NOTHING
    undone: bool = False


def at(number: int, change: Callable[[GraphModule], None]) -> Change:
    """A `Change` of one graph from Dynamo."""

    def changed(index: int, gm: GraphModule) -> None:
        if index == number:
            change(gm)

    return changed


def origin(node: Node) -> str:
    """The name of the node of Dynamo's graph that a node was traced from; "" where torch keeps none."""
    sources = node.meta.get("from_node") or ()
    return str(sources[0].name) if sources else ""


def listed(words: Iterable[str]) -> str:
    """The words joined, each once: the first `SHOWN`, and how many more there are."""
    each = list(dict.fromkeys(words))
    return " and ".join([*each[:SHOWN], *([f"{len(each) - SHOWN} more"] * (len(each) > SHOWN))])


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def said(node: Node) -> str:
    """The expression that a node is part of as the user wrote it, with its place; the node's name where it is not known."""
    frame = source.users_frame(source.frames(node))
    return f"`{frame.code}` ({frame})" if frame else node.name
