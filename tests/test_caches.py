"""Inductor's caches, across processes: the same passes at the same level hit, another level or an edited pass misses."""

import compileall
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys, torch
import ste_compile, ste_compile.passes
from torch._dynamo.utils import counters
assert ste_compile.__file__.startswith(sys.argv[1]), ste_compile.__file__
h, s = torch.ones(8, requires_grad=True), torch.ones(8, requires_grad=True)
def run(numerics):
    fn = torch.compile(lambda h, s: (h + (s.sin() - s.sin().detach())).exp(), backend="ste", options={"numerics": numerics})
    fn(h, s).sum().backward()
    torch._dynamo.reset()
    found = {name: [counters[group][f"{key}_hit"], counters[group][f"{key}_miss"]]
             for name, group, key in (("fx", "inductor", "fxgraph_cache"), ("aot", "aot_autograd", "autograd_cache"))}
    counters.clear()
    return found
print(json.dumps([*map(run, sys.argv[2:])]))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package, to be edited."""
    root = tmp_path_factory.mktemp("package")
    repository = pathlib.Path(__file__).parents[1]
    shutil.copytree(repository / "ste_compile", root / "ste_compile")
    shutil.copytree(repository / "passes", root / "ste_compile" / "passes")
    metadata = importlib.metadata.distribution("ste-compile")._path  # the backends' entry points
    shutil.copytree(metadata, root / "ste_compile-0.dist-info")
    return root


@pytest.fixture(scope="module")
def run(package, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def run(*levels):
        """What a new process found in the caches, level by level."""
        env = dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(cache), PYTHONPATH=str(package), PYTHONSAFEPATH="1")
        command = [sys.executable, "-c", SCRIPT, str(package), *levels]
        done = subprocess.run(command, env=env, cwd=package, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_caches(run, package):
    """Given one cache directory: first a miss, then hits in the same process and in a new one; then another level misses, and
    so does an edited pass."""
    first, again = run("finite", "finite")
    assert first["aot"] == [0, 1] and first["fx"][0] == 0
    assert again["aot"] == [1, 0]
    elsewhere, another = run("finite", "exact")
    assert elsewhere["aot"] == [1, 0]
    assert another["aot"] == [0, 1]
    with open(package / "ste_compile" / "passes" / "cancel.py", "a") as source:
        source.write("\n# edited\n")
    assert run("finite")[0]["aot"] == [0, 1]


def test_an_edited_pass_is_another_one_where_there_are_no_sources(package):
    """Given a package installed as compiled files alone, the identity of its passes is theirs, and another once one is edited.

    Broken by: hashing `*.py`, of which there are none; seen to fail."""
    found = set()
    for edit in ("", "edited = True\n"):
        root = package.parent / f"without_sources{len(edit)}"
        shutil.copytree(package, root)
        with open(root / "ste_compile" / "passes" / "fuse.py", "a") as source:
            source.write(edit)
        compileall.compile_dir(root, quiet=1, legacy=True)
        for path in root.rglob("*.py"):
            path.unlink()
        script = "import ste_compile; print(ste_compile.__file__, ste_compile.inductor_options()['joint_custom_pre_pass'].uuid()[0].hex())"
        env = dict(os.environ, PYTHONPATH=str(root), PYTHONSAFEPATH="1")
        done = subprocess.run([sys.executable, "-c", script], env=env, cwd=root, capture_output=True, text=True)
        assert done.stdout.startswith(str(root)), done.stderr
        found.add(done.stdout.split()[1])
    assert len(found) == 2
