"""Random functions with sites, from the project's own strategies, of operations that PTX does as eager does them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from ste_compile.passes import Reason, Site, recognise
from ste_compile.passes.nodes import COPIES, MARKERS, fake, is_cast
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from ste_compile.testing.builder import Builder, Variable
from ste_compile.testing.program import Line, Program
from ste_compile.testing.vocabulary import DTYPES

aten = torch.ops.aten
# What spellings compute beside the site is transcendental, and a GPU's own: here products, and what rounds nothing.
INSTEAD = {"sin": r"(\1 * \1)", "exp": r"(\1 * \1.abs())", "cos": r"\1.abs()", "tanh": r"\1.relu()"}
FORMS = ("{}", "{}", "{}.float()", "{}.bfloat16()", "0.5 * {}")
ROUNDS_ONCE = (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor)
ROUNDS_NOTHING = (aten.abs.default, aten.relu.default, aten.slice.Tensor, aten.view.default, *MARKERS, *COPIES)


def _binary(builder: Builder) -> None:
    """A product, twice of three times; or a cast or a multiple of it."""
    a, b, out = builder.pick(), builder.pick(), builder.name()
    if a.support.isdisjoint(b.support):
        sign, form = "**+-"[builder.draw(4)], FORMS[builder.draw(len(FORMS))]
        text = form.format(f"({a.name} {sign} {b.name})")
        builder.add([Line(f"{out} = {text}")], out, [a, b], (sign, form, a.key, b.key), a.support | b.support)


def _scalar(builder: Builder) -> None:
    """A 0-dim tensor, which is rounded to the dtype of what it is added to."""
    a, out = builder.pick(), builder.name()
    if a.tensor.ndim:
        builder.add([Line(f"{out} = {a.name}.narrow(0, 0, 1).view(())")], out, [a], ("scalar", a.key), a.support)


STATEMENTS = (Builder.site, _binary, Builder.site, _binary, Builder.cast, Builder.scaled, _scalar)


@st.composite
def functions(draw: Any) -> Program:
    """Random programs on vectors, of which all variables are returned."""
    builder = Builder(lambda n: draw(st.integers(0, n - 1)) if n > 1 else 0)
    builder.scope["torch"] = torch
    one = builder.draw(2)  # mostly one dtype: 16 bits meet 16 bits, where LLVM narrows
    for i in range(4):
        dtype = DTYPES[builder.draw(len(DTYPES))] if i == 0 or one else builder.arguments["x0"]
        builder.arguments[f"x{i}"] = dtype
        tensor = builder.scope[f"x{i}"] = torch.randn(4).to(eval(dtype))
        builder.variables.append(Variable(f"x{i}", tensor, f"x{i}", frozenset([f"x{i}"])))
    for _ in range(2 + builder.draw(5)):
        STATEMENTS[builder.draw(len(STATEMENTS))](builder)
    returned = tuple(each.name for each in builder.variables if each.name not in builder.arguments)
    return Program({}, builder.arguments, tuple(map(_without_functions, builder.lines)), returned)


def _without_functions(line: Line) -> Line:
    text = line.text
    for name, instead in INSTEAD.items():
        text = re.sub(rf"(\w+)\.{name}\(\)", instead, text)
    return dataclasses.replace(line, text=text)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A program, and which of its results are the same numbers wherever each operation is rounded once."""

    program: Program
    results: tuple[int, ...]

    def __call__(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.program.module()(*args)
        return tuple(out[i] for i in self.results)

    def __hash__(self) -> int:
        return hash(self.program)


def chosen(program: Program, args: list[torch.Tensor]) -> Chosen:
    graph = make_fx(program.module())(*args).graph
    if any(node.op == "call_function" and node.target._schema.is_mutable for node in graph.nodes):
        return Chosen(program, ())  # AOTAutograd makes such a graph functional, for passes and Inductor alike
    exact = set(_exact(graph))
    outputs: Any = graph.output_node().args[0]
    return Chosen(program, tuple(i for i, node in enumerate(outputs) if node in exact and node.op != "placeholder"))


def _exact(graph: Graph) -> Iterator[Node]:
    """The nodes whose value is eager's: what is read, sites of what was rounded once, and what rounds no such value."""
    found = recognise(graph, ())  # no input has a gradient
    sites = {site.root: set(site.tree) for site in found if _is_fused(site) and not _leaves_alone(site.tree)}
    exact: set[Node] = set()
    once: set[Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if (
            node.op == "placeholder"
            or (node in sites and _leaves(node, sites[node]) <= once)
            or (node.target in ROUNDS_NOTHING and exact.issuperset(inputs))
        ):
            exact.add(node)
        under = once if is_cast(node) or _is_multiple(node) else exact  # what is under them a site rounds too
        if node in exact or (_rounds_once(node) and under.issuperset(inputs)):
            once.add(node)
        if node in exact:
            yield node


def _is_fused(site: Site) -> bool:
    return site.refusal is None or site.refusal.reason in (Reason.NO_GRADIENT, Reason.ROUNDED_LATER)


def _rounds_once(node: Node) -> bool:
    return is_cast(node) or (node.target in ROUNDS_ONCE and not _rounds_a_scalar(node))


def _is_multiple(node: Node) -> bool:
    return node.target is aten.mul.Tensor and isinstance(node.args[0], Node) and not isinstance(node.args[1], Node)


def _rounds_a_scalar(node: Node) -> bool:
    """Whether an operation reads a 0-dim tensor of another dtype: eager rounds it first (in products, only on a GPU), and outside of
    sites Inductor does not."""
    return any(fake(each).ndim == 0 < fake(node).ndim and fake(each).dtype != fake(node).dtype for each in node.all_input_nodes)


def _leaves_alone(tree: tuple[Node, ...]) -> bool:
    """`alpha`, and a number in the first place, which eager's CPU kernels round, and a GPU's do not."""
    return any("alpha" in node.kwargs or not isinstance(node.args[0], Node) or node.target is aten.rsub.Scalar for node in tree)


def _leaves(root: Node, tree: set[Node]) -> set[Node]:
    """What the arithmetic of a site reads. A multiple of what it reads is a leaf too: the operator is given it as it is."""
    found, seen, stack = set(), set(), [root]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        multiple = node.target is aten.mul.Tensor and tree.isdisjoint(node.all_input_nodes)
        if node.target in MARKERS or (node in tree and not multiple):
            stack += node.all_input_nodes
        else:
            found.add(node)
    return found
