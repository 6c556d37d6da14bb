"""The backends: stock Inductor with the passes in its own hooks, and a plain-FX one for debugging.

    joint_custom_pre_pass      joint (training) or inference graph, markers still there: recognise, cancel, tag
    post_grad_custom_pre_pass  every graph that is compiled: fuse what was tagged

Inductor's caches keep working: a pass's `uuid` hashes this package's sources and the level.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from . import _torch, dump, lowering, record
from . import numerics as levels
from .numerics import Numerics
from .passes import UNDONE, Outcome, Site, cancel, fuse, recognise, release, tag

log = logging.getLogger(__name__)

JOINT, POST_GRAD = "joint_custom_pre_pass", "post_grad_custom_pre_pass"


def run_joint(graph: Graph, numerics: Numerics) -> None:
    """Recognise, cancel and tag, in place: what happens to a joint or inference graph."""
    known = _guarded(record.begin, graph, numerics, dump.recorders())
    sites = _chosen(recognise(graph))
    outcomes = _reported(cancel(graph, sites, numerics))
    for index, (site, outcome) in enumerate(zip(sites, outcomes, strict=True)):
        if outcome.action == "left":
            tag(site, record.key(known, index))
    if known:
        _guarded(record.end, known, graph, sites, outcomes)


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


def run_post_grad(graph: Graph) -> None:
    """Fuse, in place: what happens to a graph about to be compiled."""
    release(graph)
    outcomes = _reported(fuse(graph))
    _guarded(record.compiled, graph, outcomes)


def _reported(outcomes: list[Outcome]) -> list[Outcome]:
    """Warn of each rewrite that failed its check and was undone. STE_COMPILE_STRICT=1 raises."""
    for outcome in outcomes:
        if outcome.reason.startswith(UNDONE):
            message = f"ste_compile: at {outcome.result.name}, {outcome.reason}"
            if os.environ.get("STE_COMPILE_STRICT") == "1":
                raise AssertionError(message)
            warnings.warn(message, stacklevel=2)
    return outcomes


def _guarded(run: Callable[..., Any], *args: Any) -> Any:
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

    def __init__(self, numerics: Numerics) -> None:
        self.numerics = numerics

    def __call__(self, graph: Graph) -> None:
        _guarded(run_joint, graph, self.numerics)

    def uuid(self) -> Any:
        identity = _uuid()
        return identity and (identity, self.numerics)


class PostGradPass(_torch.CustomGraphPass):
    """`run_post_grad` as an Inductor pass."""

    def __call__(self, graph: Graph) -> None:
        lowering.register()
        _guarded(run_post_grad, graph)

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
    if record.wanted() or dump.recorders():
        return None
    here = Path(__file__).parent
    passes = Path(recognise.__code__.co_filename).parent
    return _torch.get_hash_for_files(tuple(map(str, sorted([*here.glob("*.py"), *passes.glob("*.py")]))))


def inductor_options(*, numerics: Numerics = "exact", options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Options for `torch.compile` that add the passes to stock Inductor.

    Args:
        numerics: "exact", "finite" or "algebraic" (see `ste_compile.numerics`).
        options: more Inductor options. Passes in them, or else in Inductor's config, run first, in the same hooks.

    Returns:
        `options` with the two hooks filled.

    Raises:
        ValueError: `numerics` is not a level.

        >>> sorted(inductor_options(numerics="finite", options={"max_autotune": False}))
        ['joint_custom_pre_pass', 'max_autotune', 'post_grad_custom_pre_pass']
    """
    merged = dict(options or {})
    for hook, ours in ((JOINT, JointPass(levels.check(numerics))), (POST_GRAD, PostGradPass())):
        merged[hook] = chained(merged.get(hook, getattr(_torch.inductor_config, hook)), ours)
    return merged


def chained(theirs: Any, last: Any) -> Any:
    """One pass that runs `theirs` (None, a pass, or a list) without any of ours among them, then `last`."""
    flat = [each for each in _flatten(theirs) if not isinstance(each, (JointPass, PostGradPass))]
    return Chain([*flat, last]) if flat else last


def _flatten(passes: Any) -> Iterator[Any]:
    if isinstance(passes, Chain):
        passes = passes.passes
    for each in passes if isinstance(passes, (list, tuple)) else () if passes is None else (passes,):
        yield from _flatten(each) if isinstance(each, (Chain, list, tuple)) else (each,)


@dataclass(frozen=True)
class Backend:
    """A `torch.compile` backend: Inductor with the passes at one level. Made by `backend`; equal where the level is."""

    numerics: Numerics

    @property
    def __name__(self) -> str:
        return f"ste_{self.numerics}"

    def __call__(
        self, gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Callable[..., Any]:
        options = dict(options or {})
        if (asked := options.pop("numerics", self.numerics)) != self.numerics:
            raise ValueError(f"this backend's level is {self.numerics!r}; options={{'numerics': {asked!r}}} needs backend='ste'")
        recorders = dump.recorders(options.pop("dump", None))
        mode_options = _torch.InductorBackend(mode, None, None).config
        options = inductor_options(numerics=self.numerics, options={**mode_options, **options})
        return compile_with(gm, example_inputs, options, recorders)

    def reset(self) -> None:
        _torch.InductorBackend(None, None, None).reset()


def compile_with(
    gm: GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any], recorders: Sequence[record.Recorder] = ()
) -> Callable[..., Any]:
    """Stock Inductor with `options`, checked as `torch.compile` checks them."""
    inductor = _torch.InductorBackend(None, None, None)
    inductor.apply_options(dict(options))
    with record.compiling(gm, recorders):
        return inductor(gm, example_inputs)


def backend(*, numerics: Numerics = "exact") -> Backend:
    """A backend to hand to `torch.compile(model, backend=..., mode=...)`.

    Args:
        numerics: "exact", "finite" or "algebraic" (see `ste_compile.numerics`).

    Raises:
        ValueError: `numerics` is not a level.

        >>> compiled = torch.compile(lambda h, s: h + (s - s.detach()), backend=backend(numerics="finite"))
    """
    return Backend(levels.check(numerics))


def ste(
    gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """`backend="ste"`: numerics "exact", or `options={"numerics": ...}`."""
    level = levels.check((options or {}).get("numerics", "exact"))
    return Backend(level)(gm, example_inputs, mode=mode, options=options)


def ste_finite(gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """`backend="ste_finite"`: numerics "finite", for callers that can pass only a name."""
    return Backend("finite")(gm, example_inputs, **kwargs)


def ste_algebraic(gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """`backend="ste_algebraic"`: numerics "algebraic", for callers that can pass only a name."""
    return Backend("algebraic")(gm, example_inputs, **kwargs)


def ste_aot_eager(
    gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """`backend="ste_aot_eager"`: the passes, then the graphs run as they are, with no decompositions and no code generation.

    `options` may hold `numerics` and `dump`; `mode` is ignored, as by torch's `aot_eager`.
    """
    options = dict(options or {})
    numerics = levels.check(options.pop("numerics", "exact"))
    recorders = dump.recorders(options.pop("dump", None))
    if options:
        raise ValueError(
            f"backend='ste_aot_eager' generates no code: options may hold only 'numerics' and 'dump', got {sorted(options)}"
        )
    if mode:
        log.warning("backend='ste_aot_eager' ignores mode=%r", mode)

    def partition(joint: GraphModule, *args: Any, **kwargs: Any) -> Any:
        for each in _subgraphs(joint):
            _guarded(run_joint, each.graph, numerics)
            each.recompile()
        return _torch.min_cut_rematerialization_partition(joint, *args, **kwargs)

    def compiled(graph_module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        for each in _subgraphs(graph_module):
            _guarded(run_post_grad, each.graph)
            _cast_as_eager(each.graph)
            each.recompile()
        return _boxed(graph_module)

    def inference(graph_module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        for each in _subgraphs(graph_module):
            _guarded(run_joint, each.graph, numerics)
        return compiled(graph_module, inputs)

    run = _torch.aot_autograd(
        fw_compiler=compiled, inference_compiler=inference, partition_fn=partition, keep_inference_input_mutations=True
    )
    with record.compiling(gm, recorders):
        return run(gm, example_inputs)


def _subgraphs(gm: GraphModule) -> Iterator[GraphModule]:
    """A graph and those its higher-order operators call, inner ones first, as Inductor visits them."""
    return (each for each in reversed(list(gm.modules())) if isinstance(each, GraphModule))


def _cast_as_eager(graph: Graph) -> None:
    """The prim's own eager kernel gives a result that requires a gradient if its input does, also in inference (2.11 to 2.14)."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.prims.convert_element_type.default):
        node.target, node.args, node.kwargs = torch.ops.aten._to_copy.default, node.args[:1], {"dtype": node.args[1]}


def _boxed(gm: GraphModule) -> Callable[[list[Any]], Any]:
    def run(args: list[Any]) -> Any:
        return torch.fx.Interpreter(gm).boxed_run(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run
