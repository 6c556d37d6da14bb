"""How a site that stays is computed: as one operator, or with every intermediate rounded."""

import functools
import importlib

import pytest
import torch
from ste_compile.passes import Reason, fuse, recognise, tag
from ste_compile.passes.outcomes import Mismatch
from ste_compile.passes.rounding import is_narrowed_first, may_be_product
from torch.fx.experimental.proxy_tensor import make_fx

from .graphs import show

aten, prims, ops = torch.ops.aten, torch.ops.prims, torch.ops.ste_compile
ROUNDED = ops.rounded.default


def tagged(fn, *args):
    graph = make_fx(fn, tracing_mode="fake")(*args).graph
    for index, site in enumerate(recognise(graph)):
        tag(site, index)
    return graph


def fused(fn, *args):
    graph = tagged(fn, *args)
    outcomes = fuse(graph)
    graph.lint()
    return graph, outcomes


def tensors(dtype=torch.bfloat16, shape=(3, 4), count=3):
    return [torch.randn(shape).to(dtype) for _ in range(count)]


def on_cuda(graph):
    """The graph of the same function of CUDA tensors, as far as the passes can tell."""
    for node in graph.nodes:
        if isinstance(value := node.meta.get("val"), torch.Tensor):
            with value.fake_mode:
                node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
    return graph


OUTSIDE = {  # arithmetic that is none of the three orders
    "value last": lambda x, q, _: x.exp() - (x.exp() - q.sin()).detach(),
    "leaf last": lambda x, q, _: -(x.exp() - q.sin()).detach() + x.exp(),
    "two surrogates": lambda v, s, _: v.exp() + (a := s.tan()) + (b := s.sin()) - a.detach() - b.detach(),
    "scaled": lambda x, q, _: x.exp() * 3 - (x.exp() * 3 - q.sin()).detach(),
    "a view between": lambda x, q, _: (e := x.exp()[None].expand(3, 4)) - (e - q.sin()).detach(),
}
ARITHMETIC = (aten.add.Tensor, aten.sub.Tensor, aten.neg.default, aten.mul.Tensor)


def is_rounded(node):
    while getattr(node.target, "is_view", False) or node.target is aten.detach.default:
        node = node.args[0]
    return node.target is ROUNDED or node.op == "placeholder"


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", OUTSIDE)
def test_every_intermediate_is_rounded_once(name, dtype):
    """Given arithmetic of 16 bits that is none of the three orders, each of its nodes reads what is rounded and is read through a
    `rounded` alone, and nothing is rounded twice.

    Broken by: `_interior`, `_shape` or `_round_all` leaving out a node, a leaf or a user; seen to fail."""
    x, q, k = tensors(dtype)
    graph, outcomes = fused(OUTSIDE[name], x[0] if "view" in name else x, q, k)
    assert {(outcome.action, outcome.why) for outcome in outcomes} == {("fused", Reason.EACH_ROUNDED.of())}
    arithmetic = [node for node in graph.nodes if node.target in ARITHMETIC]
    assert arithmetic and all(map(is_rounded, [a for node in arithmetic for a in node.all_input_nodes]))
    assert all([user.target for user in node.users] == [ROUNDED] for node in arithmetic)
    rounded = graph.find_nodes(op="call_function", target=ROUNDED)
    assert not any(is_rounded(node.args[0]) for node in rounded)
    assert all(node.meta["val"].dtype == dtype and node.users for node in rounded)
    assert graph.output_node().args[0].target is ROUNDED


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("name", OUTSIDE)
def test_wide_arithmetic_is_not_rounded(name, dtype):
    x, q, k = tensors(dtype)
    graph, outcomes = fused(OUTSIDE[name], x[0] if "view" in name else x, q, k)
    assert {outcome.action for outcome in outcomes} == {"fused"} and not graph.find_nodes(op="call_function", target=ROUNDED)


def test_complex_arithmetic_is_left():
    graph, (outcome,) = fused(lambda x, q: x + (q - x).detach(), *tensors(torch.complex64, count=2))
    assert outcome.action == "left" and "complex64 is computed by eager's own kernels" in str(outcome.why)
    assert not graph.find_nodes(op="call_function", target=ops.straight_through.default)


def test_outcomes_are_in_graph_order_with_their_keys():
    """Given three sites, of which two become operators. Broken by: the order of `fuse`, or the key of another site; seen to fail."""

    def fn(x, q, k):
        return ((x + (q - x).detach()) * 2, k.exp() - (k.exp() - q).detach(), (k - q).detach() + q)

    graph, outcomes = fused(fn, *tensors())
    assert [outcome.key for outcome in outcomes] == [0, 1, 2]
    assert [outcome.result.target for outcome in outcomes] == [
        ops.straight_through.default,
        aten.sub.Tensor,
        ops.straight_through.default,
    ]
    assert [outcome.result.args[2] for outcome in outcomes[::2]] == ["(v - s) + s"] * 2
    assert not any("ste_compile" in node.meta for node in graph.nodes)


def test_a_leaf_that_two_sites_share_and_a_difference_in_both():
    """Given two sites with one difference in them, it is rounded once, and both read that. Broken by: rounding what has a `rounded`
    already; seen to fail."""

    def fn(x, q, _):
        x, difference = x.exp(), (x.exp() - q.sin()).detach()
        return (x - difference) * 2, (x - difference) * 3

    graph, outcomes = fused(fn, *tensors())
    (shared,) = [
        node for node in graph.find_nodes(op="call_function", target=aten.sub.Tensor) if node.args[1].args[0].name == "sin"
    ]
    assert len(outcomes) == 2 and [user.target for user in shared.users] == [ROUNDED]


@pytest.mark.parametrize("alpha, action", ((1, "fused"), (-1, "fused"), (2, "left"), (-2, "left"), (0.5, "left")))
def test_arithmetic_with_an_alpha_is_left(alpha, action):
    """One that only changes a sign rounds nothing."""
    fn = lambda v, s, _: torch.sub(torch.add(v, s, alpha=alpha), s.detach(), alpha=alpha)  # noqa: E731
    _, (outcome,) = fused(fn, *tensors())
    assert outcome.action == action and (action == "fused" or outcome.why.reason is Reason.ALPHA)


def test_arithmetic_that_subtracts_by_an_alpha_is_rounded():
    """In none of the three orders. Broken by: `alpha=-1` left; seen to fail."""
    fn = lambda v, s, k: (torch.add(v.sin(), s, alpha=-1) + k.sin()) + s.detach()  # noqa: E731
    _, (outcome,) = fused(fn, *tensors())
    assert outcome.why.reason is Reason.EACH_ROUNDED


def test_arithmetic_that_was_rewritten_is_left():
    """Given a pass that turned a subtraction into another operator, or gave it one operand, since the site was tagged: left alone.

    Broken by: `_interior` not comparing operators, or operands; seen to fail."""
    for name in ("value last", "leaf last"):
        graph = tagged(OUTSIDE[name], *tensors())
        difference = next(node for node in graph.nodes if node.target is aten.sub.Tensor)
        difference.target = aten.atan2.default
        (outcome,) = fuse(graph)
        assert outcome.action == "left" and outcome.why.reason is Reason.REWRITTEN
        graph = tagged(OUTSIDE[name], *tensors())
        difference = next(node for node in graph.nodes if node.target is aten.sub.Tensor)
        difference.update_arg(1, 2.0)
        assert fuse(graph)[0].action == "left"
    graph = tagged(lambda v, s, k: v + (s - s.detach()) * 2, *tensors())
    (product,) = graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    product.update_arg(1, next(iter(graph.nodes)))
    assert fuse(graph)[0].action == "left"


@pytest.mark.parametrize("merged", (0, 1, 2), ids=("none", "the first two", "all"))
def test_the_casts_of_a_surrogate_round_each(merged):
    """Given a surrogate cast three times, of which Inductor has merged some, the operator gets what all but the last made, and the
    last one's dtype.

    Broken by: `_ahead_of_last_cast` or `cast_chain` missing a cast, or casting twice; seen to fail."""
    cast, dtypes = prims.convert_element_type, [torch.float32, torch.float16, torch.bfloat16]

    def fn(v, s):
        seed = functools.reduce(cast, dtypes, s)
        return v + (seed - seed.detach())

    graph = tagged(fn, torch.randn(4).bfloat16(), torch.randn(4).double())
    first, second, third = graph.find_nodes(op="call_function", target=cast.default)
    if merged:
        second.update_arg(0, first.args[0])
        graph.erase_node(first)
    if merged == 2:
        third.update_arg(0, second.args[0])
        graph.erase_node(second)
    (outcome,) = fuse(graph)
    value, surrogate, order, dtype = outcome.result.args
    assert (value.name, order, dtype) == ("v_1", "v + (s - s)", torch.bfloat16)
    chain = []
    while surrogate.target is cast.default:
        chain.insert(0, surrogate.args[1])
        surrogate = surrogate.args[0]
    assert surrogate.name == "s_1" and chain == dtypes[:2]


def test_a_cast_that_another_pass_moved_into_its_input_is_not_done_again():
    """Given a surrogate cast three times, whose first cast is gone with what made its input. Broken by: `_ahead_of_last_cast`
    beginning at another cast of the tag; seen to fail."""
    cast, dtypes = prims.convert_element_type, [torch.float32, torch.float16, torch.bfloat16]

    def fn(v, s, narrower):
        seed = functools.reduce(cast, dtypes, s)
        return v + (seed - seed.detach())

    graph = tagged(fn, torch.randn(4).bfloat16(), torch.randn(4).double(), torch.randn(4))
    _, second, _ = graph.find_nodes(op="call_function", target=cast.default)
    second.update_arg(0, graph.find_nodes(op="placeholder")[2])
    (outcome,) = fuse(graph)
    _, surrogate, _, dtype = outcome.result.args
    assert (surrogate.args[0].name, surrogate.args[1], dtype) == ("narrower_1", torch.float16, torch.bfloat16)


def test_a_cast_that_another_pass_changed_is_taken_as_it_is():
    """Given a surrogate whose last cast is to another dtype than when it was tagged. Broken by: `_ahead_of_last_cast` going by the
    casts of the tag; seen to fail."""
    fn = lambda v, s: v + ((seed := s.to(torch.bfloat16)) - seed.detach())  # noqa: E731
    graph = tagged(fn, torch.randn(4), torch.randn(4))
    (cast,) = graph.find_nodes(op="call_function", target=aten._to_copy.default)
    cast.kwargs = {"dtype": torch.float16}
    for node in [cast, *cast.users]:
        node.meta["val"] = node.meta["val"].half()
    (outcome,) = fuse(graph)
    assert (outcome.action, outcome.result.args[1].name, outcome.result.args[3]) == ("fused", "s_1", torch.float16)


def test_a_cast_of_what_another_pass_changed_is_of_that():
    """Given a surrogate that is of another dtype than when it was tagged. Broken by: `_ahead_of_last_cast` looking for it among the
    casts of the tag; seen to fail."""
    fn = lambda v, s: v + ((seed := s.to(torch.bfloat16)) - seed.detach())  # noqa: E731
    graph = tagged(fn, torch.randn(4).bfloat16(), torch.randn(4))
    surrogate = graph.find_nodes(op="placeholder")[1]
    surrogate.meta["val"] = surrogate.meta["val"].double()
    (outcome,) = fuse(graph)
    assert (outcome.action, outcome.result.args[1], outcome.result.args[3]) == ("fused", surrogate, torch.bfloat16)


def test_a_cast_from_whole_numbers_is_not_looked_behind():
    """Given a surrogate cast from integers, the operator casts no integers. Broken by: `cast_chain` going on to them."""

    def fn(v, s):
        return v + ((seed := prims.convert_element_type(s, torch.bfloat16)) - seed.detach())

    _, (outcome,) = fused(fn, torch.randn(4).bfloat16(), torch.arange(4))
    assert len(outcome.result.args) == 3 and outcome.result.args[1].target is prims.convert_element_type.default


ONE = [((3, 4), (3, 4)), ((), ()), ((4,), (3, 4)), ((3, 4), (4,))]


@pytest.mark.parametrize(
    "shapes, one", [*((pair, True) for pair in ONE), *((pair, False) for pair in (((), (4,)), ((4,), ()), ((), (3, 4))))]
)
def test_an_operand_without_dimensions_is_not_rounded_by_promotion(shapes, one):
    """Given operands of two dtypes, of which one has no dimensions, the arithmetic is not one operator. Given one dtype, it is.

    Broken by: a condition of `_promotes_alike`; seen to fail."""
    for dtype in (torch.float32, torch.bfloat16):
        v, s = torch.randn(shapes[0]).bfloat16(), torch.randn(shapes[1]).to(dtype)
        _, (outcome,) = fused(lambda v, s: v + (s - s.detach()), v, s)
        assert (outcome.result.target is ops.straight_through.default) == (one or dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype, device", ((torch.bfloat16, "cpu"), (torch.float32, "cpu"), (torch.bfloat16, "meta")))
def test_a_number_in_the_first_place_is_rounded_as_on_the_cpu(dtype, device):
    """Given a Python number that a 16-bit tensor is subtracted from, and one that is added to it, the first is rounded, on the CPU.

    Broken by: `_round_all` rounding neither, both, in other dtypes or on other devices; seen to fail."""
    args = (tensor.to(device) for tensor in tensors(dtype))
    graph = tagged(lambda x, q, _: x.exp() - (x.exp() - q.sin()).detach() + 0.1, *args)
    (root,) = [node for node in graph.nodes if "ste_compile" in node.meta]
    operator, below = root.meta["ste_compile"]["shape"]
    root.update_arg(0, 0.1)
    root.meta["ste_compile"]["shape"] = (operator, below[1:])
    (outcome,) = fuse(graph)
    rounds = dtype == torch.bfloat16 and device == "cpu"
    assert outcome.result.args[0] == (torch.tensor(0.1, dtype=dtype).item() if rounds else 0.1)
    (last,) = [node for node in graph.nodes if 0.1 in node.args[1:]]
    assert last.target is aten.add.Tensor


def test_a_rounding_that_looks_different_is_taken_out_again(monkeypatch):
    """Given a check that fails, the graph has its nodes, and no others. Broken by: `_round_all` leaving a `rounded`; seen to fail."""

    def differs(node, was, now):
        raise Mismatch("in a test")

    graph = tagged(OUTSIDE["value last"], *tensors())
    before = show(graph)
    monkeypatch.setattr(importlib.import_module("ste_compile.passes.fuse"), "check_same", differs)
    (outcome,) = fuse(graph)
    assert (outcome.action, outcome.key) == ("left", 0) and "in a test" in str(outcome.why) and show(graph) == before


def test_where_the_error_is_used_nothing_is_tagged():
    graph = tagged(lambda v, s: s + ((v + s) - s).detach(), *tensors(count=2))
    assert not fuse(graph) and recognise(graph)


@pytest.mark.parametrize("cuda", (False, True))
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_product_is_rounded_ahead_of_its_sum_where_a_compiler_may_contract_them(name, cuda):
    """Given float32 arithmetic that is none of the three orders, what it reads is rounded on a GPU, and so are its products and
    negations, which there are products (a negation would be `0 - x`). On a CPU nothing is.

    Broken by: `contracts` for any device, a negation left; seen to fail."""
    x, q, k = tensors(torch.float32)
    graph = tagged(OUTSIDE[name], x[0] if "view" in name else x, q, k)
    fuse(on_cuda(graph) if cuda else graph)
    targets = [node.target for node in graph.nodes]
    assert (ROUNDED in targets) == cuda and (aten.neg.default in targets) == (name == "leaf last" and not cuda)
    for node in graph.nodes:
        if node.target is aten.mul.Tensor and cuda:
            assert [user.target for user in node.users] == [ROUNDED]
            assert name != "leaf last" or node.args[1] == -1


@pytest.mark.parametrize("cuda", (False, True))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32))
@pytest.mark.parametrize("form", ("cast", "multiple"))
def test_what_a_site_reads_through_a_cast_or_a_multiple_is_rounded(form, dtype, cuda):
    """Given a product of 16 bits under either, it is rounded; one of 32 bits under a multiple alone, and on a GPU.

    Broken by: `operands._rounded` taking a cast for a multiple, or either for neither; seen to fail."""

    def fn(x, s, k):
        value = (s * k).double() if form == "cast" else s * k * 0.5
        return (x := x.to(value.dtype)) + (value - x).detach()

    graph = tagged(fn, *tensors(dtype))
    product = next(node for node in graph.nodes if node.target is aten.mul.Tensor)
    (outcome,) = fuse(on_cuda(graph) if cuda else graph)
    rounds = dtype is torch.bfloat16 or (cuda and form == "multiple")
    assert outcome.why.reason is Reason.ONE_OPERATOR
    assert [user.target is ROUNDED for user in product.users] == [rounds]


@pytest.mark.parametrize("cuda", (False, True))
def test_an_operand_without_dimensions_is_narrowed_as_eagers_kernels_do(cuda):
    """Given products and sums of a 16-bit tensor and a float32 one without dimensions, all are narrowed first, except, on a CPU,
    the second operand of a product. Broken by: a condition of `is_narrowed_first`; seen to fail."""
    fn = lambda x, s: (x * s, s * x, x + s, x - s, x / s, s / x)  # noqa: E731
    graph = make_fx(fn, tracing_mode="fake")(torch.ones(3).bfloat16(), torch.tensor(0.1)).graph
    _, s = (on_cuda(graph) if cuda else graph).find_nodes(op="placeholder")
    narrowed = [is_narrowed_first(node, s) for node in graph.output_node().args[0]]
    assert narrowed == [cuda, True, True, True, cuda, True]
    with s.meta["val"].fake_mode:
        s.meta["val"] = torch.empty((), device="cpu" if cuda else "meta")  # on a GPU, one on the CPU is not
    assert not any(is_narrowed_first(node, s) for node in graph.output_node().args[0])


def test_what_has_been_settled_is_no_product_of_the_kernel_that_reads_it():
    """Given nodes of a graph, a compiler may contract those that it computes where they are read, and sums of such.

    Broken by: a kind of `_is_settled` left out; seen to fail."""

    def fn(x, y):
        settled, product = [x, ops.rounded(x * y), ops.straight_through(x, y.sin(), "v + (s - s)")], x * y
        sums = [settled[0] + settled[1], settled[2] - settled[1], settled[0] + product, product - settled[2]]
        return [*settled, product, *sums, settled[1].view(-1), product.view(-1), product.double()]

    graph = make_fx(fn, tracing_mode="fake")(torch.ones(2, 3), torch.ones(2, 3)).graph
    found = [may_be_product(node) for node in graph.output_node().args[0]]
    assert found == [False, False, False, True, False, False, True, True, False, True, True]
