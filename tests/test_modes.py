"""What else torch.compile can be asked for: compiled autograd, stances, regional compilation, budgets, dynamic shapes."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend, EagerAndRecordGraphs

import ste_compile
from ste_compile import hooks
from ste_compile.testing import bitwise_equal

from .against_eager import Seeded, levels, seed
from .test_defer import RESULT, WIDTH, AttentionSeed, Model, conv_seed, graphs, norm_seed, regions, sizes

FINITE = {"backend": "ste_aot_eager", "options": {"numerics": "finite"}}


def gradients(model, called, *args):
    model.zero_grad()
    called(*args).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def same(ours, eager):
    return len(ours) == len(eager) and all(map(bitwise_equal, ours, eager))


def counting(numerics="finite"):
    """A counter of Dynamo's graphs, each compiled by `ste_aot_eager`."""
    backend = torch._dynamo.lookup_backend("ste_aot_eager")
    return CompileCounterWithBackend(lambda gm, args: backend(gm, args, options={"numerics": numerics}))


def test_compiled_autograd_traces_the_backward_whole():
    """Given compiled autograd and a seed that would be deferred in a region, then the backward is traced as one graph, as stock's,
    and has stock's gradients; the caches keep such a forward apart.
    Breaks if regions are made all the same: Dynamo cannot trace them, and the graph breaks at each."""
    assert len(regions(graphs(Model(conv_seed))["backward"])) == 1
    model, x, joint = Seeded(), torch.randn(4, 6), hooks.JointPass("finite")
    eager, key = gradients(model, model, x), joint.uuid()
    backward = EagerAndRecordGraphs()
    with torch._dynamo.config.patch(compiled_autograd=True):
        assert regions(graphs(Model(conv_seed))["backward"]) == [] and joint.uuid() != key
        torch._dynamo.reset()
        model.zero_grad()
        loss = torch.compile(model, backend="ste_finite")(x).sum()
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend=backward)):
            loss.backward()
    assert len(backward.graphs) == 1
    for parameter, wanted in zip(model.parameters(), eager):
        torch.testing.assert_close(parameter.grad, wanted)


@pytest.mark.parametrize("budget", (0.0, 0.5))
def test_a_memory_budget_keeps_the_gradients(budget):
    """Given an activation memory budget, then gradients are eager's, and a region returns all that it returns without one.
    Breaks if the second partition is made with the user's budget, which has been met: it would recompute what a region returned."""
    model, x = Model(conv_seed, AttentionSeed), torch.randn(RESULT)
    ((_, region),) = regions(graphs(Model(conv_seed))["backward"])
    torch._dynamo.reset()
    with torch._functorch.config.patch(activation_memory_budget=budget):
        assert same(gradients(model, torch.compile(model, **FINITE), x), gradients(model, model, x))
        ((_, ours),) = regions(graphs(Model(conv_seed))["backward"])
    returned, without = (Counter(sizes(each.output_node().args[0])) for each in (ours, region))
    assert returned >= without


def test_dynamic_channels_last_seeds():
    """Given channels-last inputs marked dynamic in batch and sides, then one compile serves all sizes, with eager's gradients.
    Breaks if a region is laid out with the symbolic strides of one size."""
    model, counter = Model(conv_seed).to(memory_format=torch.channels_last), counting()
    compiled = torch.compile(model, backend=counter)
    for batch, side in ((2, 6), (3, 8), (5, 4)):
        x = torch.randn(batch, WIDTH, side, side).to(memory_format=torch.channels_last)
        for dimension in (0, 2, 3):
            torch._dynamo.mark_dynamic(x, dimension)
        assert same(gradients(model, compiled, x), gradients(model, model, x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("mode, option", (("reduce-overhead", "triton.cudagraphs"), ("max-autotune", "max_autotune")))
def test_modes_with_a_region(mode, option):
    """Given a mode of stock's and a deferred seed, then Inductor has the mode's options, and gradients are as near as stock's.
    Breaks if the hooks take the place of the mode's options."""
    model, x, seen = Seeded(), torch.randn(4, 6), []
    look = {hooks.JOINT: lambda graph: seen.append(torch._inductor.config.get_config_copy()[option])}
    with torch._inductor.config.patch(look), ste_compile.collect() as recorder:
        ours = gradients(model, torch.compile(model, backend="ste_finite", mode=mode, fullgraph=True), x)
    assert [site.action for site in recorder.sites()] == ["cancelled"] and seen == [True]
    for mine, wanted in zip(ours, gradients(model, model, x), strict=True):
        torch.testing.assert_close(mine, wanted)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.host, self.seed = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))

    def forward(self, x):
        return seed(self.host(x).relu(), self.seed(x))


def test_one_compile_serves_all_blocks():
    """Given four equal blocks compiled one by one, then there is one compilation, and gradients are eager's.
    Breaks if the backend is another value for each block, or a graph holds on to the parameters of the first."""
    model, x, counter = nn.Sequential(*(Block() for _ in range(4))), torch.randn(4, 6, requires_grad=True), counting()
    eager = gradients(model, model, x)
    for block in model:
        block.compile(backend=counter)
    assert same(gradients(model, model, x), eager) and counter.frame_count == 1


class Nested(Model):
    @torch.compiler.nested_compile_region
    def block(self, h):
        return ste_compile.ste_forward(h + self.blocks[0](h).relu(), self.seeds[0](h.detach()))

    def forward(self, h):
        return self.block(self.block(h)).square().mean()


def test_a_nested_region_with_a_seed():
    """Given a block marked as a nested region, called twice, with a seed that is deferred inside it, gradients are eager's.
    Breaks if the partition of a subgraph is not taken for a joint graph's."""
    model, x = Nested(conv_seed), torch.randn(RESULT).requires_grad_()
    used = [p for name, p in model.named_parameters() if not name.startswith("blocks.1")]
    eager = torch.autograd.grad(model(x), used)
    assert same(torch.autograd.grad(torch.compile(model, fullgraph=True, **FINITE)(x), used), eager)


def test_an_optimizer_step_is_left_alone():
    """Given an optimizer's step compiled with the backend, parameters are those of torch's own, and no site is found.
    Breaks if its arithmetic, on detached parameters, is taken for an estimator's."""
    results = []
    for backend in ("aot_eager", "ste_aot_eager"):
        torch.manual_seed(0)
        model = nn.Linear(6, 6)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        step = torch.compile(optimizer.step, backend=backend)
        with ste_compile.collect() as recorder:
            for _ in range(2):
                gradients(model, lambda x, model=model: model(x).square(), torch.ones(2, 6))
                step()
        assert recorder.sites() == ()
        results.append(list(model.parameters()))
    assert same(*results)


def test_stances():
    """Given each stance, the compiled code is bypassed, kept, or refused, as in stock.
    Breaks if the backend compiles where Dynamo was told not to."""
    model, counter = Model(norm_seed), counting()
    compiled, x = torch.compile(model, backend=counter, dynamic=False), torch.randn(RESULT)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(compiled(x), model(x)) and counter.frame_count == 0
    compiled(x)
    with torch.compiler.set_stance("eager_on_recompile"):
        assert torch.equal(compiled(x[:1]), model(x[:1]))
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(x)
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            compiled(x[:1])
    assert counter.frame_count == 1


class Switched(Seeded):
    def forward(self, x):
        return seed(self.host(x).relu(), nn.functional.dropout(self.seed(x), 0.5, self.training))


@levels
def test_each_way_to_run_has_its_graph(numerics):
    """Given a module with dropout in its seed, switched between training and evaluation, gradients, `no_grad` and
    `inference_mode`, and back, then each has one graph, and values, gradients and random numbers are eager's every time.
    Breaks if one graph serves for another: a training graph that keeps its draws, an inference graph that drops them."""
    model, counter = Switched(), counting(numerics)
    compiled, x = torch.compile(model, backend=counter), torch.randn(4, 6)
    for train in (True, False, True, False):
        model.train(train)
        for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            results = []
            for run in (model, compiled):
                torch.manual_seed(0)
                with context():
                    out = run(x)
                leaves = [*model.parameters()] if context is torch.enable_grad else []
                grads = torch.autograd.grad(out.sum(), leaves) if leaves else ()
                results.append([out.detach().clone(), torch.get_rng_state(), *grads])
            assert same(*results)
    assert counter.frame_count == 6
