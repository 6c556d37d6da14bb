"""Programs for other runtimes: `torch.export`'s, and traced ATen graphs, without the surrogates that a level removes.

    program = torch.export.export(model, args)
    program, report = ste_compile.rewrite(program, numerics="algebraic")
    torch.onnx.export(program, dynamo=True)        # or torch.export.save, ExecuTorch, TensorRT, AOTInductor

Inductor needs none of this: it has the passes as a backend. Nothing is fused here, so that no operator of this package is in the
result: a site that its level does not remove keeps the arithmetic that it has.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputSpec
from torch.fx import Graph, GraphModule, Interpreter, Node

from . import _torch, trial
from .hooks import report_failures
from .inspection import record
from .inspection.report import Report
from .passes import cancel, levels, recognise
from .passes.cancel import drop_assertions
from .passes.levels import Levels, Rules
from .passes.new_nodes import cast_as_eager
from .passes.nodes import subgraphs, tensor
from .passes.ops import ops
from .passes.unused import drop_unused

Program = TypeVar("Program", ExportedProgram, GraphModule)
STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def rewrite(program: Program, *, numerics: Levels = "finite") -> tuple[Program, Report]:
    """A new program without the surrogates that a level removes, and a report of every site.

    Args:
        program: what `torch.export.export` made, strict or not, decomposed or not; or a traced graph of functional ATen operators
            (`make_fx`, AOTAutograd), with the fake value of each node in its metadata. It is left as it is.
        numerics: "finite" or "algebraic", or one for each module, by its path (see `ste_compile.passes.levels`). At "exact"
            nothing is removed, and the report says what the others would remove.

    Returns:
        The new program, and a `Report` that says of each site what was done and, where it was left, why. The program has the
        inputs, outputs and dynamic dimensions that it had. An exported program loses the parameters, buffers and constants that
        only removed surrogates read. It is functional, as `program.run_decompositions({})` is; its other operators are those it
        had. Sites in the branches of `torch.cond` and the like are removed too, but what is passed to a branch stays.

    Raises:
        ValueError: `numerics` is not a level, or has a key that is no module path or that matches no site.
        TypeError: `program` is of another type, or a graph without metadata.
        RuntimeError: this torch is not supported.

    What a surrogate does besides its value stays: random numbers are drawn, and buffers updated, as they were.

        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.host, self.seed = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         seed = self.seed(x)
        ...         return self.host(x) + (seed - seed.detach())
        >>> program, report = rewrite(torch.export.export(Model(), (torch.ones(2, 4),)))
        >>> [site.action for site in report.sites], sorted(program.state_dict)
        (['cancelled'], ['host.bias', 'host.weight'])
    """
    rules = levels.check(numerics)
    trial.check()
    if not isinstance(program, (ExportedProgram, GraphModule)):
        raise TypeError(f"program must be a torch.export.ExportedProgram or a torch.fx.GraphModule, got {type(program).__name__}")
    made: Any = _exported(program, rules) if isinstance(program, ExportedProgram) else _traced(program, rules)
    levels.check_matched(rules, made[1].modules())
    return cast(tuple[Program, Report], made)


def _exported(program: ExportedProgram, rules: Rules) -> tuple[ExportedProgram, Report]:
    program = _functional(program)
    graph = program.graph_module.graph
    signature = program.graph_signature
    inputs = list(zip(graph.find_nodes(op="placeholder"), signature.input_specs, strict=True))
    read = {node for node, _ in inputs if node.users}
    report = _in_every_graph(program.graph_module, rules)
    written = {spec.target for spec in signature.output_specs if spec.target}
    gone = [
        (node, spec.target)
        for node, spec in inputs
        if spec.kind in STORED and spec.target not in written and node in read and not node.users
    ]
    for node, _ in gone:
        graph.erase_node(node)
    names = {name for _, name in gone}
    results: Any = graph.output_node().args[0]
    new = ExportGraphSignature(
        [spec for spec in signature.input_specs if spec.kind not in STORED or spec.target not in names],
        [_holding(spec, node) for spec, node in zip(signature.output_specs, results, strict=True)],
    )
    return _with_graph(program, program.graph_module, new, names), report


def _functional(program: ExportedProgram) -> ExportedProgram:
    """A new program of functional operators, with its autocast and grad-mode regions written out."""
    module = _copy(program.graph_module)
    for each in subgraphs(module):
        drop_assertions(each.graph)  # those in an autocast region assert the dtypes outside of it (torch 2.13)
        each.recompile()
        if each is not module:  # node by node: new nodes then keep their places in the source
            each.forward = Interpreter(each).run
    functional: ExportedProgram = _with_graph(program, module, program.graph_signature).run_decompositions({})
    return functional


def _with_graph(
    program: ExportedProgram, module: GraphModule, signature: ExportGraphSignature, gone: Container[Any] = ()
) -> ExportedProgram:
    """The program with another graph, without the stored tensors that are gone."""
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict={name: held for name, held in program.state_dict.items() if name not in gone},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={name: held for name, held in program.constants.items() if name not in gone},
        verifiers=program.verifiers,
    )


def _holding(spec: OutputSpec, node: Any) -> OutputSpec:
    """The signature's entry for a result, with the name of the node that holds the result now."""
    return replace(spec, arg=replace(spec.arg, name=node.name)) if isinstance(node, Node) else spec


def _traced(module: GraphModule, rules: Rules) -> tuple[GraphModule, Report]:
    for node in module.graph.nodes:
        if node.op == "call_function" and "val" not in node.meta:
            raise TypeError(f"program has no fake value (meta['val']) for {node.name}: trace it with make_fx, or export it")
    copied = _copy(module)
    report = _in_every_graph(copied, rules)
    return GraphModule(copied, copied.graph), report  # with the attributes that the graph reads, and no others


def _copy(module: GraphModule) -> GraphModule:
    """The same graphs with the same tensors."""
    copied = GraphModule(module, copy.deepcopy(module.graph))
    for name, called in copied.named_children():
        if isinstance(called, GraphModule):
            setattr(copied, name, _copy(called))
    copied.meta.update(module.meta)
    return copied


def _in_every_graph(module: GraphModule, rules: Rules) -> Report:
    """Rewrite the graph of a module, and those that its operators call (`torch.cond`), in place."""
    recorder = record.Recorder()
    for each in subgraphs(module):
        _rewrite(each.graph, rules, recorder)
        each.recompile()
    graphs = recorder.report().graphs  # the last is the program's own graph; of the others, those with sites are shown
    return Report(str(rules), str(torch.__version__), (*(each for each in graphs[:-1] if each.sites), *graphs[-1:]))


def _rewrite(graph: Graph, rules: Rules, recorder: record.Recorder) -> None:
    dead: set[Node] = set()  # erased: what nothing reads would count as a reader of a surrogate
    for node in [*graph.nodes][::-1]:
        if node not in dead:
            dead |= drop_unused(graph, node)
    known = record.begin(graph, rules, (recorder,)) if _torch.can("reports") else None
    sites = recognise(graph, _with_gradient(graph))
    outcomes = cancel(graph, sites, rules)
    _let_go(graph)
    cast_as_eager(graph)
    graph.lint()
    if known:
        record.end(known, graph, sites, outcomes)
    report_failures(rewrite, outcomes)


def _with_gradient(graph: Graph) -> set[Node]:
    """The inputs and attributes that have a gradient: by their own fake value, or by what AOTAutograd says of them."""
    inputs: Iterable[Node] = graph.find_nodes(op="placeholder")
    return _torch.differentiable(graph) | {node for node in inputs if (held := tensor(node)) is not None and held.requires_grad}


def _let_go(graph: Graph) -> None:
    """Take out what `cancel` put in to hold random and mutating operators in their place. A program that Inductor does not
    compile runs every node of its graph, in the graph's order, and needs no such thing."""
    for node in graph.find_nodes(op="call_function", target=ops.after.default):
        value: Any = node.args[0]
        lost: Any = node.args[1]
        node.replace_all_uses_with(value)
        graph.erase_node(node)
        for each in lost:
            drop_unused(graph, each)
