"""Dumps, logs and traces: what is there without a change to the model."""

import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest
import torch

import ste_compile
from ste_compile.inspection.report import Report

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = """
import sys, torch, ste_compile
if "gloo" in sys.argv:
    torch.distributed.init_process_group("gloo")
def model(h, x):
    return ste_compile.ste_forward(h, (x @ x).sin()).relu()
h, x = torch.randn(8, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
options = {"numerics": sys.argv[1]} if sys.argv[2] == "ste" else ste_compile.inductor_options(numerics=sys.argv[1])
torch.compile(model, backend=sys.argv[2], options=options)(h, x).sum().backward()
"""
FILES = {"before.py", "after.py", "forward.py", "backward.py", "sites.json", "index.html"}


def run(tmp_path, *arguments, launcher=(), **environment):
    script = tmp_path / "model.py"
    script.write_text(SCRIPT)
    environment = dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"), **environment)
    command = [sys.executable, *launcher, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize("backend", ("ste", "inductor"))
def test_the_environment_variable_writes_every_graph(tmp_path, backend):
    """Given the variable alone, and a cache that is warm the second time, each run writes a folder of its own."""
    for number in range(2):
        run(tmp_path, "exact", backend, STE_COMPILE_DUMP=str(tmp_path / "dump"))
        folder = tmp_path / "dump" / f"graph_{number}"
        assert {path.name for path in folder.iterdir()} == FILES
    assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == ["graph_0", "graph_1"]
    (site,) = Report.from_json((folder / "sites.json").read_text()).sites
    assert (site.action, site.line, pathlib.Path(site.file).name) == ("fused", 6, "model.py")
    before, forward = (folder / "before.py").read_text(), (folder / "forward.py").read_text()
    assert re.search(r'sub: "f32\[8, 8\]\[8, 1\]cpu" = torch\.ops\.aten\.sub\.Tensor', before)
    assert "model.py:6 in model, code: return ste_compile.ste_forward" in before
    assert "torch.ops.ste_compile.straight_through.default" in forward and "straight_through" not in before
    assert (folder / "index.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("backend", ("ste", "ste_finite", "ste_aot_eager"))
def test_the_option_does_the_same(tmp_path, backend):
    compiled = torch.compile(lambda h, s: h + (s - s.detach()), backend=backend, options={"dump": tmp_path})
    compiled(torch.ones(2), torch.ones(2))
    assert {p.name for p in (tmp_path / "graph_0").iterdir()} == (FILES | {"inference.py"}) - {"forward.py", "backward.py"}


def test_an_option_that_is_no_path_is_named():
    with pytest.raises(Exception, match=r"options=\{'dump': 3\} is not a path: a string or os\.PathLike is allowed"):
        torch.compile(lambda h: h + 1, backend="ste", options={"dump": 3})(torch.ones(2))


def test_a_dump_that_cannot_be_written_costs_the_dump_and_not_the_compile(tmp_path, monkeypatch):
    """Given a file where the folder should be, the model is compiled and rewritten, with a warning."""
    monkeypatch.setenv("STE_COMPILE_STRICT", "0")
    (tmp_path / "file").write_text("")
    compiled = torch.compile(
        lambda h, s: h + (s - s.detach()), backend="ste_aot_eager", options={"numerics": "finite", "dump": tmp_path / "file"}
    )
    with pytest.warns(UserWarning, match="FileExistsError|NotADirectoryError"), ste_compile.collect() as recorder:
        assert torch.equal(compiled(torch.ones(2), torch.full((2,), torch.inf)), torch.ones(2))
    assert [site.action for site in recorder.sites()] == ["cancelled"]


def test_ranks_write_apart(tmp_path):
    """Given two processes of one job, each has a folder of its own, and both hold the same sites."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29641")
    run(tmp_path, "finite", "ste", "gloo", launcher=launcher, STE_COMPILE_DUMP=str(tmp_path / "dump"), OMP_NUM_THREADS="1")
    found = [tmp_path / "dump" / f"rank_{rank}" / "graph_0" / "sites.json" for rank in range(2)]
    assert found[0].read_text() == found[1].read_text()


def test_the_log_has_one_line_a_site(tmp_path):
    for numerics, action in (
        ("finite", "cancelled, permitted by"),
        ("exact", "fused, one operator, v + (s - s); numerics='finite' would free"),
    ):
        logged = run(tmp_path, numerics, "ste", TORCH_LOGS="+ste_compile")
        lines = [line for line in logged.splitlines() if "ste_compile" in line]
        assert len(lines) == 1 and f"model.py:6: host + (seed - seed.detach()): {action}" in lines[0], logged[-2000:]
    assert "model.py:6" not in run(tmp_path, "finite", "ste")


def test_tlparse_shows_the_graphs_and_the_sites_beside_inductors_own(tmp_path):
    """Given TORCH_TRACE, the real tlparse lists before, after and sites among the artifacts of the compilation."""
    run(
        tmp_path,
        "exact",
        "ste",
        TORCH_TRACE=str(tmp_path / "trace"),
        TORCHINDUCTOR_FX_GRAPH_CACHE="0",
        TORCHINDUCTOR_AUTOGRAD_CACHE="0",
    )
    (log,) = (tmp_path / "trace").iterdir()
    tlparse = pathlib.Path(sys.executable).with_name("tlparse")
    subprocess.run([tlparse, log, "-o", tmp_path / "out", "--no-browser"], check=True, capture_output=True)
    index = (tmp_path / "out" / "index.html").read_text()
    assert "inductor_output_code" in index
    names = {re.sub(r"_\d+\.\w+$", "", path.name): path for path in (tmp_path / "out").glob("-_0_0_0/*")}
    for name in ("before", "after", "forward", "backward", "sites"):
        assert f"ste_compile_{name}" in index and f"ste_compile_{name}" in names, sorted(names)
    (site,) = json.loads(names["ste_compile_sites"].read_text())
    assert site["action"] == "fused" and site["line"] == 6
    assert "ste_compile.straight_through" in names["ste_compile_forward"].read_text()


def test_nothing_is_recorded_where_nobody_asks(tmp_path):
    """Given no recorder, no log and no trace, no record is begun, and nothing that a report needs is imported."""
    script = """
        import sys, torch, ste_compile
        from ste_compile.inspection import record
        record.Record = None
        torch.compile(lambda h, s: h + (s - s.detach()), backend="ste_aot_eager")(torch.ones(2), torch.ones(2))
        assert not {"ste_compile.inspection.page", "ste_compile.inspection.text", "pygments", "rich"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=dict(os.environ, STE_COMPILE_STRICT="1"))
