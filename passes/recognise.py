"""Find the straight-through sites of a graph. Pure analysis: the graph is not changed.

    %sub = aten.sub(%q, %x)
    %alias = aten.alias(%sub)          ->   Site(root=%add, value=%q, surrogates=(%x,), needs="algebraic",
    %add = aten.add(%x, %alias)                  order="(v - s) + s")

A site cancels *exactly* where IEEE arithmetic itself gives zero, `t - t'`, whatever that zero is then scaled, cast or viewed
as; it cancels *after reassociation* where only the linear form shows it, `x + (q - x)'`.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Graph, Node

from .arithmetic import Walk, holder, is_arithmetic, match_apart, match_order, rest, tree_of
from .linear_form import Form, Term, addends, combine, source
from .nodes import aten, behind, fake, is_backward, is_cast, is_copy, is_made, is_marker, layers, leaves, mutates
from .operators import is_zero, operator_of
from .outcomes import Reason, Site, Why
from .values import Values, number_values


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
    if not any(map(is_marker, graph.nodes)):  # most graphs: no detach, no site
        return ()
    walk = Walk(number_values(graph), differentiable)
    backward: set[Node] = set()
    for node in graph.nodes:
        if is_backward(node) or not backward.isdisjoint(node.all_input_nodes):
            backward.add(node)
        elif mutates(node):
            break
        else:
            _visit(walk, node)
    return tuple(replace(site, refusal=_refused(walk, site)) for site in walk.sites.values())


def _refused(walk: Walk, site: Site) -> Why | None:
    if site.root in walk.poisoned:
        return Reason.ERROR_IS_USED.of()
    if site.root in walk.rounded:
        return Reason.ROUNDED_LATER.of()
    layout = fake(site.root).layout
    return site.refusal if layout is torch.strided else Reason.NO_STRIDES.of(layout)


def _visit(walk: Walk, node: Node) -> None:
    """Note what a node is: a zero, a site, a linear form, or, where nothing is noted, an atom."""
    if found := _zeros_in(walk, node):
        walk.zeros[node] = tuple(dict.fromkeys(each for zero in found for each in walk.zeros[zero]))
        return
    parts = [(coefficient, a, walk.form(a)) for coefficient, a in addends(node) or _beside_zero(walk, node)]
    if not parts:
        return
    zeros = [a for _, a, _ in parts if a in walk.zeros]
    if len(parts) == 2 and (len(zeros) == 2 or _cancels_exactly(walk.values, parts)):
        walk.zeros[node] = tuple(dict.fromkeys(n for z in zeros for n in walk.zeros[z])) or (_bare(parts[0][1])[0],)
        return
    _look_through(walk, node, parts)
    form, plain = combine(walk.values, parts, is_marker(node))
    cancelled, residual = form.cancelled(), form.residual()
    only_numbers = all(number < 0 for number, _ in cancelled)
    if plain or (cancelled and (only_numbers or not residual)):
        walk.poisoned |= form.sites
        walk.plain.add(node)
    elif zeros:
        walk.forms[node] = form
        walk.sites[node] = _exact_site(walk, node, parts, zeros)
    elif cancelled and any(_has_no_gradient(walk, number) for number, _ in cancelled):
        walk.rounded |= form.sites
        walk.apparent[node] = Form(residual, form.sites | {node})
        walk.sites[node] = replace(_reassociating_site(walk, node, Form(residual), cancelled), refusal=Reason.NO_GRADIENT.of())
    elif cancelled:
        walk.forms[node] = Form(residual, form.sites | {node})
        walk.sites[node] = _reassociating_site(walk, node, Form(residual), cancelled)
    else:
        walk.forms[node] = form
        if near_miss := _near_miss(walk, node):
            walk.sites[node] = near_miss


def _look_through(walk: Walk, node: Node, parts: list[tuple[float, Any, Form]]) -> None:
    """Note whether a sum uses the rounding error of a site that is refused because it has no gradient. The linear form takes such
    a site for an atom; here a sum that reads it is looked at as if the site had cancelled. A site whose rounding error is used
    must not be fused: the site would read rounded operands, its readers unrounded ones, and the error would be larger than with
    stock."""
    if any(a in walk.apparent for _, a, _ in parts):
        form, plain = combine(walk.values, [(c, a, walk.apparent.get(a, form)) for c, a, form in parts], is_marker(node))
        if plain or (form.cancelled() and not form.residual()):
            walk.poisoned |= form.sites & walk.apparent.keys()
        else:
            walk.apparent[node] = Form(form.residual(), form.sites)


def _zeros_in(walk: Walk, node: Node) -> list[Node]:
    """The zeros among the arguments of a node that make it zero too; none where it need not be."""
    operator = operator_of(node.target)
    given = [node.args[index] for index in ((0,) if is_cast(node) else operator.zero) if index < len(node.args)]
    found = [each for each in given if isinstance(each, Node) and each in walk.zeros]
    if operator.every:
        parts = [each for index in operator.every for each in leaves(node.args[index : index + 1])] + list(node.kwargs.values())
        zeros = [each for each in parts if each in walk.zeros]
        found = zeros if all(each in walk.zeros or is_zero(each) for each in parts) else []
    return found if found and operator.only(node) else []


def _beside_zero(walk: Walk, node: Node) -> list[tuple[float, Any]]:
    """For a node that adds a product to its first argument (`addmm`): that argument and the factors that are zero, as addends.
    Empty where no factor is zero."""
    operator = operator_of(node.target)
    zeros = [each for index in operator.product for each in node.args[index : index + 1] if each in walk.zeros]
    return [(1, node.args[0]), *((1, zero) for zero in zeros)] if zeros and operator.only(node) else []


def _has_no_gradient(walk: Walk, number: int) -> bool:
    """Whether a value is an input or attribute that has no gradient, or one made of nothing, or that viewed, cast or scaled."""
    if number < 0:
        return False
    node = source(walk.values.first[number])
    if node.op in ("placeholder", "get_attr"):
        return walk.differentiable is not None and node not in walk.differentiable
    return is_made(node)


def _near_miss(walk: Walk, root: Node) -> Site | None:
    """A sum that is written like an estimator but in which the linear form finds no site. It is reported, and left alone. Either
    its value adds up its own surrogate, in `(v - s)' + s`, or a view or a rounding cast stands between its halves."""
    if {behind(each, is_marker) for each in root.all_input_nodes if is_marker(each)} & walk.plain:
        match = match_order(root, walk.values)
        if match and match[0] == "(v - s) + s":
            return Site(root, match[1], (match[2],), "algebraic", match[0], tree=(root,), refusal=Reason.OWN_SURROGATE.of())
    if apart := match_apart(root, walk.values):
        return Site(root, apart[0], apart[1:], "algebraic", tree=(root,), refusal=Reason.APART.of())
    return None


def _cancels_exactly(values: Values, parts: list[tuple[float, Any, Form]]) -> bool:
    """`t - t'`: one value, opposite signs, reached through different markers."""
    (c, a, _), (d, b, _) = parts
    if not (isinstance(a, Node) and isinstance(b, Node)) or (c, abs(d)) != (1, 1):
        return False
    (a, minus_a, marks_a), (b, minus_b, marks_b) = _bare(a), _bare(b)
    opposite = minus_a ^ (d < 0) ^ minus_b
    spellings = values.marked(values.spelling[a], marks_a), values.marked(values.spelling[b], marks_b)
    return opposite and values.number[a] == values.number[b] and spellings[0] != spellings[1]


def _bare(node: Node) -> tuple[Node, bool, int]:
    """A node without the negations, copies and markers around it, whether it was negated, and how many markers there were."""
    *around, inner = layers(node, is_marker, is_copy, _negates)
    markers = sum(map(is_marker, around))
    return inner, sum(map(_negates, around)) % 2 == 1, markers


def _negates(node: Node) -> bool:
    return node.target is aten.neg.default


def _exact_site(walk: Walk, root: Node, parts: list[tuple[float, Any, Form]], zeros: list[Node]) -> Site:
    coefficient, value, _ = next(part for part in parts if part[1] not in zeros)
    surrogates = tuple(dict.fromkeys(each for zero in zeros for each in walk.zeros[zero]))
    refusal = None if abs(coefficient) == 1 else Reason.SCALED.of(coefficient)
    tree = tuple(tree_of(root, lambda n: n in walk.zeros and is_arithmetic(n)))
    match = match_order(root, walk.values)
    order = match[0] if match else None
    return Site(root, behind(value, is_marker), surrogates, "finite", order, coefficient < 0, tree, refusal)


def _reassociating_site(walk: Walk, root: Node, residual: Form, cancelled: list[Term]) -> Site:
    tree = tuple(tree_of(root, lambda n: n not in walk.sites and not walk.linear_terms(n).isdisjoint(cancelled)))
    scaled = {frozenset(walk.linear_terms(n)): behind(n, is_marker) for n in tree}
    surrogates = tuple(scaled.get(frozenset([t])) or walk.values.first[t[0]] for t in cancelled if t[0] >= 0)
    value, negated = holder(walk, root, residual)
    if value is None:
        value = rest(walk, tree, cancelled)
    refusal = Reason.NO_HOLDER.of() if value is None else None
    if match := match_order(root, walk.values):
        return Site(root, value, (match[2],), "algebraic", match[0], negated, tree, refusal)
    return Site(root, value, surrogates, "algebraic", None, negated, tree, refusal)
