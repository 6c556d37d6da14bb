"""The contestants of `benchmark.py`: ways to run one model, and what is measured of each."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from compare import LEVELS, compiled, own_forward, saved_bytes
from estimators import by_hand
from torch import Tensor, nn
from workloads import WORK, Size, Work

CONTESTANTS = ("eager", "stock", "autograd.Function", *LEVELS, "host alone")
TIMES = ("step", "forward", "backward", "inference")
BURST = 10.0  # milliseconds of inferences in a row, at least one
Key = tuple[str, str, int]  # work, kind, seeds


class Contestant:
    """One way to run one model, with weights and compiled code of its own."""

    def __init__(self, name: str, model: nn.Module, inputs: tuple[Tensor, ...], work: Work, cached: bool) -> None:
        self.name, self.inputs, self.device, self.autocast = name, inputs, inputs[0].device, work.autocast
        self.model = copy.deepcopy(model)
        if name == "autograd.Function":
            by_hand(self.model)
        if name == "host alone":
            self.model.seeds = nn.ModuleList()
        own_forward(self.model)
        self.compiled = compiled(name, self.model, draws=work.draws, cached=cached)
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
        torch.manual_seed(len(self.times["step"]))  # others with each step, the same to all contestants

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

    def infer(self) -> Any:
        self.clear()
        with self.mode(training=False):
            start = mark(self.device)
            result = self.compiled(*self.inputs)
            middle = mark(self.device)
            # As in use, an inference follows one of its own kind, which leaves caches and allocator as it finds them.
            times = math.ceil(BURST / milliseconds(start, middle))
            middle = mark(self.device)
            for _ in range(times):
                self.compiled(*self.inputs)
            end = mark(self.device)
        self.times["inference"].append(milliseconds(middle, end) / times)
        return result

    def first(self) -> None:
        """Compile, note the loss and the gradients, then what a step saves and the most it allocates."""
        self.loss = self.step().float().mean().item()
        self.gradients = {name: leaf.grad.clone() for name, leaf in self.leaves.items() if leaf.grad is not None}
        self.infer()
        self.saved, self.peak = saved_by(self), peak_of(self.step, self.device)

    def forget(self) -> None:
        """What was measured while warming up, and the gradients, once they are compared."""
        self.gradients.clear()
        for times in self.times.values():
            times.clear()


def keep_memory() -> None:
    """Have glibc keep what is freed. By default it gives large blocks back to the system, which clears their pages when it hands
    them out again: up to a quarter of a small step's time, and so unevenly that a row moved by 0.2 from one run to the next."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        for option, value in ((-1, -1), (-4, 0)):  # M_TRIM_THRESHOLD: never; M_MMAP_MAX: none (malloc.h)
            mallopt(option, value)


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def cache(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Compile into a folder. Inductor would set the second variable itself, once and for all."""
    return environment(TORCHINDUCTOR_CACHE_DIR=str(folder), TRITON_CACHE_DIR=str(folder / "triton"))


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
    return saved_bytes(contestant.forward, (*contestant.model.parameters(), *contestant.inputs))


def peak_of(run: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that `run` has allocated at any time, above what there was when it began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    # The profiler announces itself on standard error unless told not to.
    with environment(KINETO_LOG_LEVEL="99"), torch.profiler.profile(activities=cpu, profile_memory=True) as profiler:
        run()
    # Of the profiler's public results only the trace has each allocation and release apart.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return max(itertools.accumulate((event["args"]["Bytes"] for event in events), initial=0))


def contestants_of(key: Key, size: Size, names: tuple[str, ...], cached: bool = False) -> list[Contestant]:
    """From a common start, on CUDA where there is one. `cached`: what Inductor has compiled before is not compiled again."""
    name, kind, seeds = key
    work = WORK[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model, inputs = work.make(kind, seeds, size)
    inputs = tuple(t.detach().to(device).requires_grad_(t.requires_grad) for t in inputs)
    return [Contestant(name, model.to(device), inputs, work, cached) for name in names]


def cold(key: Key, size: Size, name: str, folder: Path) -> float:
    """Seconds of the first forward and backward with an empty cache; to be run in a fresh process, as Inductor remembers its
    kernels in memory too."""
    (contestant,) = contestants_of(key, size, (name,))
    torch.compile(nn.Identity(), options={"fx_graph_cache": False})  # imports Inductor, as stock's contestant has by now
    with cache(folder):
        start = time.perf_counter()
        contestant.step()
        return time.perf_counter() - start


def race(contestants: list[Contestant], turn: int) -> float:
    """One step and some inferences of each, beginning with another one each turn. Returns the seconds it took."""
    start, first = time.perf_counter(), turn % len(contestants)
    for contestant in contestants[first:] + contestants[:first]:
        contestant.step()
        contestant.infer()
    return time.perf_counter() - start
