"""Straight-through estimators that no one here wrote: found, and at every level what eager gives. `pip install -e
".[test-third-party]"` installs the packages; without one, its tests are skipped.

Where a package writes its estimator as a `torch.autograd.Function` there is no site to find: torchao's fake quantisation
(`_Float8Round` and kin), the rotation trick of vector-quantize-pytorch (arithmetic of its own). They are run too, and come out untouched.

Broken by: the value scaled by 1.0001 in `replace_with_value`, and `MARKERS` without `detach`; seen to fail.
"""

from collections import Counter

import pytest
import torch
from torch.nn.functional import gumbel_softmax

from .against_eager import LEVELS, assert_same, run, trained


def inputs(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def within(roundings, x):
    """No further from eager than eager's own rounding: `x + (q - x)` rounds twice, each time by at most half an ulp of a number no
    larger than |x| + |q|; `roundings` counts those that add up in one element of what is compared."""

    def compare(ours, eager, what):
        if ours.is_floating_point():
            scale = x.detach().abs().max() + eager.abs().max()
            error = (ours.double() - eager.double()).abs().max()
            assert error <= roundings * torch.finfo(x.dtype).eps / 2 * scale, f"{what}: {error}"
        else:
            assert torch.equal(ours, eager), what

    return compare


def check(model, x, *, train=True, finite=0, algebraic=0, roundings=2, reference=None):
    """Sites are counted by the level that removes them; bit for bit at a level that removes none that needs `algebraic`."""
    wanted = run(model, [x], reference, train=train)
    for numerics in LEVELS:
        ours = run(model, [x], numerics, train=train, fullgraph=False)
        cancelled = {"exact": 0, "finite": finite, "algebraic": finite + algebraic}[numerics]
        wanted_actions = +Counter(cancelled=cancelled, fused=finite + algebraic - cancelled)
        assert Counter(ours.actions) == wanted_actions, ours.reasons
        assert_same(ours, wanted, numerics, within(roundings, x) if numerics == "algebraic" and algebraic else None)


@trained
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_gumbel_softmax(dtype, train):
    """Given torch's own hard Gumbel sample, its one site is found and the noise is drawn as in eager."""
    check(lambda x: gumbel_softmax(x, tau=0.7, hard=True), inputs(4, 6, dtype=dtype), train=train, algebraic=1)


# name -> (module, sizes of the last dimension, sites by level, roundings that add up in one element)
VECTOR_QUANTIZE = {
    "VectorQuantize": (lambda p: p.VectorQuantize(16, codebook_size=32, rotation_trick=False), 16, {"algebraic": 1}, 2),
    "VectorQuantize_learnable": (
        lambda p: p.VectorQuantize(
            16, codebook_size=32, rotation_trick=False, sync_update_v=0.2, learnable_codebook=True, ema_update=False
        ),
        16,
        {"finite": 1, "algebraic": 1},
        4,
    ),
    "VectorQuantize_rotation": (lambda p: p.VectorQuantize(16, codebook_size=32, rotation_trick=True), 16, {}, 0),
    "ResidualVQ": (
        lambda p: p.ResidualVQ(dim=16, codebook_size=32, num_quantizers=2, rotation_trick=False),
        16,
        {"algebraic": 1},
        4,
    ),
    "SimVQ": (lambda p: p.SimVQ(dim=16, codebook_size=32, rotation_trick=False), 16, {"algebraic": 1}, 2),
    "FSQ": (lambda p: p.FSQ(levels=[8, 5, 5, 5]), 4, {"algebraic": 1}, 2),
    "LFQ": (lambda p: p.LFQ(dim=16, codebook_size=16, entropy_loss_weight=0.1), 16, {"algebraic": 1}, 8),
    "BinaryMapper": (lambda p: p.BinaryMapper(bits=4), 4, {"algebraic": 1}, 2),
}


@pytest.mark.parametrize("name", VECTOR_QUANTIZE)
def test_vector_quantize_pytorch(name):
    """Given a quantiser of vector-quantize-pytorch in training, where its estimators are, codebooks and their statistics included."""
    package = pytest.importorskip("vector_quantize_pytorch", reason="needs the extra test-third-party")
    make, size, sites, roundings = VECTOR_QUANTIZE[name]
    torch.manual_seed(0)
    check(make(package), inputs(2, 8, size), **sites, roundings=roundings)


@trained
def test_bitlinear_pytorch(train):
    """Given a layer of 1.58 bits, both its estimators, of the activation and of the weight, are found."""
    package = pytest.importorskip("bitlinear_pytorch", reason="needs the extra test-third-party")
    torch.manual_seed(0)
    layer = package.BitLinear(16, 8)
    # An output adds up 16 products of two numbers that each were rounded twice; a weight's gradient as many rows.
    check(layer, inputs(16, 16), train=train, algebraic=2, roundings=64)


def test_torchao():
    """Given torchao's quantisation-aware training, whose estimator is an autograd Function, there is no site, and nothing changes."""
    qat = pytest.importorskip("torchao.quantization.qat", reason="needs the extra test-third-party")
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(32, 8, bias=False))
    config = qat.IntxFakeQuantizeConfig(torch.int4, group_size=32)
    torch_quantize = pytest.importorskip("torchao.quantization").quantize_
    torch_quantize(layer, qat.QATConfig(weight_config=config, step="prepare"))
    check(layer, inputs(4, 32))
