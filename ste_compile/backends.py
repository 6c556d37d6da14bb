"""The backends: stock Inductor with the passes in its own hooks, and a plain-FX one for debugging."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from . import _torch
from .hooks import guarded, run_joint, run_partition, run_post_grad
from .inspection import dump, record
from .marking import mark
from .options import check_flag, inductor_options
from .passes import levels
from .passes.levels import DEFAULT, LEVELS, Levels, Numerics, Rules
from .passes.new_nodes import cast_as_eager
from .passes.nodes import subgraphs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """A `torch.compile` backend: Inductor with the passes at one level, or one for each module. `backend` makes it. Two are equal
    if their levels are."""

    numerics: Rules

    @property
    def __name__(self) -> str:
        return "ste_by_module" if self.numerics.by_module else f"ste_{self.numerics}"

    def __call__(
        self, gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Callable[..., Any]:
        _torch.check()
        options = dict(options or {})
        asked = options.pop("numerics", self.numerics)
        if levels.check(asked) != self.numerics:
            level = str(self.numerics)
            raise ValueError(f"this backend's level is {level!r}; options={{'numerics': {asked!r}}} needs backend='ste'")
        recorders = dump.recorders(options.pop("dump", None))
        deferred = options.pop("deferred", True)
        mode_options = _torch.InductorBackend(mode, None, None).config
        options = inductor_options(numerics=self.numerics, deferred=deferred, options={**mode_options, **options})
        return compile_with(gm, example_inputs, options, recorders)

    def reset(self) -> None:
        _torch.InductorBackend(None, None, None).reset()


def compile_with(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    options: Mapping[str, Any],
    recorders: Sequence[record.Recorder] = (),
    *,
    marks: bool = True,
) -> Callable[..., Any]:
    """Stock Inductor with `options`, checked as `torch.compile` checks them."""
    inductor = _torch.InductorBackend(None, None, None)
    inductor.apply_options(dict(options))
    with from_dynamo(gm, recorders, marks=marks):
        compiled: Callable[..., Any] = inductor(gm, example_inputs)
    return compiled


@contextlib.contextmanager
def from_dynamo(gm: GraphModule, recorders: Sequence[record.Recorder] = (), *, marks: bool = True) -> Iterator[None]:
    """Around the compilation of a graph from Dynamo, for what no later graph shows: mark its detaches (`marking`), and let the
    records say which inputs are parameters. `recorders` record what is compiled inside."""
    if marks:
        guarded(mark, gm)
    with record.compiling(gm, recorders):
        yield


def backend(*, numerics: Levels = "exact") -> Backend:
    """A backend to hand to `torch.compile(model, backend=..., mode=...)`.

    Args:
        numerics: "exact", "finite" or "algebraic", or one for each module, by its path (see `ste_compile.passes.levels`).

    Raises:
        ValueError: `numerics` is not a level, or has a key that is no module path.

        >>> compiled = torch.compile(lambda h, s: h + (s - s.detach()), backend=backend(numerics="finite"))
    """
    return Backend(levels.check(numerics))


def ste(
    gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """`backend="ste"`: numerics "exact", or `options={"numerics": ...}`."""
    rules = levels.check((options or {}).get("numerics", DEFAULT))
    return Backend(rules)(gm, example_inputs, mode=mode, options=options)


def _named(numerics: Numerics) -> Callable[..., Any]:
    """A level's backend as a function: torch sets an attribute on what it registers (2.11 to 2.15), and `Backend` is frozen."""

    def compile_at_level(gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        return Backend(levels.check(numerics))(gm, example_inputs, **kwargs)

    name = LEVELS[numerics].backend
    compile_at_level.__name__ = compile_at_level.__qualname__ = name
    compile_at_level.__doc__ = f'`backend="{name}"`: numerics "{numerics}", for callers that can pass only a name.'
    return compile_at_level


# `ste_finite` and `ste_algebraic`, for callers that can pass only a name: the entry points in pyproject.toml.
globals().update({level.backend: _named(name) for name, level in LEVELS.items() if name != DEFAULT})


def ste_aot_eager(
    gm: GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """`backend="ste_aot_eager"`: the passes, then the graphs run as they are, with no decompositions and no code generation.

    `options` may hold `numerics`, `deferred` and `dump`; `mode` is ignored, as by torch's `aot_eager`.
    """
    _torch.check()
    options = dict(options or {})
    numerics = levels.check(options.pop("numerics", DEFAULT))
    recorders = dump.recorders(options.pop("dump", None))
    deferred = check_flag("deferred", options.pop("deferred", True))
    if options:
        allowed = "'numerics', 'deferred' and 'dump'"
        raise ValueError(f"backend='ste_aot_eager' generates no code: options may hold only {allowed}, got {sorted(options)}")
    if mode:
        log.warning("backend='ste_aot_eager' ignores mode=%r", mode)

    def partition(joint: GraphModule, *args: Any, **kwargs: Any) -> Any:
        for each in subgraphs(joint):
            guarded(run_joint, each.graph, numerics, deferred)
            each.recompile()
        stock = _torch.min_cut_rematerialization_partition
        return run_partition(joint, lambda joint: stock(joint, *args, **kwargs), channels_last=lambda gm: set())

    def compiled(graph_module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        for each in subgraphs(graph_module):
            guarded(run_post_grad, each.graph)
            cast_as_eager(each.graph)
            each.recompile()
        return interpreted(graph_module)

    def inference(graph_module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        for each in subgraphs(graph_module):
            guarded(run_joint, each.graph, numerics)
        return compiled(graph_module, inputs)

    run = _torch.aot_autograd(
        fw_compiler=compiled, inference_compiler=inference, partition_fn=partition, keep_inference_input_mutations=True
    )
    with from_dynamo(gm, recorders):
        return run(gm, example_inputs)


def interpreted(gm: GraphModule) -> Callable[..., Any]:
    """A function that runs the graph as it is, node by node."""
    return boxed(lambda args: torch.fx.Interpreter(gm).boxed_run(args))


def boxed(run: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    """Mark `run` for AOTAutograd as a boxed function: it takes one list of arguments, and may empty it."""
    run._boxed_call = True  # type: ignore[attr-defined]
    return run
