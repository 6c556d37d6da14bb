"""Deployment: exported programs, AOTInductor packages built with the passes, and portable cache artifacts."""

import json
import os
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch
from torch import nn

import ste_compile
from ste_compile.testing import bitwise_equal

from .against_eager import seed
from .compare import hard_values

EXPORTS = {
    "detach": lambda h, s: seed(h, s),
    "late_cast": lambda h, s: h.half() + (s - s.detach()).half(),
    "vq": lambda h, s: s + (h - s).detach(),
    "in_place": lambda h, s: h.clone().add_(s).sub_(s.detach()),
    "autocast": lambda h, s: _autocast(h, s),
}


def _autocast(h, s):
    with torch.autocast("cpu", torch.bfloat16):
        return seed(h @ h.T, s @ s.T)


class Seeded(nn.Module):
    def __init__(self, fn=seed):
        super().__init__()
        self.host, self.seed, self.fn = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 6)), fn

    def forward(self, x):
        return self.fn(self.host(x).relu(), self.seed(x))


@pytest.mark.parametrize("strict", (False, True), ids=("non_strict", "strict"))
@pytest.mark.parametrize("name", EXPORTS)
def test_an_exported_program_keeps_its_markers(name, strict):
    """Given a model exported with a dynamic batch, then as it is and with core decompositions its site is found, and its
    surrogate is gone.
    Breaks if either form of the marker, `aten.detach` or `aten.alias`, or a site in `wrap_with_autocast`, is not seen; or if what export asserts of a cast's input keeps it."""
    x = torch.randn(4, 6)
    program = torch.export.export(
        Seeded(EXPORTS[name]), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), strict=strict
    )
    for each in (program, program.run_decompositions()):
        compiled = torch.compile(each.module(), backend="ste_aot_eager", options={"numerics": "algebraic"}, fullgraph=True)
        with ste_compile.collect() as recorder, torch.no_grad():
            compiled(torch.randn(5, 6))
        assert [site.action for site in recorder.sites()] == ["cancelled"]
        assert not any("tanh" in line.text for record in recorder.records for line in record.views["inference"])


@pytest.mark.parametrize("name", ("no_grad", "data"))
def test_what_an_export_loses_is_no_site(name):
    """Given spellings whose marker `torch.export` drops, a copy made under `no_grad` and `.data` (which it refuses, or freezes
    where it is strict: 2.13), then nothing is rewritten.
    Breaks if `x - x` without a marker is taken for a site."""

    def no_grad(h, s):
        with torch.no_grad():
            constant = s * 2
        return h.detach() + (s * 2 - constant)

    fn = {"no_grad": no_grad, "data": lambda h, s: h + (s - s.data)}[name]
    x = torch.randn(4, 6)
    if name == "data":
        with pytest.raises(RuntimeError, match="fake tensor in the exported program"):
            torch.export.export(Seeded(fn), (x,))
        return
    program = torch.export.export(Seeded(fn), (x,))
    with ste_compile.collect() as recorder, torch.no_grad():
        torch.compile(program.module(), backend="ste_aot_eager", options={"numerics": "algebraic"})(x)
    assert recorder.sites() == ()


class Deployed(nn.Module):
    """A model with a seed; sites of 16 bits, whose values are bits, not just numbers; and a surrogate that draws."""

    def __init__(self):
        super().__init__()
        self.host, self.seed = nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))

    def forward(self, x, v, s):
        sites = [seed(v.half(), s.half()), v.bfloat16() + (s.bfloat16() - v.bfloat16()).detach()]
        drawn = seed(self.host(x).relu(), s[:4] * torch.rand_like(s[:4]))
        return *sites, seed(self.host(x), self.seed(x)), drawn + torch.rand_like(drawn)


LOAD = """
import sys, torch

class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith("ste_compile"), name

sys.meta_path.insert(0, Refuse())
package, arguments, results = sys.argv[1:]
model = torch._inductor.aoti_load_package(package)
torch.manual_seed(0)
torch.save((model(*torch.load(arguments)), sorted(model.get_constant_fqns())), results)
assert "ste_compile" not in sys.modules and not hasattr(torch.ops.ste_compile, "rounded")
"""


@pytest.mark.parametrize("numerics", ("exact", "finite"))
def test_a_package_runs_without_this_one(numerics, tmp_path):
    """Given an AOTInductor package built with the passes, with a dynamic batch, then a process that cannot import this package
    runs it: under `exact` the sites' bits are eager's; under `finite` the seed's weights are not shipped; random numbers are
    eager's in both.
    Breaks if an operator of ours is left to its Python kernel (as `after` was), or a cancelled surrogate is not dead."""
    model, generator = Deployed().eval(), torch.Generator().manual_seed(1)
    v, s = (hard_values(torch.float32, (5, 16), generator) for _ in range(2))
    if numerics == "finite":
        v, s = torch.randn(5, 16), torch.randn(5, 16)
    args = torch.randn(4, 16), v, s
    rows = torch.export.Dim("rows", min=4, max=64)
    program = torch.export.export(
        model, (args[0], torch.randn(9, 16), torch.randn(9, 16)), dynamic_shapes=(None, {0: rows}, {0: rows})
    )
    options = ste_compile.inductor_options(numerics=numerics, options={"fallback_random": True})
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"), inductor_configs=options)
    torch.save(args, tmp_path / "args.pt")
    subprocess.run([sys.executable, "-c", LOAD, package, tmp_path / "args.pt", tmp_path / "results.pt"], check=True)
    results, constants = torch.load(tmp_path / "results.pt")
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = model(*args)
    if numerics == "exact":
        assert all(map(bitwise_equal, results[:2], wanted[:2]))
    assert (results[0] == wanted[0]).logical_or(wanted[0].isnan()).all()
    torch.testing.assert_close(
        results[2:], wanted[2:], rtol=1e-5, atol=1e-6, equal_nan=True
    )  # a linear layer in the order of another library
    shipped = b"".join(zipfile.ZipFile(package).read(name) for name in zipfile.ZipFile(package).namelist())
    weights = [model.host.weight, model.seed[0].weight, model.seed[2].weight]
    assert [weight.detach().numpy().tobytes() in shipped for weight in weights] == [True, *[numerics == "exact"] * 2]
    assert any(name.startswith("seed") for name in constants) == (numerics == "exact")


ARTIFACTS = """
import json, sys, torch, torch._inductor.utils
from torch import nn
from torch._dynamo.utils import counters
import ste_compile

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.host, self.seed = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    def forward(self, x):
        return ste_compile.ste_forward(self.host(x).relu(), self.seed(x))

path, job = sys.argv[1:]
if job == "load":
    torch.compiler.load_cache_artifacts(open(path, "rb").read())
torch.manual_seed(0)
model, x = Model(), torch.randn(4, 6)
compiled = torch.compile(model, backend="ste_finite")
compiled(x).square().sum().backward()
with torch.no_grad():
    same = torch.equal(compiled(x), model.host(x).relu())
found = [counters["aot_autograd"][f"autograd_cache_{what}"] for what in ("hit", "miss")]
if job == "save":
    artifacts, _ = torch.compiler.save_cache_artifacts()
    open(path, "wb").write(artifacts)
print(json.dumps([found, same, [float(p.grad.double().norm()) for p in model.parameters()]]))
"""


def test_cache_artifacts_are_portable(tmp_path):
    """Given a model compiled for training, its seed deferred in a region, and for inference, and the artifacts saved, then a
    process with an empty cache that loads them compiles neither again, and computes the same.
    Breaks if a pass has no identity in the cache's key, or a region cannot be serialised."""

    def run(job):
        env = dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / job))
        command = [sys.executable, "-c", textwrap.dedent(ARTIFACTS), str(tmp_path / "artifacts"), job]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    saved, loaded = run("save"), run("load")
    assert saved[0] == [0, 2] and loaded[0] == [2, 0]
    assert saved[1:] == loaded[1:] and loaded[1]
