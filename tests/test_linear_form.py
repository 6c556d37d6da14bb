"""The algebra: on numbers that float64 adds without rounding, every level must give eager's values, whatever the expression."""

import functools
import gc
import importlib
import itertools
import math
import operator
import time
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ste_compile.passes import Reason, number_values, recognise
from ste_compile.passes.arithmetic import Walk
from ste_compile.passes.levels import LEVELS
from ste_compile.passes.linear_form import LIMIT, addends, atom, source
from ste_compile.passes.nodes import COPIES, MARKERS, is_cast, is_pure
from ste_compile.passes.operators import OPERATORS
from ste_compile.passes.recognise import _visit
from ste_compile.passes.values import _is_elementwise
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from ste_compile.hooks import run_joint, run_post_grad

aten = torch.ops.aten
LEAVES = ("a", "b", "c")
expressions = st.recursive(
    st.sampled_from(LEAVES).map(lambda name: f"args[{LEAVES.index(name)}]"),
    lambda inner: st.one_of(
        st.builds("({} + {})".format, inner, inner),
        st.builds("({} - {})".format, inner, inner),
        inner.map("({}).detach()".format),
        inner.map("(-{})".format),
        inner.map("(2.0 * {})".format),
        inner.map("({} + 1.0)".format),
        inner.map("({} + -0.5)".format),
        inner.map("({}.relu())".format),
        st.builds("torch.sub({}, {}, alpha=2)".format, inner, inner),
        st.builds("((v := {}) + ((s := {}) - s.detach()) + v)".format, inner, inner),
        st.builds("((x := {}) + ({} - x).detach())".format, inner, inner),
    ),
    max_leaves=14,
)


@settings(max_examples=150, deadline=None)
@given(expression=expressions, numerics=st.sampled_from(tuple(LEVELS)))
def test_any_expression_keeps_its_value(expression, numerics):
    """Small integers in float64: reassociation is exact, so a rewrite that changes a value has the algebra wrong."""
    args = [torch.tensor([3.0, -5.0, 7.0], dtype=torch.float64).roll(i) * (i + 1) for i in range(3)]
    fn = eval(f"lambda *args: ({expression}) * 1", {"torch": torch})
    traced = make_fx(fn, tracing_mode="fake")(*args)
    run_joint(traced.graph, numerics)
    run_post_grad(traced.graph)
    traced.graph.lint()
    traced.recompile()
    assert torch.equal(traced(*args), fn(*args))


@settings(max_examples=100, deadline=None)
@given(expression=expressions)
def test_the_linear_form_of_any_expression_adds_up_to_its_value(expression):
    """Given each node of the graph of an expression, the terms of its form, each times its scale and its count, are its value.

    Broken by: a sign, a scale or a count of `atom`, `combine` or a row of `OPERATORS`; seen to fail."""
    args = [torch.tensor([3.0, -5.0, 7.0], dtype=torch.float64).roll(i) * (i + 1) for i in range(3)]
    traced = make_fx(eval(f"lambda *args: ({expression}) * 1", {"torch": torch}), tracing_mode="fake")(*args)
    run = torch.fx.Interpreter(traced, garbage_collect_values=False)
    run.run(*args)
    walk = Walk(number_values(traced.graph))
    for node in traced.graph.nodes:
        _visit(walk, node)
    for node, form in walk.forms.items():
        terms = (
            float(scale * total) * (run.env[walk.values.first[n]] if n >= 0 else 1) for (n, scale), total in form.totals().items()
        )
        assert torch.equal(sum(terms, torch.zeros(3, dtype=torch.float64)), run.env[node])
    assert all(not run.env[zero].any() for zero in walk.zeros)


def traced(fn, count=3):
    return make_fx(fn, tracing_mode="fake")(*(torch.ones(4) for _ in range(count))).graph


def test_value_numbers_see_through_markers_and_spellings_do_not():
    graph = traced(lambda s: (s.bfloat16(), s.bfloat16().detach(), s.detach().bfloat16(), s.bfloat16(), s.half()), 1)
    values = number_values(graph)
    a, b, c, d, e = graph.output_node().args[0]
    assert values.number[a] == values.number[b] == values.number[c] == values.number[d] != values.number[e]
    assert values.spelling[a] == values.spelling[d] and len({values.spelling[n] for n in (a, b, c)}) == 3


def test_scalars_that_compare_equal_have_numbers_of_their_own():
    graph = traced(lambda s: (s * 1, s * 1.0, s * 0.0, s * -0.0), 1)
    values = number_values(graph)
    assert len({values.number[n] for n in graph.output_node().args[0]}) == 4


def test_operators_are_the_same_where_all_their_arguments_are():
    """Given lists, and keyword arguments in another order. Broken by: `_freeze` looking at less; seen to fail."""
    graph = torch.fx.Graph()
    x = placeholder(graph, "x", torch.ones(2, 2))
    first, again = (call(graph, aten.sum.dim_IntList, x, [0]) for _ in range(2))
    other = call(graph, aten.sum.dim_IntList, x, [1])
    wide = call(graph, aten.sum.dim_IntList, x, [0], keepdim=True, dtype=torch.float64)
    turned = call(graph, aten.sum.dim_IntList, x, [0], dtype=torch.float64, keepdim=True)
    narrow = call(graph, aten.sum.dim_IntList, x, [0], keepdim=True, dtype=torch.float32)
    number = number_values(graph).number
    assert number[first] == number[again] and number[wide] == number[turned]
    assert len({number[each] for each in (first, other, wide, narrow)}) == 4


@pytest.mark.parametrize(
    "target, args, same",
    [
        (aten.sin.default, (), True),
        (aten.reshape.default, ([-1],), True),
        (aten._reshape_copy.default, ([2, 6],), True),
        (aten.select.int, (0, 1), True),
        (aten.as_strided.default, ([4], [1]), False),
        (aten.sum.dim_IntList, ([0],), False),
        (aten.cumsum.default, (0,), False),
    ],
)
def test_a_layout_is_part_of_a_value_where_a_reader_may_add_up_in_another_order(target, args, same):
    """Given a matrix and a copy of it in another layout. Broken by: a kind of `_is_elementwise` left out, or a size
    of which `_layout` leaves out the stride; seen to fail."""
    graph = torch.fx.Graph()
    turned = placeholder(graph, "x", torch.ones((3, 4) if same else (2, 2)).t().contiguous().t())
    copied = call(graph, aten.clone.default, turned, memory_format=torch.contiguous_format)
    a, b = (call(graph, target, each, *args) for each in (turned, copied))
    number = number_values(graph).number
    assert number[turned] == number[copied] and (number[a] == number[b]) == same


def test_what_is_no_aten_operator_may_add_up():
    assert not _is_elementwise(torch.cond) and not _is_elementwise(operator.getitem) and _is_elementwise(aten.sin.default)


def test_a_cast_changes_the_dtype_and_nothing_else():
    """Given casts, one to the same dtype, and a move to another device. Broken by: a condition of `is_cast`; seen to fail."""
    graph = torch.fx.Graph()
    x = placeholder(graph, "x", torch.ones(2))
    half, same = (call(graph, aten._to_copy.default, x, dtype=dtype) for dtype in (torch.float16, torch.float32))
    moved = call(graph, aten._to_copy.default, x, device=torch.device("meta"))
    bare = graph.call_function(aten._to_copy.default, (x,))
    assert [is_cast(node) for node in (half, same, moved, bare, x, 1.0)] == [True, True, False, False, False, False]
    number = number_values(graph).number
    assert number[same] == number[x] and len({number[x], number[half], number[moved]}) == 3


def test_what_is_pure_may_be_numbered_and_dropped():
    """Given inputs, attributes, draws, writes, arithmetic on sizes and Python functions. Broken by: a case of `is_pure`."""
    graph = torch.fx.Graph()
    x = placeholder(graph, "x", torch.ones(2))
    pure = [graph.get_attr("weight"), *(graph.call_function(f, (x,)) for f in (aten.sin.default, operator.neg, torch.sym_not))]
    assert all(map(is_pure, [*pure, graph.call_function(operator.getitem, (x, 0))]))
    impure = (aten.rand_like.default, aten.copy_.default, math.floor, len)
    collective = torch.ops._c10d_functional.wait_tensor.default
    assert not any(map(is_pure, [x, graph.output(x), *(graph.call_function(f, (x,)) for f in (*impure, collective))]))


def test_random_values_are_never_the_same():
    graph = traced(lambda s: (torch.rand_like(s), torch.rand_like(s)), 1)
    values = number_values(graph)
    assert len({values.number[n] for n in graph.output_node().args[0]}) == 2


def placeholder(graph, name, value):
    node = graph.placeholder(name)
    node.meta["val"] = value
    return node


def call(graph, target, *args, **kwargs):
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*torch.fx.map_arg(args, lambda n: n.meta["val"]), **kwargs)
    return node


X, Y = torch.tensor([5.0]), torch.tensor([3.0])
SUMS = {
    **{target: [(X, Y)] for target in (aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor)},
    **{target: [(X, 3)] for target in (aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar, aten.mul.Scalar)},
    **{target: [(X, 4), (X, -0.5)] for target in (aten.div.Tensor, aten.div.Scalar)},
    **{target: [(X,)] for target in (aten.neg.default, *MARKERS, *COPIES)},
    aten.mul.Tensor: [(X, 3), (3, X)],
}


@pytest.mark.parametrize("target", [target for target, row in OPERATORS.items() if row.adds], ids=str)
def test_the_addends_of_an_operator_add_up_to_what_it_computes(target):
    """Given each row that adds up, with a number where it takes one, and with an alpha where it has one.

    Broken by: a sign, an operand or a coefficient of the row; seen to fail."""
    for arguments, options in itertools.product(SUMS[target], ({}, {"alpha": 4})):
        if options and not any(argument.name == "alpha" for argument in target._schema.arguments):
            continue
        graph = torch.fx.Graph()
        node = call(graph, target, *(placeholder(graph, "x", a) if torch.is_tensor(a) else a for a in arguments), **options)
        total = sum(c * (a.meta["val"] if isinstance(a, torch.fx.Node) else a) for c, a in addends(node))
        assert torch.equal(total, node.meta["val"])


def test_a_product_or_a_sum_of_whole_numbers_is_an_atom():
    """Broken by: `mul` of two tensors as a scale, or integers, which do not round, as terms; seen to fail."""
    graph = torch.fx.Graph()
    x, n = placeholder(graph, "x", X), placeholder(graph, "n", X.long())
    assert not addends(call(graph, aten.mul.Tensor, x, x)) and not addends(call(graph, aten.add.Tensor, n, n))


@pytest.mark.parametrize("number", (3, -3, 0.5, -0.5, 0))
def test_a_number_is_so_many_times_one(number):
    """Given a Python number, its form is one term that no node holds, with its sign, and none for 0. Broken by: the sign or the
    size of a number in `atom`; seen to fail."""
    totals = atom(number_values(torch.fx.Graph()), number).totals()
    assert sum(scale * total for (_, scale), total in totals.items()) == number and len(totals) == bool(number)
    assert all(n < 0 < scale for n, scale in totals)


@pytest.mark.parametrize("number", (math.inf, -math.inf, math.nan, True))
def test_what_is_no_finite_number_is_no_addend_or_scale(number):
    """Broken by: `addends` or `is_number` letting one through, of which no exact fraction can be made; seen to fail."""
    graph = torch.fx.Graph()
    x = placeholder(graph, "x", X)
    assert not addends(call(graph, aten.add.Tensor, x, number)) and not addends(call(graph, aten.mul.Scalar, x, number))
    if number is not True:  # eager has no boolean alpha of floats
        assert not addends(call(graph, aten.add.Tensor, x, x, alpha=number))


@pytest.mark.parametrize(
    "left, right", itertools.product((torch.float16, torch.bfloat16, torch.float32, torch.float64), repeat=2)
)
def test_a_cast_that_rounds_nothing_is_seen_through(left, right):
    """Given each pair of dtypes, a cast is a term of its own unless it is to more bytes. Broken by: a comparison of `_widens`."""
    graph = torch.fx.Graph()
    x = placeholder(graph, "x", X.to(left))
    cast = call(graph, torch.ops.prims.convert_element_type.default, x, right)
    assert addends(cast) == ([(1, x)] if right.itemsize > left.itemsize else [])


@pytest.mark.parametrize("dtype", (torch.int16, torch.bool, torch.float8_e4m3fn, torch.complex64))
def test_a_cast_of_what_adds_up_otherwise_is_an_atom(dtype):
    """Given integers, 8-bit floats and complex numbers, cast to float64. Broken by: `_widens` of a dtype it knows nothing of."""
    graph = torch.fx.Graph()
    x = placeholder(graph, "x", torch.ones(1).to(dtype))
    assert not addends(call(graph, torch.ops.prims.convert_element_type.default, x, torch.float64))


KEEPS_ZERO = {
    aten.neg.default: (), aten.mul.Tensor: (2.0,), aten.mul.Scalar: (2,), aten.div.Tensor: (2.0,), aten.div.Scalar: (2,),
    aten.view.default: ([3, 1],), aten._unsafe_view.default: ([3, 1],), aten.reshape.default: ([3, 1],), aten.expand.default: ([3, 3],),
    aten.permute.default: ([1, 0],), aten.transpose.int: (0, 1), aten.t.default: (), aten.unsqueeze.default: (1,),
    aten.squeeze.dim: (0,), aten.squeeze.dims: ([0],), aten.slice.Tensor: (1, 2), aten.select.int: (1, 2),
    aten.detach.default: (), aten.alias.default: (), aten.clone.default: (), aten._to_copy.default: (), aten.sum.default: (),
    aten.sum.dim_IntList: ([1], True), aten.abs.default: (), aten.relu.default: (), aten.flip.default: ([1],), aten.repeat.default: ([3, 1],),
    aten.squeeze.default: (), aten.clamp.default: (-1.0, 1), aten.clamp_min.default: (0,), aten.clamp_max.default: (0.5,),
    aten.mm.default: (torch.ones(3, 3),), aten.matmul.default: (torch.ones(3, 3),), aten.index_select.default: (0, torch.tensor([0, 0, 0])),
    aten.mean.default: (), aten.mean.dim: ([1], True),
    aten.gather.default: (1, torch.zeros(3, 3, dtype=torch.int64)[:1]), aten.index.Tensor: ([torch.tensor([0, 0, 0])],),
}  # fmt: skip
VECTORS = {aten.bmm.default, aten.mv.default, aten.dot.default, aten.convolution.default}  # of another number of dimensions


@pytest.mark.parametrize(
    "target",
    sorted(({target for target, row in OPERATORS.items() if row.zero} | {aten._to_copy.default}) - VECTORS, key=str),
    ids=str,
)
def test_a_zero_that_is_scaled_or_viewed_is_one_still(target):
    """Given `host + f(s - s')` for each such f, the site is exact.

    Broken by: a row of `OPERATORS` whose `zero` is gone, or looks at another argument; seen to fail."""
    graph = torch.fx.Graph()
    h, s = placeholder(graph, "h", torch.ones(3, 3)), placeholder(graph, "s", torch.ones(1, 3))
    zero = call(graph, aten.sub.Tensor, s, call(graph, aten.detach.default, s))
    others = torch.utils._pytree.tree_map_only(torch.Tensor, lambda each: placeholder(graph, "other", each), KEEPS_ZERO[target])
    root = call(graph, aten.add.Tensor, h, call(graph, target, zero, *others))
    (site,) = recognise(graph)
    assert (site.root, site.value, site.surrogates, site.needs) == (root, h, (s,), "finite")


ZERO_PRODUCTS = {
    "bmm": lambda h, s, k: h + (s[None] - s[None].detach()) @ k[None],
    "second": lambda h, s, k: h + k @ (s - s.detach()),
    "mv": lambda h, s, k: h + (s - s.detach()) @ k[0],
    "dot": lambda h, s, k: h + (s[0] - s[0].detach()) @ k[0],
    "einsum": lambda h, s, k: h + torch.einsum("ij,kj->ik", s - s.detach(), k),
    "linear": lambda h, s, k: h + F.linear(s - s.detach(), k),
    "cat": lambda h, s, k: h + torch.cat([s - s.detach(), k * (s - s.detach())])[:3],
    "stack": lambda h, s, k: h + torch.stack([s - s.detach(), s - s.detach()])[0],
    "convolution": lambda h, s, k: h + F.conv2d((s - s.detach())[None, None], k[None, None], padding=1),
    "convolution_weight": lambda h, s, k: h + F.conv2d(k[None, None], (s - s.detach())[None, None], padding=1),
    "where": lambda h, s, k: h + torch.where(k > 0, s - s.detach(), 0.0),
    "where_either": lambda h, s, k: h + torch.where(k > 0, torch.zeros_like(s), s - s.detach()),
    "where_full": lambda h, s, k: h + torch.where(k > 0, s - s.detach(), torch.full((3, 3), -0.0)),
    "where_full_like": lambda h, s, k: h + torch.where(k > 0, s - s.detach(), torch.full_like(k, 0.0)),
    "masked_fill": lambda h, s, k: h + (s - s.detach()).masked_fill(k > 0, 0),
    "masked_fill_tensor": lambda h, s, k: h + (s - s.detach()).masked_fill(k > 0, torch.zeros(())),
    "masked_scatter": lambda h, s, k: h + torch.zeros(3, 3).masked_scatter(k > 0, s - s.detach()),
    "pad": lambda h, s, k: h + F.pad(s[:, :1] - s[:, :1].detach(), (1, 1)),
    "mean": lambda h, s, k: h + (s - s.detach()).mean(0),
    "mean_of_one": lambda h, s, k: h + (s[:1, :1] - s[:1, :1].detach()).mean(),
    "addcmul": lambda h, s, k: torch.addcmul(h, k, s - s.detach(), value=3),
    "addmm": lambda h, s, k: torch.addmm(h, s - s.detach(), k, alpha=0.5),
    "baddbmm": lambda h, s, k: torch.baddbmm(h[None], k[None], (s - s.detach())[None]),
    "addmv": lambda h, s, k: torch.addmv(h[0], s - s.detach(), k[0]),
}
# Zero is beyond a bound, or only a part is zero, or the mean is of nothing, or what is added to is scaled, or the other factor is
# not finite.
NOT_ZERO = {
    "clamp": lambda h, s, k: h + (s - s.detach()).clamp(0.5, 1),
    "clamp_max": lambda h, s, k: h + (s - s.detach()).clamp(max=-0.5),
    "clamp_min": lambda h, s, k: h + (s - s.detach()).clamp_min(0.5),
    "clamp_tensor": lambda h, s, k: h + (s - s.detach()).clamp(k, k),
    "cat_others": lambda h, s, k: h + torch.cat([s - s.detach(), k])[:3],
    "exp": lambda h, s, k: h + (s - s.detach()).exp(),
    "convolution_bias": lambda h, s, k: h + F.conv2d((s - s.detach())[None, None], k[None, None], k[0, :1], padding=1),
    "where_other": lambda h, s, k: h + torch.where(k > 0, s - s.detach(), k),
    "where_full_like_one": lambda h, s, k: h + torch.where(k > 0, s - s.detach(), torch.full_like(s * 0.0, 1.0)),
    "where_below": lambda h, s, k: h + torch.where(k > 0, s - s.detach(), torch.full((3, 3), -1.0)),
    "where_zeros": lambda h, s, k: h + torch.where(k > 0, torch.zeros(3, 3), 0.0) + s.detach(),
    "masked_fill_one": lambda h, s, k: h + (s - s.detach()).masked_fill(k > 0, 1.0),
    "masked_fill_tensor_one": lambda h, s, k: h + (s - s.detach()).masked_fill(k > 0, torch.ones(())),
    "negated_twice": lambda h, s, k: h + (-s - s.detach()),
    "pad_one": lambda h, s, k: h + F.pad(s[:, :1] - s[:, :1].detach(), (1, 1), value=1.0),
    "mean_of_nothing": lambda h, s, k: h + (s[:0] - s[:0].detach()).mean(0),
    "addcmul_infinite": lambda h, s, k: torch.addcmul(h, k, s - s.detach(), value=math.inf),
    "addmm_beta": lambda h, s, k: torch.addmm(h, s - s.detach(), k, beta=0.5),
    "index": lambda h, s, k: h + k[(s - s.detach()).long()[:, 0]],
}


@pytest.mark.parametrize("name", [*ZERO_PRODUCTS, *NOT_ZERO])
def test_a_zero_goes_through_products_and_not_further(name):
    """Broken by: `_zeros_in` taking one zero part of a `cat` for all, a bound on the other side, an `only` that is
    always true; seen to fail."""
    fn = (ZERO_PRODUCTS | NOT_ZERO)[name]
    gm = make_fx(fn, tracing_mode="fake")(*(torch.ones(3, 3) for _ in range(3)))
    found = [(site.needs, site.refusal) for site in recognise(gm.graph)]
    assert found == ([("finite", None)] if name in ZERO_PRODUCTS else [])


def test_half_of_a_term_is_a_term():
    """Given x / 2 and x' * 0.5, which are one number, to the bit; not so x / 3."""
    assert [site.needs for site in recognise(traced(lambda v, x: v + x / 2 - x.detach() * 0.5, 2))] == ["algebraic"]
    assert [site.needs for site in recognise(traced(lambda v, x: v + x / 1024 - x.detach() * 2**-10, 2))] == ["algebraic"]
    assert not recognise(traced(lambda v, x: v + x / 3 - x.detach() * (1 / 3), 2))
    assert not recognise(traced(lambda v, x: v + x / 2.0**127 - x.detach() * 2.0**-127, 2))  # which is subnormal in fp32
    assert [site.needs for site in recognise(traced(lambda v, x: v / 0 + (x - x.detach()), 2))] == ["finite"]
    assert [site.needs for site in recognise(traced(lambda v, x: v + x / 3 - x.detach() / 3, 2))] == ["algebraic"]


def test_a_zero_is_one_as_either_factor_but_not_as_a_divisor():
    """Broken by: `_visit` looking at the first factor only, or at the divisor; seen to fail."""
    assert [site.needs for site in recognise(traced(lambda h, s, k: h + k * (s - s.detach())))] == ["finite"]
    assert not recognise(traced(lambda h, s, k: h + k / (s - s.detach())))


@pytest.mark.parametrize("divide", (torch.div, torch.mul, lambda zero, number: -zero))
def test_what_a_zero_goes_through_is_of_the_site_s_arithmetic(divide):
    """So that it is fused with the site where that is not cancelled. Broken by: a row that is not `inside`; seen to fail."""
    (site,) = recognise(traced(lambda h, s, k: h + divide(s - s.detach(), 2.0)))
    operators = {node.target for node in site.tree}
    assert len(operators) == 3 and operators >= {aten.add.Tensor, aten.sub.Tensor}


@pytest.mark.parametrize("last", (False, True))
def test_an_input_without_a_gradient_is_no_surrogate_wherever_it_stands(last):
    """Broken by: the first value number taken for a Python number's; seen to fail."""
    fn = (lambda q, x: x + (q - x).detach()) if last else (lambda x, q: x + (q - x).detach())
    (site,) = recognise(traced(fn, 2), ())
    assert site.refusal.reason is Reason.NO_GRADIENT


def test_a_long_sum_is_still_seen_as_an_atom():
    """Given an x of more terms than a form may hold, `x + (q - x).detach()` is found with x whole."""

    def model(q, x):
        for i in range(40):
            x = x + x.sin() * i
        return x + (q - x).detach()

    (site,) = recognise(traced(model, 2))
    assert site.value.name == "q_1" and site.order == "(v - s) + s"


def test_of_a_long_value_and_a_short_surrogate_the_surrogate_keeps_its_terms():
    """Given a sum that is too long to keep, in which the value has most terms, its form is cut back, and the site is found.

    Broken by: cutting back the short forms of a long sum, or all; seen to fail."""

    def model(x, y, q):
        value = functools.reduce(operator.add, (q.sin() * 2**i for i in range(LIMIT)))
        return (x + y) + (value - (x + y)).detach()

    (site,) = recognise(traced(model))
    assert site.root.name == f"add_{LIMIT + 1}" and site.order == "(v - s) + s"


def test_no_form_is_longer_than_the_limit(monkeypatch):
    """Broken by: forms that grow with the graph, which make the cost of a graph quadratic, or that are cut back too soon; seen to
    fail."""
    longest = []
    module = importlib.import_module("ste_compile.passes.recognise")
    right = module.combine
    monkeypatch.setattr(module, "combine", lambda *args: longest.append(len((made := right(*args))[0].terms)) or made)

    def model(x, y):
        for i in range(60):
            x, y = x + i * x.sin(), y - x
        return x.detach() + y

    recognise(traced(model, 2))
    assert LIMIT // 2 < max(longest) <= LIMIT
    half = range(LIMIT // 2 + 2)
    long = lambda fn: lambda x: functools.reduce(operator.add, (getattr(x, fn)() * 3**i for i in half))  # noqa: E731
    recognise(traced(lambda x, s: long("sin")(x) + long("cos")(x) + (s - s.detach()), 2))
    assert max(longest) <= LIMIT
    longest.clear()
    recognise(traced(lambda x: functools.reduce(operator.add, (x.sin() * 3**i for i in range(16))) + (x - x.detach()), 1))
    assert max(longest) == 16


def test_scales_are_exact_fractions():
    """0.1 + 0.2 is not 0.3 in binary: what does not cancel exactly is not cancelled."""
    assert Fraction(0.1) + Fraction(0.2) != Fraction(0.3)
    assert not recognise(traced(lambda h, s: h + s * 0.3 - (s * 0.1).detach() - (s * 0.2).detach(), 2))


class _Graph:
    """A graph of many sites, exact ones and reassociating ones in turn."""

    def __init__(self):
        self.graph, self.size, self.sites = torch.fx.Graph(), 0, 0

    def input(self):
        node = self.graph.placeholder(f"input_{self.size}")
        node.meta["val"] = torch.ones(4)
        self.size += 1
        return node

    def call(self, target, *args):
        node = self.graph.call_function(target, args)
        node.meta["val"] = args[0].meta["val"][:] if target is aten.detach.default else torch.ones(4)
        self.size += 1
        return node

    def site(self, v, s):
        self.sites += 1
        if self.sites % 3:
            return self.call(aten.add.Tensor, v, self.call(aten.sub.Tensor, s, self.call(aten.detach.default, s)))
        return self.call(aten.add.Tensor, s, self.call(aten.detach.default, self.call(aten.sub.Tensor, v, s)))


def _chain(built, nodes):
    """A residual stream."""
    h = built.input()
    while built.size < nodes:
        s = built.call(aten.mul.Tensor, built.call(aten.sin.default, h), 0.5)
        h = built.site(built.call(aten.add.Tensor, h, built.call(aten.relu.default, h)), s)
    return (h,)


def _inputs(built, nodes):
    """Each surrogate is an input."""
    h = built.input()
    while built.size < nodes:
        h = built.site(h, built.input())
    return (h,)


def _results(built, nodes):
    """Each site is a result, and so is its surrogate."""
    h, results = built.input(), []
    while built.size < nodes:
        s = built.call(aten.sin.default, built.input())
        results += [built.site(built.call(aten.cos.default, h), s), s]
    return tuple(results)


def _wide(built, nodes):
    """Sums of 1,000 terms."""
    h = built.input()
    while built.size < nodes:
        total = built.call(aten.sin.default, h)
        for i in range(999):
            total = built.call(aten.add.Tensor, total, built.call(aten.mul.Tensor, h, i + 1.5))
        h = built.site(total, built.call(aten.cos.default, h))
    return (h,)


@pytest.mark.parametrize("numerics", ("exact", "algebraic"))
@pytest.mark.parametrize("shape", (_chain, _inputs, _results, _wide))
def test_the_cost_is_linear(shape, numerics):
    """Time per node is flat within 2x from 1k nodes to 100k in a chain, to 20k in other shapes: the best of a few runs each, on a
    machine that has other work, and without the garbage collector, whose passes grow with the heap whoever fills it. The largest,
    which take most of the time, run again only where another process may have slowed them down.

    Broken by: the output node written anew for each site, in either pass; seen to fail."""
    largest = 100_000 if shape is _chain else 20_000
    per_node = dict.fromkeys((1_000, 10_000, largest), float("inf"))

    def run(nodes):
        built = _Graph()
        built.graph.output(shape(built, nodes))
        gc.disable()
        start = time.process_time()
        run_joint(built.graph, numerics)
        run_post_grad(built.graph)
        per_node[nodes] = min(per_node[nodes], (time.process_time() - start) / built.size)
        gc.enable()

    for nodes in (*[1_000] * 20, *[10_000] * 3):
        run(nodes)
    for _ in range(2):
        run(largest)
        if max(per_node.values()) <= 2 * min(per_node.values()):
            break
    assert max(per_node.values()) <= 2 * min(per_node.values()), per_node


def test_a_term_that_cancels_within_one_spelling_leaves_an_atom():
    """Given sums that add x and take it off again, with x' left once, or twice with the other sign: what they round is lost by
    the linear form, so they are no terms, and what would cancel them is no site.

    Broken by: `_rounds` asking for what is left to be positive, or negative; seen to fail."""

    def once(v, x):
        return (v + ((x + x.detach()) - x)) - x.detach().detach()

    def twice(v, x):
        rest = ((-x.detach() - x.detach()) + x) - x
        return ((v + rest) + x.detach().detach()) + x.detach().detach()

    for fn in (once, twice):
        assert not recognise(traced(fn, 2)), fn


@pytest.mark.parametrize("shapes", (((3, 4), (3, 4)), ((3, 4), (4,)), ((), ())), ids=str)
def test_a_complex_sum_is_known_in_its_decomposition(shapes):
    """Given complex tensors, Inductor adds them as pairs of real numbers, in a view. Broken by: `_complex_sum` comparing other
    shapes; seen to fail."""
    args = [torch.ones(shape, dtype=torch.complex64) for shape in shapes]
    graph = make_fx(torch.add, decomposition_table=select_decomp_table(), tracing_mode="fake")(*args).graph
    (total,) = (node for node in graph.nodes if node.target is aten.view.dtype and node.meta["val"].is_complex())
    assert [(c, source(each)) for c, each in addends(total)] == [(1, each) for each in graph.find_nodes(op="placeholder")]


@pytest.mark.parametrize("shape", ((3, 8), (8, 3), (6, 4)), ids=str)
def test_a_complex_sum_in_another_shape_is_no_sum_of_its_operands(shape):
    """Broken by: `_complex_sum` without a look at the shape; seen to fail."""
    graph = torch.fx.Graph()
    operands = [placeholder(graph, name, torch.ones(shape, dtype=torch.complex64)) for name in "ab"]
    pairs = call(graph, aten.add.Tensor, *(call(graph, aten.view.dtype, each, torch.float32) for each in operands))
    total = call(graph, aten.view.dtype, call(graph, aten.view.default, pairs, [6, -1]), torch.complex64)
    assert [each for _, each in addends(total)] == operands * (shape == (6, 4))


@pytest.mark.parametrize("shapes", (((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (3,))), ids=str)
def test_a_complex_sum_is_found_as_inductor_decomposes_it(shapes):
    """Given a complex estimator under Inductor's decompositions, which view both sides as pairs of real numbers, then its site is
    listed, of the complex tensors. Broken by: `_complex_sum` that asks for other operands, or another shape; seen to fail."""
    q, x = (torch.ones(shape, dtype=torch.complex64) for shape in shapes)
    gm = make_fx(lambda q, x: x + (q - x).detach(), select_decomp_table(), tracing_mode="fake")(q, x)
    assert [site.needs for site in recognise(gm.graph)] == ["algebraic"]
