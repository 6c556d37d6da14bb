"""What a surrogate does besides its value, by the graph alone: which nodes count, what holds them, and what lets them go."""

import operator

import torch
from ste_compile.passes import Reason, cancel, recognise, release
from ste_compile.passes.effects import effects
from ste_compile.passes.meta import TURN
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy

aten = torch.ops.aten
AFTER = torch.ops.ste_compile.after.default


def graph_of(fn):
    return make_fx(fn, tracing_mode="fake")(*(torch.ones(4) for _ in range(3))).graph


def named(nodes):
    return [node.name for node in nodes]


def test_effects_are_what_draws_and_what_reads_before_a_write():
    """Given random numbers, readers of an input that is written, of its views and its copies, and others: the first three count,
    where a result or the write is computed from them.

    Broken by: `effects` or `_readers_of_mutated` counting less, or more; seen to fail."""

    def fn(h, s, buffer):
        unread = torch.rand_like(s) + buffer.tanh()  # noqa: F841
        out = h.exp() * torch.rand_like(h) + buffer.sin() + buffer.view(-1).cos() + buffer.clone().tan()
        buffer.copy_(buffer.neg() * torch.rand_like(s))
        return out

    assert named(effects(graph_of(fn))) == ["rand_like_1", "sin", "cos", "clone", "tan", "neg", "rand_like_2"]


def test_what_the_backward_draws_is_none_of_the_forwards():
    """Given a result of the backward. Broken by: `_ends` taking it for one of the forward's; seen to fail."""
    graph = graph_of(lambda h, tangents_1, t: (h * torch.rand_like(h), tangents_1 * torch.rand_like(t)))
    for node in (graph.find_nodes(op="placeholder")[1], graph.output_node().args[0][1]):
        node.meta["partitioner_tag"] = "is_backward"
    assert named(effects(graph)) == ["rand_like"]


def cancelled(fn, backward=()):
    graph = graph_of(fn)
    for node in graph.nodes:
        if node.name in backward:
            node.meta["partitioner_tag"] = "is_backward"
    assert {outcome.action for outcome in cancel(graph, recognise(graph), "finite")} == {"cancelled"}
    graph.lint()
    return graph


def test_what_is_lost_is_held_in_graph_order_and_what_reads_a_buffer_is_saved():
    """Given a cancelled surrogate that reads a buffer ahead of its update, as does the backward, and draws, the result is held after
    both; only the read must not be recomputed, where the buffer holds another value.

    Broken by: `keep` losing one, marking both, or adding what is read anyhow; seen to fail."""

    def fn(h, buffer, tangents_1):
        noise = torch.rand_like(h)
        seed = (read := buffer.sin()) * torch.rand_like(h)
        out = h * noise + (seed - seed.detach())
        gradient = tangents_1 * read
        buffer.copy_(h)
        return out, gradient

    graph = cancelled(fn, backward={"tangents_1", "mul_2"})
    (after,) = graph.find_nodes(op="call_function", target=AFTER)
    assert named(after.args[1]) == ["sin", "rand_like_1"] and graph.output_node() in after.users
    sin, rand = after.args[1]
    assert sin.meta["recompute"] is CheckpointPolicy.MUST_SAVE and "recompute" not in rand.meta
    turns = {node.name: node.meta[TURN] for node in graph.nodes if TURN in node.meta}
    assert [*turns] == ["rand_like", "rand_like_1", "copy_"] and sorted(turns.values()) == [*turns.values()]


def test_nothing_is_held_where_nothing_is_lost():
    """Given a draw that the host reads as well, and one in a surrogate that stays. Broken by: `keep` holding what is still read."""

    def fn(h, s, t):
        noise = torch.rand_like(h)
        return h * noise + ((seed := s * noise) - seed.detach())

    assert not cancelled(fn).find_nodes(op="call_function", target=AFTER)


def test_a_draw_that_gives_a_tuple_is_held_by_its_first_tensor():
    """Given an operator with two results, neither of which is left. Broken by: `_tensor_of` giving up, or the wrong item."""

    def fn(h, s, _):
        seed, mask = aten.native_dropout.default(s, 0.5, True)
        return h.exp() + ((seed := seed * mask) - seed.detach())

    graph = cancelled(fn)
    (after,) = graph.find_nodes(op="call_function", target=AFTER)
    (held,) = after.args[1]
    assert held.target is operator.getitem and held.args[1] == 0 and held.meta["val"].dtype == torch.float32
    assert held.args[0].target is aten.native_dropout.default and after.args[0].name == "exp"


def test_where_all_results_share_memory_the_first_holds():
    def fn(h, s, _):
        noisy = s * torch.rand_like(s)
        base = h.exp() + (noisy - noisy.detach())
        return base.view(-1), base

    graph = cancelled(fn)
    first, second = graph.output_node().args[0]
    assert first.target is AFTER and second.name == "exp"


def test_a_result_that_is_an_input_does_not_hold():
    """Given an input among the results, of which no copy may be made, the next result holds. Broken by: `_unshared` not counting
    the inputs; seen to fail."""

    def fn(h, s, _):
        noisy = s * torch.rand_like(s)
        return h, s.cos() + (noisy - noisy.detach())

    first, second = cancelled(fn).output_node().args[0]
    assert first.name == "h_1" and second.target is AFTER


def test_release_keeps_what_would_be_dead():
    """Given two results that hold a draw: one that is read elsewhere is let go of, and with none left the result is its value.

    Broken by: `release` letting go of all, or of none; seen to fail."""

    def fn(h, s, t):
        dead, read = torch.rand_like(s), torch.rand_like(t)
        held = torch.ops.ste_compile.after(h.exp(), [dead, read])
        return held, torch.ops.ste_compile.after(h.sin(), [read]), read * 2

    graph = graph_of(fn)
    release(graph)
    graph.lint()
    first, second, _ = graph.output_node().args[0]
    assert first.target is AFTER and named(first.args[1]) == ["rand_like"] and second.name == "sin"
    assert len(graph.find_nodes(op="call_function", target=AFTER)) == 1


def test_where_nothing_can_be_kept_a_graph_with_effects_is_left_whole():
    """Given a compiler that cannot hold effects, it is asked where there are some, and every site of that graph is left.

    Broken by: `cancel` asking about other graphs, or cancelling all the same; seen to fail."""
    asked = []

    def outcomes(fn):
        graph = graph_of(fn)
        return cancel(graph, recognise(graph), "finite", can_keep=lambda: bool(asked.append(graph)))

    assert [each.action for each in outcomes(lambda h, s, _: h + (s - s.detach()))] == ["cancelled"] and not asked
    drawn = outcomes(lambda h, s, _: h + ((noisy := s * torch.rand_like(s)) - noisy.detach()) + (s - s.detach()))
    assert len(asked) == 1 and [each.why.reason for each in drawn] == [Reason.NO_EFFECTS] * 2
