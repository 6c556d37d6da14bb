"""Train a small CNN host with incubating seeds on handwritten digits, and see what the seeds cost.

A seed is a new module that learns beside a running host without changing what the host computes: it reads a detached copy of an
activation and joins through a straight-through estimator, `host + (seed - seed.detach())`. Contestants: eager, stock
torch.compile, ste-compile at each level, and the host without seeds, which is the limit.

    python examples/morphogenetic.py            # under 3 minutes on two cores; on CUDA where there is one
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Sequence

# A graph from the cache ran no pass, and then there would be no sites to count.
os.environ.update(TORCHINDUCTOR_FX_GRAPH_CACHE="0", TORCHINDUCTOR_AUTOGRAD_CACHE="0")

import compare
import rich.box
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ste_compile

WIDTH, BATCH = 48, 128
LEVELS = compare.LEVELS
CONTESTANTS = ("eager", "stock", *LEVELS, "host alone")


def conv_seed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))


class NormSeed(nn.Module):
    """Layer norm over the channels, in float32 as norms are under autocast: its result is cast where it joins the host."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return F.gelu(self.norm(h.permute(0, 2, 3, 1).float()).permute(0, 3, 1, 2))


def bottleneck_seed() -> nn.Module:
    inner = WIDTH // 4
    return nn.Sequential(
        nn.Conv2d(WIDTH, inner, 1), nn.GELU(), nn.Conv2d(inner, inner, 3, padding=1), nn.GELU(), nn.Conv2d(inner, WIDTH, 1)
    )


class ResidualSeed(nn.Module):
    """Convolution, group norm, relu, and a residual around them, on a contiguous copy of a channels-last activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.GroupNorm(8, WIDTH), nn.ReLU())

    def forward(self, h: Tensor) -> Tensor:
        h = h.contiguous()
        return h + self.layers(h)


SEEDS: tuple[Callable[[], nn.Module], ...] = (conv_seed, NormSeed, bottleneck_seed, ResidualSeed)
NAMES = ("conv", "norm", "bottleneck", "residual")


class Host(nn.Module):
    """Five residual blocks on 16x16 images; the first `seeds` of them carry a seed. (The last carries none: the host alone
    would not keep its result for the backward, so a seed that reads it would have to save it.)"""

    def __init__(self, seeds: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(5))
        self.head = nn.Linear(WIDTH * 16, 10)
        self.seeds = nn.ModuleList(make() for make in SEEDS[:seeds])

    def forward(self, images: Tensor) -> Tensor:
        h = self.stem(images).relu()
        for i, block in enumerate(self.blocks):
            h = h + block(h).relu()
            if i < len(self.seeds):
                h = ste_compile.ste_forward(h, self.seeds[i](h.detach()))
        return self.head(F.avg_pool2d(h, 4).flatten(1))


class Contestant:
    """One way to run one model: its own weights, optimiser and compiled code, from a common start."""

    def __init__(self, name: str, model: Host, device: torch.device, generate: bool) -> None:
        self.name = name
        self.model = copy.deepcopy(model)
        if name == "host alone":
            self.model.seeds = nn.ModuleList()
        compare.own_forward(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3)
        self.device = device
        self.losses: list[float] = []
        self.steps: list[float] = []
        self.inferences: list[float] = []
        self.forward = self.compiled(generate) if name != "eager" else self.model

    def compiled(self, generate: bool) -> Callable[[Tensor], Tensor]:
        if self.name in LEVELS:
            backend = "ste" if generate else "ste_aot_eager"
            return torch.compile(self.model, backend=backend, options={"numerics": self.name})
        return torch.compile(self.model, backend="inductor" if generate else "aot_eager")

    def loss_of(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return F.cross_entropy(self.forward(images), labels)

    def step(self, images: Tensor, labels: Tensor) -> None:
        start = self.clock()
        loss = self.loss_of(images, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps.append(self.clock() - start)
        self.losses.append(loss.item())

    @torch.no_grad()
    def infer(self, images: Tensor) -> Tensor:
        start = self.clock()
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.forward(images)
        self.inferences.append(self.clock() - start)
        return logits

    def first(self, images: Tensor, labels: Tensor) -> None:
        """Compile, and note what the first step saves, does to the sites, and gives as gradients."""
        with ste_compile.collect() as recorder:
            loss = self.loss_of(images, labels)
        actions = [site.action for site in recorder.sites()]
        self.sites = tuple(actions.count(action) for action in ("cancelled", "fused"))
        loss.backward()
        self.loss = loss.item()
        self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.optimizer.zero_grad()
        self.saved = compare.saved_bytes(lambda: self.loss_of(images, labels), (*self.model.parameters(), images, labels))
        self.infer(images)
        self.inferences.clear()

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def digits(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1797 digits, doubled to 16x16: training images and labels, then those of the test."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, scale_factor=2, mode="bilinear").to(device)
    labels = torch.tensor(data.target).to(device)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(device)
    train, test = order[: 11 * BATCH], order[11 * BATCH :]
    return images[train], labels[train], images[test], labels[test]


def run(seeds: int, rounds: int, device: torch.device, generate: bool, progress: Progress) -> list[Contestant]:
    torch.manual_seed(0)
    model = Host(seeds).to(device, memory_format=torch.channels_last)
    images, labels, test_images, test_labels = digits(device)
    torch.compiler.reset()
    contestants = [Contestant(name, model, device, generate) for name in CONTESTANTS]
    compiling = progress.add_task(f"{seeds} seed(s): compile", total=len(contestants))
    for contestant in contestants:
        contestant.first(images[:BATCH], labels[:BATCH])
        progress.advance(compiling)
    training = progress.add_task(f"{seeds} seed(s): train", total=rounds)
    for i in range(rounds):  # interleaved, so that a machine that slows down slows all
        at = slice((i % 11) * BATCH, (i % 11 + 1) * BATCH)
        for contestant in contestants[i % len(contestants) :] + contestants[: i % len(contestants)]:
            contestant.step(images[at], labels[at])
            contestant.infer(images[at])
            contestant.infer(images[at])
        progress.advance(training)
    for contestant in contestants:
        times = contestant.inferences.copy()
        logits = torch.cat([contestant.infer(part) for part in test_images[: 3 * BATCH].split(BATCH)])
        contestant.accuracy = (logits.argmax(1) == test_labels[: 3 * BATCH]).float().mean().item()
        contestant.inferences = times
    return contestants


def table(seeds: int, contestants: list[Contestant]) -> Table:
    eager, stock, host = contestants[0], contestants[1], contestants[-1]
    title = f"{seeds} seed(s): {', '.join(NAMES[:seeds])}"
    caption = (
        "times: medians of interleaved runs; saved: bytes kept for the backward; gradients: distance from eager's, first step"
    )
    result = Table(title=title, title_justify="left", caption=caption, box=rich.box.SIMPLE)
    for heading in (
        "", "accuracy", "step ms", "/stock", "infer ms", "/host", "saved MiB", "cancelled", "fused", "loss", "gradients",
    ):  # fmt: skip
        result.add_column(heading, justify="right" if heading else "left")
    for c in contestants:
        step, inference = statistics.median(c.steps), statistics.median(c.inferences)
        step_ratio = statistics.median(a / b for a, b in zip(c.steps, stock.steps))
        inference_ratio = statistics.median(a / b for a, b in zip(c.inferences, host.inferences))
        ours = c.name in LEVELS
        result.add_row(
            c.name, f"{c.accuracy:.1%}", f"{step * 1e3:.1f}", f"{step_ratio:.2f}", f"{inference * 1e3:.1f}",
            f"{inference_ratio:.2f}", f"{c.saved / 2**20:.2f}", str(c.sites[0]) if ours else "-",
            str(c.sites[1]) if ours else "-", f"{c.loss:.4f}",
            "-" if c is host else f"{compare.distance(c.gradients, eager.gradients):.0e}",
        )  # fmt: skip
    return result


def main(given: Sequence[str] | None = None, generate: bool = True) -> None:
    """Without `generate` the models run in eager's kernels, which compiles at once: for tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=55, help="training steps of each contestant (default: 55, five epochs)")
    rounds = parser.parse_args(given).rounds
    if rounds < 1:
        parser.error(f"argument --rounds: must be at least 1, got {rounds}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console = Console(width=None if os.isatty(1) else 120)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console.print(f"torch {torch.__version__}, {device.type}, batch {BATCH}, bf16 autocast")
    with Progress(*columns, console=console, transient=True) as progress:
        for seeds in (1, 4):
            contestants = run(seeds, rounds, device, generate, progress)
            compare.check({c.name: c for c in contestants[:5]})
            console.print(table(seeds, contestants))


if __name__ == "__main__":
    main()
