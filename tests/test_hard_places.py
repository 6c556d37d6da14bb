"""Places in a program where a site is hard to find or easy to get wrong, each at every level against eager."""

import functools

import pytest
import torch
from torch import nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.functional import dropout
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import ste_compile

from .against_eager import LEVELS, Seeded, assert_like_eager, levels, run, seed, trained


def vq(q, x):
    return x + (q - x).detach()


def tensors(*shapes, dtype=torch.float32, whole=False):
    """Whole numbers are the same however a sum of them is rounded, so that `==` holds at every level."""
    generator = torch.Generator().manual_seed(1)
    made = (torch.randn(shape, generator=generator, dtype=dtype) * 4 for shape in shapes)
    return [
        torch.view_as_complex(torch.view_as_real(t).round()) if whole and t.is_complex() else t.round() if whole else t
        for t in made
    ]


def differentiable(args):
    return [t.requires_grad_() for t in args]


# --- subgraphs of higher-order operators


def in_cond(h, s):
    return torch.cond(h.sum() > 0, lambda h, s: seed(h, s.sin()), lambda h, s: vq(h.relu(), s.abs() * 2), (h, s))


def in_while_loop(h, s):
    def body(i, h, s):
        return i + 1, seed(h * 2, s.sin()), s * 0.5

    return while_loop(lambda i, h, s: i < 3, body, (torch.tensor(0), h, s))


@torch.compiler.nested_compile_region
def region(h, s):
    return seed(h.relu(), s.sin())


@torch.compiler.nested_compile_region
def noisy_region(h, s):
    return seed(h.relu(), dropout(s.sin(), 0.5)) * torch.randint(1, 4, h.shape)


SUBGRAPHS = {
    "cond": (in_cond, {"finite": 1, "algebraic": 1}),
    "while_loop": (in_while_loop, {"finite": 1}),
    "invoke_subgraph": (lambda h, s: region(region(h, s), s), {"finite": 1, "counted": False}),
    "surrogate": (lambda h, s: seed(h, torch.cond(h.sum() > 0, lambda s: s.sin(), lambda s: s.cos(), (s,))), {"finite": 1}),
}


@trained
@pytest.mark.parametrize("name", SUBGRAPHS)
def test_subgraphs(name, train):
    """Given a site in a branch, a loop body or a nested region, or a branch in a surrogate, it is found and keeps the promise.

    Broken by: `subgraphs` giving the outer graph alone; `surrogate` by the value negated in `replace_with_value`; seen to fail."""
    fn, sites = SUBGRAPHS[name]
    assert_like_eager(fn, differentiable(tensors((4, 6), (4, 6), whole=True)), train=train, **sites)


@pytest.mark.parametrize("first", (1.0, -1.0), ids=("true", "false"))
def test_random_numbers_in_a_branch(first):
    """Given random numbers in a branch, in its surrogate and in its host, each gets eager's.

    Broken by: `effects.keep` doing nothing, or giving up where the operator gives a tuple; seen to fail."""

    def model(h, s):
        def branch(h, s):
            return seed(h, dropout(s, 0.5)) * torch.rand_like(h)

        return torch.cond(h.sum() > 0, branch, lambda h, s: branch(h, s) * 2, (h, s))

    h, s = tensors((4, 6), (4, 6))
    assert_like_eager(model, differentiable([h.abs() * first, s]), finite=2)


def test_a_region_that_is_called_twice_draws_as_stock_does():
    """Given a nested region with dropout in its seed, called twice, values and gradients are stock's, which share one subgraph.

    Broken by: `effects.keep` doing nothing; seen to fail."""
    for numerics in LEVELS:
        args = differentiable(tensors((4, 6), (4, 6)))
        ours, stock = (run(lambda h, s: noisy_region(noisy_region(h, s), s), args, how) for how in (numerics, "stock"))
        assert ours.actions and set(ours.actions) <= {"cancelled", "left", "fused"}
        for what, wanted in stock.seen.items():
            assert all(torch.equal(a, b) for a, b in zip(ours.seen[what], wanted)), what


# --- activation checkpointing


def _save_matmuls(context, op, *args, **kwargs):
    matmul = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if matmul else CheckpointPolicy.PREFER_RECOMPUTE


POLICIES = {
    "all": {},
    "selective": {"context_fn": functools.partial(create_selective_checkpoint_contexts, _save_matmuls)},
}


class Checkpointed(nn.Module):
    def __init__(self, policy, drop):
        super().__init__()
        self.policy, self.drop, self.host, self.seed = policy, drop, nn.Linear(6, 6), nn.Linear(6, 6)

    def block(self, x):
        out = seed(self.host(x).relu(), dropout(self.seed(x).tanh(), self.drop))
        return dropout(seed(out * 2, out.sin()), self.drop)

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False, **POLICIES[self.policy]) * 2


@pytest.mark.parametrize("drop", (0.0, 0.5))
@pytest.mark.parametrize("policy", POLICIES)
def test_activation_checkpointing(policy, drop):
    """Given sites in a checkpointed block, the recomputed forward has the same values and random numbers: gradients are eager's.

    Broken by: `effects.keep` doing nothing (with dropout); `MARKERS` without `detach`; seen to fail."""
    assert_like_eager(Checkpointed(policy, drop), differentiable(tensors((4, 6))), finite=2)


# --- autograd's and functorch's own entry points


@levels
def test_one_compiled_function_used_twice(numerics):
    """Given one compiled module applied twice, to its own result too, with `retain_graph` and two backwards, and
    `torch.autograd.grad`, all gradients are eager's.

    Broken by: the value negated in `replace_with_value`; seen to fail."""
    model, results = Seeded(), []
    for called in (model, torch.compile(model, backend="ste_aot_eager", options={"numerics": numerics}, fullgraph=True)):
        model.zero_grad()
        (x,) = differentiable(tensors((4, 6)))
        first, second = (y := called(x)), called(y)
        second.sum().backward(retain_graph=True)
        once = x.grad.clone()
        second.sum().backward()
        asked = torch.autograd.grad((called(x) ** 2).sum(), [x, *model.parameters()])
        results.append([first, second, once, x.grad, *asked, *(p.grad.clone() for p in model.parameters())])
    assert torch.equal(results[1][2] * 2, results[1][3])
    assert all(torch.equal(ours, eager) for eager, ours in zip(*results))


def _objective(h, s):
    return (seed(h.sin(), s.cos()) ** 2).sum()


FUNCTORCH = {
    "autograd_grad": lambda h, s: torch.autograd.grad(_objective(h, s), (h, s)),
    "grad": lambda h, s: torch.func.grad(_objective, argnums=(0, 1))(h, s),
    "vmap": lambda h, s: torch.func.vmap(lambda h, s: seed(h.sin(), s.cos()))(h, s),
    "vmap_of_grad": lambda h, s: torch.func.vmap(torch.func.grad(_objective, argnums=(0, 1)))(h, s),
    "vmap_random": lambda h, s: torch.func.vmap(lambda h, s: seed(h, s * torch.rand(6)) * torch.rand(6), randomness="different")(
        h, s
    ),
    "jvp": lambda h, s: torch.func.jvp(lambda h: seed(h.sin(), h.cos()), (h,), (s,)),
}


@pytest.mark.parametrize("name", FUNCTORCH)
def test_transforms_inside_the_compiled_function(name):
    """Given gradients and batching asked for inside the graph, where a site's value is used by what was its backward, they are
    eager's.

    Broken by: the value negated in `replace_with_value`; seen to fail."""
    train = name.startswith("vmap") and name != "vmap_of_grad"
    args = tensors((4, 6), (4, 6))
    if name == "autograd_grad":  # Dynamo traces it in its own graph only where the inputs are leaves that need gradients
        args, train = differentiable(args), True
    assert_like_eager(
        FUNCTORCH[name], differentiable(args) if train else args, finite=1, train=train, fullgraph=name != "autograd_grad"
    )


class Frozen(Seeded):
    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.get_parameter(name).requires_grad_(False)


FROZEN = {
    "host": ("host.weight", "host.bias"),
    "part_of_the_seed": ("seed.0.weight", "seed.2.bias"),
    "seed": ("seed.0.weight", "seed.0.bias", "seed.2.weight", "seed.2.bias"),
}


@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize("input_needs_it", (True, False), ids=("input", "no_input"))
def test_frozen_parameters(name, input_needs_it):
    """Given parameters without gradients, of the host, of parts of the seed or of all of it (the surrogate then carries none), the
    others' gradients are eager's and the frozen ones have none.

    Broken by: the value negated in `replace_with_value`; seen to fail."""
    (x,) = tensors((4, 6))
    assert_like_eager(Frozen(*FROZEN[name]), [x.requires_grad_(input_needs_it)], finite=1)


# --- tensors


@levels
@pytest.mark.parametrize("host", ("subclass", "plain"))
def test_tensor_subclasses(host, numerics):
    """Given a wrapper subclass of two tensors, as host and seed or as the seed alone, each site is two, and both are eager's.

    Broken by: the value negated in `replace_with_value`; under exact: `MARKERS` without `detach`; seen to fail."""
    a, b, c, d = tensors((4,), (4,), (4,), (4,), whole=True)
    results = []
    with ste_compile.collect() as recorder:
        for how in (None, numerics):
            h = TwoTensor(a.clone(), b.clone()) if host == "subclass" else a.clone()
            s = TwoTensor(c.clone(), d.clone()).requires_grad_()

            def model(h, s):
                return seed(h.relu(), s.sin()), vq(h * 2, s)

            fn = torch.compile(model, backend="ste_aot_eager", options={"numerics": how}, fullgraph=True) if how else model
            outs = fn(h, s)
            sum(out.sum() for out in outs).backward()
            assert all(isinstance(out, TwoTensor) for out in outs)
            results.append([t for out in (*outs, s.grad) for t in (out.a, out.b)])
    assert all((ours == eager).all() for eager, ours in zip(*results))
    assert len([site for site in recorder.sites() if site.action in ("cancelled", "fused")]) == 4


SHAPES = {"empty": (0,), "empty_in_the_middle": (2, 0, 3), "scalar": (), "one": (1, 1)}


@trained
@pytest.mark.parametrize("dynamic", (False, True), ids=("static", "dynamic"))
@pytest.mark.parametrize("name", SHAPES)
def test_zero_size_and_zero_dimensions(name, dynamic, train):
    """Given tensors without elements or without dimensions, sites are found and shapes are eager's.

    Broken by: the value negated in `replace_with_value`; where there are no elements, `MARKERS` without `detach`; seen to fail."""
    args = differentiable(tensors(SHAPES[name], SHAPES[name], whole=True))
    assert_like_eager(lambda h, s: (seed(h, s.sin()), vq(h, s)), args, finite=1, algebraic=1, dynamic=dynamic, train=train)


@pytest.mark.parametrize("dtype", (torch.float64, torch.complex64, torch.complex128), ids=str)
def test_wide_and_complex_dtypes(dtype):
    """Given float64, sites are fused; given complex numbers they are left to eager's kernels, with the reason, or cancelled.

    Broken by: `FUSED_DTYPES` without float64; `addends` not knowing complex; seen to fail."""
    args = differentiable(tensors((4, 6), (4, 6), dtype=dtype, whole=True))
    fused = not dtype.is_complex
    assert_like_eager(lambda h, s: (seed(h, s.sin()), vq(h, s)), args, finite=1, algebraic=1, fused=fused)
    if not fused:
        assert "complex" in run(lambda h, s: vq(h, s), args, "exact").reasons[-1]


@pytest.mark.parametrize("narrow", (torch.float8_e4m3fn, torch.float8_e5m2), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_casts_to_8_bits(dtype, narrow):
    """Given fake quantisation by a cast to 8 bits and back, as value and as surrogate, the cast rounds: it is neither looked
    through nor taken out.

    Broken by: `_widens` true of casts that narrow; seen to fail."""

    def model(h, s):
        rounded = s.to(narrow).to(dtype)
        return vq(rounded, s), seed(h, rounded), seed(h, s) + (rounded - s.detach())

    h, s = (t.to(dtype) for t in tensors((4, 6), (4, 6), whole=True))
    assert_like_eager(model, differentiable([h, s]), finite=2, algebraic=1)


@levels
def test_integer_hosts(numerics):
    """Given a host of integers: `ste_forward` refuses it, compiled as in eager; written out, promotion makes it float, as in eager;
    and where host and seed are integers there is nothing to carry a gradient, and no site.

    Broken by: `addends` taking integers; `_stand_in` not casting the value; seen to fail."""
    host, (s,) = torch.arange(6), tensors((6,))
    with pytest.raises(TypeError, match="host must be floating point or complex"):
        torch.compile(ste_compile.ste_forward, backend="ste_aot_eager", options={"numerics": numerics})(host, s)
    assert_like_eager(seed, [host, s.requires_grad_()], finite=1, levels=(numerics,))
    assert_like_eager(seed, [host, host * 2], levels=(numerics,))


@pytest.mark.parametrize("dynamic", (False, True), ids=("static", "dynamic"))
def test_outputs_that_are_not_tensors(dynamic):
    """Given a dictionary with numbers, strings, None, sizes and lists beside the sites, it comes out as from eager.

    Broken by: the value negated in `replace_with_value`; seen to fail."""

    def model(h, s):
        return {"y": seed(h, s), "number": 3, "name": "x", "none": None, "size": h.shape[0], "list": [seed(h, s.sin()), 2.5]}

    assert_like_eager(model, differentiable(tensors((4, 6), (4, 6))), finite=2, dynamic=dynamic)


# --- sizes known only when the program runs


def by_item(h, s):
    length = (h > 0).sum().item()
    torch._check(length <= h.numel())
    h, s = (t.reshape(-1).narrow(0, 0, length) for t in (h, s))
    return seed(h, s.sin()), vq(h * 2, s)


def by_nonzero(h, s):
    i, j = (h > 0).nonzero().unbind(1)
    return seed(h[i, j], s[i, j].sin()), vq(h[i, j] * 2, s[i, j])


def known_from_the_surrogate(h, s):
    i, j = (s.detach() > 0).nonzero().unbind(1)
    return seed(h[0, :1], s[i, j].sin()), vq(h[0, :1] * 2, s[i, j])


@trained
@pytest.mark.parametrize("fn", (by_item, by_nonzero, known_from_the_surrogate), ids=lambda fn: fn.__name__)
def test_unbacked_sizes(fn, train):
    """Given sizes that come from the data, of host and surrogate or of the surrogate alone, shapes and values are eager's.

    Broken by: the value negated in `replace_with_value`; of the surrogate alone also by: `_size` not finding symbolic sizes, or
    `_stand_in` not expanding the value; seen to fail."""
    config = {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
    with torch._dynamo.config.patch(config):
        args = differentiable(tensors((4, 6), (4, 6), whole=True))
        assert_like_eager(fn, args, finite=1, algebraic=1, train=train)


def test_a_number_read_from_a_surrogate():
    """Given `.item()` inside a cancelled surrogate, its number scales the gradient as in eager.

    Broken by: the value negated in `replace_with_value`; seen to fail."""
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        args = differentiable(tensors((4, 6), (4, 6)))
        assert_like_eager(lambda h, s: seed(h, s * s.detach().abs().max().item()), args, finite=1)
