"""A report as text, at most 100 columns wide: tables or, where rich is not installed, the same content line by line."""

from __future__ import annotations

import importlib.util
import io
import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .figures import BYTES, COUNTS, difference, mebibytes, plural, scaled
from .suggestion import said_of_useless

if TYPE_CHECKING:
    from .report import Graph, Part, Report, Site
    from .suggestion import Suggestion

WIDTH = 100
SHOWN = 3  # sites of one suggestion; the rest is counted
NUMERIC = (*COUNTS, *BYTES.values())  # the headings of columns that are set to the right, and not wrapped


class Table(NamedTuple):
    """Headings, and rows of as many cells; a cell is a list of lines, at least one."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Sequence[str]]]


def render(report: Report) -> str:
    """The text of `print(report)`: for each graph its sites and why, then what is compiled of it, beside stock."""
    return layout(_blocks(report))


def layout(blocks: Iterator[str | Table]) -> str:
    """Paragraphs and tables as text."""
    lines = _drawn(blocks) if importlib.util.find_spec("rich") else _plain(blocks)
    return "\n".join(line.rstrip() for line in lines)


def _blocks(report: Report) -> Iterator[str | Table]:
    """The paragraphs and tables of the text."""
    yield (
        f"ste-compile, torch {report.torch}, numerics={report.numerics!r}: {plural(len(report.sites), 'site')}, "
        f"{plural(len(report.graphs), 'graph')}"
    )
    yield from map(str, report.breaks)
    for graph in report.graphs:
        yield ""
        kind = "training" if graph.training else "inference"
        cached = ", from a compile cache" if graph.from_cache else ""
        yield f"graph {graph.name or '(no id)'}, {kind}{cached}: {plural(len(graph.sites), 'site')}"
        if graph.started_by:
            yield f"after a {graph.started_by}"
        if graph.sites:
            yield Table(("#", "site", "action"), [([str(site.index)], _what(site), _why(site)) for site in graph.sites])
        if any(part.stock.kernels is not None for part in graph.parts):
            yield "compiled, stock -> ours:"
            yield _parts(graph)
            if rest := difference(graph.rest()):
                yield f"in the forward, besides what sites free: {rest}"
    yield from _suggestions(report)


def _suggestions(report: Report) -> Iterator[str | Table]:
    """What would free more, the best first; nothing where nobody asked."""
    if report.tries is None:
        return
    yield ""
    if report.suggestions:
        yield "suggestions, and what each would free of the forward:"
        rows = enumerate(report.suggestions, 1)
        yield Table(("#", "suggestion", "frees"), [([str(i)], _edit(each), [each.said_of_freeing()]) for i, each in rows])
    else:
        yield "nothing to suggest"
    if useless := said_of_useless(report.tries, report.suggestions):
        yield useless


def _edit(suggestion: Suggestion) -> list[str]:
    places = [f"for {_short(site.file)}:{site.line}: {site.expression}" for site in dict.fromkeys(suggestion.sites)]
    more = [f"and {plural(len(places) - SHOWN, 'line')} like these"] * (len(places) > SHOWN)
    return [suggestion.edit.replace(f"{Path.cwd()}{os.sep}", ""), *places[:SHOWN], *more]


def _what(site: Site) -> list[str]:
    where = f"{_short(site.file)}:{site.line}" if site.file else site.node
    lines = [where, site.expression or "(its source is not known)"]
    if site.code and site.code != site.expression:
        lines.insert(1, f"{site.code} :")
    lines.append(f"value {site.value}")
    lines += [f"surrogate {surrogate}" for surrogate in site.surrogates]
    return lines + [f"casts {', '.join(site.casts)}"] * bool(site.casts)


def _why(site: Site) -> list[str]:
    lines = [f"{site.action}: {site.reason}"]
    if site.action == "cancelled":
        lines.append(f"frees {site.frees}")
    return [*lines, *site.notes, *filter(None, [site.said_of_values()])]


def _parts(graph: Graph) -> Table:
    rows = [([part.kind], *([_pair(part, field)] for field in (*COUNTS, *BYTES))) for part in graph.parts]
    return Table(("", *NUMERIC), rows)


def _pair(part: Part, field: str) -> str:
    """A figure of stock's and of ours. The unit is written once where both have the same."""
    stock, ours = getattr(part.stock, field), getattr(part.ours, field)
    if stock is None or ours is None:
        return "-"
    if field in COUNTS:
        return f"{stock} -> {ours}"
    (number, unit), (_, our_unit) = scaled(stock), scaled(ours)
    return f"{number if unit == our_unit else mebibytes(stock)} -> {mebibytes(ours)}"


def _drawn(blocks: Iterator[str | Table]) -> list[str]:
    from rich import box, table, text
    from rich.console import Console

    out = io.StringIO()
    console = Console(width=WIDTH, file=out, color_system=None, highlight=False)
    for block in blocks:
        if isinstance(block, str):
            console.print(block, markup=False)
            continue
        drawn = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for heading in block.headings:
            numeric = heading in NUMERIC
            drawn.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric or not heading)
        for row in block.rows:
            drawn.add_row(*(text.Text("\n".join(cell)) for cell in row))
        console.print(drawn)
    return out.getvalue().splitlines()


def _plain(blocks: Iterator[str | Table]) -> Iterator[str]:
    """Tables as plain lines: for each row its first cell, and below it each other cell after its heading."""
    for block in blocks:
        if isinstance(block, str):
            yield from textwrap.wrap(block, WIDTH, break_on_hyphens=False) or [""]
            continue
        first, *others = block.headings
        labels = (first, *(f"  {heading}:" for heading in others))
        for row in block.rows:
            for label, (line, *more) in zip(labels, row):
                for each in (f"{label} {line}" if label else line, *(f"    {each}" for each in more)):
                    yield from textwrap.wrap(each, WIDTH, subsequent_indent=" " * 8, break_on_hyphens=False)


def _short(file: str) -> str:
    """The path, relative to the current directory where the file is below that."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
