"""The backends as a user of torch.compile meets them."""

import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import ste_compile
from ste_compile.hooks import JOINT, POST_GRAD

from .compare import ALLOWED


def model(h, s):
    return (h + (s - s.detach())) * 2


ARGS = torch.arange(6.0), torch.ones(6)


def outcomes(**kwargs):
    with ste_compile.collect() as recorder:
        assert torch.equal(torch.compile(model, **kwargs)(*ARGS), model(*ARGS))
    return [site.action for site in recorder.sites()]


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    (
        ({"backend": "ste"}, ["fused"]),
        ({"backend": "ste", "options": {"numerics": "finite"}}, ["cancelled"]),
        ({"backend": "ste", "options": {"numerics": "finite", "epilogue_fusion": False}}, ["cancelled"]),
        ({"backend": "ste_finite"}, ["cancelled"]),
        ({"backend": "ste_algebraic", "dynamic": True, "fullgraph": True}, ["cancelled"]),
        ({"backend": "ste_finite", "mode": "max-autotune"}, ["cancelled"]),
        ({"backend": "ste", "mode": "reduce-overhead"}, ["fused"]),
        ({"backend": ste_compile.backend(numerics="finite"), "mode": "max-autotune"}, ["cancelled"]),
        ({"backend": ste_compile.backend()}, ["fused"]),
        ({"options": ste_compile.inductor_options(numerics="finite")}, ["cancelled"]),
        ({"backend": "ste_aot_eager"}, ["fused"]),
        ({"backend": "ste_aot_eager", "options": {"numerics": "algebraic"}}, ["cancelled"]),
    ),
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_every_way_to_ask(kwargs, expected):
    assert outcomes(**kwargs) == expected


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    (
        (
            lambda: ste_compile.backend(numerics="fast"),
            ValueError,
            f"numerics='fast' is not a level; allowed: {ALLOWED}",
        ),
        (lambda: ste_compile.backend(numerics=None), ValueError, "numerics=None is not a level"),
        (lambda: ste_compile.inductor_options(numerics=3), ValueError, "numerics=3 is not a level"),
        (
            lambda: ste_compile.inductor_options(options=["max_autotune"]),
            TypeError,
            r"options must be a mapping .*, got \['max_autotune'\]",
        ),
        (lambda: outcomes(backend="ste", options={"numerics": "fast"}), Exception, "numerics='fast' is not a level"),
        (lambda: outcomes(backend="ste", options={"no_such_option": 1}), Exception, "no_such_option"),
        (lambda: outcomes(backend="ste_finite", options={"numerics": "exact"}), Exception, "needs backend='ste'"),
        (
            lambda: outcomes(backend="ste_aot_eager", options={"max_autotune": True}),
            Exception,
            r"only 'numerics', 'deferred' and 'dump', got \['max_autotune'\]",
        ),
        (lambda: outcomes(backend="ste", mode="fastest"), Exception, "fastest"),
    ),
)
def test_a_wrong_argument_is_named(ask, error, message):
    with pytest.raises(error, match=message):
        ask()


def test_the_callable_form_is_equal_where_the_level_is():
    assert ste_compile.backend(numerics="finite") == ste_compile.backend(numerics="finite") != ste_compile.backend()
    assert ste_compile.backend(numerics="finite").__name__ == "ste_finite"


def test_one_compile_serves_one_level():
    """Given the same backend value twice, Dynamo does not compile again."""
    counter = CompileCounterWithBackend("ste_aot_eager")
    fn = torch.compile(model, backend=counter)
    fn(*ARGS), fn(*ARGS)
    assert counter.frame_count == 1


class Recorder(torch._inductor.custom_graph_pass.CustomGraphPass):
    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def __call__(self, graph):
        self.calls.append(self.name)

    def uuid(self):
        return self.name


@pytest.mark.parametrize("where", ("options", "config"))
@pytest.mark.parametrize("many", (False, True), ids=("single", "list"))
def test_passes_that_are_already_configured_run_too(where, many):
    """Given the user's own pre-passes, one or a list, in options or in config, all run, and before ours."""
    calls = []
    theirs = {
        JOINT: [Recorder(calls, "joint"), Recorder(calls, "joint 2")] if many else Recorder(calls, "joint"),
        POST_GRAD: lambda graph: calls.append("post-grad"),
    }
    if where == "options":
        assert outcomes(backend="ste", options=dict(theirs)) == ["fused"]
    else:
        with torch._inductor.config.patch(theirs):
            assert outcomes(backend="ste") == ["fused"]
    assert calls == (["joint", "joint 2", "post-grad"] if many else ["joint", "post-grad"])


def test_our_passes_are_not_added_twice():
    twice = ste_compile.inductor_options(numerics="finite", options=ste_compile.inductor_options(numerics="finite"))
    assert outcomes(options=twice) == ["cancelled"]


def test_a_pass_without_identity_is_not_cached_and_one_with_it_is():
    options = ste_compile.inductor_options(options={JOINT: Recorder([], "a")})
    assert options[JOINT].uuid() and options[POST_GRAD].uuid()
    assert ste_compile.inductor_options(options={JOINT: lambda graph: None})[JOINT].uuid() is None


def test_a_failing_pass_costs_its_rewrites_and_not_the_compile(monkeypatch):
    """Given an error inside recognition, the graph is left as it was, with a warning; strict mode raises."""

    def broken(graph, differentiable):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("ste_compile.hooks.recognise", broken)
    with pytest.raises(Exception, match="broken on purpose"):
        outcomes(backend="ste_aot_eager")
    monkeypatch.setenv("STE_COMPILE_STRICT", "0")
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match="run_joint failed and was skipped: RuntimeError"):
        assert outcomes(backend="ste_aot_eager") == []


def test_importing_starts_no_compiler_and_registers_only_the_operators():
    """Given a fresh process, importing leaves Dynamo and Inductor unimported, for a model that calls `ste_forward` in eager, and
    Inductor's lowerings alone. Every public name can be had. Broken by: a public name that is imported with the package."""
    script = """
        import sys, torch
        before = {*sys.modules}
        import ste_compile
        assert ste_compile.ste_forward(torch.ones(2), torch.ones(2)).sum() == 2
        imported = {*sys.modules} - before
        assert not imported & {"torch._dynamo", "torch._inductor", "ste_compile._torch", "ste_compile.backends"}, imported
        assert "torch._inductor.lowering" not in sys.modules and "torch._inductor.compile_fx" not in sys.modules
        assert torch.ops.ste_compile.straight_through.default and torch.ops.ste_compile.rounded.default
        import torch._inductor.lowering as lowering
        assert not any("ste_compile" in str(op) for op in lowering.lowerings)
        assert {"ste", "ste_finite", "ste_algebraic", "ste_aot_eager"} <= set(torch.compiler.list_backends())
        from ste_compile import *
        for name in (*ste_compile.__all__, "passes"):
            assert name in dir(ste_compile) and getattr(ste_compile, name) is not None
        assert inductor_options is ste_compile.inductor_options
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    with pytest.raises(AttributeError, match="module 'ste_compile' has no attribute 'backed'"):
        ste_compile.backed  # noqa: B018


def test_no_warnings_of_ours():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert outcomes(backend="ste_aot_eager") == ["fused"]
