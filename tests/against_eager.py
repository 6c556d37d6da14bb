"""Run a function or module, eager or compiled, and compare all that a caller can see: values, strides, gradients, buffers, what
was written to the arguments, and the random numbers drawn."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ste_compile.passes.levels import LEVELS
from torch import Tensor, nn

import ste_compile

from .compare import assert_same_bits

levels = pytest.mark.parametrize("numerics", LEVELS)
trained = pytest.mark.parametrize("train", (True, False), ids=("train", "inference"))


def seed(h: Tensor, s: Tensor) -> Tensor:
    return h + (s - s.detach())


class Seeded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.host = nn.Linear(6, 6)
        self.seed = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return seed(self.host(x).relu(), self.seed(x))


@dataclass(frozen=True)
class Run:
    """What one call did: `seen` is what is compared, by name; `actions` and `reasons` are the outcomes of the sites, in order."""

    seen: dict[str, list[Tensor | None]]
    others: list[Any]
    actions: list[str]
    reasons: list[str]


def run(
    fn: Callable[..., Any],
    args: Sequence[Any],
    numerics: str | None = None,
    *,
    backend: str = "ste_aot_eager",
    train: bool = True,
    seed: int = 0,
    fullgraph: bool = True,
    dynamic: bool | None = None,
) -> Run:
    """One call on copies of `fn` and `args`, with a backward where `train`: eager, under stock ("stock"), or at a level."""
    torch._dynamo.reset()
    fn = copy.deepcopy(fn) if isinstance(fn, nn.Module) else fn
    args = [a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args]
    called = fn
    if numerics == "stock":
        stock = {"ste_aot_eager": "aot_eager", "ste": "inductor"}[backend]
        called = torch.compile(fn, backend=stock, fullgraph=fullgraph, dynamic=dynamic)
    elif numerics:
        called = torch.compile(fn, backend=backend, options={"numerics": numerics}, fullgraph=fullgraph, dynamic=dynamic)
    torch.manual_seed(seed)
    with ste_compile.collect() as recorder, torch.set_grad_enabled(train):
        leaves = torch.utils._pytree.tree_leaves(called(*args))
        values = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        forward = torch.get_rng_state()
        if results := [value for value in values if value.requires_grad and train]:
            torch.autograd.backward(results, [_tangent(value) for value in results])
    module = isinstance(fn, nn.Module)
    seen = {
        "value": [value.detach() for value in values],
        "gradient": [a.grad for a in (*args, *(fn.parameters() if module else ())) if isinstance(a, Tensor)],
        "buffer": list(fn.buffers()) if module else [],
        "argument": [a.detach() for a in args if isinstance(a, Tensor)],
        "random state after the forward": [forward],
        "random state": [torch.get_rng_state()],
    }
    others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    sites = recorder.sites()
    return Run(seen, others, [site.action for site in sites], [site.reason for site in sites])


def _tangent(value: Tensor) -> Tensor:
    return torch.linspace(-2, 2, value.numel(), dtype=torch.float64).view(value.shape).to(value.dtype)


def assert_same(
    ours: Run, reference: Run, numerics: str, same_value: Callable[[Tensor, Tensor, str], None] | None = None
) -> None:
    """Bit for bit; but for the values `==` where a level may turn -0 to 0, or `same_value` where that is given."""
    assert ours.others == reference.others
    for what, wanted in reference.seen.items():
        assert len(ours.seen[what]) == len(wanted)
        for i, (mine, theirs) in enumerate(zip(ours.seen[what], wanted)):
            assert (mine is None) == (theirs is None), f"{what} {i}: {mine} is not {theirs}"
            if mine is None:
                continue
            assert (mine.dtype, mine.shape, _strides(mine)) == (theirs.dtype, theirs.shape, _strides(theirs)), f"{what} {i}"
            if same_value and what in ("value", "gradient"):
                same_value(mine, theirs, f"{what} {i}")
            elif what == "value" and numerics != "exact":
                assert (mine == theirs).all(), f"{what} {i}: {mine} is not {theirs}"
            elif mine.numel():
                assert_same_bits(mine, theirs, f"{what} {i}")


def _strides(tensor: Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape) if size > 1 and tensor.numel()]


def assert_like_eager(
    fn: Callable[..., Any],
    args: Sequence[Any],
    *,
    finite: int = 0,
    algebraic: int = 0,
    fused: bool = True,
    counted: bool = True,
    levels: Sequence[str] = LEVELS,
    reference: str | None = None,
    same_value: Callable[[Tensor, Tensor, str], None] | None = None,
    **options: Any,
) -> None:
    """At every level `fn` does what eager does (or stock, as `reference`), and of its sites, of which so many need `finite` and
    `algebraic`, those the level removes are cancelled; the others are fused, or left to the end where not `fused`. Not `counted`:
    a graph is visited more than once."""
    wanted = run(fn, args, reference, **(options if reference else {"train": options.get("train", True)}))
    for numerics in levels:
        ours = run(fn, args, numerics, **options)
        cancelled = finite * ("finite" in LEVELS[numerics].removes) + algebraic * ("algebraic" in LEVELS[numerics].removes)
        left = finite + algebraic - cancelled
        found = Counter(ours.actions)
        if counted:
            assert found == +Counter({"cancelled": cancelled, "fused" if fused else "left": left}), ours.reasons
        else:
            assert ("cancelled" in found, "fused" in found) == (cancelled > 0, fused and left > 0), ours.reasons
        assert_same(ours, wanted, numerics, same_value)
