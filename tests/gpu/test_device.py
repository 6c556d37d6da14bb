"""What only a GPU can show. Skipped where there is none; STE_COMPILE_TEST_DEVICE=cpu runs what a CPU can of it, to try the tests.

`python tests/gpu/on_device.py FILE` runs these and the benchmark, and writes down what it saw.
"""

import collections
import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, seed, settings

import ste_compile
from ste_compile.testing import assert_equivalent, count_off
from ste_compile.testing.compare import error, stock_bound

from ..compare import assert_equal_values, assert_same_bits, finite_values, hard_values
from ..spellings import BY_NAME, DTYPES, SPELLINGS
from .drawn import chosen, functions
from .functions import DTYPES as PRODUCT_DTYPES
from .functions import FUNCTIONS, arity

DEVICE = os.environ.get("STE_COMPILE_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "")
if not DEVICE:
    pytest.skip("needs a GPU", allow_module_level=True)
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
if DEVICE == "cuda":
    pytest.importorskip("triton", reason="Inductor's code for a GPU is Triton's")
SHAPE = (64, 96)


def model_and_inputs():
    pytest.importorskip("sklearn", reason="the model is the example's")
    from .models import morphogenetic_host

    model, inputs = morphogenetic_host()
    return model.to(DEVICE), tuple(each.to(DEVICE) for each in inputs)


def compiled(fn, level, **options):
    torch._dynamo.reset()
    return torch.compile(fn, backend=ste_compile.backend(numerics=level) if level else "inductor", **options)


@pytest.mark.parametrize("dtype", PRODUCT_DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_site_that_reads_a_product_is_eager_s_to_the_bit(name, dtype):
    """The functions whose PTX is executed on the CPU, on the device itself."""
    fn, dtype = FUNCTIONS[name], PRODUCT_DTYPES[dtype]
    generator = torch.Generator().manual_seed(0)
    for values in (hard_values, finite_values):
        args = [values(dtype, SHAPE, generator).flatten().to(DEVICE) for _ in range(arity(name))]
        assert_same_bits(compiled(fn, "exact")(*args), fn(*args))
    assert_equal_values(compiled(fn, "finite")(*args), fn(*args))


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("name", [each.name for each in SPELLINGS])
def test_each_spelling_at_each_level(name, dtypes):
    """Values by the level's promise, and the gradients of eager."""
    spelling, generator = BY_NAME[name], torch.Generator().manual_seed(0)
    for level in ("exact", "finite", "algebraic"):
        args = [finite_values(dtype, SHAPE, generator).to(DEVICE).requires_grad_() for dtype in DTYPES[dtypes]]
        with ste_compile.collect() as recorder:
            ours = compiled(spelling.fn, level)(*args)
        actions = {site.action for site in recorder.sites()}
        eager = spelling.fn(*args)
        if actions == {"fused"}:
            assert_same_bits(ours, eager)
        elif actions == {"cancelled"}:
            value = spelling.value(*args)
            assert_equal_values(ours, torch.as_tensor(value, device=DEVICE).to(eager.dtype).expand_as(eager), level)
        mine, theirs = (torch.autograd.grad(out.float().sum(), args, allow_unused=True) for out in (ours, eager))
        for a, b in zip(mine, theirs):  # a broadcast operand's gradient is a sum, of 16 bits in another order
            assert (a is None or not a.any()) if b is None else error(a, b).max() <= 1e-2 * (1 + b.abs().max())


@pytest.mark.parametrize("start", range(24))
def test_sites_in_random_functions_are_eager_s_to_the_bit(start):
    """Ten functions each, of the strategy whose PTX is executed on the CPU."""

    @seed(start)
    @settings(max_examples=10, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(functions())
    def run(program):
        assume(program.sites())
        generator = torch.Generator().manual_seed(start)
        for values in (hard_values, finite_values):
            args = [values(eval(dtype), SHAPE, generator).flatten() for dtype in program.arguments.values()]
            fn = chosen(program, args)
            assume(fn.results)
            args = [each.to(DEVICE) for each in args]
            for ours, eager in zip(compiled(fn, "exact")(*args), fn(*args), strict=True):
                assert_same_bits(ours, eager, repr(program))

    run()


@pytest.mark.parametrize("level", ("exact", "finite", "algebraic"))
def test_a_model_is_equivalent_and_its_values_are_counted(level):
    """`assert_equivalent` on the device; and `explain(values=True)` counts there what a loop over eager's results counts."""
    model, inputs = model_and_inputs()
    assert_equivalent(model, *inputs, numerics=level)

    def grid(x):
        return x.sign() * 0.3  # far from x, so that eager rounds

    def quantised(x):
        q = grid(x)
        return x + (q - x).detach()

    x = (torch.randn(1 << 12, generator=torch.Generator().manual_seed(0)) * 4).bfloat16().to(DEVICE).requires_grad_()
    report = ste_compile.explain(quantised, x, numerics=level, values=True)
    (found,) = (site.values for site in report.sites)
    meant = count_off(quantised(x.detach()), grid(x.detach()))
    assert found.elements == meant.elements == x.numel() and found.off == meant.off > 0


@pytest.mark.parametrize("mode", (None, "reduce-overhead", "max-autotune"))
@pytest.mark.parametrize("level", ("exact", "finite", "algebraic"))
def test_a_model_in_training_and_inference(level, mode):
    """Results and gradients are no further from eager's than stock's, over three steps, so that CUDA graphs are replayed."""
    model, inputs = model_and_inputs()

    def run(how):
        ours = copy.deepcopy(model)
        called = compiled(ours, how, mode=mode) if how != "eager" else ours
        for _ in range(3):
            ours.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16):
                out = called(*inputs)
            out.float().sum().backward()
            # Before another graph is replayed: it may reuse the memory of what an earlier one returned.
            gradients = [each.grad.clone() for each in ours.parameters()]
            with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
                inference = called(*inputs).clone()
        return [inference, *gradients]

    eager, stock = run("eager"), run(None)
    torch._dynamo.utils.counters.clear()
    ours = run(level)
    for theirs, plain, mine in zip(eager, stock, ours, strict=True):
        assert error(mine, theirs).max() <= stock_bound(plain, theirs)
    assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


def launched(run):
    """The names of the kernels that the device runs, each as often as it is launched."""
    run()  # compiles
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return collections.Counter(event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA)


@on_gpu
def test_the_device_runs_what_is_promised():
    """In inference `finite` launches as many kernels as the host alone; `exact` launches no more than stock, in training either; and
    `explain` counts none that is not launched."""
    model, inputs = model_and_inputs()

    def kernels(level, seeds, train):
        ours = copy.deepcopy(model)
        ours.seeds = torch.nn.ModuleList(ours.seeds[:seeds])
        called = compiled(ours, level)

        def run():
            with torch.set_grad_enabled(train), torch.autocast("cuda", torch.bfloat16):
                out = called(*inputs)
            if train:
                out.float().sum().backward()

        return launched(run).total()

    found = {
        (name, train): kernels(level, seeds, train)
        for train in (False, True)
        for name, level, seeds in (("stock", None, 4), ("exact", "exact", 4), ("finite", "finite", 4), ("host alone", None, 0))
    }
    print(found)
    if not any(found.values()):
        pytest.skip("the profiler sees no kernel of this device")
    assert found["finite", False] == found["host alone", False] < found["stock", False]
    assert all(found["exact", train] <= found["stock", train] for train in (False, True))
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        report = ste_compile.explain(model, *inputs, numerics="finite")
    (inference,) = (part for graph in report.graphs for part in graph.parts if part.kind == "inference")
    print(inference.stock, inference.ours)
    assert inference.ours.kernels <= found["finite", False]


@on_gpu
def test_peak_memory():
    """`finite` keeps for the backward what the host alone keeps; inference peaks where the host's does."""
    model, inputs = model_and_inputs()
    inputs = tuple(each.repeat(64, 1, 1, 1).to(memory_format=torch.channels_last) for each in inputs)

    def peaks(level, seeds):
        ours = copy.deepcopy(model)
        ours.seeds = torch.nn.ModuleList(ours.seeds[:seeds])
        called, found = compiled(ours, level), []
        for train in (True, False):
            for _ in range(2):  # the first compiles
                ours.zero_grad()
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                with torch.set_grad_enabled(train), torch.autocast("cuda", torch.bfloat16):
                    out = called(*inputs)
                kept = torch.cuda.memory_allocated() - before
                if train:
                    out.float().sum().backward()
                peak = torch.cuda.max_memory_allocated() - before
            found += [kept, peak]
        return dict(zip(("kept", "step", "-", "inference"), found))

    stock, ours, host = peaks(None, 4), peaks("finite", 4), peaks(None, 0)
    print({"stock": stock, "finite": ours, "host alone": host})
    assert ours["kept"] <= 1.01 * host["kept"] < stock["kept"]
    assert ours["step"] <= stock["step"]
    assert ours["inference"] <= 1.01 * host["inference"]


@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks_train_as_in_eager():
    """DDP and FSDP2 over NCCL: three steps give eager's parameters, bit for bit."""
    job = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "tests.gpu.two_ranks",
        DEVICE,
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(job, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
