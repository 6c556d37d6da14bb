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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.style import Style
from pygments.token import Comment, Keyword, Name, String, Text

from .drawing import STATES, draw
from .figures import BYTES, COUNTS, NOT_MEASURED, Figures, Values, difference, mebibytes
from .suggestion import said_of_useless

if TYPE_CHECKING:
    from .report import Graph, Report, Site

ACTIONS = ("cancelled", "fused", "left")
FIGURES = {count: count for count in COUNTS} | BYTES | {"bytes_saved": "saved for the backward"}  # field -> heading


def render(report: Report) -> str:
    """The page's text.

    >>> from ste_compile import Report
    >>> render(Report("finite", "2.13.0", ())).splitlines()[0]
    '<!doctype html>'
    """
    from .. import __version__

    loader = jinja2.PackageLoader("ste_compile.inspection", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(code=code, amount=amount, split_path=split_path, difference=difference)
    source = functools.partial(loader.get_source, environment)
    script = source("page.js")[0]
    return environment.get_template("page.html.j2").render(
        report=report,
        version=__version__,
        states=STATES,
        actions=ACTIONS,
        figures=FIGURES,
        rows=part_rows,
        jumps=jumps,
        bars=bars,
        draw=draw,
        line_id=line_id,
        site_of=site_of,
        said_of_useless=said_of_useless,
        styles=Markup(source("page.css")[0]),
        light=_definitions(Light),
        dark=_definitions(Dark),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: `count` elements are at most `distance` ulp off, and more than the bar before. `height`: pixels."""

    distance: str
    count: str
    height: int


def bars(values: Values) -> list[Bar]:
    most = max((count for _, count in values.histogram), default=0)
    return [Bar(_short(distance), f"{count:,}", max(1, round(28 * count / most))) for distance, count in values.histogram]


def _short(number: int) -> str:
    return str(number) if number < 1024 else f"2^{number.bit_length() - 1}"


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
    """A figure in words: bytes in their largest unit, others with separators; a difference with its sign."""
    text = mebibytes(count) if name in BYTES or count is None else f"{count:,}"
    return f"+{text}" if signed and count is not None and count > 0 else text.replace("-", "\N{MINUS SIGN}") if count else text


def part_rows(ours: Figures, stock: Figures) -> Iterator[tuple[str, Figures]]:
    """What a part's rows show; stock's only where it was measured."""
    yield "ste_compile", ours
    if stock != NOT_MEASURED:
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
    """Node -> the position of the site that it is the root or the fused operator of."""
    return {node: position for position, site in enumerate(graph.sites) for node in (site.node, site.operator) if node}
