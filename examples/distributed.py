"""Train a small transformer with seeds on several ranks, and see that a rank computes what it does in eager, and keeps less.

Each block of the host has a seed at its hidden layer, joined through a straight-through estimator. Contestants: eager, stock
torch.compile, and ste-compile, all from one start, on scikit-learn's handwritten digits.

    torchrun --nproc-per-node 2 examples/distributed.py --parallel ddp                    # on CUDA where there is one
    torchrun --nproc-per-node 2 examples/distributed.py --parallel fsdp --numerics exact  # bf16, compiled block by block
    torchrun --nproc-per-node 2 examples/distributed.py --parallel tp
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
import typing
from collections.abc import Callable

# A graph from the cache ran no pass, and then there would be no sites to count.
os.environ.update(TORCHINDUCTOR_FX_GRAPH_CACHE="0", TORCHINDUCTOR_AUTOGRAD_CACHE="0")

import rich.box
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import ste_compile

WIDTH, HEADS, BATCH = 128, 4, 128
COMMAND = "torchrun --nproc-per-node 2 examples/distributed.py --parallel ddp"


class Block(nn.Module):
    """Attention and an MLP, whose hidden layer has a seed. Tensor parallelism splits the heads and the hidden layer, so that no
    rank has to wait for another between a seed and its site."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, elementwise_affine=False)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.seed = (nn.Linear(WIDTH, 4 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        x = self.norm(h)
        q, k, v = (each(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for each in (self.q, self.k, self.v))
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = self.norm(h)
        return h + self.down(ste_compile.ste_forward(F.gelu(self.up(x)), self.seed(x.detach()).tanh()))


class Host(nn.Module):
    """Reads an image as eight rows of eight pixels."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, WIDTH, bias=False), nn.Linear(WIDTH, 10, bias=False)
        self.place = nn.Parameter(torch.randn(8, WIDTH) / 8)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, images: Tensor) -> Tensor:
        h = self.embed(images) + self.place
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean(1))


def ddp(model: Host, device: torch.device) -> nn.Module:
    return DistributedDataParallel(model, bucket_cap_mb=1)  # small buckets, so that torch cuts the graph between them


def fsdp(model: Host, device: torch.device) -> nn.Module:
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    return model


def tp(model: Host, device: torch.device) -> nn.Module:
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    plan = dict.fromkeys(("q", "k", "v", "up", "seed"), ColwiseParallel()) | dict.fromkeys(("out", "down"), RowwiseParallel())
    for block in model.blocks:
        parallelize_module(block, mesh, plan)
    return model


PARALLEL = {"ddp": ddp, "fsdp": fsdp, "tp": tp}


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Contestant:
    """One way to run the model: its own weights and optimiser, from a common start."""

    def __init__(self, name: str, model: Host, parallel: str, device: torch.device, backend: str | Callable | None) -> None:
        self.name, self.device = name, device
        self.model = self.forward = PARALLEL[parallel](copy.deepcopy(model), device)
        if backend and parallel == "fsdp":  # FSDP's gathering of parameters stays between the compiled blocks
            for block in self.model.blocks:
                block.compile(backend=backend)
        elif backend:
            self.forward = torch.compile(self.model, backend=backend)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.losses: list[float] = []
        self.times: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        start = self.clock()
        loss = F.cross_entropy(self.forward(images).float(), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.times.append(self.clock() - start)
        self.losses.append(loss.item())

    def first(self, images: Tensor, labels: Tensor) -> None:
        """Compile, and note what is saved for the backward and what is done to the sites."""
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            memory = local(tensor).untyped_storage()
            if memory.data_ptr() not in {local(p).untyped_storage().data_ptr() for p in self.model.parameters()}:
                saved[memory.data_ptr()] = memory.nbytes()
            return tensor

        with ste_compile.collect() as recorder, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.step(images, labels)
        self.saved, self.sites = sum(saved.values()), [site.action for site in recorder.sites()]
        self.times.clear()

    def parameters(self) -> list[Tensor]:
        return [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for p in self.model.parameters()]

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def batches(steps: int, parallel: str, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """A batch a step: of data parallel ranks each has its own part of it, of tensor parallel ones all have all of it."""
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32, device=device) / 16, torch.tensor(data.target, device=device)
    rank, ranks = (0, 1) if parallel == "tp" else (dist.get_rank(), dist.get_world_size())
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(device)
    rows = [order[torch.arange(i * BATCH + rank, (i + 1) * BATCH, ranks, device=device) % len(order)] for i in range(steps)]
    return [(images[at], labels[at]) for at in rows]


def distance(ours: Contestant, eager: Contestant) -> float:
    """The largest relative distance (2-norm) of a parameter from eager's."""
    return max(((o - e).norm() / e.norm()).item() for o, e in zip(ours.parameters(), eager.parameters()))


def table(contestants: list[Contestant], parallel: str) -> Table:
    eager, stock = contestants[:2]
    result = Table(
        title=f"{parallel}, rank 0 of {dist.get_world_size()}", title_justify="left", box=rich.box.SIMPLE,
        caption="times: medians of interleaved steps; saved: for the backward; cancelled, fused: sites of the compiled graphs "
        "(fsdp's equal blocks share one); parameters: distance from eager's, at the end",
    )  # fmt: skip
    for heading in ("", "first loss", "last loss", "step ms", "/stock", "saved MiB", "cancelled", "fused", "parameters"):
        result.add_column(heading, justify="right" if heading else "left")
    for c in contestants:
        ratio = statistics.median(a / b for a, b in zip(c.times, stock.times))
        counts = [str(c.sites.count(action)) if c.sites else "-" for action in ("cancelled", "fused")]
        result.add_row(
            c.name, f"{c.losses[0]:.4f}", f"{c.losses[-1]:.4f}", f"{statistics.median(c.times) * 1e3:.1f}", f"{ratio:.2f}",
            f"{c.saved / 2**20:.2f}", *counts, f"{distance(c, eager):.0e}",
        )  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", choices=PARALLEL, default="ddp", help="data, fully sharded or tensor parallel (ddp)")
    parser.add_argument("--numerics", choices=typing.get_args(ste_compile.Numerics), default="finite", help="the level (finite)")
    parser.add_argument("--steps", type=int, default=30, help="training steps of each contestant, 2 or more (30)")
    parser.add_argument("--blocks", type=int, default=3, help="blocks of the host, each with a seed (3)")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error(f"this is one rank of a job; torchrun starts them all: {COMMAND}")
    if arguments.steps < 2 or arguments.blocks < 1:
        parser.error(f"--steps must be 2 or more and --blocks 1, got {arguments.steps} and {arguments.blocks}")
    ranks, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if arguments.parallel == "tp" and HEADS % ranks:
        parser.error(f"--parallel tp splits {HEADS} heads evenly: --nproc-per-node 1, 2 or 4, got {ranks} ranks")
    if 0 < (gpus := torch.cuda.device_count()) < here:
        parser.error(f"{here} ranks need as many GPUs, and there are {gpus}; with CUDA_VISIBLE_DEVICES= it runs on the CPU")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        torch.manual_seed(0)
        model = Host(arguments.blocks).to(device)
        backends = {"eager": None, "stock": "inductor", arguments.numerics: ste_compile.backend(numerics=arguments.numerics)}
        contestants = [Contestant(name, model, arguments.parallel, device, backend) for name, backend in backends.items()]
        data = batches(arguments.steps, arguments.parallel, device)
        for contestant in contestants:
            contestant.first(*data[0])
        for batch in data[1:]:
            for contestant in contestants:  # interleaved, so that a machine that slows down slows all
                contestant.step(*batch)
        result = table(contestants, arguments.parallel)
        if dist.get_rank() == 0:
            console = Console(width=None if os.isatty(1) else 120)
            console.print(f"torch {torch.__version__}, {device.type}, batch {BATCH}")
            console.print(result)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
