"""A report as text, at most 100 columns wide."""

from __future__ import annotations

import io
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .report import Graph, Part, Report, Site, difference, mebibytes

WIDTH = 100


def render(report: Report) -> str:
    """The text of `print(report)`: for each graph its sites and why, then what is compiled of it, beside stock."""
    console = Console(width=WIDTH, file=io.StringIO(), color_system=None, highlight=False)
    count = len(report.sites)
    console.print(f"ste-compile, torch {report.torch}, numerics={report.numerics!r}: {_plural(count, 'site')}, "
                  f"{_plural(len(report.graphs), 'graph')}", markup=False)  # fmt: skip
    for each in report.breaks:
        console.print(str(each), markup=False)
    for graph in report.graphs:
        _render(console, graph)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def _render(console: Console, graph: Graph) -> None:
    console.print()
    console.print(f"graph {graph.name or '(no id)'}, {'training' if graph.training else 'inference'}: "
                  f"{_plural(len(graph.sites), 'site')}", markup=False)  # fmt: skip
    if graph.started_by:
        console.print(f"after a {graph.started_by}", markup=False)
    if graph.sites:
        table = _table("#", "site", "action")
        for site in graph.sites:
            table.add_row(str(site.index), Text("\n".join(_what(site))), Text("\n".join(_why(site))))
        console.print(table)
    if any(part.stock.kernels is not None for part in graph.parts):
        console.print("compiled, stock -> ours:")
        console.print(_parts(graph))
        if rest := difference(graph.rest()):
            console.print(f"in the forward, besides what sites free: {rest}", markup=False)


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
    return [*lines, *site.notes]


def _parts(graph: Graph) -> Table:
    table = _table("", "operators", "matmuls", "kernels", "read", "written", "saved")
    for part in graph.parts:
        table.add_row(part.kind, *(_pair(part, field) for field in ("operators", "matmuls", "kernels")),
                      *(_pair(part, field) for field in ("bytes_read", "bytes_written", "bytes_saved")))  # fmt: skip
    return table


def _pair(part: Part, field: str) -> str:
    stock, ours = getattr(part.stock, field), getattr(part.ours, field)
    if stock is None or ours is None:
        return "-"
    if "bytes" not in field:
        return f"{stock} -> {ours}"
    left, right = mebibytes(stock), mebibytes(ours)
    return f"{left.split()[0] if left.split()[1] == right.split()[1] else left} -> {right}"


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        numeric = heading in ("operators", "matmuls", "kernels", "read", "written", "saved")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric or not heading)
    return table


def _short(file: str) -> str:
    """Relative to here where it is below."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
