"""The HTML page, in a real Chromium: what is promised to someone who opens it."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from ste_compile.inspection import drawing
from ste_compile.inspection import page as pages
from ste_compile.inspection.figures import Figures
from ste_compile.inspection.report import Break, Graph, Line, Operand, Report, View
from ste_compile.inspection.source import Frame

from .reports import SEED, big, small

REQUIRED = bool(os.environ.get("CI") or os.environ.get("STE_COMPILE_REQUIRE_BROWSER"))
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="session")
def chromium():
    executable = shutil.which("chromium")
    if executable is None:
        (pytest.fail if REQUIRED else pytest.skip)("chromium is not installed: apt-get install chromium")
    sync_api = importlib.import_module("playwright.sync_api") if REQUIRED else pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Open a report from disk. Whatever it logs, throws or asks the network for fails the test that opened it."""
    complaints, contexts = [], []

    def visit(report: Report, **options):
        path = tmp_path / "index.html"
        report.to_html(path)
        context = chromium.new_context(**({"viewport": {"width": 1400, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: None if request.url == path.as_uri() else complaints.append(f"request: {request.url}"))
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def in_view(page, selector: str) -> bool:
    """Whether all of the element can be seen: within the window, and within the list it scrolls in."""
    return page.evaluate(
        """selector => {
          const element = document.querySelector(selector), box = element.getBoundingClientRect();
          const list = (element.closest(".lines") || document.documentElement).getBoundingClientRect();
          return element.checkVisibility({contentVisibilityAuto: true}) && box.height > 0 && box.top >= Math.max(0, list.top) - 1
            && box.bottom <= Math.min(innerHeight, list.bottom) + 1;
        }""",
        selector,
    )


def arrived(page, selector: str) -> None:
    """Wait until the element has the focus and is the target of the address, and can be seen."""
    page.wait_for_function("s => document.activeElement.matches(s) && document.activeElement.matches(':target')", arg=selector)
    page.evaluate(
        "() => new Promise(done => { let frames = 10; (function next() { frames-- ? requestAnimationFrame(next) : done() })() })"
    )
    assert in_view(page, selector)


def shown(page) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('tbody.site')].filter(b => b.checkVisibility()).map(b => b.id)")


def test_the_page_loads_nothing_and_logs_nothing(visit):
    """Given a report written to disk, when it is opened from there, then all of it shows, without a console message or a request."""
    page = visit(small())

    text = page.inner_text("body")
    for words in ("2.13.0", "finite", "Graph 0/0", "Graph 1/0", "a call of print", "model.py:42", "host + (seed - seed.detach())",
                  "1.2 MiB more would be freed", "resumed after the graph break at line 86", "f32 -> bf16", "v + (s - s)"):  # fmt: skip
        assert words in text, words
    assert "http" not in re.sub(r"http-equiv", "", small().to_html())


def test_totals_show_ours_beside_stock(visit):
    """Given parts measured against stock's, when the page shows them, then each has three rows and the last is the difference."""
    page = visit(small())

    rows = [row.inner_text().replace(MINUS, "-").split("\t") for row in page.query_selector_all(".figures tbody tr")]

    assert [row[-7:] for row in rows[:3]] == [
        ["ste_compile", "21", "3", "7", "28.0 MiB", "19.0 MiB", "10.0 MiB"],
        ["stock", "30", "5", "12", "42.0 MiB", "25.0 MiB", "19.2 MiB"],
        ["difference", "-9", "-2", "-5", "-14.0 MiB", "-6.0 MiB", "-9.2 MiB"],
    ]
    assert len(rows) == 7  # forward, backward; and an inference graph that was not measured against stock's
    assert str(small().graphs[0].freed()) in page.inner_text("article.totals")


def test_sites_filter_by_text_and_by_action(visit):
    """Given the list of sites, when words are typed and actions unticked, then the sites with both stay, and their count is said."""
    page = visit(small())
    assert shown(page) == ["g0-s0", "g0-s1", "g1-s0"]

    page.fill("#filter", "QUANTIZER.py algebraic")
    assert (shown(page), page.inner_text("#count")) == (["g0-s1"], "1 of 3 sites")

    page.fill("#filter", "")
    page.get_by_role("checkbox", name="fused").uncheck()
    page.get_by_role("checkbox", name="left").uncheck()
    assert (shown(page), page.inner_text("#count")) == (["g0-s0"], "1 of 3 sites")

    page.fill("#filter", "quantizer.py")
    assert (shown(page), page.inner_text("#count")) == ([], "0 of 3 sites")
    assert page.get_attribute("#count", "aria-live") == "polite"


def test_a_site_leads_to_its_node_and_back(visit):
    """Given a fused site, when its links are followed, then its line before, the operator after, and the site itself are shown."""
    page = visit(small())

    page.click("#g0-s1 .jumps a:has-text('before')")
    arrived(page, "#g0-v0-15")
    assert "add_1" in page.inner_text("#g0-v0-15")

    page.select_option("select[data-graph='0']", label="backward")
    assert page.is_visible("#g0-v3-1") and not page.is_visible("#g0-v1-1")
    page.click("#g0-s1 .jumps a:has-text('after')")
    arrived(page, "#g0-v1-8")
    assert "straight_through" in page.inner_text("#g0-v1-8")
    assert page.input_value("select[data-graph='0']") == "g0-v1"

    for _ in range(2):  # the second time the address is there already
        page.fill("#filter", "gates.py")
        page.click("#g0-v1-8 a")
        arrived(page, "#g0-s1")
        page.evaluate("document.querySelector('#g0-v1-8').scrollIntoView()")
    page.go_back()
    arrived(page, "#g0-v1-8")


def test_a_link_into_a_graph_that_is_not_shown_opens_it(visit):
    """Given the address of a line in the third graph, when the page is opened there, then that graph is the one selected."""
    page = visit(small())

    page.goto(page.url + "#g0-v2-4")

    arrived(page, "#g0-v2-4")
    assert page.input_value("select[data-graph='0']") == "g0-v2"


def test_the_keyboard_alone_is_enough(visit):
    """Given no mouse, when Tab, letters and Enter are pressed, then a site is found and its node reached, each stop with an outline."""
    page = visit(small())

    def tab_to(selector: str, most: int = 25) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"{selector} is not within {most} stops")

    tab_to(".skip", most=1)
    page.keyboard.press("Enter")
    tab_to("#filter", most=1)
    page.keyboard.type("gates")
    page.keyboard.press("Enter")
    assert shown(page) == ["g1-s0"]
    tab_to("input[value=left]", most=3)
    tab_to(".jumps a", most=1)
    page.keyboard.press("Enter")
    arrived(page, "#g1-v0-6")
    tab_to("#g1-v0-6 a", most=1)


MARKUP = """</script></style><script>pwned=1</script><img src=x onerror="pwned=1">"'&amp; javascript:pwned=1 {{ 7*7 }} {# x #} ]]>-->"""


def hostile() -> Report:
    """Markup in whatever user code, or torch, may have named."""
    node, path = f"a{MARKUP}", f"/home/{MARKUP}/javascript:pwned=1.py"
    code = f'"""A docstring. {MARKUP}"""'
    site = replace(
        SEED, node=node, file=path, code=code, expression=f"x + {MARKUP}", value=Operand(node, MARKUP, MARKUP), surrogates=(Operand(f"s{MARKUP}", MARKUP, MARKUP),),
        casts=(MARKUP,), needs=MARKUP, order=MARKUP, reason=MARKUP, notes=(MARKUP,), stack=(Frame(path, 1, MARKUP, code),),
        edges=((f"s{MARKUP}", node), (f"other{MARKUP}", node)),
    )  # fmt: skip
    lines = (
        Line(node, f'{node}: "{MARKUP}" = {MARKUP}(x)', "removed", path),
        Line(f"s{MARKUP}", code, "fused", MARKUP),
        Line("z", f"# {MARKUP}", "new", ""),
    )
    graph = Graph(
        MARKUP,
        True,
        MARKUP,
        (site,),
        (),
        (View(MARKUP, lines), View(f"2{MARKUP}", lines), View(f"3{MARKUP}", lines)),
        Break(path, 1, MARKUP),
    )
    return Report(MARKUP, MARKUP, (graph,))


def test_markup_from_user_code_is_text(visit):
    """Given markup in every name, path, expression and note, when the page is opened and used, then none of it runs and all of it reads
    as it was written."""
    page = visit(hostile())

    page.click(".jumps a")
    page.fill("#filter", "onerror")
    assert shown(page) == ["g0-s0"]
    assert page.evaluate("typeof pwned") == "undefined"
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("document.images.length") == 0
    assert page.evaluate("[...document.links].every(a => a.getAttribute('href').startsWith('#'))")
    assert page.evaluate("[...document.querySelectorAll('*')].every(e => [...e.attributes].every(a => !a.name.startsWith('on')))")
    fields = {
        "path": "#g0-s0 .path", "code": "#g0-s0 td:nth-child(3)", "operands": "#g0-s0 .operands", "reason": "#g0-s0 td:nth-child(6) p",
        "note": ".note", "function": ".stack", "drawing": "svg desc", "title": "#g0 h3", "break": "#g0 .break", "view": "#g0-v0 h4",
        "node": "#g0-v0-1 code", "docstring": "#g0-v0-2 code", "comment": "#g0-v0-3 code", "option": "option", "header": ".facts",
    }  # fmt: skip
    missing = [name for name, selector in fields.items() if MARKUP not in page.text_content(selector)]
    assert missing == []
    assert page.get_attribute("#g0-v0-1 .source", "title") == hostile().graphs[0].views[0].lines[0].source


def test_a_script_that_slipped_in_would_not_run(visit, chromium, tmp_path):
    """Given a page with a foreign script written into it, when it is opened, then the content security policy stops the script."""
    path = tmp_path / "tampered.html"
    path.write_text(
        small().to_html().replace("</main>", "<script>pwned=1</script><img src=x onerror='pwned=1'></main>"), encoding="utf-8"
    )
    page = chromium.new_page()

    page.goto(path.as_uri())

    assert page.evaluate("typeof pwned") == "undefined"
    assert page.inner_text("#count") == "3 of 3 sites"
    page.close()


CONTRAST = """() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const rect = element.localName === "g" && element.querySelector("rect");
      const colour = parse(rect ? getComputedStyle(rect).fill : getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest(".spoken, script, desc, title, option")) continue;
    const style = getComputedStyle(element), ink = parse(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), walker.currentNode.data.trim().slice(0, 40), element.closest(".removed, .deferred, .fused, .new")?.classList.value ?? ""]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_legible(visit, scheme):
    """Given either colour scheme, when the contrast of all text with what is behind it is computed, then none is under 4.5."""
    page = visit(small(), color_scheme=scheme)

    found = page.evaluate(CONTRAST)

    assert [each for each in found if each[0] < 4.5] == []
    states = {word for _, _, states in found for word in states.split()}
    assert states >= {"removed", "deferred", "fused", "new"} and len(found) > 200
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 150) == (scheme == "dark")


def test_no_state_is_told_by_colour_alone(visit):
    """Given lines of every state, when colours are not seen, then a sign in the gutter and a spoken word tell the state."""
    page = visit(small())

    for state, (sign, meaning) in drawing.STATES.items():
        gutters = page.query_selector_all(f".line.{state} .sign")
        assert gutters and all(g.text_content() == (f"{sign}{state}" if sign else "") for g in gutters), state
        assert not sign or (state in page.inner_text(".legend") and meaning in page.inner_text(".legend"))
    assert len({sign for sign, _ in drawing.STATES.values()}) == len(drawing.STATES)
    assert page.text_content("#g0-s0 svg g.deferred .tags") == "↓ deferred"


def test_a_screen_reader_finds_its_way(visit):
    """Given the accessibility tree, when landmarks, headings, tables, drawings and controls are looked up by role and name, then they
    are there; also where the table is stacked on a narrow screen."""
    page = visit(small())

    for role, names in {
        "banner": [None], "main": [None], "navigation": ["Contents"], "search": ["Sites"], "heading": ["Totals", "Sites", "Graphs"],
        "table": ["What is compiled from graph 0/0", "The straight-through estimators"], "searchbox": ["Filter"], "combobox": ["beside it"],
        "checkbox": ["cancelled", "fused", "left"], "columnheader": ["where", "needs", "why"], "rowheader": ["forward", "difference"],
        "img": ["Neighbourhood of site 1"], "list": ["Graph 0/0, before", "Calls, outermost first"], "status": [None],
        "link": ["Skip to the sites", "add_1, site 2, before", "add_1, site 2, after"],
    }.items():  # fmt: skip
        for name in names:
            assert page.get_by_role(role, name=name).count() >= 1, (role, name)
    assert page.get_attribute("html", "lang") == "en"
    levels = [int(h.evaluate("h => h.localName[1]")) for h in page.query_selector_all("h1, h2, h3, h4")]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    referred = page.evaluate(
        "[...document.querySelectorAll('[aria-labelledby], a[href], [for]')].flatMap(e => (e.getAttribute('aria-labelledby') ?? e.hash?.slice(1) ?? e.htmlFor.toString()).split(' '))"
    )
    assert set(referred) <= set(ids)

    page.set_viewport_size({"width": 400, "height": 800})
    assert page.get_by_role("table").count() == 3
    assert page.get_by_role("cell", name="action cancelled", exact=True).count() == 1


def test_the_drawing_shows_the_edges_downwards(visit):
    """Given a site's edges, when they are drawn, then every node is named once, operands are above their users and no boxes overlap."""
    graph = small().graphs[0]
    for site in graph.sites:
        drawn = drawing.draw(graph, site)

        at = {box.name: box for box in drawn.boxes}
        assert set(at) == {node for edge in site.edges for node in edge} and len(at) == len(drawn.boxes)
        assert all(at[a].y + at[a].height < at[b].y for a, b in site.edges)
        assert len(drawn.paths) == len(site.edges)
        assert all(
            a.y != b.y or a.x + a.width < b.x or b.x + b.width < a.x for i, a in enumerate(drawn.boxes) for b in drawn.boxes[:i]
        )
        assert all(
            box.x >= 0 and box.x + box.width <= drawn.width + 1 and box.y + box.height <= drawn.height for box in drawn.boxes
        )
        roles = {box.name: box.role for box in drawn.boxes if box.role}
        assert roles == {site.node: "site", site.value.node: "value", site.surrogates[0].node: "surrogate"}
    page = visit(small())
    overflowing = page.evaluate(
        """[...document.querySelectorAll("svg g")].filter(g => [...g.querySelectorAll("text")].some(
             t => t.getBBox().x + t.getBBox().width > g.querySelector("rect").getBBox().x + g.querySelector("rect").getBBox().width + 1))
           .map(g => g.textContent)"""
    )
    assert overflowing == []


def test_views_are_side_by_side_where_there_is_room(visit):
    """Given a wide and a narrow window, when the graphs are shown, then they are beside each other, and below; and nothing is cut off."""
    page = visit(small())
    place = """(() => { const [a, b] = ["g0-v0", "g0-v3"].map(id => document.getElementById(id).getBoundingClientRect());
                        return [b.left >= a.right && b.top === a.top, b.top >= a.bottom] })()"""
    page.select_option("select[data-graph='0']", label="backward")
    assert page.evaluate(place) == [True, False]

    for width in (320, 600, 900):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(place) == [False, True]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width


def test_nothing_moves(visit):
    """Given someone who asked for less motion, and someone who did not, when links are followed, then nothing is animated."""
    for motion in ("reduce", "no-preference"):
        page = visit(small(), reduced_motion=motion)
        page.click("#g0-s0 .jumps a")
        assert page.evaluate("document.getAnimations().length") == 0
        assert page.evaluate("[...document.querySelectorAll('*')].every(e => getComputedStyle(e).scrollBehavior === 'auto')")


def test_the_page_reads_without_scripts(visit):
    """Given a browser that runs no scripts, when the page is opened, then all graphs are shown, and no control that would do nothing."""
    page = visit(small(), java_script_enabled=False)

    assert page.is_visible("#g0-v1-1") and page.is_visible("#g0-v3-1") and page.is_visible("#g0-s1")
    assert not page.is_visible("#filter") and not page.is_visible("select")
    page.click("#g0-s1 .jumps a:has-text('after')")
    assert page.url.endswith("#g0-v1-8")


def test_empty_reports_say_so(visit):
    """Given a report without graphs, and one without sites, when they are opened, then they say that there is nothing."""
    assert "Nothing was compiled." in visit(Report("exact", "2.13.0", ())).inner_text("main")
    page = visit(Report("exact", "2.13.0", (Graph("0/0", False, "exact", ()),)))
    assert "No straight-through estimator was found." in page.inner_text("main")
    assert "no graph text" in page.inner_text("main")


def test_a_big_report_stays_usable(visit):
    """Given 2,000 nodes in three graphs and 200 sites, when the page is opened, filtered and jumped in, then it stays small and quick.

    Measured: 3.8 MiB, 1.5 s to write, 0.7 s to load, 50 ms to filter. The limits are a few times that, for slow machines."""
    began = time.process_time()  # its own: other processes may run
    html = big().to_html()
    assert time.process_time() - began < 10
    assert len(html.encode()) < 5e6

    began = time.perf_counter()
    page = visit(big())
    assert time.perf_counter() - began < 20
    assert page.inner_text("#count") == "200 of 200 sites"

    took = page.evaluate(
        """() => { const began = performance.now(), words = document.querySelector("#filter");
          for (const typed of ["c", "ca", "cas", "layers.19"]) {
            words.value = typed; words.dispatchEvent(new Event("input")); document.body.offsetHeight;
          }
          return (performance.now() - began) / 4 }"""
    )
    assert took < 500
    assert page.inner_text("#count") == "11 of 200 sites"
    page.click("#g0-s190 .jumps a:has-text('before')")
    arrived(page, "#g0-v0-1910")
    page.click("#g0-s190 .jumps a:has-text('after')")
    arrived(page, "#g0-v1-1910")


def test_importing_the_package_imports_none_of_the_pages_libraries():
    """Given a fresh process, when ste_compile and its report are imported, then what only the page and the tables need is not."""
    modules = {"jinja2", "pygments", "rich", *(f"ste_compile.inspection.{name}" for name in ("page", "drawing", "text"))}
    program = f"import sys, torch; known = set(sys.modules); import ste_compile.inspection.report; print(*({modules} & (set(sys.modules) - known)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_amounts_are_in_words():
    """Given counts and bytes, when they are shown, then units, separators and signs are; and nothing where nothing was measured."""
    cases = [
        (1234, "kernels", False),
        (-5, "kernels", True),
        (5, "kernels", True),
        (0, "kernels", True),
        (2**20, "bytes_read", True),
        (None, "kernels", True),
    ]
    assert [pages.amount(*case) for case in cases] == ["1,234", f"{MINUS}5", "+5", "0", "+1.0 MiB", "-"]
    assert [label for label, _ in pages.part_rows(Figures(1), Figures())] == ["ste_compile"]
