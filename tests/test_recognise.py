"""What is recognised, read off the sites themselves: value, surrogates, order, level, refusal."""

import dataclasses
import functools
import operator

import pytest
import torch
from ste_compile.passes import Outcome, Reason, arithmetic, cancel, number_values, recognise
from ste_compile.passes.levels import LEVELS
from ste_compile.passes.linear_form import LIMIT, Form
from ste_compile.passes.nodes import is_backward, is_made
from torch.fx.experimental.proxy_tensor import make_fx

from .graphs import name_of


def sites(fn, count=3):
    return recognise(make_fx(fn, tracing_mode="fake")(*(torch.ones(4) for _ in range(count))).graph)


def names(site):
    return site.value.name, [each.name for each in site.surrogates]


def regrouped(s):
    a, b, c = s, s.sin(), s.cos()
    return (a + b) + c, a + (b + c)


@pytest.mark.parametrize("last", (0, 1))
@pytest.mark.parametrize(
    "fn", (lambda v, s, t: (v - s).detach() + t, lambda v, s, t: (v + s) - t.detach()), ids=("(v - s) + s", "(v + s) - s")
)
def test_an_order_is_that_of_one_surrogate(fn, last):
    """Given a surrogate that is `(a + b) + c` where it is added and `a + (b + c)` where it is subtracted, whichever is first in the
    graph: they cancel, but round apart, so the arithmetic is none of the three.

    Broken by: `match_order` comparing the operands by less than equality; seen to fail."""
    (site,) = sites(lambda v, s: fn(v, regrouped(s)[last], regrouped(s)[1 - last]), 2)
    assert site.needs == "algebraic" and site.order is None and site.value.name == "v_1"


def test_a_number_that_is_taken_off_again_in_part_measures_a_rounding_error():
    """Given a number that is added twice and subtracted once, with a marker between, then the site is refused: the number has one
    spelling, so it cancels within it. Broken by marking it as a node is marked; seen to fail."""
    (site,) = sites(lambda v, s: ((v + s + 3.0 + 3.0).detach() - s) - 3.0, 2)
    assert str(site.value) == "v_1 + 3.0 + 3.0" and site.refusal == Reason.ERROR_IS_USED.of()


ORDERS = [
    *(("v + (s - s)", fn) for fn in (lambda v, s: v + (s - s.detach()), lambda v, s: (s - s.detach()) + v)),
    *(("(v - s) + s", fn) for fn in (lambda v, s: (v - s).detach() + s, lambda v, s: s + (v - s).detach())),
    *(("(v + s) - s", fn) for fn in (lambda v, s: (v + s) - s.detach(), lambda v, s: (s + v) - s.detach())),
]


@pytest.mark.parametrize("swapped", (False, True))
@pytest.mark.parametrize("order, fn", ORDERS, ids=range(len(ORDERS)))
def test_each_order_knows_its_value_from_its_surrogate(order, fn, swapped):
    """Given the three orders, their operands on either side, and value and surrogate in either place in the graph.

    Broken by: an operand or a comparison of `match_order`, or one order of `_operands`; seen to fail."""
    (site,) = sites((lambda s, v: fn(v, s)) if swapped else (lambda v, s: fn(v, s)), 2)
    assert (site.order, *names(site)) == (order, "v_1", ["s_1"]) and not site.refusal and not site.negated


def test_a_near_miss_names_its_value_and_its_surrogate():
    """Given `s + (v - s)'` whose v itself adds up s. Broken by: one operand for the other in `_near_miss`; seen to fail."""
    (site,) = sites(lambda v, s: s + ((v + s) - s).detach(), 2)
    assert (names(site), site.order, site.negated) == (("add", ["s_1"]), "(v - s) + s", False)
    assert site.tree == (site.root,) and site.refusal == Reason.OWN_SURROGATE.of()


def test_only_a_near_miss_is_reported_as_one():
    """Given a difference of a value and itself, detached, in a sum: no estimator is written like that; nor one whose difference is
    not detached. Broken by: `_near_miss` reporting other orders, or without the marker; seen to fail."""
    assert not sites(lambda v, s: (s + ((v + s) - s), v.detach()), 2)
    assert not sites(lambda h, s: h + (s - s).detach(), 2) and not sites(lambda h, s: (h + s) - s.detach() * 2, 2)


def test_a_product_of_two_zeros_has_the_surrogates_of_both():
    """Broken by: `_zeros_in` or `_beside_zero` that takes one alone; seen to fail."""
    (site,) = sites(lambda h, s, t: h + (s - s.detach()) * (t - t.detach()), 3)
    assert names(site) == ("h_1", ["s_1", "t_1"])
    (site,) = sites(lambda h, s, t: torch.addcmul(h, s - s.detach(), t - t.detach()), 3)
    assert names(site) == ("h_1", ["s_1", "t_1"])


APART = {
    "view": lambda v, s: (v + s).view(-1) - s.detach().view(-1),
    "reshape": lambda v, s: s + (v - s).reshape(-1).detach().view_as(s),
    "transpose": lambda v, s: s + (v.t() - s.t()).detach().t(),
    "cast": lambda v, s: s.bfloat16() + (v - s.bfloat16()).detach().bfloat16(),
    "cast_of_data": lambda v, s: (v - s.half()).data.half() + s.half(),
}


@pytest.mark.parametrize("name", APART)
def test_halves_that_are_apart_are_reported(name):
    """Given a view or a rounding cast between what a sum takes off and what it adds again, the site is listed as refused, and
    is eager's at every level.

    Broken by: `match_apart` that does not see through casts, or views; seen to fail."""
    (site,) = sites(APART[name], 2)
    assert site.refusal == Reason.APART.of() and site.order is None
    value, (surrogate,) = names(site)
    assert value.startswith(("v_1", "t")) and not surrogate.startswith("v")
    v, s = (torch.randn(4, 4, requires_grad=True) for _ in range(2))
    for numerics in LEVELS:
        ours = torch.compile(APART[name], backend="ste_aot_eager", options={"numerics": numerics})(v, s)
        assert torch.equal(ours, APART[name](v, s))


def test_a_sum_without_a_marker_between_its_halves_is_no_near_miss():
    """Broken by: `match_apart` that counts no markers; seen to fail."""
    assert not sites(lambda v, s: ((v + s).view(-1) - s.view(-1), v.detach().sin()), 2)
    assert not sites(lambda v, s: (s.half() + (v - s.half()).half(), v.detach().sin()), 2)
    assert not sites(lambda v, s: (v.detach() + s.detach()).view(-1) - s.detach().view(-1), 2)


def test_halves_of_two_values_are_no_near_miss():
    """Broken by: `match_apart` that takes an earlier or a later value for the surrogate; seen to fail."""
    assert not sites(lambda v, s, t: s + (v - t).reshape(-1).detach().view_as(s), 3)
    assert not sites(lambda v, s, t: t + (v - s).reshape(-1).detach().view_as(s), 3)


@pytest.mark.parametrize(
    "fn",
    (
        lambda v, s: s.half() + (v + s.half()).detach().half(),
        lambda v, s: s.half() - (v - s.half()).detach().half(),
        lambda v, s: (v - s).view(-1) - s.detach().view(-1),
        lambda v, s: s.half() + torch.sub(v, s.half(), alpha=2).detach().half(),
    ),
)
def test_halves_that_do_not_cancel_are_no_near_miss(fn):
    """Broken by: `match_apart` that looks at one of the two signs, or not at their size; seen to fail."""
    assert not sites(fn, 2)


def test_a_value_may_be_negated_at_either_level():
    """Broken by: `negated` turned round, or the sign of a part; seen to fail."""
    for fn in (lambda v, s: (s - s.detach()) - v, lambda v, s: s - (v + s).detach()):
        (site,) = sites(fn, 2)
        assert site.negated and names(site) == ("v_1", ["s_1"])


@pytest.mark.parametrize(
    "fn",
    (
        lambda h, s: h + (s + s.detach()),
        lambda h, s: h + (s - (-s).detach()),
        lambda h, s: h + (-s + (-s).detach()),
        lambda h, s: h + (-s - s.detach()),
        lambda h, s: h + (torch.neg(-s) + s.detach()),
        lambda h, s: h + torch.sub(s, s.detach(), alpha=3),
        lambda h, s: h + (s.detach() - s.detach()),
        lambda h, s: h + (s - h.detach()),
    ),
)
def test_what_does_not_cancel_is_no_exact_site(fn):
    """Broken by: a sign, a coefficient, a marker or a number that `_cancels_exactly` does not look at; seen to fail."""
    assert not [site for site in sites(fn, 2) if site.needs == "finite"]


NEGATED = (
    lambda h, s: h + (-s - (-s).detach()),
    lambda h, s: h + (-s.detach() + s),
    lambda h, s: h - (-s - -s.detach()),
    lambda h, s: h + (torch.neg(-s) - s.detach()),
    lambda h, s: h + ((n := -s) - n.clone().detach()),
    lambda h, s: h + ((n := -s) - n.detach().clone()),
    lambda h, s: h + (-(s.clone()) - (-s).detach()),
    lambda h, s: h + (-s.detach().clone() + s),
)


@pytest.mark.parametrize("fn", NEGATED)
def test_negations_on_both_sides_cancel(fn):
    """Broken by: the count of signs in `_bare`, or its looking through no copies; seen to fail."""
    (site,) = sites(fn, 2)
    assert (site.needs, *names(site)) == ("finite", "h_1", ["s_1"])


@pytest.mark.parametrize("number", (1, -1, 0.5, -0.5))
def test_a_surrogate_may_add_any_number(number):
    """Broken by: the sign or the size of a number in `atom`; seen to fail."""
    (site,) = sites(lambda v, s: (v - (s + number)).detach() + (s + number), 2)
    assert (site.needs, site.value.name, site.refusal) == ("algebraic", "v_1", None)
    assert not sites(lambda v, s: (s + number).detach() - (s + number), 2)
    (apart,) = sites(lambda v, s: (v - (s + number)).detach() + (s - number), 2)
    sign = "-" if number > 0 else "+"
    assert str(apart.value) == f"v_1 {sign} {abs(number)} {sign} {abs(number)}"


def test_a_value_far_from_its_site_is_found():
    """Given seven surrogates added one by one and taken off again, the value is at the far end of the arithmetic. Broken by:
    `_holder` giving up early; seen to fail."""

    def fn(v, s):
        surrogates = [s * 3.0**i for i in range(7)]
        return functools.reduce(
            operator.sub, (s.detach() for s in surrogates[::-1]), functools.reduce(operator.add, surrogates, v)
        )

    assert [site.value.name for site in sites(fn, 2)] == ["add_5", "add_4", "add_3", "add_2", "add_1", "add", "v_1"]


def test_the_search_for_a_value_ends(monkeypatch):
    """Given a site whose value no node holds, in a sum of hundreds, no more nodes are looked at than `_holder` says. Broken by: a
    search through the whole sum, which makes the cost of a graph quadratic; seen to fail."""

    def fn(v, s, t):
        for _ in range(100):
            v = v + v.sin()
        return ((v + s) + t.detach()) - s.detach()

    asked, totals = [], Form.totals
    monkeypatch.setattr(Form, "totals", lambda form: asked.append(form) or totals(form))
    (site,) = sites(fn)
    assert str(site.value) == "add_99 + t_1" and len(asked) <= 1 + 4 * LIMIT


def test_the_backward_is_not_looked_at():
    """Given what is computed from a tangent, it is no site, whatever it looks like. Broken by: `recognise` losing what comes after
    the first node of the backward; seen to fail."""
    graph = make_fx(lambda h, s, tangents_1: (h * s, tangents_1.sin() + (s - s.detach())))(
        *(torch.ones(4) for _ in range(3))
    ).graph
    graph.find_nodes(op="placeholder")[2].meta["partitioner_tag"] = "is_backward"
    assert not recognise(graph)


def test_only_a_joint_graph_has_tangents():
    """Given an exported program, decomposed or not, whose inputs are named as AOTAutograd names tangents, what is computed from them
    is the forward, and its sites are found. Broken by: `is_backward` going by the name; seen to fail."""

    class Model(torch.nn.Module):
        def forward(self, tangents_1, tangents_x, tangents):
            return tangents_1.sin() + (tangents_x * tangents - (tangents_x * tangents).detach())

    program = torch.export.export(Model(), tuple(torch.ones(4) for _ in range(3)))
    for graph in (program.graph, program.run_decompositions().graph):
        (site,) = recognise(graph)
        assert site.value.name == "sin" and not any(map(is_backward, graph.nodes))
        assert [outcome.action for outcome in cancel(graph, [site], "finite")] == ["cancelled"]


def test_the_sum_of_two_zeros_is_one():
    """Given `h + ((s - s') + (t - t'))`, one site has both surrogates. Broken by: `_visit` taking the inner sum for a site."""
    (site,) = sites(lambda h, s, t: h + ((s - s.detach()) + (t - t.detach())))
    assert (site.needs, *names(site)) == ("finite", "h_1", ["s_1", "t_1"]) and site.order is None


def test_numbers_of_a_surrogate_are_no_surrogates():
    """Given surrogates with Python numbers in them, the terms that cancel are listed without the numbers. Broken by:
    `_reassociating_site` listing a number as a node, or none; seen to fail."""
    for fn in (
        lambda v, s: v + (s + 1) + s.sin() - s.sin().detach() - (s + 1).detach(),
        lambda v, s: v + s + s.sin() - s.detach() - s.sin().detach(),
    ):
        *_, site = sites(fn, 2)
        assert site.needs == "algebraic" and not site.refusal and site.value.name == "v_1"
        assert site.surrogates and all(isinstance(each, torch.fx.Node) for each in site.surrogates)


def test_results_cannot_be_changed():
    """Given a site, an outcome and a form, which are shared between passes and reports. Broken by: a dataclass not frozen."""
    (site,) = sites(lambda h, s: h + (s - s.detach()), 2)
    for result, field in ((site, "root"), (Outcome(site.root, Reason.NO_HOLDER.of()), "result"), (Form({}), "terms")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, field, None)


def test_the_arithmetic_of_a_site_is_what_adds_scales_or_casts_it():
    """Given a site with a scale and a cast in it, its tree is root first, without what the value and the surrogate are computed by.

    Broken by: `_tree` leaving out a node, or going on into the operands; seen to fail."""
    (site,) = sites(lambda h, s: h.exp() + ((s.sin() - s.sin().detach()) * 2.0).double(), 2)
    assert [node.name for node in site.tree] == ["add", "_to_copy", "mul", "sub"]
    (site,) = sites(lambda h, s: (h.exp() - (t := s.sin()) * 2).detach() + 2 * t, 2)
    assert site.root is site.tree[0] and {name_of(node) for node in site.tree} == {"add", "detach", "sub", "mul", "mul_1"}


def test_a_constant_has_no_marker():
    """Given a tensor that is computed from constants alone, detached or not it is spelled the same: it has no gradient to cut.

    Broken by: what is computed from constants not being one, or what is not computed from anything else; seen to fail."""

    def fn(x):
        magic = torch.full((), 2.0) * 3
        return magic, magic.detach(), x.sin(), x.sin().detach()

    graph = make_fx(fn, tracing_mode="fake")(torch.ones(4)).graph
    constant, detached, value, cut = (number_values(graph).spelling[node] for node in graph.output_node().args[0])
    assert constant == detached and value != cut


@pytest.mark.parametrize("name, constant", (("_tensor_constant0", True), ("weight", False)))
def test_a_literal_is_a_constant_and_a_parameter_is_none(name, constant):
    """Given an attribute, detached or not. Broken by: `Values.add` taking every attribute for a constant, or none; seen to fail."""
    graph = torch.fx.Graph()
    attribute = graph.get_attr(name)
    cut = graph.call_function(torch.ops.aten.detach.default, (attribute,))
    spelling = number_values(graph).spelling
    assert (spelling[attribute] == spelling[cut]) == constant


def test_a_surrogate_may_be_added_twice():
    """Broken by: `combine` taking a second occurrence of the same sign for a cancellation; seen to fail."""
    *_, site = sites(lambda v, s: v + s + s - s.detach() - s.detach(), 2)
    assert (names(site), site.refusal) == (("v_1", ["s_1"]), None)


F = torch.nn.functional
LAYOUT_READERS = {  # what is computed from a matrix, and whether it is the same for every layout of it
    "sum": (lambda t: t.sum(0), False),
    "mean": (lambda t: t.mean(1), False),
    "norm": (lambda t: t.norm(dim=0), False),
    "variance": (lambda t: t.var(0), False),
    "logsumexp": (lambda t: t.logsumexp(0), False),
    "cumsum": (lambda t: t.cumsum(0), False),
    "matrix product": (lambda t: t @ t.t(), False),
    "matrix-vector product": (lambda t: t @ t[0], False),
    "linear": (lambda t: F.linear(t, t.sin()), False),
    "distances": (lambda t: torch.cdist(t, t + 1), False),
    "convolution": (lambda t: F.conv2d(t[None, None], t[None, None, :3, :3]), False),
    "transposed convolution": (lambda t: F.conv_transpose2d(t[None, None], t[None, None, :3, :3]), False),
    "the memory itself": (lambda t: torch.as_strided(t, (3, 4), (5, 1)), False),
    "a sum, element by element": (lambda t: t.exp().sin().unsqueeze(-1).sum(0), False),
    "element by element": (lambda t: (t.sin() * 2).exp(), True),
    "views": (lambda t: t.unsqueeze(0).expand(2, -1, -1)[:, 1:].permute(1, 0, 2), True),
}


@pytest.mark.parametrize("name", LAYOUT_READERS)
def test_what_adds_up_two_layouts_is_two_values(name):
    """Given one matrix in two layouts, of which one is detached, what adds up its elements does so in another order, and does not
    cancel: in eager it differs in the last bits. What is computed element by element is the same, and cancels; and so does what
    reads one layout twice.

    Broken by: `_key` without the layouts; `as_strided` taken for a view like others; seen to fail."""
    reader, cancels = LAYOUT_READERS[name]

    def count(fn):
        graph = make_fx(lambda x: reader(x.t()).tan() + fn(x.t()), tracing_mode="fake")(torch.randn(6, 8)).graph
        return len(recognise(graph))

    def copy(t):
        return t.contiguous(memory_format=torch.contiguous_format)

    assert count(lambda t: reader(t) - reader(copy(t).detach())) == cancels
    assert count(lambda t: reader(t) - reader(t.detach())) == count(lambda t: reader(copy(t)) - reader(copy(t.detach()))) == 1


def test_layouts_are_compared_where_they_are_seen():
    """Given a copy that only changes the stride of a dimension of one element, a sum of both is one value."""

    def fn(x):
        copy = x[:, :1].clone(memory_format=torch.contiguous_format)
        assert copy.stride() != x[:, :1].stride()
        return x.tan() + (x[:, :1].sum(1) - copy.detach().sum(1))

    assert len(recognise(make_fx(fn, tracing_mode="fake")(torch.randn(1, 8)).graph)) == 1


def test_a_value_in_no_node_has_the_signs_that_the_site_gives_it():
    """Given differences inside of differences. Broken by: the product of the signs in `rest`; seen to fail."""
    (site,) = sites(lambda a, b, c, s: (b - ((a - s) - c)) - s.detach(), 4)
    assert site.refusal is None and str(site.value) == "b_1 + c_1 - a_1"


def test_a_value_in_no_node_may_be_less_a_number():
    """Broken by: a number without its sign in `rest`; seen to fail."""
    (site,) = sites(lambda a, b, s: (a + s - 2.5 + b) - s.detach(), 3)
    assert site.refusal is None and str(site.value) == "a_1 + b_1 - 2.5"


def test_a_value_in_no_node_may_hold_a_multiple_of_a_number():
    """Broken by: a coefficient divided in `rest`; seen to fail."""
    (site,) = sites(lambda a, b, s: torch.add(a + s + b, 2.5, alpha=3) - s.detach(), 3)
    assert site.refusal is None and str(site.value) == "a_1 + b_1 + 7.5"


def test_a_value_in_no_node_is_what_several_surrogates_leave():
    """Broken by: `rest` that drops a term if it is all surrogates at once, and not if it is one of them; seen to fail."""
    (site,) = sites(lambda a, b, s, t: (a + s + b + t) - (s + t).detach(), 4)
    assert site.refusal is None and str(site.value) == "a_1 + b_1" and len(site.surrogates) == 2


@pytest.mark.parametrize("times", (2, 0.5, -0.5))
def test_a_value_in_no_node_adds_each_once(times):
    """Given twice a value, or half of it. Broken by: `rest` that takes a multiple for the value itself; seen to fail."""
    (site,) = sites(lambda a, b, s: (torch.add(s, a, alpha=times) + b) - s.detach(), 3)
    assert site.value is None and site.refusal == Reason.NO_HOLDER.of()


@pytest.mark.parametrize("limit", range(3, 9))
def test_a_value_in_no_node_is_a_short_sum(monkeypatch, limit):
    """Given a value that is a sum of many, none of which holds the others. Broken by: a limit in `rest` that is one more, or that
    is not that of all that is found and to be looked at; seen to fail."""
    monkeypatch.setattr(arithmetic, "LIMIT", limit)

    def found(count):
        def fn(s, *terms):
            return functools.reduce(operator.add, terms, s) - s.detach()

        (site,) = sites(fn, 1 + count)
        return site.value is not None

    assert [found(count) for count in (limit - 2, limit - 1, limit)] == [True, True, False]


def test_what_measures_the_error_of_a_site_without_a_gradient_leaves_it_alone_and_no_other():
    """Given two sites whose surrogates are inputs without a gradient, of which one is read by a compensated sum.

    Broken by: `_look_through` looking where no such site is read, or taking every site for one that is; seen to fail."""

    def fn(x, y, q):
        v = y.cos()
        return ((x + v) - x.detach()) - v, x + (q.sin() - x).detach()

    found = recognise(make_fx(fn, tracing_mode="fake")(*(torch.ones(4) for _ in range(3))).graph, ())
    assert [site.refusal.reason for site in found] == [Reason.ERROR_IS_USED, Reason.NO_GRADIENT]


def test_the_error_of_a_site_without_a_gradient_may_be_measured_by_its_value():
    """Broken by: `_look_through` asking for what is left where nothing is; seen to fail."""

    def fn(x, q):
        q = q.sin()
        return (x + (q - x).detach()) - q

    *_, site = recognise(make_fx(fn, tracing_mode="fake")(torch.ones(4), torch.ones(4)).graph, ())
    assert site.refusal.reason is Reason.ERROR_IS_USED


def test_what_is_made_of_a_shape_has_no_gradient():
    """Broken by: `is_made` asking one of its questions only; seen to fail."""
    made = lambda x: (torch.rand(4), x.new_zeros(4), torch.rand_like(x), torch.arange(4.0))  # noqa: E731
    graph = make_fx(lambda x: (*made(x), x.sin()), tracing_mode="fake")(torch.ones(4)).graph
    assert [is_made(node) for node in graph.output_node().args[0]] == [True] * 4 + [False]
