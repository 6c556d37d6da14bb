"""`check` on one trace: AOTAutograd's joint graph is traced once, and the passes run on copies of it at every level.

What else `ste_aot_eager` runs is left out: Dynamo, the partitioner, and the runtime that mutates inputs and rebuilds views. So a
program that writes to an argument, or holds a buffer, cannot be checked like this. One that returns an argument, a parameter or a
view of one is made to return a copy. This is some ten times faster than `check`.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from .. import _torch, hooks
from ..inspection import record
from ..passes.nodes import arg
from .check import LEVELS, cancelled_lines, differences, fail
from .program import Program
from .runs import Run, note_outputs

# What is recognised, or runs correctly, only in a graph that comes from Dynamo.
DYNAMOS = (".data", "checkpoint", "no_grad", "detach_(")


def check_traced(program: Program) -> collections.Counter[str] | None:
    """`check` by way of one trace: the joint graph, and the part of it that an inference graph would be. None where the program
    cannot be traced like this."""
    if any(each in program.source() for each in DYNAMOS):
        return None
    module, inputs = program.module(traced=True), program.inputs()
    if any(True for _ in module.buffers()):
        return None
    with torch.no_grad():
        views = [any(_shares(out, t) for t in (*inputs, *module.parameters())) for out in module(*inputs)]
    joint = _trace(module, inputs, views)
    if joint is None:
        return None
    count = len(program.returns)
    done: collections.Counter[str] = collections.Counter()
    for train in (True, False):
        base = joint if train else _inference(joint, count)
        eager = _eager(program.module(), inputs, views, train)
        for level in LEVELS:
            copy = _copy(base)
            with record.collect(graphs=False) as recorder:
                hooks.run_joint(copy.graph, level)
                hooks.run_post_grad(copy.graph)
            sites = recorder.sites()
            copy.graph.lint()
            ours = _run(copy, module, inputs, count)
            lines = cancelled_lines(program, sites)
            oracle = _eager(program.module(lines), inputs, views, train) if lines else eager

            def stock(lines: Any = lines, train: bool = train) -> Run:
                done["stock"] += 1
                again = program.module(lines, traced=True)
                traced = _trace(again, inputs, views)
                assert traced is not None  # the same program, but for sites that cancel
                return _run(traced if train else _inference(traced, count), again, inputs, count)

            found = differences(program, sites, ours, eager, oracle, stock, stock)
            if found:
                fail(program, f"numerics={level!r}, {'joint' if train else 'inference'} graph", lines, found)
            done.update(site.action for site in sites)
    return done


def _trace(module: nn.Module, inputs: Sequence[Tensor], views: Sequence[bool]) -> GraphModule | None:
    named = dict(module.named_parameters())

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = torch.func.functional_call(module, dict(zip(named, tensors)), tensors[len(named) :])
        return tuple(out.clone() if view else out for out, view in zip(outputs, views))

    try:
        return _torch.joint_graph(forward, (*named.values(), *inputs))
    except RuntimeError as error:
        if "mutat" in str(error):
            return None
        raise


def _shares(a: Tensor, b: Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def _copy(gm: GraphModule) -> GraphModule:
    graph = Graph()
    output = graph.output(graph.graph_copy(gm.graph, {}))
    output.meta = dict(gm.graph.output_node().meta)  # which inputs have a gradient
    return GraphModule(gm, graph)


def _inference(joint: GraphModule, count: int) -> GraphModule:
    """The part of a joint graph that computes the outputs. Its inputs require the gradients that the joint graph returns."""
    copy = _copy(joint)
    output = copy.graph.output_node()
    output.update_arg(0, tuple(arg(output)[:count]))
    copy.graph.eliminate_dead_code()
    for node in copy.graph.find_nodes(op="placeholder"):
        if "tangents" in node.name:
            copy.graph.erase_node(node)
    return copy


def _incoming(outputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 17, t.shape, generator=generator).mul(0.125).to(t.dtype) for t in outputs]


def _run(gm: GraphModule, module: nn.Module, inputs: Sequence[Tensor], count: int) -> Run:
    placeholders = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
    primals = [t.detach() for t in (*module.parameters(), *inputs)]
    torch.manual_seed(0)
    with torch.no_grad():
        out = torch.fx.Interpreter(gm).run(*primals, *_incoming(placeholders[len(primals) :]), enable_io_processing=False)
    done = Run()
    _note(done, out[:count], primals[-len(inputs) :])
    done.tensors |= {f"gradient {i}": grad for i, grad in enumerate(out[count:])}
    return done


def _eager(module: nn.Module, inputs: Sequence[Tensor], views: Sequence[bool], train: bool) -> Run:
    leaves = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
    primals = [*module.parameters(), *leaves]
    torch.manual_seed(0)
    done = Run()
    with torch.set_grad_enabled(train):
        outputs = [out.clone() if view else out for out, view in zip(module(*leaves), views)]
        _note(done, outputs, leaves)
        if train:
            wanted = [t for t in primals if t.requires_grad]
            reached = [t for t in outputs if t.requires_grad]
            grads = torch.autograd.grad(reached, wanted, _incoming(reached), allow_unused=True) if reached and wanted else ()
            found = dict(zip(map(id, wanted), grads))
            done.tensors |= {f"gradient {i}": found.get(id(t)) for i, t in enumerate(primals)}
    return done


def _note(done: Run, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    named = {f"output[{i}]": t for i, t in enumerate(outputs)}
    note_outputs(done, named, {f"argument {i}": t for i, t in enumerate(inputs)})
    done.facts = {name: fact for name, fact in done.facts.items() if "requires_grad" not in name}  # a bare graph's require none
    done.tensors |= {name: t.detach() for name, t in named.items()}
