"""What a process compiled, as one table: a row for each line of code with sites, whatever number of graphs they are in."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .figures import NOTHING, plural
from .report import Graph, Report, Site
from .text import Table, layout

SHOWN = 3  # near misses of one row; the rest is counted


class Call(NamedTuple):
    """A call of `torch.compile`: where, and the backend that it asks for."""

    file: str
    line: int
    backend: str


def render(report: Report, calls: Sequence[Call], lost: int = 0, why: str = "", unmatched: str = "") -> str:
    """The table of `python -m ste_compile run`, at most 100 columns wide.

    Args:
        calls: each call of `torch.compile`.
        lost: how many graphs came from a compile cache beside which nothing about their sites is stored.
        why: what ended the process, if the process itself did not.
        unmatched: which levels are for modules that have no site, in words.
    """
    return layout(_blocks(report, calls, lost, why, unmatched))


def _blocks(report: Report, calls: Sequence[Call], lost: int, why: str, unmatched: str) -> Iterator[str | Table]:
    cached = sum(graph.from_cache for graph in report.graphs)
    yield (
        f"ste-compile, torch {report.torch}, numerics={report.numerics!r}: {plural(len(report.sites), 'site')}, "
        f"{plural(len(report.graphs), 'graph')}" + f", {cached} of them from a compile cache" * bool(cached)
    )
    if why:
        yield f"{why}; this is what was compiled until then"
    if unmatched:
        yield unmatched
    rows: dict[tuple[str, ...], list[tuple[Graph, Site]]] = defaultdict(list)
    for graph in report.graphs:
        for site in graph.sites:
            rows[site.file, str(site.line), site.code, site.expression].append((graph, site))
    if rows:
        modes = [mode for mode in (True, False) if any(graph.training is mode and graph.sites for graph in report.graphs)]
        headings = ["in training" if mode else "in inference" for mode in modes]
        yield Table(("site", *headings), [_row(sites, modes) for sites in rows.values()])
    if lost:
        yield f"{plural(lost, 'more graph')} came from a compile cache that keeps no word of their sites"
    yield from _without_passes(report, calls, lost)
    yield from map(_shortened, map(str, report.breaks))


def _without_passes(report: Report, calls: Sequence[Call], lost: int) -> Iterator[str]:
    """What was not compiled by Inductor."""
    for call in calls:
        if call.backend != "inductor" and not call.backend.startswith("ste"):
            yield _shortened(f"{call.file}:{call.line}: backend={call.backend!r} is not Inductor, and gets no passes")
    if report.graphs or lost:
        return
    if not calls:
        yield "nothing was compiled: torch.compile was not called"
    elif not report.breaks:
        places = ", ".join(f"{call.file}:{call.line}" for call in calls)
        yield _shortened(f"nothing was compiled by Inductor: torch.compile was called ({places}), but no graph of it went there")


def _row(found: Sequence[tuple[Graph, Site]], modes: Sequence[bool]) -> list[list[str]]:
    site = found[0][1]
    where = [f"{site.file}:{site.line}" if site.file else site.node]
    where += [f"{site.code} :"] * (site.code not in ("", site.expression))
    where.append(site.expression or "(its source is not known)")
    cells = [where, *(_done([pair for pair in found if pair[0].training is mode]) for mode in modes)]
    return [[_shortened(line) for line in cell] for cell in cells]


def _done(found: Iterable[tuple[Graph, Site]]) -> list[str]:
    """What was done and why, what that frees, and near misses: of the sites of one row, in one mode."""
    alike: dict[tuple[str, str], list[tuple[Graph, Site]]] = defaultdict(list)
    for graph, site in found:
        alike[site.action, site.reason].append((graph, site))
    lines = []
    for (action, reason), pairs in alike.items():
        graphs = len({id(graph) for graph, _ in pairs})
        counted = f" ({len(pairs)} times, in {plural(graphs, 'graph')})" if len(pairs) > 1 else ""
        lines.append(f"{action}{counted}: {reason}")
        if action == "cancelled":
            lines.append(f"frees {sum((site.frees for _, site in pairs), NOTHING)}")
        notes = Counter(note for _, site in pairs for note in site.notes)
        lines += [*notes][:SHOWN]
        lines += [f"and {plural(len(notes) - SHOWN, 'note')} like these"] * (len(notes) > SHOWN)
    return lines or ["-"]


def _shortened(text: str) -> str:
    """The text, with its paths relative to the current directory or to where packages are installed."""
    for folder in sorted((*_packages(), str(Path.cwd())), key=len, reverse=True):
        text = text.replace(f"{folder}{os.sep}", "")
    return text


def _packages() -> list[str]:
    return [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
