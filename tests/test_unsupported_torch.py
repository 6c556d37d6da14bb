"""On a torch that cannot be used: the package imports, models run in eager, and a backend says what is wrong in one error."""

import subprocess
import sys
import textwrap

import pytest
import torch

import ste_compile
from ste_compile import _torch

from .against_eager import seed


def compiled(backend, **kwargs):
    torch._dynamo.reset()
    return torch.compile(seed, backend=backend, **kwargs)(torch.ones(2), torch.ones(2))


def test_a_name_that_is_missing_at_import_is_named_at_the_backend_call():
    """Given a torch without a private name, importing works, the oracle runs, and every way to compile names what is missing.
    Breaks if a private import escapes the guarded block of `_torch.py`, or a backend does not check first."""
    script = """
        import torch, torch._functorch._aot_autograd.descriptors as descriptors, torch._functorch.aot_autograd
        del descriptors.GradAOTOutput
        import ste_compile
        x = torch.ones(2)
        assert ste_compile.ste_forward(x, x).equal(x)
        names = ["ste", "ste_finite", "ste_algebraic", "ste_aot_eager", ste_compile.backend()]
        ways = [lambda name=name: torch.compile(lambda x: x + 1, backend=name)(x) for name in names]
        for way in (*ways, ste_compile.inductor_options):
            try:
                way()
            except RuntimeError as error:
                assert f"tried up to 2.14; this is torch {torch.__version__}, which lacks" in str(error), error
                assert "cannot import name 'GradAOTOutput'" in str(error), error
            else:
                raise AssertionError(way)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


@pytest.mark.parametrize("name", ("graph.GraphLowering.decide_layout_opt", "virtualized.V"))
def test_a_name_that_is_missing_inside_inductor_is_named(monkeypatch, name):
    """Given a torch whose Inductor lacks a name, the error is ours, and not one of the pass that failed and was skipped.
    Breaks if the names used inside Inductor are not checked ahead of the passes."""
    monkeypatch.setenv("STE_COMPILE_STRICT", "0")
    _torch._is_missing.cache_clear()
    with monkeypatch.context() as patch:
        patch.delattr(f"torch._inductor.{name}")
        with pytest.raises(RuntimeError, match=f"which lacks a private name: torch._inductor.{name}"):
            ste_compile.hooks.JointPass("exact")(torch.fx.Graph())
    _torch._is_missing.cache_clear()


@pytest.mark.parametrize("version, works", (("2.10.1", False), ("2.11.0", True), ("2.99.0", True)))
def test_an_old_torch_is_refused_and_a_newer_one_is_tried(monkeypatch, version, works):
    """Breaks if the version is not compared, or a torch that nobody has tried is refused though it has every name."""
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    if works:
        assert torch.equal(compiled("ste_aot_eager"), torch.ones(2))
    else:
        with pytest.raises(Exception, match=r"needs torch 2.11 or newer, and has been tried up to 2.14; this is torch 2.10.1\n"):
            compiled("ste_aot_eager")


def test_every_name_is_there():
    """Breaks if a name in the list is misspelt, or has moved in this torch."""
    _torch.check(_torch.INDUCTOR)
