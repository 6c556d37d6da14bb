"""Reports made by hand, to show without compiling anything."""

from __future__ import annotations

from dataclasses import replace

from ste_compile.inspection.figures import Figures
from ste_compile.inspection.report import Break, Graph, Line, Operand, Part, Report, Site, View
from ste_compile.inspection.source import Frame

MIB = 2**20
SEED = Site(
    index=1, node="add", file="/home/ada/morph/model.py", line=42, code="ste_forward(host, seed)", expression="host + (seed - seed.detach())",
    value=Operand("relu", "bf16[64, 48, 32, 32]", "blocks.0.host"), surrogates=(Operand("convert_element_type", "bf16[64, 48, 32, 32]", "blocks.0.seed"),),
    casts=("f32 -> bf16",), needs="finite", order="v + (s - s)", action="cancelled", reason='numerics="finite" lets `seed - seed.detach()` be 0',
    frees=Figures(operators=9, matmuls=2, kernels=5, bytes_read=14 * MIB, bytes_written=6 * MIB, bytes_saved=9_600_000),
    notes=("1.2 MiB more would be freed if `tanh` were not also returned",),
    stack=(
        Frame("/home/ada/morph/train.py", 118, "step", "model(batch.images)"),
        Frame("/home/ada/morph/model.py", 88, "forward", "self.blocks[0](x)", resumed_at=86),
        Frame("/home/ada/morph/model.py", 42, "forward", "ste_forward(host, seed)"),
    ),
    edges=(("convolution", "relu"), ("convolution", "tanh"), ("tanh", "convert_element_type"), ("convert_element_type", "alias"), ("convert_element_type", "sub"),
           ("alias", "sub"), ("sub", "add"), ("relu", "add"), ("add", "convolution_1")),
)  # fmt: skip
CODEBOOK = Site(
    index=2, node="add_1", file="/home/ada/morph/quantizer.py", line=17, code="x + (q - x).detach()", expression="x + (q - x).detach()",
    value=Operand("embedding", "f32[64, 48]"), surrogates=(Operand("mean", "f32[64, 48]", "head.pool"),), casts=(), needs="algebraic",
    order="(v - s) + s", action="fused", operator="add_1", reason='left to one fused kernel: cancelling it needs numerics="algebraic"',
    frees=Figures(operators=2, kernels=1, bytes_read=24_576, bytes_written=12_288),
    edges=(("mean", "sub_1"), ("embedding", "sub_1"), ("sub_1", "alias_1"), ("alias_1", "add_1"), ("mean", "add_1")),
)  # fmt: skip
GATE = replace(
    CODEBOOK, index=1, node="add", file="/home/ada/morph/gates.py", line=9, code="hard - soft.detach() + soft", expression="hard - soft.detach() + soft",
    value=Operand("ge", "bool[64]"), surrogates=(Operand("arg1_1", "f32[64]"),), action="left", operator="", order="(v - s) + s", casts=("bool -> f32",),
    reason="its value and its root differ in strides: (1, 64) and (64, 1)", frees=Figures(operators=2),
    notes=("the surrogate comes from outside this graph, so nothing above it can be freed: graph break at /home/ada/morph/gates.py:7, a call of print",),
    edges=(("arg0_1", "ge"), ("ge", "sub"), ("arg1_1", "alias"), ("alias", "sub"), ("sub", "add"), ("arg1_1", "add")),
)  # fmt: skip

_BEFORE = """
primals_1: "f32[48, 3, 3, 3]"
primals_2: "bf16[64, 3, 32, 32]"
convolution: "bf16[64, 48, 32, 32]" = torch.ops.aten.convolution.default(primals_2, primals_1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1) | model.py:40
relu: "bf16[64, 48, 32, 32]" = torch.ops.aten.relu.default(convolution) | model.py:40
tanh: "f32[64, 48, 32, 32]" = torch.ops.aten.tanh.default(convolution) | model.py:41 | deferred
convert_element_type: "bf16[64, 48, 32, 32]" = torch.ops.prims.convert_element_type.default(tanh, torch.bfloat16) | model.py:42 | removed
alias: "bf16[64, 48, 32, 32]" = torch.ops.aten.alias.default(convert_element_type) | model.py:42 | removed
sub: "bf16[64, 48, 32, 32]" = torch.ops.aten.sub.Tensor(convert_element_type, alias) | model.py:42 | removed
add: "bf16[64, 48, 32, 32]" = torch.ops.aten.add.Tensor(relu, sub) | model.py:42 | removed
convolution_1: "bf16[64, 48, 32, 32]" = torch.ops.aten.convolution.default(add, primals_1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1) | model.py:43
mean: "f32[64, 48]" = torch.ops.aten.mean.dim(convolution_1, [2, 3]) | model.py:44
embedding: "f32[64, 48]" = torch.ops.aten.embedding.default(primals_1, argmin) | quantizer.py:15
sub_1: "f32[64, 48]" = torch.ops.aten.sub.Tensor(embedding, mean) | quantizer.py:17 | fused
alias_1: "f32[64, 48]" = torch.ops.aten.alias.default(sub_1) | quantizer.py:17 | fused
add_1: "f32[64, 48]" = torch.ops.aten.add.Tensor(mean, alias_1) | quantizer.py:17 | fused
return (add_1, primals_1)
"""
_GATE = """
arg0_1: "f32[64]"
arg1_1: "f32[64]"
ge: "bool[64]" = torch.ops.aten.ge.Scalar(arg0_1, 0.5) | gates.py:8
alias: "f32[64]" = torch.ops.aten.alias.default(arg1_1) | gates.py:9
sub: "f32[64]" = torch.ops.aten.sub.Tensor(ge, alias) | gates.py:9
add: "f32[64]" = torch.ops.aten.add.Tensor(sub, arg1_1) | gates.py:9
return (add,)
"""


def lines(text: str) -> tuple[Line, ...]:
    """Graph lines from `text | source | state`, the last two left out where empty and "kept"."""
    found = []
    for row in text.strip().splitlines():
        line, source, state, *_ = [*row.split(" | "), "", ""]
        found.append(
            Line(line.partition(":")[0] if ":" in line else "", line, state or "kept", source and f"/home/ada/morph/{source}")
        )
    return tuple(found)


def after(before: tuple[Line, ...]) -> tuple[Line, ...]:
    """What the passes make of `before`: what was removed or deferred is gone, and the last of each fused run is the operator."""
    kept = []
    for line, following in zip(before, [*before[1:], None]):
        if line.state == "fused" and (following is None or following.state != "fused"):
            kept.append(
                replace(
                    line, text=f'{line.node}: "f32[64, 48]" = torch.ops.ste_compile.straight_through.default(embedding, mean, 1)'
                )
            )
        elif line.state == "kept":
            kept.append(line)
    return tuple(kept)


def small() -> Report:
    """Two graphs, one after a graph break; a site of each action."""
    before, gate = lines(_BEFORE), lines(_GATE)
    new = Line("empty", 'empty: "f32[1]" = torch.ops.aten.empty.memory_format([1])', "new")
    part = Part("forward", Figures(21, 3, 7, 28 * MIB, 19 * MIB, 10_485_760), Figures(30, 5, 12, 42 * MIB, 25 * MIB, 20_085_760))
    backward = Part("backward", Figures(34, 8, 15, 60 * MIB, 31 * MIB, 0), Figures(34, 8, 14, 52 * MIB, 31 * MIB, 0))
    training = Graph(
        "0/0", True, "finite", (SEED, CODEBOOK), (part, backward),
        (View("before", before), View("after", (*after(before), new)), View("forward", after(before)), View("backward", before[4:5])),
    )  # fmt: skip
    cut = Break("/home/ada/morph/gates.py", 7, "a call of print")
    inference = Graph(
        "1/0", False, "finite", (GATE,), (Part("inference", Figures(4)),), (View("before", gate), View("after", gate)), cut
    )
    return Report("finite", "2.13.0", (training, inference))


def big(nodes: int = 2000, sites: int = 200) -> Report:
    """One graph of `nodes` nodes, a site at every tenth."""
    rows, found, every = [], [], nodes // sites
    for i in range(nodes):
        state = "removed" if i % every >= every - 2 else "deferred" if i % every == 3 else "kept"
        operands = f"convolution_{i - 1}, primals_{i}, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1"
        text = f'convolution_{i}: "bf16[64, 48, 32, 32]" = torch.ops.aten.convolution.default({operands})'
        rows.append(Line(f"convolution_{i}", text, state, f"/home/ada/morph/layers/block.py:{10 + i}"))
    for i in range(sites):
        names = {name: f"convolution_{i * every + k}" for k, name in enumerate(("host", "tanh", "cast", "alias", "sub"))}
        root = f"convolution_{i * every + every - 1}"
        edges = tuple((names[a], names[b]) for a, b in (("tanh", "cast"), ("cast", "alias"), ("cast", "sub"), ("alias", "sub")))
        found.append(replace(
            SEED, index=i + 1, node=root, line=10 + i, action=("cancelled", "fused", "left")[i % 3], operator=root if i % 3 == 1 else "", value=Operand(names["host"], "bf16[64, 48]", f"layers.{i}.host"),
            surrogates=(Operand(names["cast"], "bf16[64, 48]", f"layers.{i}.seed"),), edges=(*edges, (names["sub"], root), (names["host"], root)),
        ))  # fmt: skip
    before = tuple(rows)
    kept = tuple(line for line in before if line.state == "kept")
    fused = tuple(
        replace(line, state="fused") if line.node in {s.node for s in found if s.action == "fused"} else line for line in before
    )
    graph = Graph(
        "0/0",
        True,
        "finite",
        tuple(found),
        small().graphs[0].parts,
        (View("before", before), View("after", fused), View("forward", fused)),
    )
    return Report("finite", "2.13.0", (graph, replace(graph, name="0/1", sites=(), parts=(), views=(View("before", kept[:40]),))))
