"""The estimators of `benchmark.py`, twice: as public code writes them, and by hand as `torch.autograd.Function`s."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ste_compile


class Expressions:
    """The estimators as public code writes them."""

    join = staticmethod(ste_compile.ste_forward)

    @staticmethod
    def through(x: Tensor, value: Tensor) -> Tensor:
        return x + (value - x).detach()

    @staticmethod
    def scaled(x: Tensor, factor: float) -> Tensor:
        return (x - x * factor).detach() + x * factor

    @staticmethod
    def gumbel(logits: Tensor) -> Tensor:
        return F.gumbel_softmax(logits, hard=True)


class Straight(torch.autograd.Function):
    """The value of one tensor, its gradient to both."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, surrogate: Tensor) -> Tensor:
        ctx.dtype = surrogate.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.to(ctx.dtype)


class Scaled(torch.autograd.Function):
    """A tensor whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class ByHand:
    """The same estimators, as somebody would write them who knows what they cost."""

    join = staticmethod(Straight.apply)
    scaled = staticmethod(Scaled.apply)

    @staticmethod
    def through(x: Tensor, value: Tensor) -> Tensor:
        return Straight.apply(value.detach(), x)

    @staticmethod
    def gumbel(logits: Tensor) -> Tensor:
        soft = F.gumbel_softmax(logits)
        return Straight.apply(F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype), soft)


class Estimating(nn.Module):
    ste: Any = Expressions


def by_hand(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Estimating):
            module.ste = ByHand
