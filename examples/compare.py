"""What the examples have in common: eager, stock torch.compile and each level of ste-compile train one model on scikit-learn's
digits, from the same weights, with the same batches and random numbers, step by step in turn; a table says what each did.
A model in training mode returns its loss, in eval mode its result.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import statistics
import time
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import rich.box
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ste_compile

matplotlib.use("Agg")
matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150})

LEVELS = typing.get_args(ste_compile.Numerics)
COLORS = dict(zip(("eager", "stock", *LEVELS), ("#9a9a9a", "#f0c264", "#c8384c", "#00798c", "#0b1f4b", "#7a4fa3")))
Batch = tuple[Tensor, ...]


def own_forward(model: nn.Module) -> None:
    """Give a model a code object of its own. Dynamo keeps the compiled versions of one code object in one list: contestants that
    shared it would check each other's guards, and run into the recompile limit."""
    own = types.FunctionType(model.forward.__code__.replace(), model.forward.__globals__, "forward")
    model.__class__ = type(type(model).__name__, (type(model),), {"forward": own})


def compiled(
    name: str, model: Callable[..., Any], generate: bool = True, draws: bool = True, cached: bool = False
) -> Callable[..., Any]:
    """A model or function as that contestant runs it; without `generate` in eager's kernels, which compiles at once."""
    if name == "eager":
        return model
    # No graph from a cache, so that each contestant is compiled, unless that takes too long; eager's random numbers, so that all
    # compute the same loss.
    # (Not where nothing is drawn: told so, torch takes attention for random, and keeps one that nothing reads: 2.13.)
    options = {"fx_graph_cache": cached, "fallback_random": draws} if generate else {}
    if name in LEVELS:
        return torch.compile(model, backend="ste" if generate else "ste_aot_eager", options={"numerics": name, **options})
    return torch.compile(model, options=options) if generate else torch.compile(model, backend="aot_eager")


class Contestant:
    """One way to train one model, compiled for batches like `batch`, and what it did: losses and times of its steps, bytes that
    one saves for the backward, its sites in training by what was done to them, kernels and bytes, what an example measures."""

    def __init__(self, name: str, model: nn.Module, batch: Batch, rate: float, autocast: bool, generate: bool) -> None:
        self.name, self.autocast, self.generate = name, autocast, generate
        self.model = copy.deepcopy(model)
        own_forward(self.model)
        self.compiled = compiled(name, self.model, generate)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), rate)
        self.device = next(self.model.parameters()).device
        self.losses, self.times = [], {"step": [], "inference": []}
        self.counts, self.measured = {}, {}
        with ste_compile.collect(graphs=False) as recorder:
            loss = self.loss(*batch)
            loss.backward()
            gradients = {name: leaf.grad for name, leaf in self.model.named_parameters() if leaf.grad is not None}
            self.first = types.SimpleNamespace(loss=loss.item(), gradients=gradients)
            self.optimizer.zero_grad()
            self.result(*batch)
        actions = [site.action for graph in recorder.report().graphs if graph.training for site in graph.sites]
        self.sites = {action: actions.count(action) for action in ("cancelled", "fused", "left")}
        self.saved = saved_bytes(lambda: self.loss(*batch), (*self.model.parameters(), *batch))

    @contextlib.contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        self.model.train(training)
        torch.manual_seed(len(self.losses))  # others with each step, the same to all contestants
        with torch.set_grad_enabled(training), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            yield

    def loss(self, *batch: Tensor) -> Tensor:
        with self.mode(training=True):
            return self.compiled(*batch)

    def result(self, *batch: Tensor) -> Any:
        with self.mode(training=False):
            return self.compiled(*batch)

    def step(self, *batch: Tensor) -> None:
        """Forward, backward, AdamW; the time is without the last."""
        start = milliseconds(self.device)
        loss = self.loss(*batch)
        loss.backward()
        self.times["step"].append(milliseconds(self.device) - start)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    def infer(self, *batch: Tensor) -> None:
        with self.mode(training=False):
            start = milliseconds(self.device)
            self.compiled(*batch)
            middle = milliseconds(self.device)
            # For 10 ms: as in use, an inference follows one of its own kind, which leaves caches and allocator as it finds them.
            times = math.ceil(10 / (middle - start))
            for _ in range(times):
                self.compiled(*batch)
            self.times["inference"].append((milliseconds(self.device) - middle) / times)

    def run(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """What a function of the model's gives, run as the model is."""
        own = types.FunctionType(function.__code__.replace(), function.__globals__)  # see own_forward
        with self.mode(training=False):
            return compiled(self.name, own, self.generate)(*inputs)

    def accuracy(self, tests: list[Batch], logits: Callable[[Any], Tensor] = lambda result: result) -> float:
        """The share of test images that are classified rightly."""
        return statistics.fmean((logits(self.result(*b)).argmax(-1) == b[-1]).float().mean().item() for b in tests)


def share_and_ulp(*counts: Any) -> tuple[float, int]:
    """Of what `count_off` gave for some tensors: the share of all elements that is off, and by how many ulp at most."""
    return sum(each.off for each in counts) / sum(each.elements for each in counts), max(each.ulp_most for each in counts)


def contestants(model: nn.Module, batch: Batch, rate: float, autocast: bool = False, generate: bool = True) -> list[Contestant]:
    """The model in eager, by stock torch.compile and at each level, compiled for batches of this shape, to train with AdamW.
    Without `generate` no code is generated and no kernel counted: most tests run it so."""
    model = model.to(batch[0].device)
    made: dict[str, Contestant] = {}
    for name in track(("eager", "stock", *LEVELS), "compile", console=Console(stderr=True), transient=True):
        made[name] = Contestant(name, model, batch, rate, autocast, generate)
        if name == "finite" and made["finite"].sites == made["exact"].sites:  # then they are the same graphs
            made["finite"].counts = made["exact"].counts
        elif generate and name in LEVELS:
            made[name].counts, made["stock"].counts = counted(made[name], batch, name)
    if generate:  # in eager's kernels stock is eager, and allows nothing
        check({name: each.first for name, each in made.items()})
    for each in made.values():
        del each.first
    return list(made.values())


def check(contestants: dict[str, Any]) -> None:
    """`loss` and `gradients` against eager's. (The host alone has the same loss, and the gradients of its own parameters.) What
    the sites add must vanish in what Inductor's own fusions change: each may be as far from eager as stock torch.compile is, and
    half as much again."""
    eager, stock = contestants["eager"], contestants["stock"]
    allowed = 1.5 * distance(stock.gradients, eager.gradients) + 1e-3
    for name, contestant in contestants.items():
        missing = eager.gradients.keys() - contestant.gradients.keys()
        if missing and name != "host alone":
            raise AssertionError(f"{name}: no gradients of {', '.join(sorted(missing))}")
        far = distance(contestant.gradients, eager.gradients)
        if far > allowed:
            raise AssertionError(f"{name}: gradients are {far:.2e} from eager's, stock's allow {allowed:.2e}")
        if abs(contestant.loss - eager.loss) > 1.5 * abs(stock.loss - eager.loss) + 1e-3:
            raise AssertionError(f"{name}: the loss is {contestant.loss}, eager's {eager.loss}, stock's {stock.loss}")


def distance(ours: dict[str, Tensor], eager: dict[str, Tensor]) -> float:
    """The largest relative distance (2-norm) of a gradient from eager's."""
    return max(((ours[n] - eager[n]).norm() / eager[n].norm().clamp_min(1e-12)).item() for n in ours)


def in_turn(contestants: list[Contestant], batches: list[Batch], epochs: int) -> Iterator[tuple[Contestant, Batch]]:
    """Every contestant with every batch, beginning with another one each time: a machine that slows down slows all."""
    for turn in track(range(epochs * len(batches)), "train", console=Console(stderr=True), transient=True):
        first = turn % len(contestants)
        for contestant in contestants[first:] + contestants[:first]:
            yield contestant, batches[turn % len(batches)]


def milliseconds(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() * 1e3


def saved_bytes(forward: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Bytes that a forward keeps for the backward, besides tensors that are known: parameters and inputs."""
    packed: list[weakref.ref[Tensor]] = []  # each goes with its node: what is computed only to be detached is not kept

    def pack(tensor: Tensor) -> Tensor:
        packed.append(weakref.ref(kept := tensor.detach()))  # an operator's own result would hold the node that holds it
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    storages = [kept.untyped_storage() for kept in (ref() for ref in packed) if kept is not None]
    del result  # and its graph with it
    besides = {tensor.untyped_storage().data_ptr() for tensor in known}
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in besides}.values())


def counted(contestant: Any, batch: Batch, numerics: ste_compile.Numerics) -> tuple[dict[str, int], dict[str, int]]:
    """Kernels and bytes, forward, backward and inference apart: with the passes, and as stock compiles the same model.
    (Nothing is reported of a graph that computes nothing, as the backward of a copy.)"""
    ours = {f"{figure} {part}": 0 for part in ("forward", "backward", "inference") for figure in ("kernels", "bytes")}
    stock = ours.copy()
    for training in (True, False):
        with contestant.mode(training):
            report = ste_compile.explain(contestant.model, *batch, numerics=numerics)
        for part in (part for graph in report.graphs for part in graph.parts):
            for row, figures in ((ours, part.ours), (stock, part.stock)):
                row[f"kernels {part.kind}"] += figures.kernels or 0
                row[f"bytes {part.kind}"] += (figures.bytes_read or 0) + (figures.bytes_written or 0)
    return ours, stock


def arguments(description: str, given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", default="8", help="of training for each contestant (default: 8)")
    parser.add_argument("--batch", default="64", help="images in a step, 2 to 256 (default: 64)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the picture of this example (.png, .svg or .pdf)")
    chosen = parser.parse_args(given)
    for name, allowed, values in (("epochs", "at least 1", range(1, 10**9)), ("batch", "from 2 to 256", range(2, 257))):
        text = getattr(chosen, name)
        if not text.isdecimal() or int(text) not in values:
            parser.error(f"argument --{name}: must be a whole number, {allowed}, got {text!r}")
        setattr(chosen, name, int(text))
    if chosen.plot and not chosen.plot.parent.is_dir():  # not found out after the training
        parser.error(f"argument --plot: there is no folder {chosen.plot.parent}")
    if chosen.plot and chosen.plot.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"argument --plot: must end in .png, .svg or .pdf, got {str(chosen.plot)!r}")
    return chosen


def digits(batch: int, size: int) -> tuple[list[Batch], list[Batch]]:
    """scikit-learn's 1797 digits, enlarged from 8x8 to `size`: batches of images and labels to train on, and a fifth to test."""
    data, device = load_digits(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, (size, size), mode="bilinear")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    batches = zip(images[order].to(device).split(batch), torch.tensor(data.target)[order].to(device).split(batch))
    whole = [each for each in batches if len(each[0]) == batch]  # one shape, one compilation
    tests = max(1, len(whole) // 5)
    return whole[tests:], whole[:tests]


def show(title: str, contestants: list[Contestant], columns: dict[str, str], batches: int, note: str) -> None:
    """A table. `columns` are those of `measured`, with the format of each; `batches` are those of an epoch."""
    eager, stock = contestants[:2]
    step, inference = map(statistics.median, stock.times.values())
    heading = f"{title}: stock steps in {step:.3g} ms, infers in {inference:.3g} ms, saves {stock.saved / 2**20:.2f} MiB"
    caption = (
        "loss: mean of the last epoch; from eager: mean distance of the two curves; saved: bytes kept for the backward;\n"
        "kernels, MiB read and written: Inductor's count; times: medians of runs in turn, a step without its optimizer"
    )
    table = Table(title=heading, title_justify="left", caption=caption, caption_justify="left", box=rich.box.SIMPLE, padding=0)
    for column in (
        "", *columns, "loss", "from\neager", "step\n/stock", "infer\n/stock", "saved\n/stock", "kernels\ntrain", "\ninfer",
        "MiB\ntrain", "\ninfer", "sites\ncancelled", "\nfused",
    ):  # fmt: skip
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for each in contestants:
        apart = statistics.fmean(abs(a - b) for a, b in zip(each.losses, eager.losses))
        amounts = [
            format(sum(each.counts[f"{figure} {part}"] for part in parts) / unit, form) if each.counts else "-"
            for figure, unit, form in (("kernels", 1, ".0f"), ("bytes", 2**20, ".2f"))
            for parts in (("forward", "backward"), ("inference",))
        ]
        table.add_row(
            each.name,
            *(format(each.measured[column], form) for column, form in columns.items()),
            f"{statistics.fmean(each.losses[-batches:]):.4f}", f"{apart:.0e}" if apart else "0",
            *(f"{statistics.median(a / b for a, b in zip(each.times[t], stock.times[t])):.2f}" for t in each.times),
            f"{each.saved / stock.saved:.2f}", *amounts,
            *(str(each.sites[action]) if each.name in LEVELS else "-" for action in ("cancelled", "fused")),
        )  # fmt: skip
    console = Console(width=None if os.isatty(1) else 140)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    console.print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} thread(s)")
    console.print(table)
    console.print(note, highlight=False)
