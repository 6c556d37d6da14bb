"""Find the straight-through sites of a graph. Pure analysis: the graph is not changed.

    %sub = aten.sub(%q, %x)
    %alias = aten.alias(%sub)          ->   Site(root=%add, value=%q, surrogates=(%x,), needs="algebraic",
    %add = aten.add(%x, %alias)                  order="(v - s) + s")

A site cancels *exactly* where IEEE arithmetic itself gives zero, `t - t'`, whatever that zero is then scaled, cast or viewed
as; it cancels *after reassociation* where only the linear form shows it, `x + (q - x)'`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from .linear_form import LIMIT, LINEAR, Form, Term, addends, atom, combine, is_number, source
from .values import (
    COPIES,
    MARKERS,
    Values,
    arg,
    aten,
    fake,
    is_backward,
    is_cast,
    is_made,
    mutates,
    number_values,
    without_markers,
)

# The refusal of what is after all no site, but a way to measure a rounding error (compensated sums): no pass touches it.
ERROR_IS_USED = "its rounding error is used: terms that only rounding keeps apart are subtracted from it again"
# The refusal of a near miss.
OWN_SURROGATE = "its value adds up its own surrogate: what rounding leaves of their difference may be what is wanted"
# The refusal of what may round by a magic constant (see `linear_form`).
NO_GRADIENT = "what cancels has no gradient to carry: a number that is added and taken off again may round on purpose"

# operator -> the arguments of which one is enough, being zero, for the result to be zero, if the others are finite: in the
# arithmetic of a site,
SCALES: dict[Any, tuple[int, ...]] = {
    aten.mul.Tensor: (0, 1), aten.neg.default: (0,), aten.mul.Scalar: (0,), aten.div.Tensor: (0,), aten.div.Scalar: (0,),
    aten.view.default: (0,), aten._unsafe_view.default: (0,), aten.reshape.default: (0,), aten.expand.default: (0,),
    aten.permute.default: (0,), aten.transpose.int: (0,), aten.t.default: (0,), aten.unsqueeze.default: (0,),
    aten.squeeze.dim: (0,), aten.squeeze.dims: (0,), aten.slice.Tensor: (0,), aten.select.int: (0,),
    **dict.fromkeys((*MARKERS, *COPIES), (0,)),
}  # fmt: skip
# and what else the zero may go through on its way.
ZERO_THROUGH: dict[Any, tuple[int, ...]] = {
    **SCALES,
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, aten.matmul.default), (0, 1)),
    aten.sum.default: (0,), aten.sum.dim_IntList: (0,), aten.abs.default: (0,), aten.relu.default: (0,), aten.index.Tensor: (0,),
    aten.index_select.default: (0,), aten.gather.default: (0,), aten.flip.default: (0,), aten.repeat.default: (0,),
    aten.squeeze.default: (0,), aten.clamp.default: (0,), aten.clamp_min.default: (0,), aten.clamp_max.default: (0,),
}  # fmt: skip
BOUNDS = {aten.clamp.default: (1, -1), aten.clamp_min.default: (1,), aten.clamp_max.default: (-1,)}  # a lower one is 1


@dataclass(frozen=True)
class Site:
    """One straight-through estimator in a graph.

    `root` holds its result; `value` is the node (or Python number) the result keeps, negated where `negated`, and None where no
    node of the graph holds it; `surrogates` are the cancelled terms; `needs` is the least level that may remove them, "finite" or
    "algebraic"; `order` is the
    IEEE arithmetic, one of "v + (s - s)", "(v - s) + s" and "(v + s) - s", or None for another arithmetic; `tree` are the nodes
    of that arithmetic, root first; `refusal` says why the site must be left as it is, and is empty where it need not be."""

    root: Node
    value: Any
    surrogates: tuple[Node, ...]
    needs: str
    order: str | None = None
    negated: bool = False
    tree: tuple[Node, ...] = ()
    refusal: str = ""


@dataclass(frozen=True)
class Outcome:
    """What was done about a site: `action` is "cancelled", "fused" or "left", and `reason` says why. `result` is the node that
    holds the site's result now; `key` is what `tag` was given; `error` is what went wrong in the pass on the way."""

    result: Node
    action: str
    reason: str
    key: Any = None
    error: Exception | None = None


@dataclass
class _Walk:
    values: Values
    differentiable: Container[Node] | None = None
    forms: dict[Node, Form] = field(default_factory=dict)
    zeros: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    sites: dict[Node, Site] = field(default_factory=dict)
    poisoned: set[Node] = field(default_factory=set)
    plain: set[Node] = field(default_factory=set)  # where a term cancelled within one spelling

    def linear_terms(self, node: Node) -> Set[Term]:
        return self.forms[node].terms.keys() if node in self.forms else frozenset()

    def form(self, argument: Any) -> Form:
        if argument in self.zeros:
            return Form({})
        return self.forms.get(argument) or atom(self.values, argument)


def recognise(graph: Graph, differentiable: Container[Node] | None = None) -> tuple[Site, ...]:
    """Every site of a functional ATen graph (joint, inference, or one partition), in graph order.

    Reads `meta["val"]` of every node. `differentiable` are the inputs and attributes that have a gradient; None: all. The
    backward of a joint graph, and whatever follows the first node that mutates an input, is not looked at. A refused site is
    listed too, with its reason.

        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> traced = make_fx(lambda h, s: h + (s - s.detach()))(torch.ones(2), torch.ones(2))
        >>> [(site.value.name, site.needs, site.order) for site in recognise(traced.graph)]
        [('h_1', 'finite', 'v + (s - s)')]
    """
    if not any(node.target in MARKERS for node in graph.nodes):  # most graphs: no detach, no site
        return ()
    walk = _Walk(number_values(graph), differentiable)
    backward: set[Node] = set()
    for node in graph.nodes:
        if is_backward(node) or not backward.isdisjoint(node.all_input_nodes):
            backward.add(node)
        elif mutates(node):
            break
        else:
            _visit(walk, node)
    return tuple(replace(site, refusal=_refused(walk, site)) for site in walk.sites.values())


def _refused(walk: _Walk, site: Site) -> str:
    if site.root in walk.poisoned:
        return ERROR_IS_USED
    layout = fake(site.root).layout
    return site.refusal if layout is torch.strided else f"its result is {layout}: only what has strides can be put in its place"


def _visit(walk: _Walk, node: Node) -> None:
    if found := _zeros_in(walk, node):
        walk.zeros[node] = tuple(dict.fromkeys(each for zero in found for each in walk.zeros[zero]))
        return
    parts = [(coefficient, a, walk.form(a)) for coefficient, a in addends(node)]
    if not parts:
        return
    zeros = [a for _, a, _ in parts if a in walk.zeros]
    if len(parts) == 2 and (len(zeros) == 2 or _cancels_exactly(walk.values, parts)):
        walk.zeros[node] = tuple(dict.fromkeys(n for z in zeros for n in walk.zeros[z])) or (_bare(parts[0][1])[0],)
        return
    form, plain = combine(walk.values, parts, node.target in MARKERS)
    cancelled, residual = form.cancelled(), form.residual()
    only_numbers = all(number < 0 for number, _ in cancelled)
    if plain or (cancelled and (only_numbers or not residual)):
        walk.poisoned |= form.sites
        walk.plain.add(node)
    elif zeros:
        walk.forms[node] = form
        walk.sites[node] = _exact_site(walk, node, parts, zeros[0])
    elif cancelled and any(_has_no_gradient(walk, number) for number, _ in cancelled):
        walk.poisoned |= form.sites
        walk.sites[node] = replace(_reassociating_site(walk, node, Form(residual), cancelled), refusal=NO_GRADIENT)
    elif cancelled:
        walk.forms[node] = Form(residual, form.sites | {node})
        walk.sites[node] = _reassociating_site(walk, node, Form(residual), cancelled)
    else:
        walk.forms[node] = form
        if near_miss := _near_miss(walk, node):
            walk.sites[node] = near_miss


def _zeros_in(walk: _Walk, node: Node) -> list[Node]:
    """The zeros among the arguments of a node that make it zero too; none where it need not be."""
    if node.target is aten.cat.default:
        parts: Any = node.args[0]
        return list(parts) if all(part in walk.zeros for part in parts) else []
    if node.target in BOUNDS and not all(map(_holds_zero, BOUNDS[node.target], node.args[1:])):
        return []
    where = ZERO_THROUGH.get(node.target, (0,) if is_cast(node) else ())
    given = [node.args[index] for index in where if index < len(node.args)]
    return [each for each in given if isinstance(each, Node) and each in walk.zeros][:1]


def _holds_zero(sign: int, bound: Any) -> bool:
    """Whether zero is on the inner side of a bound, a lower one where `sign` is 1."""
    return bound is None or (is_number(bound) and sign * bound <= 0)


def _has_no_gradient(walk: _Walk, number: int) -> bool:
    """Whether a value is an input or attribute that has no gradient, or one made of nothing, or that viewed, cast or scaled."""
    if number < 0:
        return False
    node = source(walk.values.first[number])
    if node.op in ("placeholder", "get_attr"):
        return walk.differentiable is not None and node not in walk.differentiable
    return is_made(node)


def _near_miss(walk: _Walk, root: Node) -> Site | None:
    """A sum written as an estimator, `(v - s)' + s`, whose value itself adds up the surrogate: reported, and left alone."""
    differences = {without_markers(a) for a in root.all_input_nodes if a.target in MARKERS} & walk.plain
    match = match_order(root, walk.values) if differences else None
    if match is None or match[0] != "(v - s) + s":
        return None
    return Site(root, match[1], (match[2],), "algebraic", match[0], tree=(root,), refusal=OWN_SURROGATE)


def _cancels_exactly(values: Values, parts: list[tuple[float, Any, Form]]) -> bool:
    """`t - t'`: one value, opposite signs, reached through different markers."""
    (c, a, _), (d, b, _) = parts
    if not (isinstance(a, Node) and isinstance(b, Node)) or c != 1 or abs(d) != 1:  # `LINEAR` gives the first of two a 1
        return False
    (a, minus_a, marks_a), (b, minus_b, marks_b) = _bare(a), _bare(b)
    opposite = minus_a ^ (d < 0) ^ minus_b
    spellings = values.marked(values.spelling[a], marks_a), values.marked(values.spelling[b], marks_b)
    return opposite and values.number[a] == values.number[b] and spellings[0] != spellings[1]


def _bare(node: Node) -> tuple[Node, bool, int]:
    """A node without the negations and markers around it, whether it was negated, and how many markers there were."""
    negative, marks = False, 0
    while node.target is aten.neg.default or node.target in MARKERS:
        negative, marks = negative ^ (node.target is aten.neg.default), marks + (node.target in MARKERS)
        node = arg(node)
    return node, negative, marks


def _exact_site(walk: _Walk, root: Node, parts: list[tuple[float, Any, Form]], zero: Node) -> Site:
    coefficient, value, _ = next(part for part in parts if part[1] is not zero)
    refusal = "" if abs(coefficient) == 1 else f"the value is scaled by alpha={coefficient}"
    tree = tuple(_tree(root, lambda n: n in walk.zeros and (n.target in SCALES or n.target in LINEAR or is_cast(n))))
    order = match_order(root, walk.values)
    return Site(root, without_markers(value), walk.zeros[zero], "finite", order and order[0], coefficient < 0, tree, refusal)


def _reassociating_site(walk: _Walk, root: Node, residual: Form, cancelled: list[Term]) -> Site:
    tree = tuple(_tree(root, lambda n: n not in walk.sites and not walk.linear_terms(n).isdisjoint(cancelled)))
    scaled = {frozenset(walk.linear_terms(n)): without_markers(n) for n in tree}
    surrogates = tuple(scaled.get(frozenset([t])) or walk.values.first[t[0]] for t in cancelled if t[0] >= 0)
    value, negated = _holder(walk, root, residual)
    refusal = "" if value is not None else "no node of the graph holds what is left after the surrogates cancel"
    if match := match_order(root, walk.values):
        return Site(root, value, (match[2],), "algebraic", match[0], negated, tree, refusal)
    return Site(root, value, surrogates, "algebraic", None, negated, tree, refusal)


def _tree(root: Node, belongs: Callable[[Node], bool]) -> Iterator[Node]:
    """The arithmetic of a site: `root` and, downwards, the nodes that add, scale or cast a term that cancels."""
    stack, seen = [root], {root}
    while stack:
        yield (node := stack.pop())
        below = [a for a in node.all_input_nodes if a not in seen and belongs(a)]
        seen.update(below)
        stack += below


def _holder(walk: _Walk, root: Node, residual: Form) -> tuple[Any, bool]:
    """A node or number whose linear form is the residual, near the root; and whether it is the residual negated."""
    wanted = residual.totals()
    opposite = {term: -total for term, total in wanted.items()}
    queue = [argument for _, argument in addends(root)]
    for argument in queue:  # grows as it is walked: nearest first
        have = walk.form(argument).totals()
        if have in (wanted, opposite):
            return without_markers(argument), have != wanted
        if argument in walk.forms and len(queue) < 4 * LIMIT:
            queue += [below for _, below in addends(argument)]
    return None, False


def match_order(root: Node, values: Values) -> tuple[str, Node, Node] | None:
    """(order, value, surrogate) where the arithmetic of `root` is one of the three, markers aside. It needs no markers, so it
    also reads post-grad graphs, which have lost them."""
    number = values.number
    for (sign, outer), (inner_sign, inner) in _operands(root):
        for (c, a), (d, b) in _operands(inner):
            match sign, inner_sign, c, d:
                case 1, 1, 1, -1 if number[a] == number[b]:
                    order, value = "v + (s - s)", outer
                case 1, 1, 1, -1 if number[outer] == number[b]:
                    order, value = "(v - s) + s", a
                case -1, 1, 1, 1 if number[outer] == number[b]:
                    order, value = "(v + s) - s", a
                case _:
                    continue
            return order, without_markers(value), without_markers(b)
    return None


def _operands(node: Node) -> Iterator[tuple[tuple[float, Node], tuple[float, Node]]]:
    """Both orders of the signed operands of an add or subtract of two tensors; nothing for any other node."""
    node = without_markers(node)
    parts = addends(node) if node.target in (aten.add.Tensor, aten.sub.Tensor) else []
    if len(parts) == 2 and all(isinstance(a, Node) for _, a in parts):
        yield parts[0], parts[1]
        yield parts[1], parts[0]
