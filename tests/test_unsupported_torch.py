"""On a torch that cannot be used: the package imports, models run in eager, and a backend says what is wrong in one error. On one
that lacks what a single feature needs, or is newer than any that was tried: the compile goes on without the feature."""

import ast
import importlib
import multiprocessing
import subprocess
import sys
import textwrap
import types
import warnings
from pathlib import Path

import pytest
import torch

import ste_compile
from ste_compile import _torch, trial

from .against_eager import seed
from .private_names import outcome

# (These two are no part of any compile: they are for tests and predictions, on the torch that they were written for.)
PARTS = sorted(path for path in Path(_torch.__file__).parent.glob("*.py") if path.stem not in ("cuda_code", "pretended_cuda"))
TREES = [ast.parse(path.read_text()) for path in PARTS]
# The guarded imports at the top of a module of `_torch`, but for modules: those cannot be hidden from one package alone.
IMPORTED = [
    f"{node.module}:{alias.name}"
    for tree in TREES
    for block in tree.body
    if isinstance(block, ast.Try)
    for node in block.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
    if not isinstance(getattr(importlib.import_module(node.module), alias.name), types.ModuleType)
]
FEATURES = {name: feature for feature, (_, names) in _torch.FEATURES.items() for name in names}
EXPLAINED = ("breaks", "suggestions", "counts")
CORE = [name for name in (*IMPORTED, *_torch.SETTINGS, *_torch.INDUCTOR) if name not in (*FEATURES, *_torch.TESTING)]


def compiled(backend, **kwargs):
    torch._dynamo.reset()
    return torch.compile(seed, backend=backend, **kwargs)(torch.ones(2), torch.ones(2))


@pytest.fixture(scope="module")
def without():
    """`outcome` in a process of its own, forked from one that has imported torch and not this package."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._inductor.compile_fx", "torch._dynamo.backends.common"])

    def call(name, what="ste"):
        with context.Pool(1) as pool:
            return pool.apply(outcome, (name, what))

    return call


def test_every_way_to_compile_names_what_is_missing():
    """Given a torch without a private name, importing works, the oracle runs, and every way to compile gives the error.
    Breaks if a private import escapes the guarded block in `_torch/imports.py`, or a backend does not check first."""
    script = """
        import torch
        from tests.private_names import hide
        hide("torch._inductor.custom_graph_pass:CustomGraphPass")
        import ste_compile
        x = torch.ones(2)
        assert ste_compile.ste_forward(x, x).equal(x)
        names = ["ste", "ste_finite", "ste_algebraic", "ste_aot_eager", ste_compile.backend()]
        ways = [lambda name=name: torch.compile(lambda x: x + 1, backend=name)(x) for name in names]
        for way in (*ways, ste_compile.inductor_options):
            try:
                way()
            except RuntimeError as error:
                assert f"tried up to {ste_compile._torch.NEWEST}; this is torch {torch.__version__}, which lacks" in str(error), error
                assert "cannot import name 'CustomGraphPass'" in str(error), error
            else:
                raise AssertionError(way)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("name", CORE)
def test_without_a_name_that_all_needs_there_is_one_error(without, name):
    """Breaks if a name is not asked for ahead of what would fail on it."""
    error, _ = without(name)
    path = name.replace(":", ".").rpartition(".")[2]
    assert "ste-compile needs torch 2.11 or newer, and has been tried up to" in error and path in error, error


@pytest.mark.parametrize("name", [name for name, feature in FEATURES.items() if feature not in EXPLAINED])
def test_without_a_name_that_a_feature_needs_the_compile_goes_on(without, name):
    """Given such a torch, values and gradients are eager's, and a warning for each feature that needs the name says what is lost.
    Breaks if a feature uses a name that is not on its list, or is used where it was found missing."""
    backend = "ste_aot_eager" if FEATURES[name] == "reports" else "ste"  # which takes longer
    error, warnings = without(name, backend)
    lost = {lost for lost, names in _torch.FEATURES.values() if name in names}
    assert not error and len(warnings) == len(lost)
    assert {each.partition(f"{name.replace(':', '.')}: ")[2] for each in warnings} == lost


@pytest.mark.parametrize("name", [name for name, feature in FEATURES.items() if feature in EXPLAINED])
def test_without_a_name_that_explain_needs_sites_are_reported(without, name):
    error, warnings = without(name, "explain")
    lost = f"{name.replace(':', '.')}: {_torch.FEATURES[FEATURES[name]][0]}"
    assert not error and any(lost in each for each in warnings)


@pytest.mark.parametrize("name", _torch.TESTING)
def test_without_a_name_that_testing_needs_there_is_one_error(without, name):
    error, _ = without(name, "assert_equivalent")
    assert f"which lacks a private name: {name.replace(':', '.')}" in error


@pytest.mark.parametrize("name", _torch.RUN)
def test_without_a_name_that_run_needs_the_script_is_not_executed(without, name):
    error, _ = without(name, "run")
    assert f"which lacks a private name: {name.replace(':', '.')}" in error


def test_every_private_name_is_on_a_list():
    """Breaks if a function of `_torch` imports a private name that nothing asks for first."""
    listed = {
        name.split(".", 1)[0] if ":" not in name else name.replace("()", "")
        for name in (*CORE, *FEATURES, *_torch.TESTING, *_torch.RUN)
    }
    firsts = {f"{module}:{path.split('.')[0]}" for module, path in (name.split(":") for name in listed)}
    used = {
        f"{node.module}:{alias.name}"
        for tree in TREES
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and node.module and "._" in node.module
        for alias in node.names
    }
    # Modules whose names are on a list; an empty answer without it; and the trials', which are skipped where they do not work.
    modules = {"torch._inductor:compile_fx", "torch._inductor:ir", "torch._dynamo:utils"}
    trials = {"torch._subclasses.fake_tensor:FakeTensorMode", "torch._inductor.debug:DebugContext"}
    assert used - firsts - modules - trials == set()


def test_every_name_is_there():
    """Breaks if a name in the lists is misspelt, or has moved in this torch."""
    _torch.check((*_torch.SETTINGS, *_torch.INDUCTOR, *_torch.TESTING, *_torch.RUN))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(map(_torch.can, _torch.FEATURES))


@pytest.mark.parametrize("version, works", (("2.10.1", False), ("2.11.0", True), ("2.99.0", True)))
def test_an_old_torch_is_refused_and_a_newer_one_is_tried(monkeypatch, version, works):
    """Breaks if the version is not compared, or a torch that nobody has tried is refused though it has every name."""
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    if works:
        assert torch.equal(compiled("ste_aot_eager"), torch.ones(2))
    else:
        with pytest.raises(Exception, match=r"needs torch 2.11 or newer, and has been tried up to \S+; this is torch 2.10.1\n"):
            compiled("ste_aot_eager")


def forget_trials():
    for forget in (trial.try_all.cache_clear, _torch.can.cache_clear, _torch.failed.clear):
        forget()


@pytest.fixture
def untried(monkeypatch):
    """A torch newer than any that was tried."""
    monkeypatch.setattr(_torch, "NEWEST", "2.10")
    forget_trials()
    yield
    forget_trials()


def test_every_trial_works_here(untried):
    """Breaks if a trial fails on a torch where the feature works: it would be lost on the next one; or if it is in a report."""
    for each in (trial.CONTROL, *trial.TRIALS.values()):
        trial.attempt(*each)
    with ste_compile.collect() as recorder:
        trial.check()
    assert _torch.failed == {} and trial.try_all.cache_info().currsize == 1
    assert recorder.sites() == ()


@pytest.mark.parametrize("feature, broken", (("effects", "run_after"), ("regions", "partition_again"), ("", "is_stored")))
def test_what_fails_a_trial_is_done_without(untried, monkeypatch, feature, broken):
    """Given a newer torch on which a private function fails, though every name is there: a feature is lost with one warning, the
    lowering with the one error. Breaks if what failed is used."""
    monkeypatch.setenv("STE_COMPILE_STRICT", "0")
    monkeypatch.setattr(f"ste_compile._torch.{broken}", lambda *args: 1 / 0)
    if feature:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ste_compile.inductor_options(numerics="finite")
        _torch.can.cache_clear()
        with pytest.warns(UserWarning, match="failed a trial"):
            assert not _torch.can(feature)
    else:
        with pytest.raises(RuntimeError, match=r"which failed a trial \(.*division by zero"):
            ste_compile.inductor_options()


def test_a_trial_that_cannot_be_made_decides_nothing(untried, monkeypatch):
    """Breaks if a torch on which graphs are lowered by other names is refused."""
    monkeypatch.setattr("ste_compile._torch.lower", lambda *args: 1 / 0)
    trial.check()
    assert _torch.failed == {}
