"""What the report says of every spelling, as text: the review of the report is the review of these tables.

EXPECTTEST_ACCEPT=1 python -m pytest tests/test_report_goldens.py    # writes them anew
"""

import unittest

import expecttest
import torch

import ste_compile
from ste_compile import _torch

from .spellings import SPELLINGS


def said(numerics: str) -> str:
    """A block for each spelling, trained with a bfloat16 value and a float32 surrogate."""
    blocks = []
    for spelling in SPELLINGS:
        torch._dynamo.reset()
        v = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
        s = torch.ones(4, requires_grad=True)
        compiled = torch.compile(spelling.fn, backend="ste_aot_eager", options={"numerics": numerics})
        with ste_compile.collect() as recorder:
            compiled(v, s)
        blocks.append(spelling.name)
        for site in recorder.sites():
            surrogates = ", ".join(map(str, site.surrogates))
            casts = f"; {', '.join(site.casts)}" if site.casts else ""
            blocks.append(f"    {site.expression or '?'}: {site.action}, {site.reason}")
            blocks.append(f"        needs {site.needs}; value {site.value}; surrogate {surrogates}{casts}; frees {site.frees}")
            blocks += [f"        {note}" for note in site.notes]
    return "\n".join(blocks) + "\n"


@unittest.skipIf(not _torch.ROUNDS_ON_REQUEST, "before 2.13 a report shows what a site's whole statement computes")
class TestReports(expecttest.TestCase):
    def test_exact(self):
        self.assertExpectedInline(
            said("exact"),
            """\
seed
    v + (s - s.detach()): fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='finite' would free 2 operators
seed_commuted
    (s - s.detach()) + v: fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='finite' would free 2 operators
seed_subtracted
    v - (s.detach() - s): fused, its own arithmetic, every intermediate rounded
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='finite' would free 2 operators
seed_data
    v + (s - s.data): fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='finite' would free 2 operators
cast_before_detach
    v + (s.to(v.dtype) - s.to(v.dtype).detach()): fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 4 operators
        numerics='finite' would free 4 operators
cast_after_detach
    v + (s.to(v.dtype) - s.detach().to(v.dtype)): fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 4 operators
        numerics='finite' would free 4 operators
cast_type_as
    v + (s.type_as(v) - s.type_as(v).detach()): fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 4 operators
        numerics='finite' would free 4 operators
cast_float
    v + (s.float() - s.float().detach()): fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='finite' would free 2 operators
cast_bfloat16
    v + (s.bfloat16() - s.detach().bfloat16()): fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 4 operators
        numerics='finite' would free 4 operators
cast_double
    v + (s.half().to(v.dtype) - s.half().to(v.dtype).detach()): fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate _to_copy_1: bf16[4]; f32 -> f16, f16 -> bf16; frees 6 operators
        numerics='finite' would free 6 operators
cast_difference
    v + (s - s.detach()).to(v.dtype): fused, its own arithmetic, every intermediate rounded
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; f32 -> bf16; frees 3 operators
        numerics='finite' would free 3 operators
vq
    x + (q - x).detach(): fused, one operator, (v - s) + s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
vq_commuted
    (q - x).detach() + x: fused, one operator, (v - s) + s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
vq_subtracted
    x - (x - q).detach(): fused, its own arithmetic, every intermediate rounded
        needs algebraic; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
gumbel
    hard - soft.detach() + soft: fused, one operator, (v - s) + s
        needs algebraic; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
gumbel_parentheses
    (hard - soft).detach() + soft: fused, one operator, (v - s) + s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
five_term
    hard.detach() - x.detach() + x: fused, one operator, (v - s) + s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
trailing
    hard + soft - soft.detach(): fused, one operator, (v + s) - s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
trailing_detached
    hard.detach() + soft - soft.detach(): fused, one operator, (v + s) - s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
clip
    x - x.detach() + torch.clip(x, -1, 1).detach(): fused, one operator, v + (s - s)
        needs finite; value clamp: f32[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='finite' would free 2 operators
gradient_scale
    (x - x * 0.3).detach() + x * 0.3: fused, one operator, (v - s) + s
        needs algebraic; value primals_1: f32[4]; surrogate mul: f32[4]; frees 4 operators
        numerics='algebraic' would free 4 operators
blend
    x.detach() + (x - x.detach()) * 0.3: fused, its own arithmetic, every intermediate rounded
        needs finite; value primals_1: f32[4]; surrogate primals_1: f32[4]; frees 3 operators
        numerics='finite' would free 3 operators
blend_tensor
    x.detach() + (x - x.detach()) * v: fused, its own arithmetic, every intermediate rounded
        needs finite; value primals_1: f32[4]; surrogate primals_1: f32[4]; frees 3 operators
        numerics='finite' would free 3 operators
nested
    mask.detach() - x.detach() + x: fused, one operator, (v - s) + s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
alpha
    torch.sub(torch.add(v, s, alpha=2), s.detach(), alpha=2): left, alpha: eager's vectorised and scalar kernels themselves round it differently
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
negated
    -(s.detach() - s) + v: fused, its own arithmetic, every intermediate rounded
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 3 operators
        numerics='finite' would free 3 operators
value_subtracted
    (s - s.detach()) - v: fused, its own arithmetic, every intermediate rounded
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='finite' would free 2 operators
python_scalar
    1.0 + (s - s.detach()) * v: fused, its own arithmetic, every intermediate rounded
        needs finite; value 1.0: Python number; surrogate primals_1: f32[4]; frees 3 operators
        numerics='finite' would free 3 operators
python_scalar_reassociated
    (0.1 - s).detach() + s: fused, its own arithmetic, every intermediate rounded
        needs algebraic; value 0.1: Python number; surrogate primals_1: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
in_place
    out.add_(s).sub_(s.detach()): fused, one operator, (v + s) - s
        needs algebraic; value _to_copy: f32[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
two_seeds
    v + (s - s.detach()) + (s.tanh() - s.tanh().detach()): fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='finite' would free 2 operators
    v + (s - s.detach()) + (s.tanh() - s.tanh().detach()): fused, one operator, v + (s - s)
        needs finite; value add: f32[4]; surrogate tanh: f32[4]; frees 4 operators
        numerics='finite' would free 4 operators
residual_sum
    (v + s + v.abs()) - s.detach(): fused, its own arithmetic, every intermediate rounded
        needs algebraic; value primals_1 + abs_1: a sum; surrogate primals_2: f32[4]; frees 3 operators
        numerics='algebraic' would free 3 operators
residual_difference
    (s - v - 2.5) - s.detach(): fused, its own arithmetic, every intermediate rounded
        needs algebraic; value - primals_2 - 2.5: a sum; surrogate primals_1: f32[4]; frees 3 operators
        numerics='algebraic' would free 3 operators
two_surrogates
    v + s + s.sin() - s.detach() - s.sin().detach(): fused, its own arithmetic, every intermediate rounded
        needs algebraic; value primals_1 + sin: a sum; surrogate primals_2: f32[4]; frees nothing
    v + s + s.sin() - s.detach() - s.sin().detach(): fused, its own arithmetic, every intermediate rounded
        needs algebraic; value primals_1: bf16[4]; surrogate sin_1: f32[4]; frees 6 operators
        numerics='algebraic' would free 6 operators
site_of_site
    v + (s - s.detach()): fused, one operator, v + (s - s)
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='finite' would free 2 operators
    s.sin() + ((v + (s - s.detach())) - s.sin()).detach(): fused, one operator, (v - s) + s
        needs algebraic; value add: f32[4]; surrogate sin_1: f32[4]; frees 4 operators
        numerics='algebraic' would free 4 operators
""",
        )

    def test_finite(self):
        self.assertExpectedInline(
            said("finite"),
            """\
seed
    v + (s - s.detach()): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
seed_commuted
    (s - s.detach()) + v: cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
seed_subtracted
    v - (s.detach() - s): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
seed_data
    v + (s - s.data): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
cast_before_detach
    v + (s.to(v.dtype) - s.to(v.dtype).detach()): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 3 operators
cast_after_detach
    v + (s.to(v.dtype) - s.detach().to(v.dtype)): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 3 operators
cast_type_as
    v + (s.type_as(v) - s.type_as(v).detach()): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 3 operators
cast_float
    v + (s.float() - s.float().detach()): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
cast_bfloat16
    v + (s.bfloat16() - s.detach().bfloat16()): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 3 operators
cast_double
    v + (s.half().to(v.dtype) - s.half().to(v.dtype).detach()): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate _to_copy_1: bf16[4]; f32 -> f16, f16 -> bf16; frees 5 operators
cast_difference
    v + (s - s.detach()).to(v.dtype): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; f32 -> bf16; frees 2 operators
vq
    x + (q - x).detach(): fused, one operator, (v - s) + s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
vq_commuted
    (q - x).detach() + x: fused, one operator, (v - s) + s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
vq_subtracted
    x - (x - q).detach(): fused, its own arithmetic, every intermediate rounded
        needs algebraic; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
gumbel
    hard - soft.detach() + soft: fused, one operator, (v - s) + s
        needs algebraic; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
gumbel_parentheses
    (hard - soft).detach() + soft: fused, one operator, (v - s) + s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
five_term
    hard.detach() - x.detach() + x: fused, one operator, (v - s) + s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
trailing
    hard + soft - soft.detach(): fused, one operator, (v + s) - s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
trailing_detached
    hard.detach() + soft - soft.detach(): fused, one operator, (v + s) - s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
clip
    x - x.detach() + torch.clip(x, -1, 1).detach(): cancelled, permitted by numerics='finite'
        needs finite; value clamp: f32[4]; surrogate primals_1: f32[4]; frees 1 operator
gradient_scale
    (x - x * 0.3).detach() + x * 0.3: fused, one operator, (v - s) + s
        needs algebraic; value primals_1: f32[4]; surrogate mul: f32[4]; frees 4 operators
        numerics='algebraic' would free 4 operators
blend
    x.detach() + (x - x.detach()) * 0.3: cancelled, permitted by numerics='finite'
        needs finite; value primals_1: f32[4]; surrogate primals_1: f32[4]; frees 2 operators
blend_tensor
    x.detach() + (x - x.detach()) * v: cancelled, permitted by numerics='finite'
        needs finite; value primals_1: f32[4]; surrogate primals_1: f32[4]; frees 2 operators
nested
    mask.detach() - x.detach() + x: fused, one operator, (v - s) + s
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
alpha
    torch.sub(torch.add(v, s, alpha=2), s.detach(), alpha=2): left, alpha: eager's vectorised and scalar kernels themselves round it differently
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
negated
    -(s.detach() - s) + v: cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
value_subtracted
    (s - s.detach()) - v: cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
python_scalar
    1.0 + (s - s.detach()) * v: cancelled, permitted by numerics='finite'
        needs finite; value 1.0: Python number; surrogate primals_1: f32[4]; frees 2 operators
python_scalar_reassociated
    (0.1 - s).detach() + s: fused, its own arithmetic, every intermediate rounded
        needs algebraic; value 0.1: Python number; surrogate primals_1: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
in_place
    out.add_(s).sub_(s.detach()): fused, one operator, (v + s) - s
        needs algebraic; value _to_copy: f32[4]; surrogate primals_2: f32[4]; frees 2 operators
        numerics='algebraic' would free 2 operators
two_seeds
    v + (s - s.detach()) + (s.tanh() - s.tanh().detach()): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
    v + (s - s.detach()) + (s.tanh() - s.tanh().detach()): cancelled, permitted by numerics='finite'
        needs finite; value add: f32[4]; surrogate tanh: f32[4]; frees 3 operators
residual_sum
    (v + s + v.abs()) - s.detach(): fused, its own arithmetic, every intermediate rounded
        needs algebraic; value primals_1 + abs_1: a sum; surrogate primals_2: f32[4]; frees 3 operators
        numerics='algebraic' would free 3 operators
residual_difference
    (s - v - 2.5) - s.detach(): fused, its own arithmetic, every intermediate rounded
        needs algebraic; value - primals_2 - 2.5: a sum; surrogate primals_1: f32[4]; frees 3 operators
        numerics='algebraic' would free 3 operators
two_surrogates
    v + s + s.sin() - s.detach() - s.sin().detach(): fused, its own arithmetic, every intermediate rounded
        needs algebraic; value primals_1 + sin: a sum; surrogate primals_2: f32[4]; frees nothing
    v + s + s.sin() - s.detach() - s.sin().detach(): fused, its own arithmetic, every intermediate rounded
        needs algebraic; value primals_1: bf16[4]; surrogate sin_1: f32[4]; frees 6 operators
        numerics='algebraic' would free 6 operators
site_of_site
    v + (s - s.detach()): cancelled, permitted by numerics='finite'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
    s.sin() + ((v + (s - s.detach())) - s.sin()).detach(): fused, one operator, (v - s) + s
        needs algebraic; value add: f32[4]; surrogate sin_1: f32[4]; frees 4 operators
        numerics='algebraic' would free 4 operators
""",
        )

    def test_algebraic(self):
        self.assertExpectedInline(
            said("algebraic"),
            """\
seed
    v + (s - s.detach()): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
seed_commuted
    (s - s.detach()) + v: cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
seed_subtracted
    v - (s.detach() - s): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
seed_data
    v + (s - s.data): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
cast_before_detach
    v + (s.to(v.dtype) - s.to(v.dtype).detach()): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 3 operators
cast_after_detach
    v + (s.to(v.dtype) - s.detach().to(v.dtype)): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 3 operators
cast_type_as
    v + (s.type_as(v) - s.type_as(v).detach()): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 3 operators
cast_float
    v + (s.float() - s.float().detach()): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
cast_bfloat16
    v + (s.bfloat16() - s.detach().bfloat16()): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate _to_copy: bf16[4]; f32 -> bf16; frees 3 operators
cast_double
    v + (s.half().to(v.dtype) - s.half().to(v.dtype).detach()): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate _to_copy_1: bf16[4]; f32 -> f16, f16 -> bf16; frees 5 operators
cast_difference
    v + (s - s.detach()).to(v.dtype): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; f32 -> bf16; frees 2 operators
vq
    x + (q - x).detach(): cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 1 operator
vq_commuted
    (q - x).detach() + x: cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 1 operator
vq_subtracted
    x - (x - q).detach(): cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
gumbel
    hard - soft.detach() + soft: cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
gumbel_parentheses
    (hard - soft).detach() + soft: cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 1 operator
five_term
    hard.detach() - x.detach() + x: cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 1 operator
trailing
    hard + soft - soft.detach(): cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 1 operator
trailing_detached
    hard.detach() + soft - soft.detach(): cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 1 operator
clip
    x - x.detach() + torch.clip(x, -1, 1).detach(): cancelled, permitted by numerics='algebraic'
        needs finite; value clamp: f32[4]; surrogate primals_1: f32[4]; frees 1 operator
gradient_scale
    (x - x * 0.3).detach() + x * 0.3: cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1: f32[4]; surrogate mul: f32[4]; frees 3 operators
blend
    x.detach() + (x - x.detach()) * 0.3: cancelled, permitted by numerics='algebraic'
        needs finite; value primals_1: f32[4]; surrogate primals_1: f32[4]; frees 2 operators
blend_tensor
    x.detach() + (x - x.detach()) * v: cancelled, permitted by numerics='algebraic'
        needs finite; value primals_1: f32[4]; surrogate primals_1: f32[4]; frees 2 operators
nested
    mask.detach() - x.detach() + x: cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 1 operator
alpha
    torch.sub(torch.add(v, s, alpha=2), s.detach(), alpha=2): cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1: bf16[4]; surrogate primals_2: f32[4]; frees 1 operator
negated
    -(s.detach() - s) + v: cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 2 operators
value_subtracted
    (s - s.detach()) - v: cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
python_scalar
    1.0 + (s - s.detach()) * v: cancelled, permitted by numerics='algebraic'
        needs finite; value 1.0: Python number; surrogate primals_1: f32[4]; frees 2 operators
python_scalar_reassociated
    (0.1 - s).detach() + s: cancelled, permitted by numerics='algebraic'
        needs algebraic; value 0.1: Python number; surrogate primals_1: f32[4]; frees 1 operator
in_place
    out.add_(s).sub_(s.detach()): cancelled, permitted by numerics='algebraic'
        needs algebraic; value _to_copy: f32[4]; surrogate primals_2: f32[4]; frees 1 operator
two_seeds
    v + (s - s.detach()) + (s.tanh() - s.tanh().detach()): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
    v + (s - s.detach()) + (s.tanh() - s.tanh().detach()): cancelled, permitted by numerics='algebraic'
        needs finite; value add: f32[4]; surrogate tanh: f32[4]; frees 3 operators
residual_sum
    (v + s + v.abs()) - s.detach(): cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1 + abs_1: a sum; surrogate primals_2: f32[4]; frees 2 operators
residual_difference
    (s - v - 2.5) - s.detach(): cancelled, permitted by numerics='algebraic'
        needs algebraic; value - primals_2 - 2.5: a sum; surrogate primals_1: f32[4]; frees 2 operators
two_surrogates
    v + s + s.sin() - s.detach() - s.sin().detach(): cancelled, only another cancelled site used it
        needs algebraic; value primals_1 + sin: a sum; surrogate primals_2: f32[4]; frees nothing
    v + s + s.sin() - s.detach() - s.sin().detach(): cancelled, permitted by numerics='algebraic'
        needs algebraic; value primals_1: bf16[4]; surrogate sin_1: f32[4]; frees 5 operators
site_of_site
    v + (s - s.detach()): cancelled, permitted by numerics='algebraic'
        needs finite; value primals_2: bf16[4]; surrogate primals_1: f32[4]; frees 1 operator
    s.sin() + ((v + (s - s.detach())) - s.sin()).detach(): cancelled, permitted by numerics='algebraic'
        needs algebraic; value add: f32[4]; surrogate sin_1: f32[4]; frees 3 operators
""",
        )
