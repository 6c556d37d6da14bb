"""What goes wrong while a graph is rewritten, or between its forward and its backward, at every level as under stock."""

import contextlib
import importlib
import threading
import warnings

import pytest
import torch
from ste_compile.passes import cancel, recognise, replace
from ste_compile.passes.meta import CANCELLED
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import dropout
from torch.torch_version import TorchVersion

import ste_compile
from ste_compile.testing.compiling import own

from .against_eager import Seeded, assert_same, levels, run, seed


def tensors(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@levels
@pytest.mark.parametrize("which", ("host.weight", "seed.0.weight", "seed.2.weight", "x"))
def test_what_changes_between_forward_and_backward_is_an_error(which, numerics):
    """Given a parameter or input changed in place after the forward, the backward raises as in eager and under stock, also where
    the deferred forward of a seed reads it (`seed.0.weight`; its bias too, which eager does not read again).

    Broken by: `_boxed` running on copies of its arguments, which are then what is saved; seen to fail."""
    changed = [which, "seed.0.bias"] if numerics != "exact" and which == "seed.0.weight" else [which]
    for name in changed:
        torch._dynamo.reset()
        model, x = Seeded(), tensors((4, 6))[0]
        out = torch.compile(model, backend="ste_aot_eager", options={"numerics": numerics})(x)
        with torch.no_grad():
            (x if name == "x" else model.get_parameter(name)).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def two_sites(h, s):
    noisy = dropout(s.sin(), 0.5)
    reassociated = h + (s - h).detach()  # of whole numbers: the same however it is rounded
    return dropout(seed(h, noisy), 0.5), seed(h * 2, s.exp()).view(-1) * 2, reassociated


# where it fails: the module and function, and the call at which it does, with one site rewritten or half rewritten by then
FAILURES = {
    "recognise": ("ste_compile.hooks.recognise", 1),
    "second_cancel": ("ste_compile.passes.cancel.replace_with_value", 2),
    "stand_in": ("ste_compile.passes.replace._would_alias", 1),
    "views_moved": ("ste_compile.passes.replace._move_views", 2),
    "drop": ("ste_compile.passes.unused.drop_unused", 2),
    "tag": ("ste_compile.hooks.tag", 1),
    "fused_value": ("ste_compile.passes.fuse.emit", 1),
    "fake_value": ("ste_compile.passes.replace.fake_value", 1),
    "report": ("ste_compile.inspection.record.freed", 1),
}


def fail_at(monkeypatch, where, call, error):
    module, name = where.rsplit(".", 1)
    owner = importlib.import_module(module)
    works, count = getattr(owner, name), iter(range(1, 1000))

    def fails(*args, **kwargs):
        if next(count) == call:
            raise error
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, name, fails)


@levels
@pytest.mark.parametrize("name", FAILURES)
def test_a_pass_that_fails_half_way_leaves_a_correct_graph(name, numerics, monkeypatch):
    """Given an error anywhere in a pass, also with one of two sites already rewritten, the compile goes on with a warning, and
    values, gradients and random numbers are eager's.

    Broken by: `keep` not in a `finally` (`drop`); seen to fail."""
    monkeypatch.setenv("STE_COMPILE_STRICT", "0")
    fail_at(monkeypatch, *FAILURES[name], RuntimeError("broken on purpose"))
    args = [(t * 4).round() for t in tensors((4, 6), (4, 6))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = run(two_sites, args, numerics)
    reached = [w for w in caught if "failed and was skipped: RuntimeError('broken on purpose')" in str(w.message)]
    assert len(reached) == 1 or (name, numerics) in NOT_REACHED
    assert_same(ours, run(two_sites, args), numerics)


NOT_REACHED = {
    *((name, "exact") for name in ("second_cancel", "stand_in", "views_moved", "drop", "fake_value")),
    *((name, "algebraic") for name in ("tag", "fused_value")),
}


HALF_WAY = {  # where it fails, and which of two sites are cancelled all the same
    "the first site": (("ste_compile.passes.cancel.replace_with_value", 1), ["left", "cancelled"]),
    "the second site": (("ste_compile.passes.cancel.replace_with_value", 2), ["cancelled", "left"]),
    "what is put in": (("ste_compile.passes.replace.check_same", 2), ["cancelled", "left"]),
    "dropping": (("ste_compile.passes.unused.drop_unused", 1), ["cancelled", "cancelled"]),
    "keeping": (("ste_compile.passes.cancel.keep", 1), ["cancelled", "cancelled"]),
}


@pytest.mark.parametrize("name", HALF_WAY)
def test_what_was_rewritten_when_a_pass_failed_is_known(name, monkeypatch):
    """Given an error with one of two sites cancelled, the outcomes say which is and what failed, and the graph that one was cancelled
    in it: its deferred forward still gets a region.

    Broken by: `cancel` raising the error; seen to fail."""
    where, actions = HALF_WAY[name]
    error = RuntimeError("broken on purpose")
    fail_at(monkeypatch, *where, error)
    graph = make_fx(lambda h, s, t: seed(seed(h.exp(), s.sin()).cos(), t.sin()))(*tensors((2,), (2,), (2,))).graph
    outcomes = cancel(graph, recognise(graph), "finite")
    graph.lint()
    assert [outcome.action for outcome in outcomes] == actions and [o.error for o in outcomes if o.error] == [error]
    assert all("broken on purpose" in str(o.why) for o in outcomes if o.action == "left")
    assert graph.output_node().meta[CANCELLED]
    assert "cancelled" not in [outcome.action for outcome in cancel(graph, recognise(graph), "exact")]
    assert not graph.output_node().meta[CANCELLED]


def test_what_was_rewritten_when_a_pass_failed_is_reported(monkeypatch):
    """The same seen from the report, also where nothing is left to be tagged. Broken by: `record.end` after what may fail; seen to
    fail."""
    monkeypatch.setenv("STE_COMPILE_STRICT", "0")
    for where, numerics, left in (
        (("ste_compile.passes.cancel.keep", 1), "algebraic", 0),
        (("ste_compile.hooks.tag", 1), "finite", 1),
    ):
        with monkeypatch.context() as patched, pytest.warns(UserWarning, match="failed and was skipped: RuntimeError"):
            fail_at(patched, *where, RuntimeError("broken on purpose"))
            with ste_compile.collect() as recorder:
                run(two_sites, tensors((4, 6), (4, 6)), numerics)
        assert sorted(site.action for site in recorder.sites()) == ["cancelled"] * (3 - left) + ["left"] * left


def test_a_node_that_cannot_be_made_is_not_left_behind(monkeypatch):
    """Given a fake value that fails, the graph is what it was.

    Broken by: `emit` not erasing the node; seen to fail."""
    graph = make_fx(lambda h: h.relu())(torch.ones(2)).graph
    before, (h, relu, _) = str(graph), graph.nodes
    fail_at(monkeypatch, "ste_compile.passes.new_nodes.fake_value", 1, RuntimeError("broken on purpose"))
    with pytest.raises(RuntimeError, match="broken on purpose"):
        replace.emit(graph, relu, torch.ops.aten.neg.default, (h,))
    assert str(graph) == before


@levels
def test_an_interrupt_goes_through(numerics, monkeypatch):
    """Given Ctrl-C during a pass, the compile ends with it: it is not taken for a failing pass.

    Broken by: `_guarded` catching BaseException; seen to fail."""
    monkeypatch.setenv("STE_COMPILE_STRICT", "0")
    fail_at(monkeypatch, "ste_compile.hooks.recognise", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(two_sites, tensors((4, 6), (4, 6)), numerics)


def test_two_threads_compile_at_once():
    """Given two threads that compile different models at different levels, each gets its own level's result, and neither report
    holds the other's sites.

    Broken by: `record._recorders` a plain global in place of a ContextVar; seen to fail."""
    failures, start = [], threading.Barrier(2)
    args = tensors((4, 6), (4, 6))
    # Stock's backends fail here: whether anybody traces was one flag for all threads, and where there is no GPU, FakeTensorMode
    # must have been entered by the main thread first (2.11).
    with torch._subclasses.FakeTensorMode():
        pass
    alone = threading.Lock() if TorchVersion(torch.__version__) < "2.14" else contextlib.nullcontext()

    def work(numerics, expected):
        try:
            start.wait()
            for _ in range(4):
                h, s = (t.detach().clone().requires_grad_() for t in args)
                with ste_compile.collect() as recorder:
                    fn = own(lambda h, s: seed(h, s.sin()))  # else compiled once for all
                    with alone:
                        out = torch.compile(fn, backend="ste_aot_eager", options={"numerics": numerics})(h, s)
                        out.sum().backward()
                assert torch.equal(out, h) and torch.equal(s.grad, s.detach().cos())
                assert [site.action for site in recorder.sites()] == expected
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=each) for each in (("exact", ["fused"]), ("finite", ["cancelled"]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
