"""The arithmetic of a site: which nodes it is, in what order it adds, and what it adds besides the surrogates."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from .linear_form import LIMIT, Form, Term, addends, atom, summed
from .nodes import behind, is_cast, is_marker, is_reshape, is_view, layers
from .operators import operator_of
from .outcomes import Site, Sum
from .values import Values


@dataclass
class Walk:
    """What `recognise` knows of the nodes that it has seen. `forms` and `zeros` (node -> the surrogates that cancelled in it)
    have no entry for an atom. `sites` has each site by its root. `poisoned` are sites whose rounding error is used; `rounded` are
    sites that their readers may round on purpose. `plain` are nodes in which a term cancelled within one spelling, or only
    numbers cancelled, or all terms did. `apparent` are the forms that nodes would have if the sites refused because they have no
    gradient had cancelled."""

    values: Values
    differentiable: Container[Node] | None = None
    forms: dict[Node, Form] = field(default_factory=dict)
    zeros: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    sites: dict[Node, Site] = field(default_factory=dict)
    poisoned: set[Node] = field(default_factory=set)
    rounded: set[Node] = field(default_factory=set)
    plain: set[Node] = field(default_factory=set)
    apparent: dict[Node, Form] = field(default_factory=dict)

    def linear_terms(self, node: Node) -> Set[Term]:
        return self.forms[node].terms.keys() if node in self.forms else frozenset()

    def form(self, argument: Any) -> Form:
        if argument in self.zeros:
            return Form({})
        return self.forms.get(argument) or atom(self.values, argument)


def tree_of(root: Node, belongs: Callable[[Node], bool]) -> Iterator[Node]:
    """The arithmetic of a site: `root` and, downwards, the nodes that add, scale or cast a term that cancels."""
    stack, seen = [root], {root}
    while stack:
        yield (node := stack.pop())
        below = [a for a in node.all_input_nodes if a not in seen and belongs(a)]
        seen.update(below)
        stack += below


def is_arithmetic(node: Node) -> bool:
    """Whether a node through which a zero goes is part of the arithmetic of a site, and not only on its way there."""
    operator = operator_of(node.target)
    return operator.inside or operator.adds is not None or is_cast(node)


def holder(walk: Walk, root: Node, residual: Form) -> tuple[Any, bool]:
    """A node or number whose linear form is the residual, near the root; and whether it is the residual negated."""
    wanted = residual.totals()
    opposite = {term: -total for term, total in wanted.items()}
    queue = [argument for _, argument in addends(root)]
    for argument in queue:  # grows as it is walked: nearest first
        have = walk.form(argument).totals()
        if have in (wanted, opposite):
            return behind(argument, is_marker), have != wanted
        if argument in walk.forms and len(queue) < 4 * LIMIT:
            queue += [below for _, below in addends(argument)]
    return None, False


def rest(walk: Walk, tree: tuple[Node, ...], cancelled: list[Term]) -> Sum | None:
    """What the arithmetic of a site adds up besides the surrogates, as a `Sum` of nodes with coefficient 1 or -1 and of numbers.
    None where it is no such sum, or where a partial sum has another user: code that measures a rounding error has one."""
    inside, gone = set(tree), set(cancelled)
    if any(user not in inside for node in tree[1:] for user in node.users):
        return None
    found: list[tuple[int, Any]] = []
    stack: list[tuple[float, Any]] = [(1, tree[0])]
    while stack:
        coefficient, each = stack.pop()
        if len(stack) + len(found) > LIMIT:
            return None
        terms = walk.form(each).terms.keys()
        if each in inside:
            stack += [(coefficient * c, below) for c, below in reversed(addends(each))]
        elif terms <= gone:
            continue
        elif not gone.isdisjoint(terms) or (abs(coefficient) != 1 and isinstance(each, Node)):
            return None
        elif isinstance(each, Node):
            found.append((int(coefficient), behind(each, is_marker)))
        else:
            number = coefficient * each
            found.append((1 if number > 0 else -1, abs(number)))
    tensors = sorted((each for each in found if isinstance(each[1], Node)), key=lambda each: -each[0])
    return Sum((*tensors, *(each for each in found if not isinstance(each[1], Node)))) if tensors else None


def match_order(root: Node, values: Values) -> tuple[str, Node, Node] | None:
    """(order, value, surrogate) where the arithmetic of `root` is one of the three orders of `ops.ORDERS`. Markers are looked
    through but not needed, so that this also works on post-grad graphs, which have lost them."""
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
            return order, behind(value, is_marker), behind(b, is_marker)
    return None


def match_apart(root: Node, values: Values) -> tuple[Node, Node] | None:
    """(value, surrogate) where the arithmetic of `root` would be `(v - s) + s` or `(v + s) - s`, but for a view or a cast
    between its halves: `x + (q - x).detach().to(bfloat16)`, `(v + s).view(-1) - s.detach().view(-1)`."""
    forms = is_marker, is_cast, is_view, is_reshape
    for (sign, outer), (inner_sign, inner) in _operands(root):
        *around, base = layers(inner, *forms)
        if inner_sign != 1 or all(map(is_marker, around)):
            continue
        outside = layers(outer, *forms)
        for (c, a), (d, b) in _operands(base):
            inside = layers(b, *forms)
            markers_differ = sum(map(is_marker, outside)) != sum(map(is_marker, (*around, *inside)))
            if (c, d) == (1, -sign) and markers_differ and values.number[outside[-1]] == values.number[inside[-1]]:
                return behind(a, is_marker), behind(b, is_marker)
    return None


def _operands(node: Node) -> Iterator[tuple[tuple[float, Node], tuple[float, Node]]]:
    """Both orders of the signed operands of a sum or difference of two tensors; nothing for any other node."""
    parts = summed(behind(node, is_marker))
    if len(parts) == 2 and all(isinstance(a, Node) for _, a in parts):
        yield parts[0], parts[1]
        yield parts[1], parts[0]
