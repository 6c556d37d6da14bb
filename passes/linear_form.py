"""The linear form of a value: which atoms it adds up, and behind which detach markers.

    x + (q - x).detach()     is   x - x' + q'          an atom is a value that is not itself an add, subtract,
    (x - x*g).detach() + x*g is   x' - (g x)' + g x    negate, scale-by-constant, widening cast or marker

A term is an atom with a scale (`x` and `g x` are two terms). For each spelling of its atom, with and without markers, a
term counts how often it was added and subtracted. The term *cancels* where its counts sum to zero between spellings that
differ: that, and something left over, is a straight-through site. Where a term cancels within one spelling (`t - t`), or where
nothing is left over, the code is after rounding errors (Kahan, TwoSum) and every site that fed it is left alone.

A term that cancels only after reassociation must have a gradient to carry, which is what an estimator is for. Else

    (x + magic).detach() - magic        rounds x, where `magic` is large: 2^23 for integers in float32

    the atom of the term               has a gradient
    input or attribute                 in a training graph, where the graph returns one; in inference, where it requires one
    made of nothing (full, rand)       never
    one of these, viewed, cast, scaled as that one
    computed in any other way          taken to have one: an inference graph cannot tell, and a training graph of the same
                                       model must not answer otherwise

`t - t'` is zero in IEEE arithmetic, whatever `t` is, and needs no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch.fx import Node

from .nodes import RESHAPES, arg, aten, behind, fake, is_cast, is_reshape, is_view, tensor
from .operators import Addend, is_number, operator_of
from .values import Values

# Longest form kept; a longer one is cut back to atoms, so that a node costs O(1). The longest spelling in use has five terms.
LIMIT = 16
ONE = -1  # the value number and the spelling of the Python number 1, which no node has

Term = tuple[int, Fraction]  # (value number of the atom, scale > 0)
Counts = dict[int, int]  # spelling of the atom -> times added less times subtracted


def addends(node: Any) -> list[Addend]:
    """What `node` adds up, with coefficients; empty for an atom. Sub-expressions are not expanded."""
    value = tensor(node)
    if value is None or not (value.is_floating_point() or value.is_complex()):
        return []
    if _widens(node):
        return [(1, arg(node))]
    return _complex_sum(node) if node.target is aten.view.dtype and value.is_complex() else summed(node)


def summed(node: Node) -> list[Addend]:
    """What an operator of the table adds up; empty for any other."""
    adds = operator_of(node.target).adds
    try:
        parts = adds(*node.args, **node.kwargs) if adds else []
    except TypeError:  # an overload with more arguments than the table knows (`out=`)
        return []
    known = all(is_number(c) and (is_number(a) or tensor(a) is not None) for c, a in parts)
    return parts if known else []


def _complex_sum(node: Node) -> list[Addend]:
    """What Inductor's decomposition of a complex sum adds up: it views both as pairs of real numbers (2.11 to 2.15)."""
    total = behind(node, is_reshape)
    if getattr(total, "target", None) is not aten.add.Tensor or total.kwargs:
        return []
    operands = [behind(each, is_reshape) for each in total.args]
    held = [tensor(each) for each in operands]
    if any(each is None or not each.is_complex() for each in held):
        return []
    shape = torch.broadcast_shapes(*(fake(each).shape for each in operands))
    return [(1, each) for each in operands] if tuple(shape) == tuple(fake(node).shape) else []


def source(node: Node) -> Node:
    """The node of which this one is a view, a cast, a copy or a multiple, or to which it adds a number; else the node itself."""
    found: Node = behind(node, _is_multiple, is_cast, is_view)
    return found


def _is_multiple(node: Node) -> bool:
    return operator_of(node.target).adds is not None or node.target in RESHAPES or node.target is aten.repeat.default


def _widens(node: Node) -> bool:
    """A cast that rounds nothing. One that rounds makes a new value: `x - x.to(bf16)` is the error someone asked for."""
    if not is_cast(node):
        return False
    source, result = fake(arg(node)).dtype, fake(node).dtype
    return source.is_floating_point and result.is_floating_point and result.itemsize > source.itemsize and source.itemsize > 1


@dataclass(frozen=True)
class Form:
    """`terms` is the linear combination. `sites` are the reassociating sites among what was added up: their surrogates have
    cancelled, and the terms no longer show them."""

    terms: dict[Term, Counts]
    sites: frozenset[Node] = frozenset()

    def totals(self) -> dict[Term, int]:
        return {term: total for term, counts in self.terms.items() if (total := sum(counts.values()))}

    def cancelled(self) -> list[Term]:
        return [term for term, counts in self.terms.items() if not sum(counts.values())]

    def residual(self) -> dict[Term, Counts]:
        return {term: counts for term, counts in self.terms.items() if sum(counts.values())}


def atom(values: Values, argument: Any) -> Form:
    """A node, or the number 1 for a Python number, as one opaque term."""
    if isinstance(argument, Node):
        return Form({(values.number[argument], Fraction(1)): {values.spelling[argument]: 1}})
    return Form({(ONE, abs(Fraction(argument))): {ONE: 1 if argument > 0 else -1}} if argument else {})


def combine(values: Values, parts: list[tuple[float, Any, Form]], marked: bool) -> tuple[Form, bool]:
    """The form of a sum of (coefficient, argument, form), behind one more marker where `marked`; and whether a term cancelled
    within one spelling in a way that shows a rounding error being measured (`_rounds`). A Python number has only one spelling."""
    if len(set().union(*(form.terms for _, _, form in parts))) > LIMIT:
        parts = [(c, a, form if len(form.terms) <= LIMIT // 2 else atom(values, a)) for c, a, form in parts]
    terms: dict[Term, Counts] = {}
    plain: set[Term] = set()
    for (number, scale), coefficient, spelling, count in _scaled(parts):
        term = number, scale * abs(coefficient)
        counts = terms.setdefault(term, {})
        if marked and number >= 0:
            spelling = values.marked(spelling)
        before, change = counts.pop(spelling, 0), count if coefficient > 0 else -count
        if before * change < 0:
            plain.add(term)
        if before + change:
            counts[spelling] = before + change
    return Form(terms, frozenset().union(*(form.sites for _, _, form in parts))), any(_rounds(t, terms[t]) for t in plain)


def _rounds(term: Term, counts: Counts) -> bool:
    """Whether a term that cancels within one spelling shows an algorithm that measures rounding errors. `counts` is what is left
    of the term. It does not where the rest of the term cancels between spellings: `(x + x') - (x' + x'')` is a value minus
    itself. Nor does a Python number of which nothing is left: it may be a magic constant, which `recognise` checks for itself."""
    return bool(counts) if term[0] < 0 else not counts or sum(counts.values()) != 0


def _scaled(parts: list[tuple[float, Any, Form]]) -> Iterator[tuple[Term, Fraction, int, int]]:
    for coefficient, _, form in parts:
        if coefficient:
            for term, counts in form.terms.items():
                for spelling, count in counts.items():
                    yield term, Fraction(coefficient), spelling, count
