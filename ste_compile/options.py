"""Options of stock Inductor that hold the passes, beside whatever passes are there already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.fx import Graph

from . import _torch, trial
from .hooks import JOINT, PARTITION, POST_GRAD, JointPass, Partitioner, PostGradPass
from .passes import levels
from .passes.levels import Levels


def inductor_options(
    *, numerics: Levels = "exact", deferred: bool = True, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Options for `torch.compile` that add the passes to stock Inductor.

    Args:
        numerics: "exact", "finite" or "algebraic", or one for each module, by its path (see `ste_compile.passes.levels`).
        deferred: in training, run a cancelled surrogate when the backward needs it, and keep nothing for it until then. False:
            run it where stock does, in the forward, and keep what stock keeps.
        options: more Inductor options. Passes in them, or else in Inductor's config, run first, in the same hooks; a partitioner
            is used in the place of stock's.

    Returns:
        `options` with the hooks filled.

    Raises:
        ValueError: `numerics` is not a level, or has a key that is no module path.
        TypeError: `deferred` is not a bool, or `options` is no mapping.
        RuntimeError: this torch is not supported.

        >>> sorted(inductor_options(numerics="finite", options={"max_autotune": False}))
        ['custom_partitioner_fn', 'joint_custom_pre_pass', 'max_autotune', 'post_grad_custom_pre_pass']
    """
    trial.check()
    check_flag("deferred", deferred)
    rules = levels.check(numerics)
    if not isinstance(options, Mapping | None):
        raise TypeError(f"options must be a mapping of Inductor's options, or None, got {options!r}")
    merged = dict(options or {})

    def theirs(hook: str) -> Any:
        return merged.get(hook, getattr(_torch.inductor_config, hook))

    merged[JOINT] = chained(theirs(JOINT), JointPass(rules, deferred))
    merged[POST_GRAD] = chained(theirs(POST_GRAD), PostGradPass())
    if rules.removes and deferred and _torch.can("regions"):
        merged[PARTITION] = Partitioner(theirs(PARTITION))
    return merged


def passes_of(options: Mapping[str, Any] | None) -> Chain | None:
    """The joint passes that `options` sets, or else Inductor's config. None where this package's pass is not among them."""
    found = [*_flatten((options or {}).get(JOINT, getattr(_torch.inductor_config, JOINT)))]
    return Chain(found) if any(isinstance(each, JointPass) for each in found) else None


def check_flag(name: str, given: Any) -> bool:
    if not isinstance(given, bool):
        raise TypeError(f"{name} must be True or False, got {given!r}")
    return given


def chained(theirs: Any, last: Any) -> Any:
    """One pass that runs `theirs` (None, a pass, or a list of them), then `last`. Our own passes among theirs are left out: they
    come from an earlier call."""
    flat = [each for each in _flatten(theirs) if not isinstance(each, (JointPass, PostGradPass))]
    return Chain([*flat, last]) if flat else last


def _flatten(passes: Any) -> Iterator[Any]:
    if isinstance(passes, Chain):
        passes = passes.passes
    for each in passes if isinstance(passes, (list, tuple)) else () if passes is None else (passes,):
        yield from _flatten(each) if isinstance(each, (Chain, list, tuple)) else (each,)


class Chain(_torch.CustomGraphPass):
    """Passes one after another in one hook. Torch 2.11 takes only a single pass there."""

    def __init__(self, passes: Sequence[Any]) -> None:
        self.passes = tuple(passes)

    def __call__(self, graph: Graph) -> None:
        for each in self.passes:
            each(graph)

    def uuid(self) -> Any:
        ids = [each.uuid() if isinstance(each, _torch.CustomGraphPass) else None for each in self.passes]
        return tuple(ids) if all(ids) else None  # one pass without an identity: not cached, as in stock
