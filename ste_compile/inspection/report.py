"""What the passes found, what they did, and why not: plain frozen data, the same in print, in JSON and in the page.

    Report          one call of `explain`, or whatever was compiled inside `collect`
      Graph         one graph that Dynamo captured: its sites, and what it goes on after
        Site        one straight-through estimator: where, what, what was done, why, and what that is worth
        Part        one graph that is compiled from it (forward, backward, inference), beside stock's
        View        a graph as text, before and after, each line with what became of its node
      Suggestion    what to change in the code or the call, so that more is freed: suggestion.py

`Report.to_json` writes exactly these fields; `SCHEMA` goes up when one changes its meaning.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .figures import NOT_MEASURED, NOTHING, Figures, Values
from .source import Frame
from .suggestion import Suggestion

SCHEMA = 1


@dataclass(frozen=True)
class Operand:
    """A value or a surrogate: its node, its type (`bf16[128, 48]`), and the module that computed it ("" outside any)."""

    node: str
    type: str
    module: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.type}" + (f" of {self.module}" if self.module else "")


@dataclass(frozen=True)
class Site:
    """One straight-through estimator.

    `file`, `line` and `code` are the user's; `expression` is the sum itself, as written there or in the library function the user
    called (`stack` has all calls, outermost first). `casts` are the dtypes crossed on the way in, `f32 -> bf16`. `needs` is the
    least level that removes the surrogates; `action` is "cancelled", "fused" or "left"; `reason` says why, and `why` is the same
    as a word for programs, "permitted" or "level" (`ste_compile.passes.Reason` has them all). `frees` is what cancelling took out
    of the forward or, where it was not cancelled, what it would (nothing where it never can be). `operator` is the node that
    computes a fused site. `notes` are near misses: what keeps more from being freed. `edges` join the nodes around the site,
    (from, to). `modules` are the paths of the modules that it is in; where modules have their own levels, `rule` is the key in
    `numerics` that decided. `values` is what eager makes of its value, where that was asked for."""

    index: int
    node: str
    file: str
    line: int
    code: str
    expression: str
    value: Operand
    surrogates: tuple[Operand, ...]
    casts: tuple[str, ...]
    needs: str
    order: str
    action: str
    reason: str
    frees: Figures
    operator: str = ""
    notes: tuple[str, ...] = ()
    stack: tuple[Frame, ...] = ()
    edges: tuple[tuple[str, str], ...] = ()
    why: str = ""
    modules: tuple[str, ...] = ()
    rule: str | None = None
    values: Values | None = None

    def said_of_values(self) -> str:
        """What eager makes of the value, in words, and which level would mend it; "" where that was not asked for."""
        mends = self.values is not None and self.values.off and self.action != "cancelled"
        return f"{self.values}" + f"; numerics={self.needs!r} gives what is meant" * bool(mends) if self.values else ""

    def __str__(self) -> str:
        """One line: where, what, what was done, and why."""
        where = f"{self.file}:{self.line}" if self.file else self.node
        frees = f"; frees {self.frees}" if self.action == "cancelled" else ""
        return f"{where}: {self.expression or self.node}: {self.action}, {'; '.join((self.reason + frees, *self.notes))}"


@dataclass(frozen=True)
class Break:
    """Why Dynamo stopped capturing a graph, and where; `file` is "" where no line of code is the reason. `eager` is what is not
    compiled for it: a function, or "the rest of" one; "" where Dynamo went on after the line."""

    file: str
    line: int
    reason: str
    eager: str = ""

    def __str__(self) -> str:
        where = f" at {self.file}:{self.line}" if self.file else ""
        after = f"; {self.eager} runs in eager, but for functions it calls" if self.eager else ""
        return f"graph break{where}, {self.reason.rstrip('.') if after else self.reason}{after}"


@dataclass(frozen=True)
class Part:
    """A graph handed to Inductor: "forward", "backward" or "inference"; what it amounts to, and what stock's does (`explain`)."""

    kind: str
    ours: Figures
    stock: Figures = NOT_MEASURED


@dataclass(frozen=True)
class Line:
    """A line of a graph. `state`: "kept", "removed", "deferred" (only the backward needs it now), "fused", "new"."""

    node: str
    text: str
    state: str
    source: str = ""


@dataclass(frozen=True)
class View:
    """A graph as text: "before" and "after" the passes in the joint or inference graph, then "forward", "backward" or "inference"
    as Inductor is given it and, in `explain`, "stock forward" and so on, without the passes."""

    name: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Graph:
    """One graph captured by Dynamo; `name` is its compile id. `started_by` is the graph break it goes on after, if any. With
    `from_cache` (`python -m ste_compile run`), a cache served it: the rest is from when it was compiled, perhaps elsewhere."""

    name: str
    training: bool
    numerics: str
    sites: tuple[Site, ...]
    parts: tuple[Part, ...] = ()
    views: tuple[View, ...] = ()
    started_by: Break | None = None
    from_cache: bool = False

    def freed(self) -> Figures:
        """What the forward has less than stock's; where that was not measured, what the cancelled sites free, added up."""
        for part in self.parts:
            if part.kind != "backward" and part.stock.kernels is not None:
                return part.stock - part.ours
        return self._sites_free()

    def rest(self) -> Figures:
        """What the forward has less than stock's (negative: more) besides what the cancelled sites free. A site frees what it
        alone keeps; Inductor may then fuse, and the partitioner save, what is left in another way, and a fused site is another
        operator."""
        return self.freed() - self._sites_free()

    def _sites_free(self) -> Figures:
        return sum((site.frees for site in self.sites if site.action == "cancelled"), NOTHING)


@dataclass(frozen=True)
class Report:
    """What was compiled, in order. Print it, or `to_json`, or `to_html`; `Report.from_json(report.to_json()) == report`.
    `breaks` is where Dynamo stopped, and what it did not compile (known to `explain` and `run`). `suggestions` are edits that
    would free more, the best first, and `tries` how many were tried (None where nobody asked); what brought nothing is left out.

    >>> report = Report("finite", "2.13.0", ())
    >>> Report.from_json(report.to_json()) == report
    True
    """

    numerics: str
    torch: str
    graphs: tuple[Graph, ...]
    schema: int = SCHEMA
    breaks: tuple[Break, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()
    tries: int | None = None

    @classmethod
    def of(cls, graphs: Iterable[Graph], breaks: tuple[Break, ...] = ()) -> Report:
        """The report of graphs that this torch compiled; its `numerics` names their levels."""
        graphs = tuple(graphs)
        return cls(", ".join(dict.fromkeys(graph.numerics for graph in graphs)), str(torch.__version__), graphs, breaks=breaks)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of all graphs, in order."""
        return tuple(site for graph in self.graphs for site in graph.sites)

    def modules(self) -> set[str]:
        """The paths of the modules that the sites are in."""
        return {path for site in self.sites for path in site.modules}

    def __str__(self) -> str:
        """Tables, at most 100 columns wide; plain lines without rich, which the extra `ste-compile[report]` brings."""
        from .text import render

        return render(self)

    def to_json(self) -> str:
        """The fields above as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote. Raises `ValueError` for another schema or other JSON."""
        try:
            data = json.loads(text)
            schema = data["schema"]
        except (ValueError, TypeError, KeyError):
            raise ValueError("text is not the JSON of a Report: it has no 'schema'") from None
        if schema != SCHEMA:
            raise ValueError(f"text has schema={schema!r}, this version reads {SCHEMA}")
        report: Report = _restore(cls, data)
        return report

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as one self-contained page; also written to `path` if that is given. Returns the page's text. Raises
        `ModuleNotFoundError` without what the extra `ste-compile[report]` brings."""
        try:
            from .page import render
        except ModuleNotFoundError as error:
            package = str(error.name).partition(".")[0]
            raise ModuleNotFoundError(f"the page needs {package}: pip install 'ste-compile[report]'", name=package) from error
        html = render(self)
        if path is not None:
            Path(path).write_text(html, encoding="utf-8")
        return html


def _restore(kind: Any, data: Any) -> Any:
    """Dataclasses, tuples and optionals from what `asdict` and JSON make of them."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)  # (a field that is newer than the text has its default)
        return kind(**{name: _restore(hints[name], data[name]) for name in hints if name in data})
    if origin is tuple:
        each = arguments[:1] * len(data) if arguments[-1] is Ellipsis else arguments
        return tuple(_restore(k, d) for k, d in zip(each, data))
    if origin in (typing.Union, types.UnionType) and data is not None:
        return _restore(next(k for k in arguments if k is not type(None)), data)
    return data
