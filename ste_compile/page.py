"""The report as one HTML page that opens from disk and loads nothing.

`page.html.j2` lays it out, `page.css` and `page.js` go into it; here is what they show. Jinja escapes whatever comes from user
code, and the page's content security policy lets no script run but the one whose hash it names.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jinja2
import networkx
from markupsafe import Markup
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.style import Style
from pygments.token import Comment, Keyword, Name, String, Text

from .report import Figures, Graph, Line, Report, Site, difference, mebibytes

# What became of a node: its sign in the gutter, and what that means.
STATES = {
    "kept": ("", "as it was"),
    "removed": ("\N{MINUS SIGN}", "gone from the graph"),
    "deferred": ("\N{DOWNWARDS ARROW}", "only the backward needs it now"),
    "fused": ("\N{ASTERISK OPERATOR}", "part of one fused operator"),
    "new": ("+", "put in by the passes"),
}
ACTIONS = ("cancelled", "fused", "left")
FIGURES = {
    "operators": "operators", "matmuls": "matmuls", "kernels": "kernels",
    "bytes_read": "read", "bytes_written": "written", "bytes_saved": "saved for the backward",
}  # fmt: skip


def render(report: Report) -> str:
    """The page's text.

    >>> render(Report("finite", "2.13.0", ())).splitlines()[0]
    '<!doctype html>'
    """
    from . import __version__

    loader = jinja2.PackageLoader("ste_compile", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(code=code, amount=amount, split_path=split_path, difference=difference)
    source = functools.partial(loader.get_source, environment)
    script = source("page.js")[0]
    return environment.get_template("page.html.j2").render(
        report=report, version=__version__, states=STATES, actions=ACTIONS, figures=FIGURES,
        rows=part_rows, jumps=jumps, draw=draw, line_id=line_id, site_of=site_of,
        styles=Markup(source("page.css")[0]), light=_definitions(Light), dark=_definitions(Dark), script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


# Text


class Light(Style):
    """Of a graph line: its own name, its type, and what is said beside the code. The rest is plain: colour is for the states."""

    styles = {Name.Variable: "bold", String: "#6a3d9a", Keyword: "#6b3f10", Comment: "italic #555c65"}  # noqa: RUF012


class Dark(Style):
    styles = {Name.Variable: "bold", String: "#d5b8ff", Keyword: "#f0c08a", Comment: "italic #a9b1ba"}  # noqa: RUF012


def _definitions(style: type[Style]) -> Markup:
    return Markup("\n".join(HtmlFormatter(style=style).get_token_style_defs("code")))


@functools.lru_cache(maxsize=2**14)
def code(text: str, node: str = "") -> Markup:
    """Python, highlighted; `node` is the name that the line defines.

    Words without a style get no markup: it would be most of the page.
    """
    lexer, formatter = PythonLexer(stripnl=False, ensurenl=False), HtmlFormatter(nowrap=True)

    def tokens() -> Iterator[tuple[Any, str]]:
        own = node
        for kind, word in lexer.get_tokens(text):
            styled = next((k for k in (String, Keyword, Comment) if kind in k), Text)
            if own and word == own:
                own, styled = "", Name.Variable
            yield styled, word

    out = io.StringIO()
    formatter.format(tokens(), out)
    return Markup(out.getvalue().rstrip("\n"))


def split_path(path: str) -> tuple[str, str]:
    """A path's folder, with its slash, and the rest."""
    folder, name = re.fullmatch(r"(.*[/\\])?(.*)", path, re.S).groups()  # type: ignore[union-attr]
    return folder or "", name


def amount(count: int | None, name: str, signed: bool = False) -> str:
    """A figure in words: bytes in MiB, others with separators; a difference with its sign."""
    text = mebibytes(count) if name.startswith("bytes") or count is None else f"{count:,}"
    return f"+{text}" if signed and count is not None and count > 0 else text.replace("-", "\N{MINUS SIGN}") if count else text


def part_rows(ours: Figures, stock: Figures) -> Iterator[tuple[str, Figures]]:
    """What a part's rows show; stock's only where it was measured."""
    yield "ste_compile", ours
    if stock != Figures():
        yield "stock", stock
        yield "difference", ours - stock


# Where to jump


def line_id(graph: int, view: int, line: int) -> str:
    return f"g{graph}-v{view}-{line + 1}"


def jumps(number: int, graph: Graph, site: Site) -> Iterator[tuple[str, str]]:
    """(where, line id) of a site's node in the first view, and of the operator it was fused into in the first that has it."""
    found: dict[bool, tuple[str, str]] = {}
    for v, view in enumerate(graph.views):
        for i, line in enumerate(view.lines):
            if (v == 0 and line.node == site.node) or (line.state == "fused" and line.node == site.operator != ""):
                found.setdefault(v == 0, (view.name, line_id(number, v, i)))
    return iter([found[first] for first in (True, False) if first in found])


def site_of(graph: Graph) -> dict[str, int]:
    """The position of the site that a node is the root of, or the operator."""
    return {node: position for position, site in enumerate(graph.sites) for node in (site.node, site.operator) if node}


# The drawing of a site's neighbourhood

CHARACTER, TEXT_LINE, PAD, GAP, FALL = 7.3, 15, 8, 18, 22  # pixels, at the 12 px of page.css
_ASSIGNED = re.compile(r"""[^=:]*(?::\s*(?P<type>"[^"]*"|'[^']*'|[^=]*?))?\s*=\s*(?P<target>[\w.]+)\(""")


@dataclass(frozen=True)
class Box:
    """A node: its corner and size; its name, role and state; its operator and type."""

    x: float
    y: float
    width: float
    height: float
    name: str
    role: str
    state: str
    call: str

    @property
    def tags(self) -> str:
        sign = f"{STATES[self.state][0]} {self.state}" if self.state != "kept" else ""
        return " \N{MIDDLE DOT} ".join(filter(None, [self.role, sign]))


@dataclass(frozen=True)
class Drawing:
    """Boxes and the paths between them; `words` says the same."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    paths: tuple[str, ...]
    words: str


def draw(graph: Graph, site: Site) -> Drawing:
    """A site's `edges` in layers, operands above their users, the nodes named and marked as in the "before" view."""
    roles = {site.value.node: "value"} | {s.node: "surrogate" for s in site.surrogates} | {site.node: "site"}
    views = sorted(graph.views, key=lambda view: view.name == "before")
    lines = {line.node: line for view in views[-1:] for line in view.lines}
    layers, chains = _layers(site)
    boxes = {n: _box(n, roles.get(n, ""), lines.get(n)) for layer in layers for n in layer if isinstance(n, str)}
    spans = [sum(boxes[n].width if n in boxes else 0 for n in layer) + GAP * (len(layer) - 1) for layer in layers]
    middle, y = {}, 0.0
    for layer, span in zip(layers, spans):
        x, tall = (max(spans) - span) / 2, max(boxes[n].height for n in layer if n in boxes)
        for n in layer:
            if n in boxes:
                boxes[n] = replace(boxes[n], x=round(x), y=y, height=tall)
            width = boxes[n].width if n in boxes else 0
            middle[n] = x + width / 2, y, y + tall
            x += width + GAP
        y += tall + FALL
    words = [*(f"{role}: {node}" for node, role in roles.items()), *(f"{a} feeds {b}" for a, b in site.edges)]
    return Drawing(max(spans), y - FALL, tuple(boxes.values()), tuple(_path(chain, middle) for chain in chains), "; ".join(words))


def _box(node: str, role: str, line: Line | None) -> Box:
    call = ""
    if line and (match := _ASSIGNED.match(line.text)):
        call = match["target"].removeprefix("torch.ops.").removesuffix(".default") + " " + (match["type"] or "").strip("\"' ")
    name, call = (t if len(t) <= 44 else t[:43] + "\N{HORIZONTAL ELLIPSIS}" for t in (node, call.strip()))
    box = Box(0, 0, 0, PAD + TEXT_LINE * (2 if call else 1), name, role, line.state if line else "kept", call)
    first = len(name) + len(box.tags) + (2 if box.tags else 0)
    return replace(box, width=round(CHARACTER * max(first, len(call)) + 2 * PAD))


def _layers(site: Site) -> tuple[list[list[Any]], list[list[Any]]]:
    """The nodes in layers, each ordered to cross few edges, and each edge as the chain of what it passes: nodes at its ends
    and, in the layers between, a place kept free for it."""
    graph: Any = networkx.DiGraph(site.edges)
    graph.add_node(site.node)
    from_below = networkx.topological_generations(graph.reverse(copy=False))
    depth: dict[Any, Any] = {node: i for i, layer in enumerate(from_below) for node in layer}
    chains = [[a, *((a, b, i) for i in range(depth[a] - 1, depth[b], -1)), b] for a, b in graph.edges]
    depth |= {place: place[2] for chain in chains for place in chain[1:-1]}
    layers = [[n for n in depth if depth[n] == d] for d in range(max(depth.values()), -1, -1)]
    joined: Any = networkx.Graph([pair for chain in chains for pair in pairwise(chain)])
    joined.add_node(site.node)
    for neighbours, layer in [*pairwise(layers), *pairwise(layers[::-1])] * 2:
        at = {n: (i + 0.5) / len(neighbours) for i, n in enumerate(neighbours)}
        here = {n: (i + 0.5) / len(layer) for i, n in enumerate(layer)}
        near = {n: [at[m] for m in joined[n] if m in at] or [here[n]] for n in layer}
        layer.sort(key={n: sum(at) / len(at) for n, at in near.items()}.__getitem__)
    return layers, chains


def _path(chain: list[Any], middle: dict[Any, tuple[float, float, float]]) -> str:
    """An SVG path from the foot of the first to the head of the last, with an arrow's point there."""
    (x, _, y), *rest = (middle[n] for n in chain)
    path = f"M{x:.0f} {y:.0f}"
    for x_to, top, foot in rest:
        half = (y + top) / 2
        path += f"C{x:.0f} {half:.0f} {x_to:.0f} {half:.0f} {x_to:.0f} {top:.0f}"
        if top != rest[-1][1]:
            path += f"V{foot:.0f}"
        x, y = x_to, foot
    return path + "m-3.5-6 3.5 6 3.5-6"
