"""Whole models with sites, to be compiled for a GPU, and run in eager on the CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

import ste_compile

with mock.patch.dict(os.environ):  # the example turns torch's caches off, for whatever this process starts later too
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    import morphogenetic
    import workloads

FEATURES = 32
Model = tuple[nn.Module, tuple[Tensor, ...]]


def morphogenetic_host() -> Model:
    """Channels-last convolutions, and seeds of convolutions and of a norm."""
    torch.manual_seed(0)
    images = torch.randn(2, 1, 16, 16).to(memory_format=torch.channels_last)
    return morphogenetic.Host(4).to(memory_format=torch.channels_last), (images,)


class SeededBlock(nn.Module):
    """Attention, norms and an MLP, with an MLP for a seed."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.seed, self.head = workloads.Block(FEATURES), workloads.mlp(FEATURES), nn.Linear(FEATURES, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(x)
        result: Tensor = self.head(ste_compile.ste_forward(h, self.seed(h.detach())))
        return result


def transformer_block() -> Model:
    torch.manual_seed(0)
    return SeededBlock(), (torch.randn(2, 16, FEATURES),)


MODELS: dict[str, Callable[[], Model]] = {each.__name__: each for each in (morphogenetic_host, transformer_block)}
