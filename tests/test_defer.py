"""Where the forward of a cancelled surrogate runs: in regions of the backward graph, as stock would have run it."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from ste_compile.passes.defer import _after_tangents
from ste_compile.passes.memory import storages
from ste_compile.passes.meta import REGION
from ste_compile.passes.nodes import is_matmul
from torch import nn
from torch.utils.checkpoint import checkpoint

import ste_compile
from ste_compile import hooks
from ste_compile.testing import assert_equivalent, bitwise_equal

from .graphs import captured, show

WIDTH = 8
RESULT = (2, WIDTH, 6, 6)


def conv_seed():
    layers = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(2, WIDTH), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)]
    return nn.Sequential(*layers, nn.GroupNorm(2, WIDTH), nn.GELU())


def norm_seed():
    return nn.GroupNorm(2, WIDTH)


class AttentionSeed(nn.Module):
    dropout = 0.0

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h):
        q, k, v = self.qkv(h.flatten(2).transpose(1, 2)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout).transpose(1, 2).flatten(2)
        return self.out(mixed.relu()).transpose(1, 2).reshape(h.shape)


class CheckpointedSeed(nn.Module):
    def __init__(self):
        super().__init__()
        self.seed = conv_seed()

    def forward(self, h):
        return checkpoint(self.seed, h, use_reentrant=False)


class Model(nn.Module):
    """A host of convolutions, a seed behind each but the last."""

    def __init__(self, *seeds):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(len(seeds) + 1))
        self.seeds = nn.ModuleList(make() for make in seeds)

    def forward(self, h):
        for block, seed in zip(self.blocks, [*self.seeds, None]):
            h = h + block(h).relu()
            if seed is not None:
                h = ste_compile.ste_forward(h, seed(h.detach()))
        return h.square().mean()


def graphs(model, numerics="finite", **options):
    return captured(lambda x: model(x), (torch.randn(RESULT),), numerics=numerics, **options)


def regions(backward):
    """(the call, its graph) of each region, in order."""
    calls = backward.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph, sort=True)
    return [(call, getattr(backward, call.args[0].target).graph) for call in calls]


def sizes(nodes):
    return sorted(tuple(n.meta["val"].shape) for n in nodes if isinstance(n.meta.get("val"), torch.Tensor))


def saved(forward):
    return [node for node in forward.graph.output_node().args[0][1:] if node.op != "placeholder"]


def test_a_region_returns_what_stock_would_have_saved():
    """Given a seed of convolutions and norms, then what its region returns is, tensor for tensor, what stock's forward saves on
    top of the host's: convolutions and statistics, and no activation between them. (Stock saves the site's result too, and the
    value beside it.)
    Broken by partitioning with the ends of the forward as results of their own."""
    model = Model(conv_seed)
    stock, ours = graphs(model, numerics=None), graphs(model)
    ((_, region),) = regions(ours["backward"])
    returned = region.output_node().args[0]
    assert sorted([*sizes(returned), *sizes(saved(ours["forward"])), RESULT]) == sizes(saved(stock["forward"]))


def test_a_checkpointed_seed_has_the_region_that_it_has_without():
    """The first partition has obeyed the checkpoint: nothing of it is saved. What a region returns is short-lived, so there the
    checkpoint says nothing. Broken by leaving its tags on the nodes; seen to fail."""
    ((_, plain),), ((_, checkpointed),) = (regions(graphs(Model(seed))["backward"]) for seed in (conv_seed, CheckpointedSeed))
    assert sizes(plain.output_node().args[0]) == sizes(checkpointed.output_node().args[0])


def test_a_region_may_be_a_single_layer():
    """Given a seed of two layers, then the backward needs the first one's result and nothing else.
    Broken by taking the nodes that others of the region read for its ends; seen to fail."""
    layers = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2)]
    ((_, region),) = regions(graphs(Model(lambda: nn.Sequential(*layers)))["backward"])
    assert sum(map(is_matmul, region.nodes)) == 1 and sizes(region.output_node().args[0]) == [RESULT]


def test_a_region_is_marked_and_tangents_are_known():
    """For reports, which count a region where it is called. Broken by: either not; seen to fail."""
    backward = graphs(Model(conv_seed))["backward"]
    ((_, region),) = regions(backward)
    assert region.output_node().meta[REGION] is True
    inputs = set(backward.graph.find_nodes(op="placeholder"))
    found = {node.name for node in _after_tangents(backward.graph) & inputs}
    assert found == {node.name for node in inputs if "tangents" in node.name} != set()


@pytest.mark.parametrize(
    "seed", (conv_seed, AttentionSeed, lambda: nn.Sequential(nn.Flatten(2), nn.Linear(36, 36), nn.Unflatten(2, (6, 6))))
)
def test_a_region_returns_memory_of_its_own(seed):
    """Given seeds whose partition saves views, of weights and of activations, then what a region returns shares memory neither
    with its inputs nor among itself.
    Broken by returning the views."""
    for call, region in regions(graphs(Model(seed, seed))["backward"]):
        returned = [storages(node) for node in region.output_node().args[0]]
        inputs = set().union(*(storages(node) for node in call.args[2:]))
        assert len(set().union(*returned)) == len(returned) and all(map(inputs.isdisjoint, returned))


def test_attention_is_deferred_unless_it_draws():
    """Given seeds of attention, then the forward saves what the host's does. With dropout, its random numbers are drawn in the
    forward.
    Broken by taking every attention for random, as its operators are tagged."""

    class Drops(AttentionSeed):
        dropout = 0.5

    host, still, drops = (graphs(model)["forward"] for model in (Model(nn.Identity), Model(AttentionSeed), Model(Drops)))
    assert sizes(saved(still)) == sizes(saved(host))
    assert [any("random" in node.name for node in each.graph.nodes) for each in (still, drops)] == [False, True]


def test_each_surrogate_has_a_region_that_runs_when_its_gradients_begin():
    """Given two seeds, then the last one's region and gradients come first: one seed's activations at a time.
    Broken by running every region at the start."""
    backward = graphs(Model(conv_seed, conv_seed))["backward"]
    (first, _), (second, _) = regions(backward)
    order = {node: i for i, node in enumerate(backward.graph.nodes)}
    ends = max(order[reader] for item in first.users for reader in item.users)
    between = [n for n in backward.graph.nodes if order[first] < order[n] < order[second] and is_matmul(n)]
    assert between and ends < order[second]


class NormedHost(Model):
    """Its activations are computed again in the backward, and read there by its own gradients and by its seeds'."""

    def forward(self, h):
        for block, seed in zip(self.blocks, [*self.seeds, None]):
            h = h + F.gelu(block(F.group_norm(h, 2)))
            h = h if seed is None else ste_compile.ste_forward(h, seed(h))
        return h.square().mean()


@pytest.mark.parametrize("host", (Model, NormedHost))
def test_what_a_partitioner_puts_ahead_of_all_gradients_is_computed_when_it_is_read(monkeypatch, host):
    """Given a partitioner that leaves at the start of the backward whatever needs no gradient, no more stands there in the end, and
    the gradients keep their order. Broken by: such nodes left there, or gradients moved; seen to fail."""
    model, defer, given = host(conv_seed, norm_seed), hooks.defer, []

    def in_order():
        graph = graphs(model)["backward"].graph
        after = _after_tangents(graph)
        gradients = [node for node in graph.nodes if node in after and node.op == "call_function"]
        ahead = itertools.takewhile(lambda node: node is not gradients[0], graph.nodes)
        return [node.name for node in gradients], {node.name for node in ahead}

    ours = in_order()

    def hoisted(forward, backward, *args):
        gradients, start = _after_tangents(backward.graph), backward.graph.find_nodes(op="placeholder")[-1]
        given.extend(node.name for node in backward.graph.nodes if node in gradients and node.op == "call_function")
        for node in [node for node in backward.graph.nodes if node.op == "call_function" and node not in gradients]:
            start.append(node)
            start = node
        return defer(forward, backward, *args)

    monkeypatch.setattr(hooks, "defer", hoisted)
    assert in_order() == ours
    # (A `getitem` gets another name, since regions have some too.)
    assert [name for name in given if "getitem" not in name] == [name for name in ours[0] if "getitem" not in name]


@pytest.mark.parametrize("seed", (conv_seed, AttentionSeed, CheckpointedSeed))
@pytest.mark.parametrize("host", (Model, NormedHost))
def test_regions_are_those_of_a_partition_of_the_whole_backward(monkeypatch, seed, host):
    """Broken by leaving out of what is partitioned again the gradients that read what is deferred, or what these alone read; seen
    to fail."""
    model = host(seed, seed)
    ours = graphs(model)["backward"]
    cut = hooks.defer.__globals__["_joint"]
    monkeypatch.setitem(
        hooks.defer.__globals__, "_joint", lambda backward, moved, later: cut(backward, moved, set())
    )  # all of it
    theirs = graphs(model)["backward"]
    assert show(ours.graph) == show(theirs.graph) and regions(ours)
    assert [show(region) for _, region in regions(ours)] == [show(region) for _, region in regions(theirs)]


def test_what_is_partitioned_again_does_not_grow_with_the_host(monkeypatch):
    """Given the same seed in a host of more layers, then the second partition sees no more nodes.
    Broken by a partition of the whole backward; seen to fail."""

    class Host(Model):
        def __init__(self, layers):
            super().__init__(conv_seed)
            self.first = nn.Sequential(*(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(layers)))

        def forward(self, h):
            return super().forward(self.first(h))

    seen, original = [], hooks._torch.partition_again

    def partition(root, graph, results):
        seen.append(len(graph.nodes))
        return original(root, graph, results)

    monkeypatch.setattr(hooks._torch, "partition_again", partition)
    for layers in (1, 9):
        graphs(Host(layers))
    assert seen[0] == seen[1]


def test_surrogates_that_share_a_layer_share_a_region():
    class Shared(Model):
        def forward(self, h):
            trunk = self.seeds[0](h.detach())
            for block in self.blocks:
                h = ste_compile.ste_forward(h + block(h).relu(), trunk * 2)
            return h.square().mean()

    assert len(regions(graphs(Shared(conv_seed))["backward"])) == 1


def test_a_surrogate_without_a_matrix_product_is_left_to_be_fused():
    """Broken by putting every deferred node into a region."""
    assert regions(graphs(Model(norm_seed))["backward"]) == []


def test_nothing_moves_where_nothing_cancels():
    """Under `exact`, and in a model without a site, the partitioner's graphs are stock's.
    Broken by looking at what the partitioner moved, and not at what was cancelled."""
    model = Model(conv_seed)
    assert regions(graphs(model, numerics="exact")["backward"]) == []

    class Unused(Model):  # only the backward needs the seed's forward: stock itself moves it there
        def forward(self, h):
            return (_Zero.apply(self.seeds[0](h)) + self.blocks[0](h)).square().mean()

    assert regions(graphs(Unused(conv_seed))["backward"]) == []


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


@pytest.mark.parametrize("seed", (conv_seed, norm_seed, AttentionSeed, CheckpointedSeed, lambda: nn.Conv2d(WIDTH, WIDTH, 1)))
@pytest.mark.parametrize("numerics", ("finite", "algebraic"))
def test_regions_compute_what_eager_does(seed, numerics):
    assert_equivalent(Model(seed, conv_seed), torch.randn(2, WIDTH, 6, 6, requires_grad=True), numerics=numerics, train=True)


def test_regions_with_symbolic_sizes_compute_what_eager_does():
    model = Model(conv_seed, AttentionSeed)
    compiled = torch.compile(model, backend="ste_aot_eager", options={"numerics": "finite"}, dynamic=True)
    for batch in (2, 3, 5):
        x = torch.randn(batch, WIDTH, 6, 6)
        grads = [torch.autograd.grad(run(x), list(model.parameters())) for run in (model, compiled)]
        assert all(map(bitwise_equal, *grads))


def test_inductor_compiles_regions_to_the_gradients_of_stock():
    """Given channels-last convolutions, compiled by Inductor with symbolic sizes and without, then losses are equal and gradients
    as near to eager's as stock's.
    Broken by leaving the results of a region with the strides of their fake values."""
    model = Model(conv_seed, AttentionSeed).to(memory_format=torch.channels_last)
    x = torch.randn(2, WIDTH, 6, 6).to(memory_format=torch.channels_last)
    eager = torch.autograd.grad(model(x), list(model.parameters()))
    for dynamic in (False, True):
        compiled = torch.compile(model, backend="ste", options={"numerics": "finite"}, dynamic=dynamic)
        for want, have in zip(eager, torch.autograd.grad(compiled(x), list(model.parameters())), strict=True):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-6)  # Inductor's own reductions, in float32


def test_deferred_false_runs_and_saves_what_stock_does():
    """Given `deferred=False`, then the site is cancelled, and the forward saves for its seed what stock's does."""
    model = Model(conv_seed)
    stock, there = graphs(model, numerics=None), graphs(model, deferred=False)
    assert sorted([*sizes(saved(there["forward"])), RESULT]) == sizes(saved(stock["forward"]))
    assert regions(there["backward"]) == []
    assert "ste_compile.after" in there["joint"].code


def test_deferred_must_be_a_bool():
    with pytest.raises(TypeError, match="deferred must be True or False, got 'no'"):
        ste_compile.inductor_options(numerics="finite", options={}, deferred="no")
    model = torch.compile(Model(conv_seed), backend="ste_aot_eager", options={"numerics": "finite", "deferred": 0})
    with pytest.raises(Exception, match="deferred must be True or False, got 0"):
        model(torch.randn(2, WIDTH, 6, 6))


def test_a_partitioner_of_the_users_is_used():
    """Given one in the options, then it partitions, and what it left in the backward is put into regions all the same."""
    seen = []

    class Theirs(hooks._torch.CustomPartitionerFn):
        def __call__(self, gm, joint_inputs, **kwargs):
            seen.append(gm)
            return hooks._torch.min_cut_rematerialization_partition(gm, joint_inputs, **kwargs)

        def uuid(self):
            return b"theirs"

    options = ste_compile.inductor_options(numerics="finite", options={"custom_partitioner_fn": Theirs()})
    torch.compile(Model(lambda: nn.Conv2d(WIDTH, WIDTH, 1)), options=options)(torch.randn(2, WIDTH, 6, 6)).backward()
    assert len(seen) == 1
