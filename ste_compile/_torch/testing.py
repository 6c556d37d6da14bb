"""For `ste_compile.testing` and `ste_compile.trial`: parts of the compiler run by themselves, and the settings to test under."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import GraphModule

from .dynamo import recompiling
from .imports import functorch_config, inductor_config
from .names import SETTINGS, TESTING, check


@contextlib.contextmanager
def compiling_alone() -> Iterator[None]:
    """Settings under which a compiled function can be compared with eager. Nothing is taken from a cache, so every pass runs.
    No limit on recompiles is reached, at which Dynamo would fall back to eager. Under Inductor random operators draw eager's
    numbers, and 16-bit results are rounded where eager rounds them (`emulate_precision_casts`).

    Without that setting Inductor rounds only where a kernel stores. The same graph fused in another way then differs by a last
    bit, of which a quantiser makes a whole step. On a GPU the setting also forbids FMAs, and so hides what `settled` prevents:
    only the generated code shows that."""
    check((*SETTINGS, *TESTING))
    with (
        functorch_config.patch(enable_autograd_cache=False),
        inductor_config.patch(fx_graph_cache=False, fallback_random=True, emulate_precision_casts=True),
        recompiling(),
    ):
        yield


def joint_graph(fn: Callable[..., Any], args: tuple[Any, ...]) -> GraphModule:
    """AOTAutograd's joint graph of a function that neither mutates an input nor returns one; a RuntimeError where it does. Nodes
    keep what `torch.fx.traceback.current_meta` says when they are made."""
    from torch._functorch.aot_autograd import aot_export_joint_simple

    with torch.fx.traceback.preserve_node_meta():
        joint: Any = aot_export_joint_simple(fn, args, trace_joint=True)
    assert isinstance(joint, GraphModule)
    return joint


def fake_inputs(*shapes: tuple[int, ...]) -> list[Any]:
    """Fake float32 tensors of these shapes, on the CPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv()):
        return [torch.ones(shape) for shape in shapes]


def lower(gm: GraphModule, like: Any) -> None:
    """Have Inductor lower and schedule a graph of fake tensors, and generate no code. `like` is one of its fake inputs."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    inputs = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
    lowering = GraphLowering(gm, example_inputs=inputs, shape_env=like.fake_mode.shape_env)
    with V.set_fake_mode(like.fake_mode), V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
        lowering.run(*inputs)
        lowering._update_scheduler()
