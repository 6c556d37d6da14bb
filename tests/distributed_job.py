"""One rank of the job that `test_distributed.py` launches: trains a model in each parallelism, eager and compiled, and writes what
came of it to `FOLDER/rank_R.json`.

    torchrun --standalone --nproc-per-node 2 tests/distributed_job.py FOLDER
"""

import copy
import hashlib
import itertools
import json
import pathlib
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import ste_compile

WIDTH = 256  # a block has 1 MiB of weights, which is DDP's first bucket
LEVELS = ("exact", "finite")


def linear():
    return nn.Linear(WIDTH, WIDTH, bias=False)  # (stock Inductor 2.13 fails on the CPU on a bias's gradient in bfloat16)


class Block(nn.Module):
    """A residual block, with a seed that reads its result."""

    def __init__(self):
        super().__init__()
        self.up, self.down = linear(), linear()
        self.seed = nn.Sequential(linear(), nn.Tanh(), linear())

    def forward(self, h):
        h = h + self.down(F.gelu(self.up(h)))
        return ste_compile.ste_forward(h, self.seed(h.detach()))


class Inner(nn.Module):
    """A seed on the hidden layer: under tensor parallelism both operands of the site are DTensors, sharded alike."""

    def __init__(self):
        super().__init__()
        self.up, self.seed, self.down = linear(), linear(), linear()

    def forward(self, h):
        return h + self.down(ste_compile.ste_forward(self.up(h).relu(), self.seed(h.detach()).tanh()))


class Far(nn.Module):
    """A seed computed first and joined last: DDP's buckets end between the two."""

    def __init__(self):
        super().__init__()
        self.seed = nn.Sequential(linear(), nn.Tanh(), linear())
        self.layers = nn.ModuleList(linear() for _ in range(6))

    def forward(self, h):
        seed = self.seed(h)
        for layer in self.layers:
            h = h + layer(h).relu()
        return ste_compile.ste_forward(h, seed)


class Model(nn.Sequential):
    """Blocks, one after another, in one graph: torch compiles no frame of its own modules."""

    def forward(self, h):
        for block in self:
            h = block(h)
        return h


def ddp(model):
    return DistributedDataParallel(model, bucket_cap_mb=1)


def fsdp(model):
    for part in (*model, model):
        fully_shard(part, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    return model


def tp(model):
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel(), "seed.0": ColwiseParallel(), "seed.2": RowwiseParallel()}
    inner = {name: ColwiseParallel(use_local_output=False) for name in ("up", "seed")} | {"down": RowwiseParallel()}
    for block in model:
        parallelize_module(block, init_device_mesh("cpu", (2,)), inner if isinstance(block, Inner) else plan)
    return model


MODELS = {  # name -> how it is distributed, and what of
    "ddp": (ddp, (Block, Block)),
    "far": (ddp, (Far,)),
    "fsdp": (fsdp, (Block, Block)),
    "tp": (tp, (Block, Inner)),
}


def train(model, backend=None, options=None):
    """Three steps of a fresh copy, every rank on data of its own where it is not tensor parallel: its losses and parameters."""
    torch._dynamo.reset()
    whole, sharded = model, isinstance(model, FSDPModule)
    if backend and sharded:
        for block in model:  # as torchtitan does
            block.compile(backend=backend, options=options)
    elif backend:
        model = torch.compile(model, backend=backend, options=options)
    tensor_parallel = not sharded and any(isinstance(p, DTensor) for p in whole.parameters())
    generator = torch.Generator().manual_seed(0 if tensor_parallel else dist.get_rank())
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(3):
        loss = model(torch.randn(8, WIDTH, generator=generator)).float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    values = [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for p in whole.parameters()]
    return losses, hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()


def trained(folder):
    results = {}
    for name, (distribute, blocks) in MODELS.items():
        torch.manual_seed(0)
        model = Model(*(block() for block in blocks))
        runs = {"eager": (None, None)}
        for level in LEVELS:
            runs[level] = "ste_aot_eager", {"numerics": level, "dump": folder / "dumps" / name / level}
        if name == "fsdp":
            runs |= {"stock, Inductor": ("inductor", None), "finite, Inductor": ("ste", {"numerics": "finite"})}
        results[name] = {run: train(distribute(copy.deepcopy(model)), *how) for run, how in runs.items()}
    return results


def placed(tensor, placement, mesh):
    """A DTensor of this value: as a pending sum, half of it on each of two ranks."""
    if isinstance(placement, Partial):
        return DTensor.from_local(tensor / 2, mesh, [placement])
    return distribute_tensor(tensor, mesh, [placement])


def called(name, operands, placements, *others):
    """One call of an operator, and its backward, on DTensors and on whole tensors: placement, collectives, whether all is equal."""
    operator, mesh = getattr(torch.ops.ste_compile, name), init_device_mesh("cpu", (2,))
    theirs = [operand.clone().requires_grad_() for operand in operands]
    ours = [placed(o, p, mesh).requires_grad_() for o, p in zip(operands, placements)]
    arguments = [([*t[:1], t[1:]] if name == "after" else t) for t in (theirs, ours)]
    with CommDebugMode() as communication:
        result = operator(*arguments[1], *others)
    wanted = operator(*arguments[0], *others)
    equal = torch.equal(result.full_tensor(), wanted) and (result.dtype, result.shape) == (wanted.dtype, wanted.shape)
    if name != "after":
        result.sum().backward()
        wanted.sum().backward()
        equal &= all(torch.equal(o.grad.full_tensor(), t.grad) and o.grad.dtype == t.grad.dtype for o, t in zip(ours, theirs))
    return str(result.placements[0]), sorted(str(each).split(".")[-1] for each in communication.get_comm_counts()), equal


def sharded():
    """{case: what `called` gives}"""
    torch.manual_seed(0)
    host, seed = torch.randn(5, 6).bfloat16(), torch.randn(5, 6)  # 3 rows and 2
    s0, s1, whole, pending = Shard(0), Shard(1), Replicate(), Partial()
    results = {}
    for dtype, order in itertools.product((None, torch.bfloat16, torch.float64), ("v + (s - s)", "(v - s) + s", "(v + s) - s")):
        for pair in ((s0, s0), (s1, s1), (s0, whole), (whole, s1), (whole, whole)):
            results[f"{pair} {order} {dtype}"] = called("straight_through", (host, seed), pair, order, dtype)
    broadcast = {
        "a row": ((5, 6), (6,), s1, s0),
        "a row, whole": ((5, 6), (6,), s0, whole),
        "a column": ((5, 6), (5, 1), s0, s0),
        "a column, whole": ((5, 6), (5, 1), s1, whole),
        "a number": ((5, 6), (), s0, whole),
        "negative": ((2, 4), (3, 2, 4), Shard(-1), Shard(-1)),
        "outer": ((5, 1), (1, 4), s0, whole),
        "more dimensions": ((4,), (3, 4), s0, s1),
        "fewer rows than ranks": ((1, 6), (1, 6), s0, s0),
    }
    for case, (left, right, *pair) in broadcast.items():
        results[case] = called("straight_through", (torch.randn(left), torch.randn(right)), pair, "(v - s) + s")
    for case, pair in {
        "pending": (pending, pending),
        "pending value": (pending, s0),
        "pending surrogate": (whole, pending),
    }.items():
        results[case] = called("straight_through", (host.float(), seed), pair, "v + (s - s)")
    for placement in (s0, s1, whole, pending):
        results[f"rounded {placement}"] = called("rounded", (seed,), (placement,))
        results[f"after {placement}"] = called("after", (seed, seed[:, :4], host), (placement, s1, pending))
    return results


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = pathlib.Path(sys.argv[1])
    results = {"hash": hash("ste"), "sharded": sharded(), "trained": trained(folder)}
    (folder / f"rank_{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()
