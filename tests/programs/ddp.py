"""A seed beside a host under DistributedDataParallel: for torchrun."""

import gc

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.host, self.seed = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x):
        h = self.host(x)
        s = self.seed(h.detach())
        return h + (s - s.detach())


model = torch.compile(DistributedDataParallel(Model()))
torch.manual_seed(dist.get_rank())
for step in range(2):
    loss = model(torch.randn(4, 8)).pow(2).mean()
    loss.backward()
    print(f"{dist.get_rank()} {step} {loss.item()}\n", end="")  # in one piece
del model, loss  # torch 2.14 may abort at exit where the reducer outlives its group
gc.collect()
dist.destroy_process_group()
