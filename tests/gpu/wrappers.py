"""What runs in processes of their own for `test_wrappers`: generating a model's code for a GPU, and interpreting it."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import ste_compile
from ste_compile.testing.gpu import CudaCode, cuda_code

from .models import MODELS


def codes(name: str, level: str | None) -> dict[str, CudaCode]:
    """The code of forward, backward and inference, to be run as CUDA graphs, with the passes at a level or without.
    Runs in a `stand_in`."""
    backend = ste_compile.backend(numerics=level) if level else "inductor"
    found: list[CudaCode] = []
    for train in (True, False):
        torch._dynamo.reset()
        found += cuda_code(MODELS[name], partial(torch.compile, backend=backend, mode="reduce-overhead"), train=train)
    assert len(found) == 3
    return {code.kind: code for code in found}


class Product(nn.Module):
    """A matrix product whose result is the value of a site, in the model's one dtype of 16 bits, and then an operand of another."""

    def forward(self, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (x + (a @ b - x).detach()) @ c


def with_templates(level: str | None) -> CudaCode:
    """The inference code of a `Product` whose matrix products are Triton's: the first of the templates that would be tried."""
    from torch._inductor.select_algorithm import AlgorithmSelectorCache

    choose: Any = AlgorithmSelectorCache.__call__

    def first(self: Any, name: str, choices: list[Any], *args: Any, **kwargs: Any) -> Any:
        return choose(self, name, choices[:1], *args, **kwargs)

    options: dict[str, Any] = {"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON", "prologue_fusion": True}
    how = {"backend": "ste", "options": {"numerics": level, **options}} if level else {"options": options}
    torch._dynamo.reset()
    inputs = tuple(torch.empty(256, 256, dtype=torch.bfloat16) for _ in range(4))
    with mock.patch.object(AlgorithmSelectorCache, "__call__", first):
        (code,) = cuda_code(lambda: (Product(), inputs), partial(torch.compile, **how), train=False, autocast=False)
    return code


def interpreted(name: str, code: dict[str, CudaCode]) -> dict[str, Tensor]:
    """The model's result in training and in inference, and the gradients of its parameters for a tangent of ones."""
    from .interpreted import call_of

    model, inputs = MODELS[name]()
    held = {name: each.detach() for name, each in (*model.named_parameters(), *model.named_buffers())}
    held |= {f"input {i}": each for i, each in enumerate(inputs)}
    (inference,) = call_of(code["inference"].source)([held[each] for each in code["inference"].arguments])
    forward, backward = code["forward"], code["backward"]
    results = call_of(forward.source)([held[each] for each in forward.arguments])
    held |= {f"result {i}": each for i, each in enumerate(results)} | {"tangent": torch.ones_like(results[0])}
    gradients = call_of(backward.source)([held[each] for each in backward.arguments])
    found = {"training": results[0], "inference": inference}
    return found | {f"gradient of {name}": each for name, each in zip(forward.arguments, gradients) if each is not None}


def eager(name: str) -> dict[str, Tensor]:
    """The same in eager on the CPU, under autocast."""
    model, inputs = MODELS[name]()
    with torch.autocast("cpu", torch.bfloat16):
        training = model.train()(*inputs)
        training.float().sum().backward()
        with torch.no_grad():
            found = {"training": training.detach(), "inference": model.eval()(*inputs)}
    return found | {f"gradient of {name}": each.grad for name, each in model.named_parameters() if each.grad is not None}
