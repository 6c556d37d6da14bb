"""Try each hook on a tiny graph, on a torch newer than `NEWEST`: a private name may be there, and mean something else.

Run once a process, ahead of the first compile. Nothing is generated or run: Inductor lowers and schedules, which takes a second
or two. What fails is a feature that this process does without (`_torch.can`), or, for the operators' lowering, the one error.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from . import _torch, lowering
from .hooks import run_joint, run_partition, run_post_grad
from .passes.levels import Numerics


def _seeded(h: Tensor, s: Tensor) -> tuple[Tensor]:
    return (h.exp() + (s - s.detach()),)


def _drawn(h: Tensor, s: Tensor) -> tuple[Tensor]:
    return _seeded(h, s * torch.multinomial(s, 4))


def _convolved(h: Tensor, s: Tensor) -> tuple[Tensor]:
    return _seeded(h, torch.conv2d(h, s, padding=1).sin().sin())


def _plain(h: Tensor, s: Tensor) -> tuple[Tensor]:
    return (h + s,)


def attempt(name: str, fn: Callable[..., Any], numerics: Numerics, train: bool, *shapes: tuple[int, ...]) -> None:
    """Have the passes rewrite a function's graph, and Inductor lower the result. A node whose name holds `name` must be in it."""
    lowering.register()
    inputs = _torch.fake_inputs(*shapes)
    graphs: tuple[GraphModule, ...]
    if train:
        joint = _torch.joint_graph(fn, tuple(each.requires_grad_() for each in inputs))
        run_joint(joint.graph, numerics)
        partition = _torch.min_cut_rematerialization_partition
        graphs = run_partition(joint, lambda gm: partition(gm, (), num_fwd_outputs=1))
    else:
        graphs = (make_fx(fn)(*inputs),)
        run_joint(graphs[0].graph, numerics)
    for each in graphs:
        run_post_grad(each.graph)
        _torch.lower(each, inputs[0])
    if not any(name in node.name for each in graphs for node in each.graph.nodes):
        raise RuntimeError(f"no {name} was made")


CONTROL = ("add", _plain, "exact", False, (4,), (4,))  # without any operator of ours
# What is lost where it fails (a feature of `_torch.FEATURES`, or "" for all) -> how it is tried
TRIALS = {
    "": ("straight_through", _seeded, "exact", False, (4,), (4,)),
    "effects": ("after", _drawn, "finite", False, (4,), (4,)),
    "regions": ("deferred", _convolved, "finite", True, (2, 4, 8, 8), (4, 4, 3, 3)),
}


def check() -> None:
    """`_torch.check`. On a torch newer than `NEWEST` also run the trials, and check once more."""
    _torch.check()
    minor = [int(number) for number in torch.__version__.split(".")[:2]]
    if minor > [int(number) for number in _torch.NEWEST.split(".")]:
        try_all()
        _torch.check()


@functools.cache
def try_all() -> None:
    """Every trial; what fails is in `_torch.failed`. Nothing, where `_torch.lower` itself does not work on this torch."""
    unwatched = contextvars.Context()  # a trial is in nobody's report
    try:
        unwatched.run(attempt, *CONTROL)  # type: ignore[arg-type]
    except Exception:
        return
    for feature, trial in TRIALS.items():
        try:
            unwatched.run(attempt, *trial)  # type: ignore[arg-type]
        except Exception as error:
            _torch.failed[feature] = f"failed a trial ({type(error).__name__}: {error})"
    _torch.can.cache_clear()
