"""What `vq_vae.py`, `bitnet.py`, `lsq.py` and `gumbel_router.py` have in common: eager, stock torch.compile and each level of
ste-compile train one model on scikit-learn's digits, step by step in turn, and are shown in a table.

A model in training mode returns its loss, in eval mode its result, as those of `benchmark.py`, whose contestants these are. All
start from the same weights, see the same batches and draw the same random numbers.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import rich.box
import torch
import torch.nn.functional as F
from benchmark_contestants import LEVELS, Contestant, check, compiled, counted
from benchmark_results import INFERENCE, TRAINING, Row, number, ratio, total
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ste_compile

NAMES = ("eager", "stock", *LEVELS)
COLORS = {"eager": "#9a9a9a", "stock": "#f0c264", "exact": "#c8384c", "finite": "#00798c", "algebraic": "#0b1f4b"}
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Result:
    """What one contestant did. `counts` are kernels and bytes of its graphs, as in `benchmark.py`; `sites` those of the training
    graph, by what was done to them; `measured` is up to the example."""

    contestant: Contestant
    losses: list[float]
    measured: dict[str, float]
    counts: Row
    sites: dict[str, int]

    @property
    def name(self) -> str:
        return self.contestant.name


def arguments(description: str, given: Sequence[str] | None, epochs: int, batch: int = 64) -> argparse.Namespace:
    """--epochs, --batch and --plot."""

    def at_least(low: int, high: float = math.inf) -> Callable[[str], int]:
        def parse(text: str) -> int:
            if not text.isdecimal() or not low <= int(text) <= high:
                allowed = f"at least {low}" if high == math.inf else f"from {low} to {high:.0f}"
                raise argparse.ArgumentTypeError(f"must be a whole number, {allowed}, got {text!r}")
            return int(text)

        return parse

    def picture(text: str) -> Path:
        path = Path(text)
        if not path.parent.is_dir():  # not found out after the training
            raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
        if path.suffix not in (".png", ".svg", ".pdf"):
            raise argparse.ArgumentTypeError(f"must end in .png, .svg or .pdf, got {text!r}")
        return path

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=at_least(1), default=epochs, help=f"of training for each contestant (default: {epochs})")
    parser.add_argument("--batch", type=at_least(2, 256), default=batch, help=f"images in a step, 2 to 256 (default: {batch})")
    parser.add_argument("--plot", type=picture, metavar="FILE", help="draw the picture of this example (.png, .svg or .pdf)")
    return parser.parse_args(given)


def digits(batch: int, size: int) -> tuple[list[Batch], list[Batch]]:
    """scikit-learn's 1797 digits, enlarged from 8x8 to `size`: batches of images and labels to train on, and a fifth to test."""
    data = load_digits()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, (size, size), mode="bilinear")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    batches = zip(images[order].to(device).split(batch), torch.tensor(data.target)[order].to(device).split(batch))
    whole = [each for each in batches if len(each[0]) == batch]  # one shape, one compilation
    tests = max(1, len(whole) // 5)
    return whole[tests:], whole[:tests]


def probe(contestant: Contestant, function: Callable[..., Any], *inputs: Any) -> Any:
    """What a function of the model's gives, run as the contestant runs the model."""
    own = types.FunctionType(function.__code__.replace(), function.__globals__)  # see own_forward
    with contestant.mode(training=False):
        return compiled(contestant.name, own, contestant.draws, contestant.generate)(*inputs)


def accuracy(contestant: Contestant, tests: list[Batch], result: Callable[[Any], Tensor] = lambda logits: logits) -> float:
    """The share of test images that are classified rightly."""
    right = [(result(infer(contestant, batch)).argmax(-1) == batch[-1]).float().mean().item() for batch in tests]
    return statistics.fmean(right)


def infer(contestant: Contestant, inputs: Batch) -> Any:
    """The model's result for other inputs, not timed."""
    contestant.inputs = inputs
    result = contestant.infer()
    contestant.times["inference"].pop()
    return result


def compare(
    model: nn.Module,
    data: tuple[list[Batch], list[Batch]],
    measure: Callable[[Contestant, list[Batch]], dict[str, float]],
    epochs: int,
    autocast: bool = False,
    draws: bool = False,
    rate: float = 2e-3,
    generate: bool = True,
) -> list[Result]:
    """Train each contestant; `draws` says whether the model draws random numbers. Without `generate` no code is generated and no
    kernel counted: most tests run it so."""
    batches, tests = data
    model = model.to(batches[0][0].device)
    contestants = [Contestant(name, model, batches[0], autocast, draws, generate) for name in NAMES]
    sites, counts, losses = {}, {name: {} for name in NAMES}, {name: [] for name in NAMES}
    shown = Console(stderr=True)
    for contestant in track(contestants, "compile", console=shown, transient=True):
        with ste_compile.collect(graphs=False) as recorder:
            contestant.first()
        actions = [site.action for graph in recorder.report().graphs if graph.training for site in graph.sites]
        sites[contestant.name] = {action: actions.count(action) for action in ("cancelled", "fused", "left")}
        if contestant.name == "finite" and sites["finite"] == sites["exact"]:  # then they are the same graphs
            counts["finite"] = counts["exact"]
        elif generate and contestant.name in LEVELS:
            counts[contestant.name], counts["stock"] = counted(contestant, contestant.name)
    if generate:  # in eager's kernels stock is eager, and allows nothing
        check({contestant.name: contestant for contestant in contestants})
    optimizers = {contestant.name: torch.optim.AdamW(contestant.model.parameters(), rate) for contestant in contestants}
    for contestant in contestants:
        contestant.forget()
    for turn in track(range(epochs * len(batches)), "train", console=shown, transient=True):
        first = turn % len(contestants)
        for contestant in contestants[first:] + contestants[:first]:  # in turn, so that a machine that slows down slows all
            contestant.inputs = batches[turn % len(batches)]
            losses[contestant.name].append(contestant.step().item())
            optimizers[contestant.name].step()
            contestant.infer()
    return [Result(c, losses[c.name], measure(c, tests), counts[c.name], sites[c.name]) for c in contestants]


def save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def table(title: str, results: list[Result], columns: dict[str, str], batches: int) -> Table:
    """`columns` are those of `measured`, with the format of each; `batches` are those of an epoch."""
    eager, stock = results[:2]
    saved, *times = stock.contestant.saved, *(statistics.median(stock.contestant.times[t]) for t in ("step", "inference"))
    heading = f"{title}: stock steps in {times[0]:.3g} ms, infers in {times[1]:.3g} ms, saves {saved / 2**20:.2f} MiB"
    caption = (
        "loss: mean of the last epoch; from eager: mean distance of the two curves; saved: bytes kept for the backward;\n"
        "kernels, MiB read and written: Inductor's count; times: medians of runs in turn, a step without its optimizer"
    )
    result = Table(title=heading, title_justify="left", caption=caption, caption_justify="left", box=rich.box.SIMPLE, padding=0)
    result.add_column(no_wrap=True)
    common = (
        "loss", "from\neager", "step\n/stock", "infer\n/stock", "saved\n/stock", "kernels\ntrain", "\ninfer", "MiB\ntrain",
        "\ninfer", "sites\ncancelled", "\nfused",
    )  # fmt: skip
    for column in (*columns, *common):
        result.add_column(column, justify="right", no_wrap=True)
    for each in results:
        mine, theirs = each.contestant.times, stock.contestant.times
        apart = statistics.fmean(abs(a - b) for a, b in zip(each.losses, eager.losses))
        traffic = [total(each.counts, "bytes", parts) for parts in (TRAINING, INFERENCE)]
        result.add_row(
            each.name,
            *(format(each.measured[column], form) for column, form in columns.items()),
            f"{statistics.fmean(each.losses[-batches:]):.4f}", f"{apart:.0e}" if apart else "0",
            *(f"{statistics.median(a / b for a, b in zip(mine[t], theirs[t])):.2f}" for t in ("step", "inference")),
            number(ratio(each.contestant.saved, saved), ".2f"),
            *(number(total(each.counts, "kernels", parts), "d") for parts in (TRAINING, INFERENCE)),
            *(number(ratio(amount, 2**20), ".2f") for amount in traffic),
            *(str(each.sites[action]) if each.name in LEVELS else "-" for action in ("cancelled", "fused")),
        )  # fmt: skip
    return result


def show(title: str, results: list[Result], columns: dict[str, str], batches: int, note: str) -> None:
    console = Console(width=None if os.isatty(1) else 140)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    console.print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} thread(s)")
    console.print(table(title, results, columns, batches))
    console.print(note, highlight=False)
