"""What a surrogate *does* besides its value, at every level as eager does it: random numbers, buffers, side effects."""

import pytest
import torch
from ste_compile.passes import cancel, recognise
from torch import nn
from torch._higher_order_ops.effects import _EffectType
from torch.nn.functional import dropout, gumbel_softmax, normalize, rrelu

import ste_compile

from .against_eager import LEVELS, assert_like_eager, run, seed, trained
from .graphs import captured


def tensors(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


RANDOM = {
    "dropout": lambda s: dropout(s, 0.5),
    "bernoulli": lambda s: s * torch.bernoulli(torch.full_like(s, 0.5)),
    "rand": lambda s: s * torch.rand_like(s),
    "randint": lambda s: s * torch.randint(0, 9, s.shape),
    "in_place": lambda s: s * torch.empty_like(s).normal_(),
    "exponential": lambda s: s + torch.empty_like(s).exponential_().log(),
    "poisson": lambda s: s * torch.poisson(torch.ones_like(s)),
    "randperm": lambda s: s * torch.randperm(s.shape[-1]),
    "rrelu": lambda s: rrelu(s, training=True),
    "gumbel": lambda s: gumbel_softmax(s),
    "no_gradient_reads_it": lambda s: s + torch.rand_like(s),
}


@trained
@pytest.mark.parametrize("name", RANDOM)
def test_random_operators_in_a_surrogate_draw_what_they_drew(name, train):
    """Given random numbers in a cancelled surrogate and after it in the host, when run, then each gets eager's, the gradient too,
    and the generator is left as eager leaves it, already after the forward.

    Broken by: `effects.keep` doing nothing, as before there was one (the draw moves to the backward; in inference only Inductor
    drops it, see below). In inference by: `drop_unused` dropping whatever is unused. Seen to fail."""

    def model(h, s):
        out = seed(h, RANDOM[name](s).sin())
        return dropout(out, 0.5), torch.rand_like(h)

    assert_like_eager(model, tensors((4, 6), (4, 6)), finite=1, train=train)


@trained
@pytest.mark.parametrize("fallback_random", (False, True), ids=("inductor", "fallback"))
@pytest.mark.parametrize("host_draws", (True, False), ids=("host", "alone"))
def test_inductor_draws_what_stock_draws(train, fallback_random, host_draws):
    """Given the same through Inductor, the numbers are stock's, and under `fallback_random` eager's; also where the surrogate's
    draw is the only one, and nothing reads it.

    Broken by: `effects.keep` doing nothing (`host`); `release` taking every `after` out (`alone`): Inductor drops the draw, and the
    generator is left behind; seen to fail."""

    def model(h, s):
        out = seed(h, s + torch.rand_like(s))
        return out * torch.rand_like(h) if host_draws else out * 2, out

    with torch._inductor.config.patch(fallback_random=fallback_random):
        assert_like_eager(
            model,
            tensors((64,), (64,)),
            finite=1,
            levels=("finite",),
            backend="ste",
            train=train,
            reference=None if fallback_random else "stock",
        )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=True)

    def forward(self, h, s):
        return dropout(seed(h, self.attention(s, s, s, need_weights=False)[0]), 0.2)


def test_dropout_inside_attention():
    """Given an attention seed with dropout, as transformers have it, values and all gradients are eager's.

    Broken by: `effects.keep` doing nothing; seen to fail."""
    assert_like_eager(Attention(), tensors((2, 4, 6), (2, 4, 6)), finite=1)


def test_what_keeps_an_effect_is_gone_from_the_forward_that_saves_it():
    """Given dropout in a seed, when trained, then no copy of a result is left in the forward, and the mask is drawn there once.

    Broken by: `release` doing nothing; seen to fail."""

    graphs = captured(lambda h, s: seed(h.relu(), dropout(s, 0.5)), tensors((4, 6), (4, 6)), numerics="finite")
    for graph, draws in (("forward", 1), ("backward", 0)):
        passes_graph = graphs[graph].graph
        ste_compile.hooks.run_post_grad(passes_graph)
        names = [str(node.target) for node in passes_graph.nodes]
        assert sum("rand" in name for name in names) == draws and not any("after" in name for name in names)


class Normalised(nn.Module):
    def __init__(self, norm, spectral=False):
        super().__init__()
        linear = nn.Linear(6, 6)
        self.seed = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(linear) if spectral else linear, norm, nn.Tanh())

    def forward(self, h, s):
        return seed(h, self.seed(s)) * 2


NORMS = {
    "batch_norm": lambda: Normalised(nn.BatchNorm1d(6)),
    "batch_norm_eval": lambda: Normalised(nn.BatchNorm1d(6)).eval(),
    "spectral_norm": lambda: Normalised(nn.Identity(), spectral=True),
}


@trained
@pytest.mark.parametrize("name", NORMS)
def test_buffers_are_updated_once_and_in_the_forward(name, train):
    """Given running statistics in a cancelled surrogate, with and without a backward, they are eager's: updated, and once.

    Broken by: `cancel` erasing the `copy_` of what nothing reads any more; seen to fail."""
    assert_like_eager(NORMS[name](), tensors((4, 6), (4, 6)), finite=1, train=train)


def test_buffers_are_updated_without_the_backward_that_was_made():
    """Given a training graph whose backward is never run, the statistics are updated by the forward alone.

    Broken by: as above; seen to fail."""
    for numerics in LEVELS:
        torch._dynamo.reset()
        model = NORMS["batch_norm"]()
        out = torch.compile(model, backend="ste_aot_eager", options={"numerics": numerics})(*tensors((4, 6), (4, 6)))
        assert out.requires_grad and model.seed[1].num_batches_tracked == 1


class UsedThenUpdated(nn.Module):
    """A running scale that the surrogate reads and the forward then moves on."""

    def __init__(self, read):
        super().__init__()
        self.read, self.linear = read, nn.Linear(6, 6)
        self.register_buffer("scale", torch.full((6,), 0.3))

    def forward(self, h, s):
        surrogate = s * self.linear(self.read(self.scale)).tanh()
        self.scale.lerp_(s.detach().mean(0), 0.1)
        return seed(h, surrogate)


READS = {
    "itself": lambda scale: scale.clone()[None],
    "view": lambda scale: scale.view(2, 3).t().reshape(1, 6) * 2,
    "function": lambda scale: scale.sin()[None],
    "normalised": lambda scale: normalize(scale, dim=0)[None],
}


@pytest.mark.parametrize("name", READS)
def test_a_buffer_is_read_before_it_is_updated(name):
    """Given a buffer that a surrogate reads and the forward then updates, the gradients are of the value that was read.

    Broken by: `_readers_of_mutated` returning nothing (what reads the buffer is computed in the backward); seen to fail."""
    assert_like_eager(UsedThenUpdated(READS[name]), tensors((4, 6), (4, 6)), finite=1)


@pytest.mark.parametrize("name", READS)
def test_inductor_reads_a_buffer_before_it_is_updated(name):
    """Given the same through Inductor, which takes the clone out, every gradient that stock has right is right. (Stock, 2.13, saves
    the updated buffer for the weight's gradient, and gets that one wrong.)

    Broken by: `_readers_of_mutated` not looking through copies (`itself`); seen to fail."""
    args = tensors((4, 6), (4, 6))
    model = UsedThenUpdated(READS[name])
    eager, stock, ours = (run(model, args, how, backend="ste") for how in (None, "stock", "finite"))
    for what in ("value", "gradient", "buffer"):
        for mine, theirs, wanted in zip(ours.seen[what], stock.seen[what], eager.seen[what]):
            # Inductor's kernels round differently, so not `==`
            assert torch.allclose(mine, wanted) or not torch.allclose(theirs, wanted), what


calls = []


@torch.library.custom_op("ste_hard::accumulate", mutates_args=("into",))
def accumulate(x: torch.Tensor, into: torch.Tensor) -> None:
    calls.append("accumulate")
    into.mul_(2).add_(x.sum())


@torch.library.custom_op("ste_hard::observe", mutates_args=("into",))
def observe(x: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    calls.append("observe")
    into.add_(x.sum())
    return x.sin()


@torch.library.custom_op("ste_hard::count", mutates_args=())
def count(x: torch.Tensor) -> torch.Tensor:
    calls.append("count")
    return x.sin()


observe.register_fake(lambda x, into: torch.empty_like(x))
count.register_fake(torch.empty_like)
count.register_autograd(lambda ctx, grad: grad * 2)
count.register_effect(_EffectType.ORDERED)


def _temporary(s, buffer):
    temporary = torch.zeros(())
    accumulate(s.detach(), temporary)
    return s * temporary


EFFECTS = {
    "mutates_a_buffer": lambda s, buffer: (accumulate(s.detach(), buffer), s * buffer)[1],
    "mutates_a_temporary": _temporary,
    "mutates_and_returns": lambda s, buffer: s * observe(s.detach(), buffer),
    "effect": lambda s, buffer: count(s),
    "effect_without_gradient": lambda s, buffer: s * count(s.detach()),
    "effect_twice": lambda s, buffer: count(s) + count(s),
}


class WithEffect(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name, self.linear = name, nn.Linear(6, 6)
        self.register_buffer("buffer", torch.ones(()))

    def forward(self, h, s):
        out = seed(h, EFFECTS[self.name](self.linear(s), self.buffer).tanh())
        return out.relu(), out


@trained
@pytest.mark.parametrize("name", EFFECTS)
def test_custom_operators_with_effects_run_once_and_in_the_forward(name, train):
    """Given a custom operator in a cancelled surrogate that mutates a buffer or a temporary, or has a declared side effect, then
    it runs as often as in eager, all before the backward.

    Broken by: `effects.keep` doing nothing, or `is_pure` true of whatever is no ATen operator (`mutates_a_temporary` moves to the
    backward, or goes); seen to fail."""
    for numerics in (None, *LEVELS):
        torch._dynamo.reset()
        calls.clear()
        model = WithEffect(name)
        called = model if numerics is None else torch.compile(model, backend="ste_aot_eager", options={"numerics": numerics})
        h, s = (t.requires_grad_(train) for t in tensors((4, 6), (4, 6)))
        with torch.set_grad_enabled(train):
            outs = called(h, s)
        before_backward = list(calls)
        if train:
            sum(out.sum() for out in outs).backward()
        assert calls == before_backward
        if numerics is None:
            expected = before_backward
        assert before_backward == expected
    assert_like_eager(WithEffect(name), tensors((4, 6), (4, 6)), finite=1, train=train)


def test_nothing_is_returned():
    """Given a function that only writes to its argument, what a cancelled surrogate drew is drawn, as under stock.

    Broken by: `_ends` without the copies into inputs (there is no result to read the draw); seen to fail."""

    def model(h, s, into):
        into.copy_(seed(h, s + torch.rand_like(s)))

    args = [*tensors((4, 6), (4, 6)), torch.zeros(4, 6)]
    assert_like_eager(model, args, finite=1, levels=("finite",), backend="ste", train=False, reference="stock")


def test_cancel_alone_keeps_effects():
    """Given `cancel` on a graph of its own, with no backend around it, a random operator of the surrogate stays read, and ahead of
    the forward's result.

    Broken by: `keep` left to the backend; seen to fail."""
    graph = captured(lambda h, s: seed(h.relu(), dropout(s, 0.5)), tensors((4, 6), (4, 6)))["joint"].graph
    cancel(graph, recognise(graph), "finite")
    (draw,) = [node for node in graph.nodes if "rand" in str(node.target)]
    (after,) = graph.find_nodes(op="call_function", target=torch.ops.ste_compile.after.default)
    assert after in draw.users and graph.output_node() in after.users
