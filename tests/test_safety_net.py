"""The check that follows every rewrite: broken on purpose, it undoes that site alone, says so, and the result is eager's."""

import importlib

import pytest
import torch
from ste_compile.passes import replace

import ste_compile

ops = torch.ops.aten


def model(h, s):
    """Two sites; the second is read through a view, and is a result."""
    first = (h + (s - s.detach())).relu()
    second = h.exp() + (s.sin() - s.sin().detach())
    return first, second.t().cos(), second


def wrong_dtype(rewrites, root, value, negated):
    return replace.emit(rewrites.graph, root, torch.ops.prims.convert_element_type.default, (value, torch.float64))


def wrong_shape(rewrites, root, value, negated):
    return replace.emit(rewrites.graph, root, ops.unsqueeze.default, (value, 0))


def wrong_strides(rewrites, root, value, negated):
    turned = replace.emit(rewrites.graph, root, ops.t.default, (value,))
    turned = replace.emit(rewrites.graph, root, ops.clone.default, (turned,), {"memory_format": torch.contiguous_format})
    return replace.emit(rewrites.graph, root, ops.t.default, (turned,))


def wrong_memory(rewrites, root, value, negated):
    return value  # `h.exp()` is another result, too, in the model below


BROKEN = {"dtype": wrong_dtype, "shape": wrong_shape, "strides": wrong_strides}


def broken_at(monkeypatch, broken, name):
    """The stand-in of the site of this name is wrong."""
    right = replace._stand_in

    def stand_in(rewrites, root, value, negated):
        return (broken if root.name == name else right)(rewrites, root, value, negated)

    monkeypatch.setattr(replace, "_stand_in", stand_in)


@pytest.mark.parametrize("what", BROKEN)
def test_a_wrong_stand_in_is_undone_alone(monkeypatch, what):
    """Given a stand-in of another dtype, shape or layout at one of two sites, that site is as it was, and the other is cancelled."""
    monkeypatch.setenv("STE_COMPILE_STRICT", "0")
    broken_at(monkeypatch, BROKEN[what], "add_1")
    h, s = torch.randn(3, 4), torch.randn(3, 4)
    compiled = torch.compile(model, backend="ste_aot_eager", options={"numerics": "finite"})
    with pytest.warns(UserWarning, match="its rewrite was undone: add_1 was torch.float32"), ste_compile.collect() as recorder:
        results = compiled(h, s)
    assert [site.action for site in recorder.sites()] == ["cancelled", "fused"]
    assert [(r.dtype, r.shape, r.stride()) for r in results] == [(r.dtype, r.shape, r.stride()) for r in model(h, s)]
    assert all(map(torch.equal, results, model(h, s)))


def test_new_aliasing_is_undone(monkeypatch):
    """Given a stand-in that is another result's memory, writing to one result would change the other: undone, and reported."""

    def fn(h, s):
        value = h.exp()
        return value, value + (s - s.detach())

    monkeypatch.setenv("STE_COMPILE_STRICT", "0")
    broken_at(monkeypatch, wrong_memory, "add")
    h, s = torch.randn(3), torch.randn(3)
    with pytest.warns(UserWarning, match="a result would come to share memory"), ste_compile.collect() as recorder:
        first, second = torch.compile(fn, backend="ste_aot_eager", options={"numerics": "finite"})(h, s)
    assert first.data_ptr() != second.data_ptr() and [site.action for site in recorder.sites()] == ["fused"]


def test_strict_mode_raises(monkeypatch):
    broken_at(monkeypatch, wrong_dtype, "add")
    with pytest.raises(Exception, match="its rewrite was undone"):
        torch.compile(model, backend="ste_aot_eager", options={"numerics": "finite"})(torch.ones(3, 4), torch.ones(3, 4))


def test_a_fused_site_that_looks_different_is_undone(monkeypatch):
    """Given a rounding that changes the layout of what it rounds, the site keeps its nodes, and says so."""
    fuse = importlib.import_module("ste_compile.passes.fuse")
    right = fuse.emit

    def emit(graph, before, target, args, kwargs=None, **more):
        made = right(graph, before, target, args, kwargs, **more)
        if target is torch.ops.ste_compile.rounded.default:
            made.meta["val"] = made.meta["val"].new_empty_strided(made.meta["val"].shape, (1, 3))
        return made

    monkeypatch.setenv("STE_COMPILE_STRICT", "0")
    monkeypatch.setattr(fuse, "emit", emit)
    x, q = torch.randn(3, 4).bfloat16(), torch.randn(3, 4).bfloat16()
    fn = lambda x, q: x - (x - q).detach()  # noqa: E731
    with pytest.warns(UserWarning, match="its rewrite was undone"), ste_compile.collect() as recorder:
        assert torch.equal(torch.compile(fn, backend="ste_aot_eager")(x, q), fn(x, q))
    assert [site.action for site in recorder.sites()] == ["left"]


def test_an_expanded_operand_keeps_its_layout_under_exact():
    """Given a computed 16-bit operand that is expanded, in an arithmetic outside the operator, its rounding happens under the view."""

    def fn(x, q):
        x = x.exp()[None].expand(3, 4)
        return x - (x - q).detach()

    x, q = torch.randn(4).bfloat16(), torch.randn(3, 4).bfloat16()
    with ste_compile.collect() as recorder:
        ours = torch.compile(fn, backend="ste_aot_eager")(x, q)
    assert ours.stride() == fn(x, q).stride() and torch.equal(ours, fn(x, q))
    assert [site.action for site in recorder.sites()] == ["fused"]
