"""What eager detaches without a `detach()`: a block without gradients, and `detach_()`."""

import pytest
import torch

import ste_compile
from ste_compile.marking import mark

from .against_eager import LEVELS, levels


def no_grad(x, q):
    with torch.no_grad():
        d = q - x
    return x + d


def surrogate(x, q):
    with torch.no_grad():
        f = x.clone()
    return q + (x - f)


def inference_mode(x, q):
    with torch.inference_mode():
        d = q - x
    return x + d


def nested(x, q):
    with torch.no_grad():
        d = q - x
        with torch.enable_grad():
            y = x * 2
        e = d * 1
    return y + (e - x)


def set_grad_enabled(x, q):
    torch.set_grad_enabled(False)
    d = q - x
    torch.set_grad_enabled(True)
    return x + d


@torch.no_grad()
def residue(x, q):
    return q - x


def decorated(x, q):
    return x + residue(x, q)


def detach_in_place(x, q):
    return x + (q - x).detach_()


def detached_clone(x, q):
    f = x.clone()
    f.detach_()
    return q + (x - f)


# name -> (function, what its site needs to be cancelled)
MARKED = {
    "no_grad": (no_grad, "algebraic"),
    "surrogate": (surrogate, "finite"),
    "inference_mode": (inference_mode, "algebraic"),
    "set_grad_enabled": (set_grad_enabled, "algebraic"),
    "decorated": (decorated, "algebraic"),
    "detach_in_place": (detach_in_place, "algebraic"),
    "detached_clone": (detached_clone, "finite"),
}


@levels
@pytest.mark.parametrize("name", MARKED)
def test_each_is_a_marker(name, numerics):
    """Breaks if the backend does not `mark`; seen to fail."""
    fn, needs = MARKED[name]
    x, q = torch.randn(100, dtype=torch.bfloat16, requires_grad=True), torch.randn(100, dtype=torch.bfloat16, requires_grad=True)
    with ste_compile.collect() as recorder:
        ours = torch.compile(fn, backend="ste_aot_eager", options={"numerics": numerics})(x, q)
    (site,) = recorder.sites()
    removed = needs in LEVELS[numerics].removes
    assert site.action == ("cancelled" if removed else "fused")
    assert torch.equal(ours, q if removed else fn(x, q))
    mine, eager = (torch.autograd.grad(out.sum(), (x, q), allow_unused=True) for out in (ours, fn(x, q)))
    for a, b in zip(mine, eager):
        assert (a is None or not a.any()) if b is None else torch.equal(a, b)


def test_generated_code_rounds_them_as_eager_does():
    """Given bfloat16, `exact` gives eager's bits, and stock does not."""
    x, q = torch.randn(4096, dtype=torch.bfloat16, requires_grad=True), torch.randn(4096, dtype=torch.bfloat16)
    assert torch.equal(torch.compile(no_grad, backend="ste")(x, q), no_grad(x, q))
    torch._dynamo.reset()
    assert not torch.equal(torch.compile(no_grad)(x, q), no_grad(x, q))


def written_leaf(x, q):
    with torch.no_grad():
        y = x.mul_(2) if x.is_leaf else x
    return y * q


def written_later(x, q):
    with torch.no_grad():
        d = q - x
    d.add_(x)
    return d * 1, d


def written_without_a_gradient(x, q):
    with torch.no_grad():
        d = q - x
    e = d[:50]
    d.add_(1)
    d[3] = 2
    return x + d, e * 1, d


def given_a_gradient(x, q):
    with torch.no_grad():
        d = q.clone()
    d.mul_(x)
    return (d * 2), d


def returned(x, q):
    with torch.no_grad():
        d, e = (q - x).chunk(2)
        n = (q > 0).sum()
    return torch.cat([d, e]), d, n


def detached_twice(x, q):
    with torch.no_grad():
        d = q - x
    d.detach_()
    d.detach_()
    return x + d.detach_()


def viewed(x, q):
    with torch.no_grad():
        d = q[:50]
    return x[:50] + (d - x[:50])


@pytest.mark.parametrize(
    "fn",
    (nested, written_leaf, written_later, written_without_a_gradient, given_a_gradient, returned, detached_twice, viewed),
    ids=lambda fn: fn.__name__,
)
def test_what_is_marked_computes_the_same(fn):
    """Given values that are written to, returned, viewed or of integers: results, gradients and memory are eager's."""
    results = []
    for compiled in (fn, torch.compile(fn, backend="ste_aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        leaf, q = torch.randn(100, requires_grad=True), torch.randn(100, requires_grad=True)
        outs = compiled(leaf if fn is not written_later else leaf * 1, q)
        outs = outs if isinstance(outs, tuple) else (outs,)
        real = [out for out in outs if out.requires_grad]
        grads = torch.autograd.grad([out.sum() for out in real], (leaf, q), allow_unused=True) if real else ()
        shared = [[a.untyped_storage()._cdata == b.untyped_storage()._cdata for b in (*outs, leaf, q)] for a in outs]
        results.append((outs, grads, [out.requires_grad for out in outs], shared))
    (outs, grads, facts, shared), (ours, our_grads, our_facts, our_shared) = results
    assert facts == our_facts and shared == our_shared
    for mine, theirs in zip((*ours, *our_grads), (*outs, *grads)):
        assert (mine is None) == (theirs is None) and (mine is None or torch.equal(mine, theirs))


def test_under_an_outer_no_grad_there_is_no_trace():
    """Dynamo leaves out a block without gradients inside another: `explain` says nothing of it, as the README says."""
    with torch.no_grad(), ste_compile.collect() as recorder:
        torch.compile(no_grad, backend="ste_aot_eager")(torch.ones(2), torch.ones(2))
    assert recorder.sites() == ()


def test_a_graph_with_nothing_to_mark_is_not_touched():
    gm = torch.fx.symbolic_trace(lambda x: x + x.detach())
    before = str(gm.graph)
    mark(gm)
    assert str(gm.graph) == before
