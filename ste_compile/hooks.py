"""The passes in Inductor's own hooks.

    joint_custom_pre_pass      joint (training) or inference graph, markers still there: recognise, cancel, tag
    custom_partitioner_fn      stock's partitioner, or the user's; then `defer`: regions for what moved to the backward
    post_grad_custom_pre_pass  every graph that is compiled: fuse what was tagged

Inductor's caches keep working: a pass's `uuid` hashes this package's sources and the level.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import itertools
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch.fx import Graph, GraphModule, Node

from . import _torch, lowering
from .inspection import contexts, dump, record
from .passes import Outcome, Reason, Site, cancel, defer, fuse, levels, recognise, release, tag
from .passes.levels import Levels
from .passes.meta import CANCELLED

JOINT, PARTITION, POST_GRAD = "joint_custom_pre_pass", "custom_partitioner_fn", "post_grad_custom_pre_pass"


def run_joint(graph: Graph, numerics: Levels, deferred: bool = True) -> None:
    """Recognise, cancel and tag, in place: what happens to a joint or inference graph. Cancelled surrogates stay in the forward
    where the backward could not run them in a region."""
    rules = levels.check(numerics)
    if rules.removes and deferred:
        deferred = not _torch.backward_is_traced() and _torch.can("regions")
    watchers = record.watchers(dump.recorders())
    known = guarded(record.begin, graph, rules, watchers) if _torch.can("reports") else None
    sites: tuple[Site, ...] = ()
    outcomes: list[Outcome] = []
    try:
        found = _chosen(recognise(graph, _torch.differentiable(graph)))
        can_keep = partial(_torch.can, "effects")
        outcomes, sites = cancel(graph, found, rules, deferred=deferred, can_keep=can_keep), found
        report_failures(run_joint, outcomes)
        for index, (site, outcome) in enumerate(zip(sites, outcomes, strict=True)):
            if outcome.action == "left":
                tag(site, record.key(known, index))
    finally:  # report what was done, also where a later step failed
        if known:
            guarded(record.end, known, graph, sites, outcomes)


_only: ContextVar[tuple[int, Iterator[int]] | None] = ContextVar("ste_compile_only", default=None)


@contextlib.contextmanager
def only_site(index: int) -> Iterator[None]:
    """In what is compiled inside the block, rewrite only the site of this number: to find which site makes a difference."""
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
    if cancelled and _torch.can("regions"):
        contiguous = _torch.contiguous_dtypes()
        backward = guarded(defer, forward, backward, _torch.partition_again, channels_last, contiguous) or backward
    return forward, backward


def run_post_grad(graph: Graph) -> None:
    """Fuse, in place: what happens to a graph about to be compiled."""
    release(graph)
    outcomes = fuse(graph)
    report_failures(run_post_grad, outcomes)
    if _torch.can("reports"):
        guarded(record.compiled, graph, outcomes)


def report_failures(run: Callable[..., Any], outcomes: list[Outcome]) -> None:
    """Warn of each rewrite that failed, or failed its check and was undone. STE_COMPILE_STRICT=1 raises."""
    for outcome in outcomes:
        if outcome.error:
            _skipped(run, outcome.error)
        if outcome.why.reason is Reason.UNDONE:
            message = f"ste_compile: at {outcome.result.name}, {outcome.why}"
            if os.environ.get("STE_COMPILE_STRICT") == "1":
                raise AssertionError(message)
            warnings.warn(message, stacklevel=2)


def guarded(run: Callable[..., Any], *args: Any) -> Any:
    """Run a step that must not break a compile. Where it fails, its rewrites or its report are lost, and a warning says so.
    STE_COMPILE_STRICT=1 raises instead."""
    try:
        return run(*args)
    except Exception as error:
        _skipped(run, error)


def _skipped(run: Callable[..., Any], error: Exception) -> None:
    if os.environ.get("STE_COMPILE_STRICT") == "1":
        raise error
    where = " ".join(getattr(error, "__notes__", []))
    warnings.warn(f"ste_compile: {run.__name__} failed and was skipped: {error!r} {where}", stacklevel=3)


class JointPass(_torch.CustomGraphPass):
    """`run_joint` as an Inductor pass."""

    def __init__(self, numerics: Levels, deferred: bool = True) -> None:
        self.numerics, self.deferred = levels.check(numerics), deferred

    def __call__(self, graph: Graph) -> None:
        _torch.check(_torch.INDUCTOR)
        guarded(run_joint, graph, self.numerics, self.deferred)

    def uuid(self) -> Any:
        identity, places = _uuid(), contexts.places() if self.numerics.by_module else ""
        if identity is None or places is None:
            return None
        return identity, self.numerics.rules, places, self.deferred, _torch.backward_is_traced()


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


def _uuid() -> bytes | None:
    """A hash of everything that decides what the passes do to a graph. None, which keeps the graph out of the caches, where
    a recorder without `with_caches` is watching: no pass runs on a graph that comes from a cache."""
    if not all(recorder.with_caches for recorder in record.watchers(dump.recorders())):
        return None
    return _identity()


@functools.cache
def _identity() -> bytes | None:
    """A hash of the modules of this package, of `_torch` and of the passes, as they were loaded: sources, or else what a package
    without them has (`.pyc` files, a zip). None where there is nothing to hash."""
    digest = hashlib.sha256()
    for package in (__package__, _torch.__name__, recognise.__module__.rpartition(".")[0]):
        modules = [*pkgutil.iter_modules(sys.modules[package].__path__)]
        for name in sorted(f"{package}.{module.name}" for module in modules):
            spec = importlib.util.find_spec(name)
            try:
                code: Any = spec.loader.get_data(spec.origin)  # type: ignore[union-attr]
            except (AttributeError, OSError, TypeError):
                return None
            digest.update(name.encode() + code)
        if not modules:
            return None
    return digest.digest()
