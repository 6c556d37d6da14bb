"""Distributed models, on torch's own engines: two processes, and what each of them compiles, trains and writes."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import ste_compile
from ste_compile.inspection.report import Report

dist = pytest.importorskip("torch.distributed")
if not dist.is_available():
    pytest.skip("this build of torch has no torch.distributed", allow_module_level=True)

HERE = pathlib.Path(__file__).parent
RANKS = (0, 1)


def launch(*command, **environment):
    environment = dict(os.environ, OMP_NUM_THREADS="1", **environment)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*torchrun, *command], env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """What each rank of `distributed_job.py` found, each with a hash seed of its own; and the folder of the dumps."""
    folder = tmp_path_factory.mktemp("job")
    rank = f'PYTHONHASHSEED=$RANK exec "{sys.executable}" "{HERE / "distributed_job.py"}" "{folder}"'
    done = launch("--no-python", "bash", "-c", rank)
    assert done.returncode == 0, done.stderr[-5000:]
    found = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in RANKS]
    assert found[0]["hash"] != found[1]["hash"]
    return found, folder / "dumps"


MODELS = pytest.mark.parametrize("model", ("ddp", "far", "fsdp", "tp"))
LEVELS = pytest.mark.parametrize("numerics", ("exact", "finite"))


def sites(folder, model, numerics, rank=0):
    graphs = sorted((folder / model / numerics / f"rank_{rank}").iterdir())
    return [site for graph in graphs for site in Report.from_json((graph / "sites.json").read_text()).sites]


@MODELS
@LEVELS
def test_three_steps_give_eager_s_parameters_on_every_rank(job, model, numerics):
    """Given DDP, FSDP2 in bfloat16 and tensor parallelism, losses and parameters are eager's, bit for bit. Breaks if a rewrite
    changes a value or gradient, or a hook that moves gradients or parameters does not meet the compiled graph."""
    for found in job[0]:
        eager, ours = found["trained"][model]["eager"], found["trained"][model][numerics]
        assert ours == eager
    assert job[0][0]["trained"][model][numerics][1] == job[0][1]["trained"][model][numerics][1]


def test_through_inductor_they_are_stock_s_parameters(job):
    """Given FSDP2 compiled block by block, and finite, where the surrogates run in the backward, the parameters are stock's, bit
    for bit. Breaks if a region computes what stock computes in another way, or reads a parameter that FSDP has freed."""
    for found in job[0]:
        runs = found["trained"]["fsdp"]
        assert runs["finite, Inductor"] == runs["stock, Inductor"]


@MODELS
@LEVELS
def test_every_rank_makes_the_same_graphs(job, model, numerics):
    """Given hash seeds that differ, each rank writes the same files, in a folder of its own. Breaks if a pass or a report depends on
    the order of a set: ranks whose graphs differ can wait for each other for ever."""
    folders = [job[1] / model / numerics / f"rank_{rank}" for rank in RANKS]
    written = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in folders]
    assert written[0] == written[1]
    assert {"before.py", "after.py", "forward.py", "backward.py", "sites.json"} <= {path.name for path in written[0]}


@MODELS
def test_every_site_is_found(job, model):
    """Breaks if an engine hides a site: in a subclass of tensor, behind a hook, or in a part of the graph that is not compiled."""
    count = 1 if model == "far" else 2
    assert [site.action for site in sites(job[1], model, "exact")] == ["fused"] * count
    assert [site.action for site in sites(job[1], model, "finite")] == ["cancelled"] * count


@pytest.mark.parametrize("model", ("ddp", "fsdp"))
def test_a_seed_in_its_site_s_bucket_is_freed(job, model):
    """Breaks if DDP's buckets or FSDP's parameters keep a surrogate in the forward."""
    assert [(site.frees.matmuls, site.notes) for site in sites(job[1], model, "finite")] == [(2, ()), (2, ())]


def test_a_seed_in_another_bucket_than_its_site_is_reported(job):
    """Given a seed computed buckets ahead of its site, the site cancels, nothing upstream is freed, and the report says who cut the
    graph. Breaks if the user is left to guess."""
    (site,) = sites(job[1], "far", "finite")
    (note,) = site.notes
    assert (site.action, site.frees.matmuls) == ("cancelled", 0)
    assert "graph break, DDPOptimizer's between buckets of gradients" in note and "nothing upstream of it can be freed" in note


def test_a_collective_in_a_surrogate_stays_in_the_forward_on_every_rank(job):
    """Given tensor parallelism, a seed that ends in an all-reduce stays, and is reported; one on DTensors, without, is freed. Breaks
    if a collective moves to the backward or goes: where two ranks decide differently, both hang."""
    ends_in_one, has_none = sites(job[1], "tp", "finite")
    assert ends_in_one.frees.matmuls == 0 and ends_in_one.notes[0].endswith(
        "is a collective: every rank runs it, and what it needs, in the forward"
    )
    assert (has_none.frees.matmuls, has_none.notes) == (1, ())
    forwards = [(job[1] / "tp" / level / "rank_0" / "graph_0" / "forward.py").read_text() for level in ("exact", "finite")]
    assert [forward.count("_c10d_functional.all_reduce.default(") for forward in forwards] == [3, 3]


def test_on_dtensors_each_rank_computes_its_own_shard(job):
    """Given shards, even and uneven, broadcasts and whole tensors, the operators need no collective, and give value, dtype and
    gradients of the whole tensors. Breaks if DTensor does not know the operators, or gathers for them."""
    for found in job[0]:
        results = {case: result for case, result in found["sharded"].items() if "pending" not in case and "P(sum)" not in case}
        assert len(results) > 50 and all(equal for _, _, equal in results.values()), results
        gathered = {case for case, (_, communication, _) in results.items() if communication}
        assert gathered == {"fewer rows than ranks"}  # torch 2.11 to 2.14 shards no dimension into more parts than it has rows


def test_a_pending_sum_is_reduced_before_it_is_rounded(job):
    """Given Partial operands, their sum is made first; a copy alone passes it on. Breaks if the parts are rounded one by one."""
    for found in job[0]:
        for case in ("pending", "pending value", "pending surrogate", "rounded P(sum)"):
            assert found["sharded"][case] == ["S(0)", ["reduce_scatter_tensor"], True], case
        assert found["sharded"]["after P(sum)"] == ["P(sum)", [], True]


def test_importing_needs_no_torch_distributed():
    """Breaks if a build of torch without it, as on some platforms, cannot import the package."""
    script = """
        import torch
        del torch._C._c10d_init
        assert not torch.distributed.is_available()
        import ste_compile
        from ste_compile.passes.ops import rounded
        assert rounded(torch.ones(2)).sum() == 2
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_explain_tells_the_parts_of_ddp_s_graph_apart(alone, monkeypatch):
    """Given two buckets, each graph has its own kernels and a backward of its own. Breaks if they are found by Dynamo's name of the
    graph, which the parts share."""
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, h):
            return self.two(self.one(h).sigmoid())

    report = ste_compile.explain(nn.parallel.DistributedDataParallel(Model(), bucket_cap_mb=1e-6), torch.randn(2, 4))
    parts = [{part.kind: part for part in graph.parts} for graph in report.graphs]
    assert len(parts) == 2 and all(part.keys() == {"forward", "backward"} for part in parts)
    for part in parts:
        for each in part.values():
            assert each.ours.kernels > 0 and each.ours == each.stock  # there is no site


def test_dtensor_s_own_collectives_are_effects_too():
    """Given an operator that DTensor waits for by itself, so that FX sees no effect, it stays in an inference graph. Breaks if it is
    told from others by its `wait_tensor`."""
    exchange = torch.ops._dtensor.shard_dim_alltoall.default
    graph = torch.fx.Graph()
    node = graph.call_function(exchange, (graph.placeholder("x"), 0, 1, "0"))
    assert not node.is_impure() and not ste_compile.passes.nodes.is_pure(node)


def test_the_example_runs_under_torchrun():
    """Breaks if tensor parallelism through Inductor gives other losses than stock, or keeps as much for the backward."""
    pytest.importorskip("sklearn")
    example = HERE.parent / "examples" / "distributed.py"
    done = launch(str(example), "--parallel", "tp", "--steps", "2", "--blocks", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.split()}
    assert rows["finite"][1:3] == rows["stock"][1:3] and rows["finite"][6:8] == ["1", "0"]  # losses; cancelled and fused
    assert float(rows["finite"][5]) < float(rows["stock"][5])  # MiB saved


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    (
        ((), {}, "torchrun starts them all: torchrun --nproc-per-node 2 examples/distributed.py"),
        (("--parallel", "tp"), {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}, "splits 4 heads evenly"),
    ),
)
def test_the_example_says_how_to_start_it(arguments, environment, message):
    pytest.importorskip("sklearn")
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | environment
    command = [sys.executable, str(HERE.parent / "examples" / "distributed.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr.replace("\n", " ")
