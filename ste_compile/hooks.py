"""The passes in Inductor's own hooks.

    joint_custom_pre_pass      joint (training) or inference graph, markers still there: recognise, cancel, tag
    custom_partitioner_fn      stock's partitioner, or the user's; then the backward's deferred forward in regions
    post_grad_custom_pre_pass  every graph that is compiled: fuse what was tagged

Inductor's caches keep working: a pass's `uuid` hashes this package's sources and the level.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch.fx import Graph, GraphModule, Node

from . import _torch, dump, lowering, record
from . import numerics as levels
from .numerics import REMOVES, Numerics
from .passes import CANCELLED, UNDONE, Outcome, Site, cancel, defer, fuse, recognise, release, tag

JOINT, PARTITION, POST_GRAD = "joint_custom_pre_pass", "custom_partitioner_fn", "post_grad_custom_pre_pass"


def run_joint(graph: Graph, numerics: Numerics, deferred: bool = True) -> None:
    """Recognise, cancel and tag, in place: what happens to a joint or inference graph. Nothing is deferred to a backward that
    could not run it in a region."""
    deferred = deferred and not _torch.backward_is_traced()
    known = guarded(record.begin, graph, numerics, record.watchers(dump.recorders()))
    sites = _chosen(recognise(graph))
    outcomes = _reported(cancel(graph, sites, numerics, deferred=deferred))
    for index, (site, outcome) in enumerate(zip(sites, outcomes, strict=True)):
        if outcome.action == "left":
            tag(site, record.key(known, index))
    if known:
        guarded(record.end, known, graph, sites, outcomes)


_only: ContextVar[tuple[int, Iterator[int]] | None] = ContextVar("ste_compile_only", default=None)


@contextlib.contextmanager
def only_site(index: int) -> Iterator[None]:
    """Rewrite, in what is compiled inside the block, only the site of this number: which one makes a difference."""
    token = _only.set((index, itertools.count()))
    try:
        yield
    finally:
        _only.reset(token)


def _chosen(sites: tuple[Site, ...]) -> tuple[Site, ...]:
    if (only := _only.get()) is None:
        return sites
    index, numbers = only
    return tuple(site for site in sites if next(numbers) == index)


def run_partition(
    joint: GraphModule,
    partition: Callable[[GraphModule], Any],
    channels_last: Callable[[GraphModule], set[Node]] = _torch.channels_last,
) -> tuple[GraphModule, GraphModule]:
    """Partition a joint graph, and put into regions what `run_joint` deferred to the backward."""
    cancelled = joint.graph.output_node().meta.get(CANCELLED)
    forward, backward = partition(joint)
    if cancelled:
        backward = guarded(defer, forward, backward, _torch.partition_again, channels_last) or backward
    return forward, backward


def run_post_grad(graph: Graph) -> None:
    """Fuse, in place: what happens to a graph about to be compiled."""
    release(graph)
    outcomes = _reported(fuse(graph))
    guarded(record.compiled, graph, outcomes)


def _reported(outcomes: list[Outcome]) -> list[Outcome]:
    """Warn of each rewrite that failed its check and was undone. STE_COMPILE_STRICT=1 raises."""
    for outcome in outcomes:
        if outcome.reason.startswith(UNDONE):
            message = f"ste_compile: at {outcome.result.name}, {outcome.reason}"
            if os.environ.get("STE_COMPILE_STRICT") == "1":
                raise AssertionError(message)
            warnings.warn(message, stacklevel=2)
    return outcomes


def guarded(run: Callable[..., Any], *args: Any) -> Any:
    """A failure in a pass costs its rewrites, one in the record its report, neither the compile. STE_COMPILE_STRICT=1 raises."""
    try:
        return run(*args)
    except Exception as error:
        if os.environ.get("STE_COMPILE_STRICT") == "1":
            raise
        where = " ".join(getattr(error, "__notes__", []))
        warnings.warn(f"ste_compile: {run.__name__} failed and was skipped: {error!r} {where}", stacklevel=2)


class JointPass(_torch.CustomGraphPass):
    """`run_joint` as an Inductor pass."""

    def __init__(self, numerics: Numerics, deferred: bool = True) -> None:
        self.numerics, self.deferred = numerics, deferred

    def __call__(self, graph: Graph) -> None:
        _torch.check(_torch.INDUCTOR)
        guarded(run_joint, graph, self.numerics, self.deferred)

    def uuid(self) -> Any:
        identity = _uuid()
        return identity and (identity, self.numerics, self.deferred, _torch.backward_is_traced())


class Partitioner(_torch.CustomPartitionerFn):
    """`run_partition` as an Inductor partitioner, on top of `partition`: the user's, or None for stock's."""

    def __init__(self, partition: Any = None) -> None:
        self.partition: Any = partition.partition if isinstance(partition, Partitioner) else partition

    def __call__(self, gm: GraphModule, joint_inputs: Sequence[Any], **kwargs: Any) -> tuple[GraphModule, GraphModule]:
        partition = self.partition or _torch.min_cut_rematerialization_partition
        return run_partition(gm, lambda joint: partition(joint, joint_inputs, **kwargs))

    def uuid(self) -> Any:
        theirs = self.partition.uuid() if self.partition else b"stock"
        return theirs and _uuid() and (_uuid(), theirs)


class PostGradPass(_torch.CustomGraphPass):
    """`run_post_grad` as an Inductor pass."""

    def __call__(self, graph: Graph) -> None:
        lowering.register()
        guarded(run_post_grad, graph)

    def uuid(self) -> Any:
        return _uuid()


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


def _uuid() -> bytes | None:
    """A hash of everything that decides what the passes do to a graph; None, which keeps it out of the caches, where they are
    watched: a graph from a cache runs no pass."""
    if record.watchers(dump.recorders()):
        return None
    here = Path(__file__).parent
    passes = Path(recognise.__code__.co_filename).parent
    return _torch.get_hash_for_files(tuple(map(str, sorted([*here.glob("*.py"), *passes.glob("*.py")]))))


def inductor_options(
    *, numerics: Numerics = "exact", deferred: bool = True, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Options for `torch.compile` that add the passes to stock Inductor.

    Args:
        numerics: "exact", "finite" or "algebraic" (see `ste_compile.numerics`).
        deferred: in training, run a cancelled surrogate when the backward needs it, and keep nothing for it until then. False:
            run it where stock does, in the forward, and keep what stock keeps.
        options: more Inductor options. Passes in them, or else in Inductor's config, run first, in the same hooks; a partitioner
            is used in the place of stock's.

    Returns:
        `options` with the hooks filled.

    Raises:
        ValueError: `numerics` is not a level.
        TypeError: `deferred` is not a bool.
        RuntimeError: this torch is not supported.

        >>> sorted(inductor_options(numerics="finite", options={"max_autotune": False}))
        ['custom_partitioner_fn', 'joint_custom_pre_pass', 'max_autotune', 'post_grad_custom_pre_pass']
    """
    _torch.check()
    check_deferred(deferred)
    merged = dict(options or {})
    theirs = {hook: merged.get(hook, getattr(_torch.inductor_config, hook)) for hook in (JOINT, PARTITION, POST_GRAD)}
    merged[JOINT] = chained(theirs[JOINT], JointPass(levels.check(numerics), deferred))
    merged[POST_GRAD] = chained(theirs[POST_GRAD], PostGradPass())
    if REMOVES[numerics] and deferred:
        merged[PARTITION] = Partitioner(theirs[PARTITION])
    return merged


def check_deferred(deferred: Any) -> bool:
    if not isinstance(deferred, bool):
        raise TypeError(f"deferred must be True or False, got {deferred!r}")
    return deferred


def chained(theirs: Any, last: Any) -> Any:
    """One pass that runs `theirs` (None, a pass, or a list) without any of ours among them, then `last`."""
    flat = [each for each in _flatten(theirs) if not isinstance(each, (JointPass, PostGradPass))]
    return Chain([*flat, last]) if flat else last


def _flatten(passes: Any) -> Iterator[Any]:
    if isinstance(passes, Chain):
        passes = passes.passes
    for each in passes if isinstance(passes, (list, tuple)) else () if passes is None else (passes,):
        yield from _flatten(each) if isinstance(each, (Chain, list, tuple)) else (each,)
