"""What stands in for a site: the nodes that are put in, node by node, and that nobody sees a difference."""

import pytest
import torch
from ste_compile.passes import Refused, Rewrites, replace, replace_with_value
from ste_compile.passes.cancel import drop_assertions
from ste_compile.passes.memory import Memory, Move, storages
from ste_compile.passes.replace import check_same, same_strides
from ste_compile.passes.unused import drop_unused
from torch.fx.experimental.proxy_tensor import make_fx

from .graphs import show

aten = torch.ops.aten


def graph_of(fn, *args):
    return make_fx(fn, tracing_mode="fake")(*args)


def node(graph, name):
    return next(each for each in graph.nodes if each.name == name)


def put_in(traced, root, value, negated=False):
    """Replace the node `root`; returns the operators that were put in, and the results."""
    graph, known = traced.graph, set(traced.graph.nodes)
    wanted = node(graph, root).meta["val"]
    rewrites = Rewrites(graph)
    stand_in = replace_with_value(rewrites, node(graph, root), node(graph, value) if isinstance(value, str) else value, negated)
    dropped = rewrites.finish()
    graph.lint()
    traced.recompile()
    made = stand_in.meta["val"]
    assert (made.dtype, made.shape) == (wanted.dtype, wanted.shape) and same_strides(made, wanted)
    assert dropped and not dropped & set(graph.nodes)
    return [each.target for each in graph.nodes if each not in known]


H, HALF, ROW, COLUMN = torch.randn(3, 4), torch.randn(3, 4).half(), torch.randn(4), torch.randn(3, 1)
IMAGE, LAST = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
convert, full, clone = torch.ops.prims.convert_element_type.default, aten.full.default, aten.clone.default
plus_zero = aten.add.Scalar
STAND_INS = {  # (host, surrogate), negated, the operators put in: the sum is read by `exp`
    "itself": ((H, H), False, []),
    "negated": ((H, H), True, [aten.neg.default]),
    "cast": ((HALF, H), False, [convert]),
    "negated and cast": ((HALF, H), True, [aten.neg.default, convert]),
    "broadcast over rows": ((ROW, H), False, [aten.expand.default, clone]),
    "broadcast over columns": ((COLUMN, H), False, [aten.expand.default, clone]),
    "no dimensions": ((torch.tensor(2.0), H), False, [aten.expand.default, clone]),
    "another layout": ((IMAGE[:, :, :1], LAST), False, [aten.expand.default, aten.permute.default, clone, aten.permute.default]),
    "dimensions of one element": ((ROW, torch.randn(3, 1, 1, 4)), False, [aten.expand.default, clone]),
    "no elements": ((torch.randn(1, 4), torch.randn(0, 4)), False, [aten.expand.default, clone]),
    "turned": ((H, torch.randn(4, 3).t()), False, []),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_what_is_put_in_is_what_differs(name):
    """Given a value that differs from the sum in sign, dtype, shape or layout, exactly the operators for that are put in.

    Broken by: any condition or argument of `_stand_in`, `_sizes` or `_restride`; seen to fail."""
    (host, surrogate), negated, operators = STAND_INS[name]
    traced = graph_of(lambda h, s: (h + s).exp(), host, surrogate)
    assert put_in(traced, "add", "h_1", negated) == operators
    wanted = (
        torch.broadcast_tensors(-host if negated else host, surrogate)[0]
        .to(torch.promote_types(host.dtype, surrogate.dtype))
        .exp()
    )
    assert torch.equal(traced(host, surrogate), wanted)


def test_a_node_is_named_after_its_operator():
    """As FX names it: reports show the names. Broken by: `emit` naming all nodes after the namespace; seen to fail."""
    traced = graph_of(lambda h, s: (h + s).exp(), HALF, H)
    put_in(traced, "add", "h_1", True)
    assert [each.name for each in traced.graph.nodes] == ["h_1", "s_1", "neg", "convert_element_type", "exp", "output"]


def test_a_value_is_not_negated_unless_asked():
    traced = graph_of(lambda h, s: (h + s).exp(), H, H)
    h, _, add, *_ = traced.graph.nodes
    rewrites = Rewrites(traced.graph)
    assert replace_with_value(rewrites, add, h) is h and rewrites.finish() == {add}


@pytest.mark.parametrize("shape", ((), (4,), (3, 4)))
def test_a_number_is_put_in_with_the_dtype_and_the_shape_of_the_sum(shape):
    """Broken by: the sizes, the sign, the dtype or the device of `full`; seen to fail."""
    s = torch.ones(shape, dtype=torch.float64)
    for negated in (False, True):
        traced = graph_of(lambda s: (s + 1).exp(), s)
        assert put_in(traced, "add", 2.0, negated) == [full]
        assert torch.equal(traced(s), torch.full(shape, -2.0 if negated else 2.0, dtype=torch.float64).exp())


RESULTS = {  # what is returned, the value, how it is copied
    "an input": (lambda h, s: h + s, "h_1", clone),
    "a view of an input": (lambda h, s: (h.view(-1).view(3, 4)) + s, "view_1", clone),
    "another result": (lambda h, s: ((v := h.exp()), v + s), "exp", plus_zero),
    "a view of another result": (lambda h, s: ((v := h.exp()).view(-1), v + s), "exp", plus_zero),
    "a result seen through a view": (lambda h, s: (h + s).view(-1), "h_1", clone),
    "a result seen through two views": (lambda h, s: (h + s).view(-1).view(4, 3), "h_1", clone),
    "no result": (lambda h, s: (h + s).exp(), "h_1", None),
    "memory of its own": (lambda h, s: h.exp() + s, "exp", None),
    "written to an input": (lambda h, s: (h.copy_(v := h.exp()), v + s)[1], "exp", plus_zero),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_gets_memory_of_its_own(name):
    """Given a value that shares memory with an input or another result, what is returned in its place does not, and only then is
    the value copied: writing to one result must not change another. Inductor keeps a clone of an input, and of nothing else.

    Broken by: `_is_result`, `_would_alias` or `_inputs` looking at less, or at more; a clone of another value; seen to fail."""
    fn, value, copied = RESULTS[name]
    traced = graph_of(fn, H.clone(), H)
    assert put_in(traced, "add", value) == ([copied] if copied else [])


def test_in_a_joint_graph_every_result_is_copied():
    """Given a graph with a tangent, where the backward may save the value. Broken by: `_would_alias` without the tangents."""
    traced = graph_of(lambda h, s, tangents_1: (h.exp() + s, tangents_1 * 2), H, H, H)
    traced.graph.find_nodes(op="placeholder")[2].meta["partitioner_tag"] = "is_backward"
    assert put_in(traced, "add", "exp") == [plus_zero]


def test_the_views_of_a_result_move_with_it():
    """Given a view, and a view of that view, of what is replaced, their fake values are in the new memory; and what is computed from
    it keeps its own.

    Broken by: `_move_views` stopping at the first view, or moving what is no view; seen to fail."""
    traced = graph_of(lambda h, s: ((t := h + s).view(-1).view(2, 6), t.exp()), H, H)
    before = {name: storages(node(traced.graph, name)) for name in ("view", "exp")}
    put_in(traced, "add", "h_1")
    first, second = node(traced.graph, "view"), node(traced.graph, "view_1")
    assert storages(first) == storages(second) == storages(first.args[0]) != before["view"]
    assert storages(node(traced.graph, "exp")) == before["exp"] and second.meta["val"].shape == (2, 6)


def test_what_fails_after_the_views_have_moved_moves_them_back(monkeypatch):
    """Given a view that would look different in the new memory, its fake value is the one it had. Broken by: `replace_with_value`
    not putting back what it moved; seen to fail."""
    traced = graph_of(lambda h, s: (h + s).view(-1), H, H)
    view, add = node(traced.graph, "view"), node(traced.graph, "add")
    before = view.meta["val"]

    def differs(node, was, now):
        if node is view:
            assert now is not before
            raise Refused("in a test")

    monkeypatch.setattr(replace, "check_same", differs)
    with pytest.raises(Refused, match="in a test"):
        replace_with_value(Rewrites(traced.graph), add, node(traced.graph, "h_1"))
    assert view.meta["val"] is before and view.args[0] is add and len(traced.graph.nodes) == 5


def test_who_is_in_which_memory():
    """Given results that are an input, a view of another result, what is written to an input, and none of these, then three of them
    are in company.

    Broken by: `Memory` leaving one out; seen to fail."""
    graph = graph_of(lambda h, s: (s.copy_(w := h.cos()), (h, v := h.exp(), v.view(-1), h.sin(), w))[1], H, H.clone()).graph
    held = [names for names in Memory(graph).held.values() if len(names) > 1]
    assert len(held) == 3 and all(names in held for names in ({0, "h_1"}, {1, 2}, {4, "cos"}))


MOVES = {  # who moves where; whether a result is then with somebody it was not with
    "to nobody": ({"exp": "sin"}, True),
    "to an input": ({"exp": "h_1"}, False),
    "to what is written": ({"exp": "cos"}, False),
    "to another result": ({"exp": "tan"}, False),
    "to whom it is with": ({"view": "exp"}, True),
    "with its view": ({"exp": "sin", "view": "sin"}, True),
    "two to one": ({"exp": "sin", "tan": "sin"}, False),
    "to where another was": ({"exp": "tan", "tan": "sin"}, True),
    "what is written, to a result": ({"cos": "exp"}, True),
    "no result": ({"sin": "exp"}, True),
}


@pytest.mark.parametrize("name", MOVES)
def test_no_result_moves_to_somebody_it_was_not_with(name):
    """Broken by: `Memory.move` leaving out who stays, who comes too, or who was there; seen to fail."""
    moves, allowed = MOVES[name]

    def fn(h, s):
        s.copy_(h.cos())
        return (v := h.exp()), v.view(-1), h.tan(), h.sin().relu()

    graph = graph_of(fn, H, H.clone()).graph
    memory = Memory(graph)
    before = {storage: set(names) for storage, names in memory.held.items() if names}
    made = [Move(node(graph, a), node(graph, a), storages(node(graph, a)), storages(node(graph, b))) for a, b in moves.items()]
    assert memory.move(made) is allowed
    assert allowed or before == {storage: set(names) for storage, names in memory.held.items() if names}


def test_who_has_moved_is_found_where_it_is():
    """Given two results that move to one place one after the other, the second is refused; and there is room where the first was.

    Broken by: `Memory.move` noting nothing; seen to fail."""
    graph = graph_of(lambda h: (h.exp(), h.tan(), h.sin().relu()), H).graph
    memory, (exp, tan, sin) = Memory(graph), (node(graph, name) for name in ("exp", "tan", "sin"))
    assert memory.move([Move(exp, sin, storages(exp), storages(sin))])
    assert not memory.move([Move(tan, tan, storages(tan), storages(sin))])
    assert memory.move([Move(tan, tan, storages(tan), storages(exp))]) and memory.is_free(graph.output_node())
    assert not memory.is_free(sin) and not memory.is_free(exp) and memory.is_free(tan)


def test_a_size_that_is_read_further_down_is_read_from_the_input_that_has_it():
    """Given a size that is read only after the site, as in an exported program that reads it nowhere, it is read ahead of it too.
    Broken by: `_size` taking the node further down; seen to fail."""
    traced = make_fx(lambda h, s: (h + s).exp() * s.shape[0], tracing_mode="symbolic")(ROW, H)
    rewrites = Rewrites(traced.graph)
    replace_with_value(rewrites, node(traced.graph, "add"), node(traced.graph, "h_1"))
    rewrites.finish()
    traced.graph.lint()
    traced.recompile()
    assert torch.equal(traced(ROW, H), ROW.expand(H.shape).exp() * H.shape[0])


def test_another_size_is_not_known():
    """Given a size that is half the one asked for. Broken by: `_size` taking it; seen to fail."""
    traced = make_fx(lambda h, s: (h * s.shape[0], (h + torch.cat([s, s])).exp()), tracing_mode="symbolic")(ROW, H)
    with pytest.raises(Refused, match="known only from a surrogate"):
        replace_with_value(Rewrites(traced.graph), node(traced.graph, "add"), node(traced.graph, "h_1"))


@pytest.mark.parametrize(
    "fn, value, message",
    (
        (lambda h, s: torch.as_strided(h + s, (3, 4), (0, 1)), "h_1", "which no dense copy of the value has"),
        (lambda h, s: s.nonzero().float() * 2, 1.0, "is known only from a surrogate"),
    ),
    ids=("strides", "size"),
)
def test_a_refusal_leaves_the_graph_as_it_was(fn, value, message):
    """Given a result that no stand-in can look like, nothing that was put in on the way stays. Broken by: `replace_with_value`
    leaving nodes behind, or refusing for something else; seen to fail."""
    traced = make_fx(fn, tracing_mode="symbolic")(H, H) if value == 1.0 else graph_of(fn, H, H)
    root = traced.graph.output_node().args[0]
    before = show(traced.graph)
    with pytest.raises(Refused, match=message):
        replace_with_value(Rewrites(traced.graph), root, node(traced.graph, value) if isinstance(value, str) else value)
    assert show(traced.graph) == before


def test_a_value_on_another_device_is_refused():
    traced = graph_of(lambda h, s: (h.to("meta") + s.to("meta")).exp(), H, H)
    with pytest.raises(Refused, match="the value is on cpu, the result on meta"):
        replace_with_value(Rewrites(traced.graph), node(traced.graph, "add"), node(traced.graph, "h_1"))


def test_symbolic_sizes_are_taken_from_what_is_ahead():
    """Given a value of fewer dimensions and a dynamic size, the size is read from the node that holds it.

    Broken by: `_size` giving another node, or refusing; seen to fail."""
    traced = make_fx(lambda h, s: (h * s.shape[1] * s.shape[0], (h + s).exp())[1], tracing_mode="symbolic")(ROW, H)
    assert put_in(traced, "add", "h_1") == [aten.expand.default, clone]
    (expand,) = traced.graph.find_nodes(op="call_function", target=aten.expand.default)
    rows, columns = expand.args[1]
    assert rows.meta["val"] == 3 and columns == -1 and torch.equal(traced(ROW, H), ROW.expand(3, 4).exp())


def test_strides_are_compared_where_they_are_seen():
    """A dimension of one element has any stride. Broken by: comparing all strides, or none."""
    one = torch.empty_strided((1, 4), (9, 1))
    assert same_strides(one, torch.empty(1, 4)) and not same_strides(torch.empty(3, 4), torch.empty(4, 3).t())


@pytest.mark.parametrize(
    "now",
    (H.half(), H[:2], torch.randn(4, 3).t(), H.to("meta"), H[0], H[:, 0]),
    ids=("dtype", "shape", "strides", "device", "no rows", "no columns"),
)
def test_each_difference_is_a_mismatch(now):
    """Broken by: `check_same` without one of the properties; seen to fail."""
    traced = graph_of(lambda h: h.exp(), H)
    check_same(node(traced.graph, "exp"), H, H.clone())
    with pytest.raises(Refused, match=r"exp was torch\.float32"):
        check_same(node(traced.graph, "exp"), H, now)


def test_only_what_nobody_uses_and_nobody_sees_is_dropped():
    """Given a chain with a random operator and one that is used elsewhere, these stay, and what only they use.

    Broken by: `drop_unused` erasing what is used or random, or stopping early; seen to fail."""
    traced = graph_of(lambda h: (h.exp() + torch.rand_like(h.sin()) * h.cos(), h.cos().sum())[1], H)
    traced.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    dropped = drop_unused(traced.graph, node(traced.graph, "add"))
    assert {each.name for each in dropped} == {"add", "exp", "mul", "cos"}
    assert [each.name for each in traced.graph.nodes] == ["h_1", "sin", "rand_like", "cos_1", "sum_1", "output"]


def test_the_strides_of_sparse_tensors_are_not_compared():
    """Broken by: `same_strides` asking a sparse tensor for its strides, or taking any two layouts for alike; seen to fail."""
    dense = torch.eye(2)
    assert same_strides(dense.to_sparse(), dense.to_sparse()) and same_strides(dense.to_sparse_csr(), dense.to_sparse_csr())
    assert not same_strides(dense.to_sparse(), dense) and not same_strides(dense, dense.to_sparse_csr())


def test_what_an_export_asserts_of_casts_is_dropped():
    """Broken by: `drop_assertions` that drops nothing; seen to fail."""
    graph = torch.fx.Graph()
    graph.call_function(torch.ops.aten._assert_tensor_metadata.default, (graph.placeholder("x"),))
    drop_assertions(graph)
    assert [node.op for node in graph.nodes] == ["placeholder"]
