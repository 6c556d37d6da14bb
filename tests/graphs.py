"""Capture the graphs the passes work on, and print them short enough to read."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch._functorch.aot_autograd import aot_module_simplified
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.virtualized import V
from torch.fx import Graph, GraphModule

from ste_compile.hooks import run_joint, run_partition, run_post_grad

SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64", torch.complex64: "c64"}


def show(graph: Graph) -> str:
    """One line a node: `name: dtype[shape] = op(args)`; placeholders and the output in one line each. Nodes are named after their
    operators, in order: torch's own names tell of nodes that are gone, and differ between versions."""
    names: dict[torch.fx.Node, str] = {}
    seen: collections.Counter[str] = collections.Counter()

    def argument(value: Any) -> str:
        value = torch.fx.map_arg(value, lambda node: _Name(names[node]))
        return repr(value) if isinstance(value, str) else str(value).removeprefix("torch.")

    lines = ["in " + ", ".join(f"{n.name}: {_type(n)}" for n in graph.nodes if n.op == "placeholder")]
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            names[node] = node.name
            continue
        target = getattr(node.target, "__name__", str(node.target)) if "builtin" in str(node.target) else str(node.target)
        target = target.removeprefix("aten.").removesuffix(".default").removesuffix(".Tensor")
        base = target.removeprefix("prims.").removeprefix("ste_compile.").split(".")[0]
        names[node] = f"{base}_{seen[base]}" if seen[base] else base
        seen[base] += 1
        arguments = [*map(argument, node.args), *(f"{k}={argument(v)}" for k, v in node.kwargs.items())]
        lines.append(f"{names[node]}: {_type(node)} = {target}({', '.join(arguments)})")
    outputs = torch.utils._pytree.tree_leaves(graph.output_node().args)
    return "\n".join([*lines, "out " + ", ".join(map(argument, outputs))])


def name_of(node: torch.fx.Node) -> str:
    """torch's name of a node; a detach marker's is "detach", where torch 2.15 calls it "alias"."""
    return node.name.replace("alias", "detach")


class _Name(str):
    """A node's name: printed bare, where a string argument is printed in quotes."""

    __repr__ = str.__str__


def _type(node: torch.fx.Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return str(value)
    return f"{SHORT.get(value.dtype, str(value.dtype).removeprefix('torch.'))}[{', '.join(map(str, value.shape))}]"


def captured(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    before: Callable[[GraphModule], None] = lambda gm: None,
    numerics: str | None = None,
    decompositions: bool = True,
    dynamic: bool | None = None,
    deferred: bool = True,
) -> dict[str, GraphModule]:
    """The graphs of one forward and backward of `fn`, compiled as Inductor would up to code generation, with the passes at level
    `numerics` or without them: {"joint", "forward", "backward"} in training, {"inference"} where nothing needs a gradient."""
    graphs: dict[str, GraphModule] = {}

    def partition(joint: GraphModule, *rest: Any, **options: Any) -> Any:
        before(joint)
        if numerics:
            run_joint(joint.graph, numerics, deferred)
        joint.graph.lint()
        joint.recompile()
        graphs["joint"] = torch.fx.GraphModule(joint, torch.fx.Graph())
        graphs["joint"].graph = _copy(joint.graph)
        with V.set_fake_mode(torch._guards.detect_fake_mode()):
            joint_graph_passes(joint)  # Inductor's own clean-up, which the post-grad graph has seen
        options["compiler"] = "inductor"
        return run_partition(joint, lambda joint: min_cut_rematerialization_partition(joint, *rest, **options))

    def compiler(name: str) -> Callable[..., Any]:
        def compiled(gm: GraphModule, inputs: Any) -> Any:
            if name == "inference":
                before(gm)
                if numerics:
                    run_joint(gm.graph, numerics)
            if numerics == "exact":
                run_post_grad(gm.graph)
            gm.graph.lint()
            gm.recompile()
            graphs[name] = gm
            return make_boxed_func(gm.forward)

        return compiled

    def backend(gm: GraphModule, inputs: Any) -> Any:
        return aot_module_simplified(
            gm,
            inputs,
            fw_compiler=compiler("forward"),
            bw_compiler=compiler("backward"),
            inference_compiler=compiler("inference"),
            partition_fn=partition,
            decompositions=select_decomp_table() if decompositions else {},
            keep_inference_input_mutations=True,
        )

    torch._dynamo.reset()
    out = torch.compile(fn, backend=backend, dynamic=dynamic, fullgraph=True)(*args)
    tensors = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad]
    if tensors and torch.is_grad_enabled():
        torch.autograd.backward([t.float().sum() if not t.is_complex() else t.real.sum() for t in tensors])
    return graphs


def _copy(graph: Graph) -> Graph:
    copy = Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy
