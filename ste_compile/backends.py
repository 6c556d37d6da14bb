"""The backends: stock Inductor with the passes in its own hooks, and a plain-FX one for debugging.

    joint_custom_pre_pass      joint (training) or inference graph, markers still there: recognise, cancel, tag
    post_grad_custom_pre_pass  every graph that is compiled: fuse what was tagged

Inductor's caches keep working: a pass's `uuid` hashes this package's sources and the level.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from . import _torch, lowering, report
from . import numerics as levels
from .numerics import Numerics
from .passes import cancel, fuse, recognise, tag

log = logging.getLogger(__name__)

JOINT, POST_GRAD = "joint_custom_pre_pass", "post_grad_custom_pre_pass"


def run_joint(graph: Graph, numerics: Numerics) -> None:
    """Recognise, cancel and tag, in place: what happens to a joint or inference graph."""
    sites = recognise(graph)
    outcomes = cancel(graph, sites, numerics)
    for site, outcome in zip(sites, outcomes, strict=True):
        if outcome.action == "left":
            tag(site)
    report.add(outcomes)


def run_post_grad(graph: Graph) -> None:
    """Fuse, in place: what happens to a graph about to be compiled."""
    report.add(fuse(graph))


def _guarded(run: Callable[..., None], graph: Graph, *args: Any) -> None:
    """A failure in a pass costs its rewrites, never the compile; STE_COMPILE_STRICT=1 raises it."""
    try:
        run(graph, *args)
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
        return _sources_hash(), self.numerics


class PostGradPass(_torch.CustomGraphPass):
    """`run_post_grad` as an Inductor pass."""

    def __call__(self, graph: Graph) -> None:
        lowering.register()
        _guarded(run_post_grad, graph)

    def uuid(self) -> Any:
        return _sources_hash()


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


def _sources_hash() -> bytes:
    """Of everything that decides what the passes do to a graph."""
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
        merged[hook] = _chained(merged.get(hook, getattr(_torch.inductor_config, hook)), ours)
    return merged


def _chained(theirs: Any, ours: Any) -> Any:
    flat = [each for each in _flatten(theirs) if not isinstance(each, type(ours))]
    return Chain([*flat, ours]) if flat else ours


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
        inductor = _torch.InductorBackend(mode, None, None)
        inductor.apply_options(inductor_options(numerics=self.numerics, options={**inductor.config, **options}))
        return inductor(gm, example_inputs)

    def reset(self) -> None:
        _torch.InductorBackend(None, None, None).reset()


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
    """`backend="ste_finite"`, for callers that can pass only a name."""
    return Backend("finite")(gm, example_inputs, **kwargs)


def ste_algebraic(gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """`backend="ste_algebraic"`, for callers that can pass only a name."""
    return Backend("algebraic")(gm, example_inputs, **kwargs)


def ste_aot_eager(
    gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """`backend="ste_aot_eager"`: the passes, then the graphs run as they are, with no decompositions and no code generation.

    `options` may hold `numerics`; `mode` is ignored, as by torch's `aot_eager`.
    """
    options = dict(options or {})
    numerics = levels.check(options.pop("numerics", "exact"))
    if options:
        raise ValueError(f"backend='ste_aot_eager' generates no code: options may hold only 'numerics', got {sorted(options)}")
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
            each.recompile()
        return _boxed(graph_module)

    def inference(graph_module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        for each in _subgraphs(graph_module):
            _guarded(run_joint, each.graph, numerics)
        return compiled(graph_module, inputs)

    run = _torch.aot_autograd(
        fw_compiler=compiled, inference_compiler=inference, partition_fn=partition, keep_inference_input_mutations=True
    )
    return run(gm, example_inputs)


def _subgraphs(gm: GraphModule) -> Iterator[GraphModule]:
    """A graph and those its higher-order operators call, inner ones first, as Inductor visits them."""
    return (each for each in reversed(list(gm.modules())) if isinstance(each, GraphModule))


def _boxed(gm: GraphModule) -> Callable[[list[Any]], Any]:
    def run(args: list[Any]) -> Any:
        return torch.fx.Interpreter(gm).boxed_run(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run
