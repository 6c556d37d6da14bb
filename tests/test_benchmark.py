"""`examples/benchmark.py`: what it measures, writes, draws and refuses."""

import json
import platform
import subprocess
import sys
import types
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
TIMES = ("step", "forward", "backward", "inference")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import benchmark

    return benchmark


def test_a_run_measures_every_contestant_and_can_be_shown_again(benchmark, tmp_path, capsys):
    """Given a tiny host with one seed, when run, then each contestant has each figure, `finite` saves what the host alone does, and
    tables and picture can be had from the file."""
    results, picture, again = tmp_path / "results.json", tmp_path / "a.png", tmp_path / "b.png"
    tiny = benchmark.Size(batch=2, image=8, width=8, seeds=1)
    arguments = ["--work", "cnn", "--kinds", "conv", "--seeds", "1", "--rounds", "2", "--warm"]
    benchmark.main([*arguments, "--json", str(results), "--plot", str(picture)], tiny)
    shown = capsys.readouterr().out
    data = json.loads(results.read_text())
    assert data["meta"].keys() == {"torch", "ste-compile", "device", "threads", "rounds"}
    rows = {row["contestant"]: row for row in data["rows"]}
    assert tuple(rows) == benchmark.CONTESTANTS
    for name, row in rows.items():
        assert (row["work"], row["kind"], row["seeds"]) == ("cnn", "conv", 1)
        for time in TIMES:
            for figure in (f"{time} ms", f"{time}/stock", f"{time}/autograd.Function", f"{time}/host alone"):
                assert 0 < row[figure][0] <= row[figure][1] <= row[figure][2]
        assert row["peak"] >= row["saved"] > 0
        counts = [f"{figure} {part}" for figure in ("kernels", "bytes") for part in ("forward", "backward", "inference")]
        assert all(row[count] > 0 for count in counts) if name != "eager" else not row.keys() & {*counts}
    assert rows["finite"]["saved"] == rows["host alone"]["saved"] < rows["stock"]["saved"]
    for figure in ("kernels", "bytes"):
        for part in ("forward", "backward", "inference"):
            assert rows["exact"][f"{figure} {part}"] <= rows["stock"][f"{figure} {part}"]
        assert rows["finite"][f"{figure} inference"] == rows["host alone"][f"{figure} inference"]

    benchmark.main(["--from", str(results), "--plot", str(again)])
    assert capsys.readouterr().out.strip() == shown.strip() and "cnn conv x 1" in shown and "goals" in shown
    assert again.read_bytes() == picture.read_bytes()

    # Rows of many kinds on two hosts: a band for each, and of the file as much as is asked for.
    pairs = [("cnn", kind) for kind in ("conv", "norm", "bottleneck", "depthwise")]
    pairs += [("stages", kind) for kind in ("residual", "narrow", "gated", "separable")]
    many = [row | {"work": w, "kind": k, "seeds": n} for w, k in pairs for n in (1, 2) for row in data["rows"]]
    results.write_text(json.dumps(data | {"rows": many}))
    sizes = []
    for part in ([], ["--work", "stages"]):
        benchmark.main(["--from", str(results), "--plot", str(again), *part])
        sizes.append(plt.imread(again).shape[:2])
        shown = capsys.readouterr().out
        assert ("cnn norm x 2" in shown) == (not part) and "stages gated x 1" in shown
    (high, wide), (low, as_wide) = sizes
    assert high == 2 * low and wide == as_wide


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--work", "resnet"], "resnet (choose from cnn, "),
        (["--kinds", "linear"], "linear (choose from conv, "),
        (["--seeds", "5"], "5 (choose from 1, 2, 3, 4, 8)"),
        (["--rounds", "1"], "must be at least 2, got 1"),
        (["--work", "cnn", "transformer", "--kinds", "conv"], "transformer has none of --kinds or --seeds, only [mlp, "),
        (["--work", "vqvae", "--plot", "picture.png"], "--plot: needs a work with seeds, cnn or stages or "),
        (["--predict", "mi300"], "mi300 (choose from "),
        (["--predict", "h100", "--json", "results.json"], "prints a table, and goes with none of --json"),
        (["--json", "no/such/folder.json"], "there is no folder no/such"),
        (["--from", "nothing.json"], "nothing.json does not hold what --json writes: FileNotFoundError"),
    ],
)
def test_bad_arguments_are_refused_with_what_is_allowed(benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err.replace("\n", " ").replace("'", "")  # which argparse writes or not, by its version


@pytest.mark.skipif(bool(torch.version.cuda), reason="the stand-in for CUDA is for CPU builds of torch")
def test_a_prediction_counts_what_a_gpu_would_launch(benchmark, capsys):
    """Given the bare operator, in bfloat16 and float32, when predicted, then inference under `finite` is a copy of the host, which
    reads and writes it once; and the table says that it is a prediction, and of what it takes the GPU to reach."""
    pytest.importorskip("triton")
    (key,) = benchmark.arguments(["--predict", "h100", "--work", "operator", "--kinds", "2^20"]).keys
    device = benchmark.DEVICES["h100"]
    with benchmark.Progress() as progress:
        rows = benchmark.predicted([key], device, progress)
    stock, finite, host = rows
    assert [row["contestant"] for row in rows] == ["stock", "finite", "host alone"]
    count = 2**20
    assert (stock["inference launches"], stock["inference bytes"]) == (1, (2 + 4 + 2) * count)
    assert (finite["inference launches"], finite["inference bytes"]) == (1, (2 + 2) * count)
    assert finite["inference ms"] == host["inference ms"] == pytest.approx(1e3 * (4 * count / device.bandwidth + device.launch))
    benchmark.Console(width=130).print(benchmark.prediction(rows))
    assert "operator 2^20" in capsys.readouterr().out and "TB/s" in str(device)


def test_the_peak_is_that_of_known_allocations(benchmark):
    """Given 4, 4, 2 and 1 MiB, the first released after the second, then the most at any time is 8 MiB."""

    from benchmark_contestants import peak_of

    def run():
        first, second = torch.empty(2**20), torch.empty(2**20)
        del first
        return second, torch.empty(2**19), torch.empty(2**18)

    assert peak_of(run, torch.device("cpu")) == 8 * 2**20


def test_what_a_forward_frees_again_is_not_saved(benchmark):
    """Of 4 KiB that `exp` keeps for the gradient, and as much that goes with the graph that `detach` drops, 4 KiB are saved."""

    from benchmark_contestants import saved_by

    x = torch.randn(1024, requires_grad=True)
    contestant = types.SimpleNamespace(model=torch.nn.Identity(), inputs=(x,), forward=lambda: x.exp() + x.tanh().detach())
    assert saved_by(contestant) == 4096


@pytest.mark.parametrize("loss", (False, True))
def test_a_contestant_that_computes_something_else_fails_the_run(benchmark, loss):
    from compare import check

    class Contestant:
        def __init__(self, loss, gradient):
            self.loss, self.gradients = loss, {"w": torch.tensor([gradient])}

    contestants = {name: Contestant(1.0, 1.0) for name in benchmark.CONTESTANTS}
    check(contestants)
    contestants["finite"] = Contestant(1.01, 1.0) if loss else Contestant(1.0, 1.01)
    with pytest.raises(AssertionError, match=r"finite: the loss is 1\.01" if loss else r"finite: gradients are 1\.00e-02"):
        check(contestants)


@pytest.mark.parametrize("work", ("transformer", "vqvae", "bitnet", "lsq", "router", "operator"))
def test_the_estimators_by_hand_are_the_expressions(benchmark, work):
    """Given equal weights and seeds, then both have the same loss and gradients in eager."""
    import estimators
    import workloads

    tiny = benchmark.Size(batch=2, image=8, width=8, tokens=4, features=16, rows=8, seeds=2)
    kind = workloads.WORK[work].kinds[0]
    eager, by_hand = benchmark.contestants_of((work, kind, 1), tiny, ("eager", "eager"))
    estimators.by_hand(by_hand.model)
    losses = [contestant.step().float().sum() for contestant in (eager, by_hand)]
    torch.testing.assert_close(*losses)
    for name, leaf in eager.leaves.items():
        if leaf.requires_grad and work != "operator":  # whose two contestants share their inputs
            torch.testing.assert_close(by_hand.leaves[name].grad, leaf.grad)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")
def test_no_timed_step_waits_for_pages():
    """Given an allocator told to keep memory, when a block larger than glibc keeps by itself is allocated again, then the system clears
    no page for it. Broken by: up to a quarter of a step is page faults, of one contestant in this run and of another in the next."""
    script = """
import resource, torch, benchmark_contestants
benchmark_contestants.keep_memory()
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=EXAMPLES, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # 16,384 if given back
