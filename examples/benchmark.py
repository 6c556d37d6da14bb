"""Measure straight-through estimators: eager, stock torch.compile, a hand-written autograd.Function, ste-compile at each level,
and the host without the estimator, all on the same work, interleaved in one run.

    python examples/benchmark.py --work cnn --kinds conv --seeds 1 4 --json results.json --plot results.png
    python examples/benchmark.py --from results.json --plot results.png             # draws again, runs nothing

A step is a forward and a backward; there is no optimiser, which would cost everyone the same. Kernels and bytes (MiB in the
tables) are Inductor's own count; peak memory is above what was allocated when the step began (on the CPU: what torch's allocator
gave out; libraries' own scratch memory is not in it). The JSON holds {"meta": {...}, "rows": [...]}, a flat row per contestant:

    work, kind, seeds, contestant
    step ms, forward ms, backward ms, inference ms      [lower quartile, median, upper quartile]
    step/stock, inference/host alone, ...               the same of the ratios within each round
    saved, peak                                         bytes
    kernels forward, bytes forward, ... backward, ... inference
    compile s                                           first forward and backward in a fresh process with an empty cache
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import copy
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmark_results import SEEDED, draw, goals, grouped, table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from workloads import WORK, Size, by_hand

import ste_compile

LEVELS = ("exact", "finite", "algebraic")
CONTESTANTS = ("eager", "stock", "autograd.Function", *LEVELS, "host alone")
TIMES = ("step", "forward", "backward", "inference")
# No graph from a cache, so that each contestant is compiled; eager's random numbers, so that all compute the same loss.
OPTIONS = {"fx_graph_cache": False, "fallback_random": True}

Row = dict[str, Any]
Key = tuple[str, str, int]  # work, kind, seeds


def own_forward(model: nn.Module) -> None:
    """Give a model a code object of its own. Dynamo keeps the compiled versions of one code object in one list: contestants that
    shared it would check each other's guards, and run into the recompile limit."""
    forward = type(model).forward
    own = types.FunctionType(forward.__code__.replace(), forward.__globals__, forward.__name__)
    model.__class__ = type(type(model).__name__, (type(model),), {"forward": own})


class Contestant:
    """One way to run one model, with weights and compiled code of its own."""

    def __init__(self, name: str, key: Key, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.name, self.inputs, self.device = name, inputs, inputs[0].device
        self.autocast = WORK[key[0]].autocast
        self.model = copy.deepcopy(model)
        if name == "autograd.Function":
            by_hand(self.model)
        if name == "host alone":
            self.model.seeds = nn.ModuleList()
        own_forward(self.model)
        if name == "eager":
            self.compiled: Callable[..., Tensor] = self.model
        elif name in LEVELS:
            self.compiled = torch.compile(self.model, backend="ste", options={"numerics": name, **OPTIONS})
        else:
            self.compiled = torch.compile(self.model, options=OPTIONS)
        given = {f"input {i}": tensor for i, tensor in enumerate(inputs) if tensor.requires_grad}
        self.leaves: dict[str, Tensor] = {**dict(self.model.named_parameters()), **given}
        self.ones: Tensor | None = None  # the gradient that a backward begins with
        self.times: dict[str, list[float]] = {name: [] for name in TIMES}

    @contextlib.contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        self.model.train(training)
        with torch.set_grad_enabled(training), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            yield

    def forward(self) -> Tensor:
        with self.mode(training=True):
            return self.compiled(*self.inputs)

    def clear(self) -> None:
        for leaf in self.leaves.values():
            leaf.grad = None
        torch.manual_seed(0)

    def step(self) -> Tensor:
        self.clear()
        with self.mode(training=True):
            start = mark(self.device)
            result = self.compiled(*self.inputs)
            middle = mark(self.device)
        if self.ones is None:
            self.ones = torch.ones_like(result)
        result.backward(self.ones)
        end = mark(self.device)
        for name, first, last in (("step", start, end), ("forward", start, middle), ("backward", middle, end)):
            self.times[name].append(milliseconds(first, last))
        return result.detach()

    def infer(self) -> None:
        self.clear()
        with self.mode(training=False):
            start = mark(self.device)
            self.compiled(*self.inputs)
            end = mark(self.device)
        self.times["inference"].append(milliseconds(start, end))

    def first(self) -> None:
        """Compile, note the loss and the gradients, then what a step saves and the most it allocates."""
        self.loss = self.step().float().mean().item()
        self.gradients = {name: leaf.grad.clone() for name, leaf in self.leaves.items() if leaf.grad is not None}
        self.infer()
        self.saved, self.peak = saved_by(self), peak_of(self.step, self.device)
        self.infer()
        for times in self.times.values():
            times.clear()


def mark(device: torch.device) -> Any:
    """A moment: on CUDA an event in the stream, which makes nothing wait."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return (end - start) * 1e3
    end.synchronize()
    return start.elapsed_time(end)


def saved_by(contestant: Contestant) -> int:
    """Bytes that a forward keeps for the backward, parameters and inputs aside."""
    known = {t.untyped_storage().data_ptr() for t in (*contestant.model.parameters(), *contestant.inputs)}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        contestant.forward()
    return sum(saved.values())


def peak_of(run: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that `run` has allocated at any time, above what there was when it began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    # The profiler announces itself on standard error unless told not to.
    with environment("KINETO_LOG_LEVEL", "99"), torch.profiler.profile(activities=cpu, profile_memory=True) as profiler:
        run()
    # Of the profiler's public results only the trace has each allocation and release apart.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return max(itertools.accumulate((event["args"]["Bytes"] for event in events), initial=0))


def contestants_of(key: Key, size: Size, names: tuple[str, ...]) -> list[Contestant]:
    """From a common start, on CUDA where there is one."""
    work, kind, seeds = key
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model, inputs = WORK[work].make(kind, seeds, size)
    inputs = tuple(t.detach().to(device).requires_grad_(t.requires_grad) for t in inputs)
    return [Contestant(name, key, model.to(device), inputs) for name in names]


def cold(key: Key, size: Size, name: str, folder: str) -> float:
    """Seconds of the first forward and backward with an empty cache; to be run in a fresh process, as Inductor remembers its
    kernels in memory too."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    (contestant,) = contestants_of(key, size, (name,))
    start = time.perf_counter()
    contestant.step()
    return time.perf_counter() - start


def distance(ours: dict[str, Tensor], eager: dict[str, Tensor]) -> float:
    """The largest relative distance (2-norm) of a gradient from eager's."""
    return max(((ours[n] - eager[n]).norm() / eager[n].norm().clamp_min(1e-12)).item() for n in eager)


def check(contestants: dict[str, Contestant]) -> None:
    """Losses and gradients against eager's. What the sites add must vanish in what Inductor's own fusions change: each may be as
    far from eager as stock torch.compile is, and half as much again."""
    eager, stock = contestants["eager"], contestants["stock"]
    allowed = 1.5 * distance(stock.gradients, eager.gradients) + 1e-3
    for name in ("autograd.Function", *LEVELS):
        far = distance(contestants[name].gradients, eager.gradients)
        if far > allowed:
            raise AssertionError(f"{name}: gradients are {far:.2e} from eager's, stock's allow {allowed:.2e}")
        losses = contestants[name].loss, eager.loss, stock.loss
        if abs(losses[0] - losses[1]) > 1.5 * abs(losses[2] - losses[1]) + 1e-3:
            raise AssertionError("{}: the loss is {}, eager's {}, stock's {}".format(name, *losses))


def counted(contestant: Contestant, numerics: ste_compile.Numerics, stock: bool) -> Row:
    """Kernels and bytes, forward, backward and inference apart."""
    result: Row = {}
    for training in (True, False):
        with contestant.mode(training):
            report = ste_compile.explain(contestant.model, *contestant.inputs, numerics=numerics)
        for part in itertools.chain.from_iterable(graph.parts for graph in report.graphs):
            figures = part.stock if stock else part.ours
            for name, amount in (("kernels", figures.kernels), ("bytes", figures.bytes_read + figures.bytes_written)):
                result[f"{name} {part.kind}"] = result.get(f"{name} {part.kind}", 0) + amount
    return result


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 5) for value in statistics.quantiles(values, n=4, method="inclusive")]


def row(key: Key, contestant: Contestant, others: dict[str, Contestant]) -> Row:
    result: Row = dict(zip(("work", "kind", "seeds"), key), contestant=contestant.name)
    for name in TIMES:
        result[f"{name} ms"] = quartiles(contestant.times[name])
        for other in ("stock", "autograd.Function", "host alone"):
            if other in others:
                pairs = zip(contestant.times[name], others[other].times[name])
                result[f"{name}/{other}"] = quartiles([a / b for a, b in pairs])
    return result | {"saved": contestant.saved, "peak": contestant.peak}


def measure(key: Key, size: Size, rounds: int, warm: bool, progress: Progress) -> list[Row]:
    """The rows of all contestants on one work."""
    names = CONTESTANTS if WORK[key[0]].alone else CONTESTANTS[:-1]
    label = " ".join(str(part) for part in key if part not in ("-", 0))
    seconds: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        task = progress.add_task(f"{label}: compile, cold", total=len(names) - 1) if not warm else None
        for i, name in enumerate(names[1:]) if not warm else ():
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                seconds[name] = process.submit(cold, key, size, name, str(folder / str(i))).result()
            shutil.copytree(folder / str(i), folder / "all", dirs_exist_ok=True)  # to compile the same again without C++
            progress.advance(task)
        stack.enter_context(environment("TORCHINDUCTOR_CACHE_DIR", str(folder / "all")))
        torch._dynamo.reset()
        contestants = contestants_of(key, size, names)
        task = progress.add_task(f"{label}: compile", total=len(names))
        for contestant in contestants:
            contestant.first()
            progress.advance(task)
        by_name = {contestant.name: contestant for contestant in contestants}
        check(by_name)
        task = progress.add_task(f"{label}: run", total=rounds)
        for i in range(rounds):  # interleaved, so that a machine that slows down slows all
            for contestant in contestants[i % len(names) :] + contestants[: i % len(names)]:
                contestant.step()
                contestant.infer()
            progress.advance(task)
        rows = {contestant.name: row(key, contestant, by_name) for contestant in contestants}
        task = progress.add_task(f"{label}: count", total=len(names) - 1)
        for name in names[1:]:
            numerics = name if name in LEVELS else "exact"
            rows[name] |= counted(by_name[name], numerics, stock=name not in LEVELS)
            if name in seconds:
                rows[name]["compile s"] = round(seconds[name], 2)
            progress.advance(task)
    return list(rows.values())


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def arguments(given: list[str] | None) -> argparse.Namespace:
    kinds = [kind for work in WORK.values() for kind in work.kinds if kind != "-"]
    seeds = sorted({number for work in WORK.values() for number in work.seeds} - {0})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORK, help="default: all that have one of --kinds")
    parser.add_argument("--kinds", nargs="+", choices=kinds, help="of seed, or operator size; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, choices=seeds, default=[1, 4], help="default: 1 4 (transformer: up to 4)")
    parser.add_argument("--rounds", type=int, default=30, help="steps of each contestant, at least 2 (default: 30)")
    parser.add_argument("--warm", action="store_true", help="no compile times: the contestants share one cache, which is faster")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, those so far after each work")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw saved bytes and step time against the number of seeds")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="source", help="show results written by --json, run nothing")
    chosen = parser.parse_args(given)
    if chosen.rounds < 2:
        parser.error(f"argument --rounds: must be at least 2, got {chosen.rounds}")
    if chosen.source and not chosen.source.is_file():
        parser.error(f"argument --from: there is no file {chosen.source}")
    chosen.keys = [
        (name, kind, number)
        for name in dict.fromkeys(chosen.work or WORK)
        for kind in WORK[name].kinds
        if not chosen.kinds or kind in chosen.kinds or (kind == "-" and chosen.work)
        for number in WORK[name].seeds
        if number in (0, *chosen.seeds)
    ]
    for name in {*(chosen.work or ())} - {key[0] for key in chosen.keys}:
        work = WORK[name]
        parser.error(f"argument --work: {name} has none of --kinds or --seeds, only {[*work.kinds]} and {[*work.seeds]}")
    if chosen.plot and not chosen.source and not any(name in SEEDED for name, _, _ in chosen.keys):
        parser.error(f"argument --plot: needs a work with seeds, --work {' or '.join(SEEDED)}")
    for name in ("json", "plot"):  # not found out after hours
        if (path := getattr(chosen, name)) and not path.parent.is_dir():
            parser.error(f"argument --{name}: there is no folder {path.parent}")
    return chosen


def run(chosen: argparse.Namespace, size: Size, console: Console) -> dict[str, Any]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    meta = {"torch": str(torch.__version__), "device": device, "threads": torch.get_num_threads(), "rounds": chosen.rounds}
    results: dict[str, Any] = {"meta": meta, "rows": []}
    with Progress(*columns, console=console, transient=True) as progress:
        for key in progress.track(chosen.keys, description="works"):
            results["rows"] += measure(key, size, chosen.rounds, chosen.warm, progress)
            if chosen.json:  # what there is so far
                chosen.json.write_text(json.dumps(results, indent=1))
    return results


def main(given: list[str] | None = None, size: Size = Size()) -> None:  # noqa: B008
    chosen = arguments(given)
    console = Console(width=None if os.isatty(1) else 130)
    results = json.loads(chosen.source.read_text()) if chosen.source else run(chosen, size, console)
    meta = results["meta"]
    console.print(f"torch {meta['torch']}, {meta['device']}, {meta['threads']} threads, {meta['rounds']} rounds")
    groups = grouped(results["rows"])
    for rows in groups:
        console.print(table(rows))
    console.print(goals(groups))
    if chosen.plot:
        draw(results["rows"], chosen.plot)


if __name__ == "__main__":
    main()
