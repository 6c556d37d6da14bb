"""The drawing of a site's neighbourhood in the page: the nodes around it in layers, operands above their users."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import networkx

if TYPE_CHECKING:
    from .report import Graph, Line, Site

# What became of a node: its sign in the gutter, and what that means.
STATES = {
    "kept": ("", "as it was"),
    "removed": ("\N{MINUS SIGN}", "gone from the graph"),
    "deferred": ("\N{DOWNWARDS ARROW}", "only the backward needs it now"),
    "fused": ("\N{ASTERISK OPERATOR}", "part of one fused operator"),
    "new": ("+", "put in by the passes"),
}
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
