"""Which convolutions of a deferred forward stay contiguous, and what Inductor makes of it."""

import copy
import math
import re

import pytest
import torch
from ste_compile.passes.layout import stay_contiguous
from ste_compile.passes.ops import ops
from ste_compile.passes.regions import Part, make_region
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.utils import run_fw_bw_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx
from torch.torch_version import TorchVersion

import ste_compile
from ste_compile import _torch

aten, prims = torch.ops.aten, torch.ops.prims
WIDTH, HALVES = 16, (torch.bfloat16, torch.float16)
LAST = torch.channels_last


def conv(before=WIDTH, after=WIDTH, size=3, groups=1):
    return nn.Conv2d(before, after, size, padding=size // 2, groups=groups, bias=False)


class ByHand(nn.Module):
    """A group norm without the operator."""

    def forward(self, x):
        blocks = x.view(len(x), 4, -1)
        blocks = (blocks - blocks.mean(2, keepdim=True)) / blocks.var(2, keepdim=True)
        return blocks.view(x.shape)


class Shuffle(nn.Module):
    def forward(self, x):
        return x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)


class LayerNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Gate(nn.Module):
    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Sum(nn.Module):
    def forward(self, x):
        return x.relu() + x.sigmoid()


def norm(blocks=4, width=WIDTH):
    return nn.GroupNorm(blocks, width)


# layers -> which of their convolutions stay contiguous
KEPT = {
    "group norm after": ([conv(), norm()], [True]),
    "group norm before": ([norm(), nn.ReLU(), conv()], [True]),
    "by hand": ([conv(), ByHand()], [True]),
    "two": ([conv(), norm(), nn.ReLU(), conv(), norm()], [True, True]),
    "bottleneck": ([conv(WIDTH, 4, 1), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, WIDTH, 1), norm()], [False, False, True]),
    "separable": ([conv(groups=WIDTH), conv(size=1), norm()], [False, True]),
    "squeeze and excite": ([conv(), norm(), nn.ReLU(), Gate(), conv()], [True, True]),
    "from many channels": ([conv(8 * WIDTH, WIDTH, 1), norm()], [False]),
    "to many channels": ([norm(), conv(WIDTH, 8 * WIDTH, 1)], [False]),
    "one block": ([conv(), norm(1)], [False]),
    "blocks of one": ([conv(), norm(WIDTH)], [False]),
    "batch norm": ([conv(), nn.BatchNorm2d(WIDTH), nn.ReLU(), conv()], [False, False]),
    "layer norm": ([conv(), LayerNorm(WIDTH), conv()], [False, False]),
    "sum of two": ([conv(), nn.ReLU(), Sum(), norm()], [False]),
    "no norm beside": ([conv(), nn.GELU(), conv(), nn.GELU(), conv(), norm()], [False, False, True]),
    "channel shuffle": ([conv(), Shuffle(), conv()], [False, False]),
    "no norm": ([conv(), nn.GELU(), conv()], [False, False]),
    "one dimension": ([nn.Flatten(2), nn.Conv1d(WIDTH, WIDTH, 3, padding=1), norm()], [False]),
    "another device": ([conv(), norm()], [False]),
    "float32": ([conv(), norm()], [False]),
}


@pytest.mark.parametrize("name", KEPT)
def test_convolutions_around_group_norms_stay_contiguous(name):
    """Given layers, then those convolutions stay contiguous whose group norm gains more than they lose; in 32 bits, or on another
    device than a CPU, none does.
    Breaks if the channels of a view are compared with the wrong dimension, or a reduction is not looked for."""
    layers, kept = KEPT[name]
    device, dtype = "meta" if name == "another device" else "cpu", torch.float32 if name == "float32" else torch.bfloat16
    model = copy.deepcopy(nn.Sequential(*layers)).to(device, dtype)
    x = torch.randn(2, 8 * WIDTH if name == "from many channels" else WIDTH, 6, 6, device=device, dtype=dtype)
    traced = make_fx(model, decomposition_table=select_decomp_table())(x)
    convolutions = [node for node in traced.graph.nodes if "convolution" in node.name]
    contiguous = stay_contiguous(traced.graph, set(convolutions), HALVES)
    assert [node.target is ops.convolution.default for node in convolutions] == kept
    assert {node for node, stays in zip(convolutions, kept) if stays} <= contiguous
    assert any(kept) or not contiguous


def test_nothing_changes_where_the_compiler_would_not_lay_out_anything_nor_in_another_dtype():
    layers, _ = KEPT["two"]
    traced = make_fx(copy.deepcopy(nn.Sequential(*layers)).bfloat16())(torch.randn(2, WIDTH, 6, 6).bfloat16())
    assert stay_contiguous(traced.graph, set(), HALVES) == set()
    convolutions = set(traced.graph.find_nodes(op="call_function", target=aten.convolution.default))
    assert stay_contiguous(traced.graph, convolutions, [torch.float16]) == set()
    assert not traced.graph.find_nodes(op="call_function", target=ops.convolution.default)


@pytest.mark.parametrize("may", (True, False))
def test_a_region_returns_its_results_in_the_layout_that_they_are_computed_in(may):
    """Given a region that returns a convolution which the compiler lays out channels-last, one that may stay contiguous, and an
    image that is not laid out. Broken by: no layout forced, or another node's; seen to fail."""
    layers = copy.deepcopy(nn.Sequential(conv(), nn.GELU(), conv(), norm())).bfloat16()
    traced = make_fx(layers, decomposition_table=select_decomp_table())(torch.randn(2, WIDTH, 6, 6).bfloat16())
    nodes = [node for node in traced.graph.nodes if node.op == "call_function"]
    outputs = [node for node in nodes if node.name in ("convolution", "convolution_1", "rsqrt")]
    part = Part(nodes, outputs, dict.fromkeys(node for node in traced.graph.nodes if node.op in ("placeholder", "get_attr")))
    make_region(
        traced, part, lambda module: {n for n in module.graph.nodes if n.target is aten.convolution.default}, HALVES[:may]
    )
    results = part.module.graph.output_node().args[0]
    layouts = [node.args[1] if node.target is prims.inductor_force_stride_order.default else None for node in results]
    last = [36 * WIDTH, 1, 6 * WIDTH, WIDTH]
    assert [node.name for node in part.contiguous] == ["convolution_1"] * may
    assert layouts == [last, [36 * WIDTH, 36, 6, 1] if may else last, None]


class Model(nn.Module):
    """A channels-last host and a seed with group norms, which reads a contiguous copy."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.host, self.seed = conv(3, 32).to(memory_format=LAST), nn.Sequential(conv(32, 32), norm(8, 32), nn.ReLU())
        self.seed.append(conv(32, 32)).append(norm(8, 32))

    def forward(self, x):
        h = self.host(x).relu()
        h = ste_compile.ste_forward(h, h.detach().contiguous() + self.seed(h.detach().contiguous()))
        return h.square().mean()


def backward_code(model, x, **options):
    """The generated backward, and the gradients that it computes."""
    torch._dynamo.reset()
    compiled = torch.compile(
        model, backend="ste", options={"numerics": "finite", "fx_graph_cache": False, "cpp.threads": 1, **options}
    )
    with torch.autocast("cpu", torch.bfloat16):
        _, codes = run_fw_bw_and_get_code(lambda: compiled(x))
    return codes[-1], [parameter.grad.clone() for parameter in model.parameters()]


SCALAR = TorchVersion(torch.__version__) >= "2.13"  # else they are vectorised over the channels of a block
LOOP = re.compile(r"for\(int64_t x\d=.*?<static_cast<int64_t>\((\d+)L\)")


def scalar_loops(code):
    """How many turns each loop nest takes that is not vectorised."""
    nests = [nest for kernel in code.split("async_compile.cpp_pybinding")[1:] for nest in kernel.split("\n    {\n")[1:]]
    return [math.prod(map(int, LOOP.findall(nest))) for nest in nests if "at::vec" not in nest]


@pytest.mark.parametrize("seed_layout", (torch.contiguous_format, LAST))
def test_the_loops_of_a_group_norms_gradient_are_vectorised(seed_layout):
    """Given a channels-last host and a seed with group norms, whose weights are in either layout, when compiled, then no loop of
    the backward goes over an image one element at a time, and gradients are eager's. Where the user forces Inductor's layout, or
    oneDNN has no convolutions of 16 bits, two loops do, as before.
    Breaks if a region returns the images in the layout of the weights."""
    x, model = torch.randn(4, 3, 16, 16).to(memory_format=LAST), Model()
    image = 4 * 32 * 16 * 16
    model.seed.to(memory_format=seed_layout)
    gradients, stays = [], torch.bfloat16 in _torch.contiguous_dtypes()
    for forced in (False, True):
        code, found = backward_code(model, x, force_layout_optimization=forced)
        slow = [turns for turns in scalar_loops(code) if turns >= image]
        assert "deferred_0" in code and slow == [image, image] * ((forced or not stays) and SCALAR)
        gradients.append(found)
        model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        model(x).backward()
    for want, *have in zip(model.parameters(), *gradients, strict=True):
        for each in have:  # a few roundings of bf16 apart: Inductor keeps fp32 where eager rounds
            assert (each - want.grad).norm() <= 2**-6 * want.grad.norm()


@pytest.mark.parametrize("supported", (HALVES, HALVES[:1], ()), ids=str)
def test_a_convolution_stays_contiguous_in_the_dtypes_that_onednn_has(monkeypatch, supported):
    """ATen's own convolution of 16 bits takes eight times as long contiguous. Broken by: another dtype's question; seen to fail."""
    for dtype, name in zip(HALVES, ("is_mkldnn_bf16_supported", "is_mkldnn_fp16_supported")):
        monkeypatch.setattr(torch._inductor.utils, name, lambda device, known=dtype in supported: known)
    assert _torch.contiguous_dtypes() == (supported if SCALAR else ())
    with torch.backends.mkldnn.flags(enabled=False):
        assert _torch.contiguous_dtypes() == ()


def test_a_region_of_group_norms_serves_every_batch():
    """Given a dynamic batch, then one compile serves all, with eager's gradients.
    Breaks if sizes are compared as they are: a guard on them is one that only the first batch meets."""
    backend = ste_compile.backend(numerics="finite")
    model, counter = Model(), CompileCounterWithBackend(lambda gm, args: backend(gm, args))
    compiled = torch.compile(model, backend=counter)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 3, 16, 16).to(memory_format=LAST)
        torch._dynamo.mark_dynamic(x, 0)
        found = []
        for run in (compiled, model):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                run(x).backward()
            found.append([parameter.grad.clone() for parameter in model.parameters()])
        for have, want in zip(*found, strict=True):
            assert (have - want).norm() <= 2**-6 * want.norm()
    assert counter.frame_count == 1
