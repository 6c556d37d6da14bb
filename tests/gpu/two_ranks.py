"""One rank of two that train a model with a seed, over NCCL on GPUs (gloo on a CPU): eager's parameters, bit for bit."""

import copy
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import ste_compile

WIDTH = 64


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.host, self.seed = nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, x):
        h = self.host(x).relu()
        return ste_compile.ste_forward(h, self.seed(h.detach()))


def sharded(model, device):
    for block in model:
        fully_shard(block)
    fully_shard(model)
    return model


def replicated(model, device):
    return DistributedDataParallel(model)


def trained(model, device, level):
    if level:
        torch._dynamo.reset()
        run = torch.compile(model, backend="ste_aot_eager", options={"numerics": level})
    else:
        run = model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(3):
        run(torch.randn(16, WIDTH, generator=generator).to(device)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


def main(kind):
    device = torch.device(kind, int(os.environ["LOCAL_RANK"]) if kind == "cuda" else 0)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block()).to(device)
    for distribute in (replicated, sharded):
        eager = trained(distribute(copy.deepcopy(model), device), device, None)
        for level in ("exact", "finite"):
            ours = trained(distribute(copy.deepcopy(model), device), device, level)
            assert all(map(torch.equal, ours, eager)), f"{distribute.__name__}, {level}: the parameters are not eager's"
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
