"""The whole graph before and after, for every spelling: to review a pass, review these.

Values are bfloat16, surrogates float32. To accept a change: EXPECTTEST_ACCEPT=1 pytest tests/test_goldens.py
"""

import torch
from expecttest import assert_expected_inline as expect

from .graphs import captured, show
from .spellings import BY_NAME, SPELLINGS


def golden(name: str) -> str:
    spelling = BY_NAME[name]

    def graph(which: str, numerics: str | None, grad: bool) -> str:
        v = torch.ones(4, 3, dtype=torch.bfloat16, requires_grad=True)
        s = torch.ones(4, 3, requires_grad=True)
        with torch.set_grad_enabled(grad):
            return show(captured(spelling.fn, (v, s), numerics=numerics)[which].graph)

    return f"""
joint, before
{graph("joint", None, True)}

joint, {spelling.needs}
{graph("joint", spelling.needs, True)}

inference, before
{graph("inference", None, False)}

inference, {spelling.needs}
{graph("inference", spelling.needs, False)}

post-grad forward, exact
{graph("forward", "exact", True)}
"""


def test_every_spelling_has_a_golden():
    assert {f"test_{spelling.name}" for spelling in SPELLINGS} <= globals().keys()


def test_seed():
    expect(
        golden("seed"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
add: f32[4, 3] = add(primals_2, sub)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out add, tangents_1, convert_element_type

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out convert_element_type, tangents_1, convert_element_type_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias)
add: f32[4, 3] = add(arg1_1, sub)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_2, primals_1, 'v + (s - s)')
out straight_through
""",
    )


def test_seed_commuted():
    expect(
        golden("seed_commuted"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
add: f32[4, 3] = add(sub, primals_2)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out add, tangents_1, convert_element_type

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out convert_element_type, tangents_1, convert_element_type_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias)
add: f32[4, 3] = add(sub, arg1_1)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_2, primals_1, 'v + (s - s)')
out straight_through
""",
    )


def test_seed_subtracted():
    expect(
        golden("seed_subtracted"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(alias, primals_1)
sub_1: f32[4, 3] = sub(primals_2, sub)
neg: f32[4, 3] = neg(tangents_1)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
neg_1: f32[4, 3] = neg(neg)
out sub_1, neg_1, convert_element_type

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
neg: f32[4, 3] = neg(tangents_1)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
neg_1: f32[4, 3] = neg(neg)
out convert_element_type, neg_1, convert_element_type_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(alias, arg0_1)
sub_1: f32[4, 3] = sub(arg1_1, sub)
out sub_1

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_1)
sub_1: f32[4, 3] = sub(primals_2, sub)
out sub_1
""",
    )


def test_seed_data():
    expect(
        golden("seed_data"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
add: f32[4, 3] = add(primals_2, sub)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out add, tangents_1, convert_element_type

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out convert_element_type, tangents_1, convert_element_type_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias)
add: f32[4, 3] = add(arg1_1, sub)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_2, primals_1, 'v + (s - s)')
out straight_through
""",
    )


def test_cast_before_detach():
    expect(
        golden("cast_before_detach"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
convert_element_type: bf16[4, 3] = prims.convert_element_type(primals_1, bfloat16)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(primals_1, bfloat16)
alias: bf16[4, 3] = alias(convert_element_type_1)
sub: bf16[4, 3] = sub(convert_element_type, alias)
add: bf16[4, 3] = add(primals_2, sub)
convert_element_type_2: f32[4, 3] = prims.convert_element_type(tangents_1, float32)
out add, convert_element_type_2, tangents_1

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
clone: bf16[4, 3] = clone(primals_2)
convert_element_type: f32[4, 3] = prims.convert_element_type(tangents_1, float32)
out clone, convert_element_type, tangents_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: bf16[4, 3] = prims.convert_element_type(arg0_1, bfloat16)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(arg0_1, bfloat16)
alias: bf16[4, 3] = alias(convert_element_type_1)
sub: bf16[4, 3] = sub(convert_element_type, alias)
add: bf16[4, 3] = add(arg1_1, sub)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
clone: bf16[4, 3] = clone(arg1_1)
out clone

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
straight_through: bf16[4, 3] = ste_compile.straight_through(primals_2, primals_1, 'v + (s - s)', bfloat16)
out straight_through
""",
    )


def test_cast_after_detach():
    expect(
        golden("cast_after_detach"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
convert_element_type: bf16[4, 3] = prims.convert_element_type(primals_1, bfloat16)
alias: f32[4, 3] = alias(primals_1)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(alias, bfloat16)
sub: bf16[4, 3] = sub(convert_element_type, convert_element_type_1)
add: bf16[4, 3] = add(primals_2, sub)
convert_element_type_2: f32[4, 3] = prims.convert_element_type(tangents_1, float32)
out add, convert_element_type_2, tangents_1

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
clone: bf16[4, 3] = clone(primals_2)
convert_element_type: f32[4, 3] = prims.convert_element_type(tangents_1, float32)
out clone, convert_element_type, tangents_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: bf16[4, 3] = prims.convert_element_type(arg0_1, bfloat16)
alias: f32[4, 3] = alias(arg0_1)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(alias, bfloat16)
sub: bf16[4, 3] = sub(convert_element_type, convert_element_type_1)
add: bf16[4, 3] = add(arg1_1, sub)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
clone: bf16[4, 3] = clone(arg1_1)
out clone

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
straight_through: bf16[4, 3] = ste_compile.straight_through(primals_2, primals_1, 'v + (s - s)', bfloat16)
out straight_through
""",
    )


def test_cast_type_as():
    expect(
        golden("cast_type_as"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
convert_element_type: bf16[4, 3] = prims.convert_element_type(primals_1, bfloat16)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(primals_1, bfloat16)
alias: bf16[4, 3] = alias(convert_element_type_1)
sub: bf16[4, 3] = sub(convert_element_type, alias)
add: bf16[4, 3] = add(primals_2, sub)
convert_element_type_2: f32[4, 3] = prims.convert_element_type(tangents_1, float32)
out add, convert_element_type_2, tangents_1

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
clone: bf16[4, 3] = clone(primals_2)
convert_element_type: f32[4, 3] = prims.convert_element_type(tangents_1, float32)
out clone, convert_element_type, tangents_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: bf16[4, 3] = prims.convert_element_type(arg0_1, bfloat16)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(arg0_1, bfloat16)
alias: bf16[4, 3] = alias(convert_element_type_1)
sub: bf16[4, 3] = sub(convert_element_type, alias)
add: bf16[4, 3] = add(arg1_1, sub)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
clone: bf16[4, 3] = clone(arg1_1)
out clone

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
straight_through: bf16[4, 3] = ste_compile.straight_through(primals_2, primals_1, 'v + (s - s)', bfloat16)
out straight_through
""",
    )


def test_cast_float():
    expect(
        golden("cast_float"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
add: f32[4, 3] = add(primals_2, sub)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out add, tangents_1, convert_element_type

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out convert_element_type, tangents_1, convert_element_type_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias)
add: f32[4, 3] = add(arg1_1, sub)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_2, primals_1, 'v + (s - s)')
out straight_through
""",
    )


def test_cast_bfloat16():
    expect(
        golden("cast_bfloat16"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
convert_element_type: bf16[4, 3] = prims.convert_element_type(primals_1, bfloat16)
alias: f32[4, 3] = alias(primals_1)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(alias, bfloat16)
sub: bf16[4, 3] = sub(convert_element_type, convert_element_type_1)
add: bf16[4, 3] = add(primals_2, sub)
convert_element_type_2: f32[4, 3] = prims.convert_element_type(tangents_1, float32)
out add, convert_element_type_2, tangents_1

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
clone: bf16[4, 3] = clone(primals_2)
convert_element_type: f32[4, 3] = prims.convert_element_type(tangents_1, float32)
out clone, convert_element_type, tangents_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: bf16[4, 3] = prims.convert_element_type(arg0_1, bfloat16)
alias: f32[4, 3] = alias(arg0_1)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(alias, bfloat16)
sub: bf16[4, 3] = sub(convert_element_type, convert_element_type_1)
add: bf16[4, 3] = add(arg1_1, sub)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
clone: bf16[4, 3] = clone(arg1_1)
out clone

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
straight_through: bf16[4, 3] = ste_compile.straight_through(primals_2, primals_1, 'v + (s - s)', bfloat16)
out straight_through
""",
    )


def test_cast_double():
    expect(
        golden("cast_double"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
convert_element_type: f16[4, 3] = prims.convert_element_type(primals_1, float16)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(convert_element_type, bfloat16)
convert_element_type_2: f16[4, 3] = prims.convert_element_type(primals_1, float16)
convert_element_type_3: bf16[4, 3] = prims.convert_element_type(convert_element_type_2, bfloat16)
alias: bf16[4, 3] = alias(convert_element_type_3)
sub: bf16[4, 3] = sub(convert_element_type_1, alias)
add: bf16[4, 3] = add(primals_2, sub)
convert_element_type_4: f16[4, 3] = prims.convert_element_type(tangents_1, float16)
convert_element_type_5: f32[4, 3] = prims.convert_element_type(convert_element_type_4, float32)
out add, convert_element_type_5, tangents_1

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
clone: bf16[4, 3] = clone(primals_2)
convert_element_type: f16[4, 3] = prims.convert_element_type(tangents_1, float16)
convert_element_type_1: f32[4, 3] = prims.convert_element_type(convert_element_type, float32)
out clone, convert_element_type_1, tangents_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f16[4, 3] = prims.convert_element_type(arg0_1, float16)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(convert_element_type, bfloat16)
convert_element_type_2: f16[4, 3] = prims.convert_element_type(arg0_1, float16)
convert_element_type_3: bf16[4, 3] = prims.convert_element_type(convert_element_type_2, bfloat16)
alias: bf16[4, 3] = alias(convert_element_type_3)
sub: bf16[4, 3] = sub(convert_element_type_1, alias)
add: bf16[4, 3] = add(arg1_1, sub)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
clone: bf16[4, 3] = clone(arg1_1)
out clone

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
convert_element_type: f16[4, 3] = prims.convert_element_type(primals_1, float16)
straight_through: bf16[4, 3] = ste_compile.straight_through(primals_2, convert_element_type, 'v + (s - s)', bfloat16)
out straight_through
""",
    )


def test_cast_difference():
    expect(
        golden("cast_difference"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
convert_element_type: bf16[4, 3] = prims.convert_element_type(sub, bfloat16)
add: bf16[4, 3] = add(primals_2, convert_element_type)
convert_element_type_1: f32[4, 3] = prims.convert_element_type(tangents_1, float32)
out add, convert_element_type_1, tangents_1

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: bf16[4, 3]
clone: bf16[4, 3] = clone(primals_2)
convert_element_type: f32[4, 3] = prims.convert_element_type(tangents_1, float32)
out clone, convert_element_type, tangents_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias)
convert_element_type: bf16[4, 3] = prims.convert_element_type(sub, bfloat16)
add: bf16[4, 3] = add(arg1_1, convert_element_type)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
clone: bf16[4, 3] = clone(arg1_1)
out clone

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_1)
convert_element_type: bf16[4, 3] = prims.convert_element_type(sub, bfloat16)
rounded: bf16[4, 3] = ste_compile.rounded(convert_element_type)
add: bf16[4, 3] = add(primals_2, rounded)
rounded_1: bf16[4, 3] = ste_compile.rounded(add)
out rounded_1
""",
    )


def test_vq():
    expect(
        golden("vq"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_2)
alias: f32[4, 3] = alias(sub)
add: f32[4, 3] = add(primals_2, alias)
out add, None, tangents_1

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
out convert_element_type, None, tangents_1

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
sub: f32[4, 3] = sub(arg0_1, arg1_1)
alias: f32[4, 3] = alias(sub)
add: f32[4, 3] = add(arg1_1, alias)
out add

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_1, primals_2, '(v - s) + s')
out straight_through
""",
    )


def test_vq_commuted():
    expect(
        golden("vq_commuted"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_2)
alias: f32[4, 3] = alias(sub)
add: f32[4, 3] = add(alias, primals_2)
out add, None, tangents_1

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
out convert_element_type, None, tangents_1

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
sub: f32[4, 3] = sub(arg0_1, arg1_1)
alias: f32[4, 3] = alias(sub)
add: f32[4, 3] = add(alias, arg1_1)
out add

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_1, primals_2, '(v - s) + s')
out straight_through
""",
    )


def test_vq_subtracted():
    expect(
        golden("vq_subtracted"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_2)
alias: f32[4, 3] = alias(sub)
sub_1: f32[4, 3] = sub(primals_1, alias)
out sub_1, tangents_1, None

joint, algebraic
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
out convert_element_type, tangents_1, None

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
sub: f32[4, 3] = sub(arg0_1, arg1_1)
alias: f32[4, 3] = alias(sub)
sub_1: f32[4, 3] = sub(arg0_1, alias)
out sub_1

inference, algebraic
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_2)
sub_1: f32[4, 3] = sub(primals_1, sub)
out sub_1
""",
    )


def test_gumbel():
    expect(
        golden("gumbel"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_2, alias)
add: f32[4, 3] = add(sub, primals_1)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out add, tangents_1, convert_element_type

joint, algebraic
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out convert_element_type, tangents_1, convert_element_type_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg1_1, alias)
add: f32[4, 3] = add(sub, arg0_1)
out add

inference, algebraic
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_2, primals_1, '(v - s) + s')
out straight_through
""",
    )


def test_gumbel_parentheses():
    expect(
        golden("gumbel_parentheses"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_2)
alias: f32[4, 3] = alias(sub)
add: f32[4, 3] = add(alias, primals_2)
out add, None, tangents_1

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
out convert_element_type, None, tangents_1

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
sub: f32[4, 3] = sub(arg0_1, arg1_1)
alias: f32[4, 3] = alias(sub)
add: f32[4, 3] = add(alias, arg1_1)
out add

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_1, primals_2, '(v - s) + s')
out straight_through
""",
    )


def test_five_term():
    expect(
        golden("five_term"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
alias: bf16[4, 3] = alias(primals_1)
alias_1: f32[4, 3] = alias(primals_2)
sub: f32[4, 3] = sub(alias, alias_1)
add: f32[4, 3] = add(sub, primals_2)
out add, None, tangents_1

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
out convert_element_type, None, tangents_1

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
alias: bf16[4, 3] = alias(arg0_1)
alias_1: f32[4, 3] = alias(arg1_1)
sub: f32[4, 3] = sub(alias, alias_1)
add: f32[4, 3] = add(sub, arg1_1)
out add

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_1, primals_2, '(v - s) + s')
out straight_through
""",
    )


def test_trailing():
    expect(
        golden("trailing"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
add: f32[4, 3] = add(primals_1, primals_2)
alias: f32[4, 3] = alias(primals_2)
sub: f32[4, 3] = sub(add, alias)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out sub, convert_element_type, tangents_1

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out convert_element_type, convert_element_type_1, tangents_1

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
add: f32[4, 3] = add(arg0_1, arg1_1)
alias: f32[4, 3] = alias(arg1_1)
sub: f32[4, 3] = sub(add, alias)
out sub

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_1, primals_2, '(v + s) - s')
out straight_through
""",
    )


def test_trailing_detached():
    expect(
        golden("trailing_detached"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
alias: bf16[4, 3] = alias(primals_1)
add: f32[4, 3] = add(alias, primals_2)
alias_1: f32[4, 3] = alias(primals_2)
sub: f32[4, 3] = sub(add, alias_1)
out sub, None, tangents_1

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
out convert_element_type, None, tangents_1

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
alias: bf16[4, 3] = alias(arg0_1)
add: f32[4, 3] = add(alias, arg1_1)
alias_1: f32[4, 3] = alias(arg1_1)
sub: f32[4, 3] = sub(add, alias_1)
out sub

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_1, primals_2, '(v + s) - s')
out straight_through
""",
    )


def test_clip():
    expect(
        golden("clip"),
        """\

joint, before
in primals_1: f32[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
clamp_min: f32[4, 3] = clamp_min(primals_1, -1)
clamp_max: f32[4, 3] = clamp_max(clamp_min, 1)
alias_1: f32[4, 3] = alias(clamp_max)
add: f32[4, 3] = add(sub, alias_1)
out add, tangents_1

joint, finite
in primals_1: f32[4, 3], tangents_1: f32[4, 3]
clamp_min: f32[4, 3] = clamp_min(primals_1, -1)
clamp_max: f32[4, 3] = clamp_max(clamp_min, 1)
add: f32[4, 3] = add.Scalar(clamp_max, 0)
out add, tangents_1

inference, before
in arg0_1: f32[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias)
clamp_min: f32[4, 3] = clamp_min(arg0_1, -1)
clamp_max: f32[4, 3] = clamp_max(clamp_min, 1)
alias_1: f32[4, 3] = alias(clamp_max)
add: f32[4, 3] = add(sub, alias_1)
out add

inference, finite
in arg0_1: f32[4, 3]
clamp_min: f32[4, 3] = clamp_min(arg0_1, -1)
clamp_max: f32[4, 3] = clamp_max(clamp_min, 1)
out clamp_max

post-grad forward, exact
in primals_1: f32[4, 3]
clamp_min: f32[4, 3] = clamp_min(primals_1, -1)
clamp_max: f32[4, 3] = clamp_max(clamp_min, 1)
straight_through: f32[4, 3] = ste_compile.straight_through(clamp_max, primals_1, 'v + (s - s)')
out straight_through
""",
    )


def test_gradient_scale():
    expect(
        golden("gradient_scale"),
        """\

joint, before
in primals_1: f32[4, 3], tangents_1: f32[4, 3]
mul: f32[4, 3] = mul(primals_1, 0.3)
sub: f32[4, 3] = sub(primals_1, mul)
alias: f32[4, 3] = alias(sub)
mul_1: f32[4, 3] = mul(primals_1, 0.3)
add: f32[4, 3] = add(alias, mul_1)
mul_2: f32[4, 3] = mul(tangents_1, 0.3)
out add, mul_2

joint, algebraic
in primals_1: f32[4, 3], tangents_1: f32[4, 3]
clone: f32[4, 3] = clone(primals_1)
mul: f32[4, 3] = mul(tangents_1, 0.3)
out clone, mul

inference, before
in arg0_1: f32[4, 3]
mul: f32[4, 3] = mul(arg0_1, 0.3)
sub: f32[4, 3] = sub(arg0_1, mul)
alias: f32[4, 3] = alias(sub)
mul_1: f32[4, 3] = mul(arg0_1, 0.3)
add: f32[4, 3] = add(alias, mul_1)
out add

inference, algebraic
in arg0_1: f32[4, 3]
clone: f32[4, 3] = clone(arg0_1)
out clone

post-grad forward, exact
in primals_1: f32[4, 3]
mul: f32[4, 3] = mul(primals_1, 0.3)
straight_through: f32[4, 3] = ste_compile.straight_through(primals_1, mul, '(v - s) + s')
out straight_through
""",
    )


def test_blend():
    expect(
        golden("blend"),
        """\

joint, before
in primals_1: f32[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
alias_1: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias_1)
mul: f32[4, 3] = mul(sub, 0.3)
add: f32[4, 3] = add(alias, mul)
mul_1: f32[4, 3] = mul(tangents_1, 0.3)
out add, mul_1

joint, finite
in primals_1: f32[4, 3], tangents_1: f32[4, 3]
clone: f32[4, 3] = clone(primals_1)
mul: f32[4, 3] = mul(tangents_1, 0.3)
out clone, mul

inference, before
in arg0_1: f32[4, 3]
alias: f32[4, 3] = alias(arg0_1)
alias_1: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias_1)
mul: f32[4, 3] = mul(sub, 0.3)
add: f32[4, 3] = add(alias, mul)
out add

inference, finite
in arg0_1: f32[4, 3]
clone: f32[4, 3] = clone(arg0_1)
out clone

post-grad forward, exact
in primals_1: f32[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_1)
mul: f32[4, 3] = mul(sub, 0.3)
add: f32[4, 3] = add(primals_1, mul)
out add
""",
    )


def test_blend_tensor():
    expect(
        golden("blend_tensor"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
alias_1: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias_1)
mul: f32[4, 3] = mul(sub, primals_2)
add: f32[4, 3] = add(alias, mul)
mul_1: f32[4, 3] = mul(tangents_1, sub)
mul_2: f32[4, 3] = mul(tangents_1, primals_2)
convert_element_type: bf16[4, 3] = prims.convert_element_type(mul_1, bfloat16)
out add, mul_2, convert_element_type

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
clone: f32[4, 3] = clone(primals_1)
mul: f32[4, 3] = mul(tangents_1, sub)
mul_1: f32[4, 3] = mul(tangents_1, primals_2)
convert_element_type: bf16[4, 3] = prims.convert_element_type(mul, bfloat16)
out clone, mul_1, convert_element_type

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
alias_1: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias_1)
mul: f32[4, 3] = mul(sub, arg1_1)
add: f32[4, 3] = add(alias, mul)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
clone: f32[4, 3] = clone(arg0_1)
out clone

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_1)
mul: f32[4, 3] = mul(sub, primals_2)
add: f32[4, 3] = add(primals_1, mul)
out add, primals_1, primals_2
""",
    )


def test_nested():
    expect(
        golden("nested"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
alias: bf16[4, 3] = alias(primals_1)
alias_1: f32[4, 3] = alias(primals_2)
sub: f32[4, 3] = sub(alias, alias_1)
add: f32[4, 3] = add(sub, primals_2)
mul: f32[4, 3] = mul(primals_2, add)
mul_1: f32[4, 3] = mul(tangents_1, primals_2)
mul_2: f32[4, 3] = mul(tangents_1, add)
add_1: f32[4, 3] = add(mul_2, mul_1)
out mul, None, add_1

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
mul: f32[4, 3] = mul(primals_2, convert_element_type)
mul_1: f32[4, 3] = mul(tangents_1, primals_2)
mul_2: f32[4, 3] = mul(tangents_1, convert_element_type)
add: f32[4, 3] = add(mul_2, mul_1)
out mul, None, add

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
alias: bf16[4, 3] = alias(arg0_1)
alias_1: f32[4, 3] = alias(arg1_1)
sub: f32[4, 3] = sub(alias, alias_1)
add: f32[4, 3] = add(sub, arg1_1)
mul: f32[4, 3] = mul(arg1_1, add)
out mul

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
mul: f32[4, 3] = mul(arg1_1, convert_element_type)
out mul

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_1, primals_2, '(v - s) + s')
mul: f32[4, 3] = mul(primals_2, straight_through)
out mul, primals_1, primals_2
""",
    )


def test_alpha():
    expect(
        golden("alpha"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
add: f32[4, 3] = add(primals_1, primals_2, alpha=2)
alias: f32[4, 3] = alias(primals_2)
sub: f32[4, 3] = sub(add, alias, alpha=2)
mul: f32[4, 3] = mul.Scalar(tangents_1, 2)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out sub, convert_element_type, mul

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
mul: f32[4, 3] = mul.Scalar(tangents_1, 2)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out convert_element_type, convert_element_type_1, mul

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
add: f32[4, 3] = add(arg0_1, arg1_1, alpha=2)
alias: f32[4, 3] = alias(arg1_1)
sub: f32[4, 3] = sub(add, alias, alpha=2)
out sub

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
add: f32[4, 3] = add(primals_1, primals_2, alpha=2)
sub: f32[4, 3] = sub(add, primals_2, alpha=2)
out sub
""",
    )


def test_in_place():
    expect(
        golden("in_place"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
add: f32[4, 3] = add(convert_element_type, primals_2)
alias: f32[4, 3] = alias(primals_2)
sub: f32[4, 3] = sub(add, alias)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out sub, convert_element_type_1, tangents_1

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
add: f32[4, 3] = add.Scalar(convert_element_type, 0)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
out add, convert_element_type_1, tangents_1

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
add: f32[4, 3] = add(convert_element_type, arg1_1)
alias: f32[4, 3] = alias(arg1_1)
sub: f32[4, 3] = sub(add, alias)
out sub

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
straight_through: f32[4, 3] = ste_compile.straight_through(convert_element_type, primals_2, '(v + s) - s')
out straight_through
""",
    )


def test_negated():
    expect(
        golden("negated"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(alias, primals_1)
neg: f32[4, 3] = neg(sub)
add: f32[4, 3] = add(neg, primals_2)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
neg_1: f32[4, 3] = neg(tangents_1)
neg_2: f32[4, 3] = neg(neg_1)
out add, neg_2, convert_element_type

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
neg: f32[4, 3] = neg(tangents_1)
neg_1: f32[4, 3] = neg(neg)
out convert_element_type, neg_1, convert_element_type_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(alias, arg0_1)
neg: f32[4, 3] = neg(sub)
add: f32[4, 3] = add(neg, arg1_1)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_1)
neg: f32[4, 3] = neg(sub)
add: f32[4, 3] = add(neg, primals_2)
out add
""",
    )


def test_value_subtracted():
    expect(
        golden("value_subtracted"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
sub_1: f32[4, 3] = sub(sub, primals_2)
neg: f32[4, 3] = neg(tangents_1)
convert_element_type: bf16[4, 3] = prims.convert_element_type(neg, bfloat16)
out sub_1, tangents_1, convert_element_type

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
neg: bf16[4, 3] = neg(primals_2)
convert_element_type: f32[4, 3] = prims.convert_element_type(neg, float32)
neg_1: f32[4, 3] = neg(tangents_1)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(neg_1, bfloat16)
out convert_element_type, tangents_1, convert_element_type_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias)
sub_1: f32[4, 3] = sub(sub, arg1_1)
out sub_1

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
neg: bf16[4, 3] = neg(arg1_1)
convert_element_type: f32[4, 3] = prims.convert_element_type(neg, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_1)
sub_1: f32[4, 3] = sub(sub, primals_2)
out sub_1
""",
    )


def test_python_scalar():
    expect(
        golden("python_scalar"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
mul: f32[4, 3] = mul(sub, primals_2)
add: f32[4, 3] = add(mul, 1.0)
mul_1: f32[4, 3] = mul(tangents_1, sub)
mul_2: f32[4, 3] = mul(tangents_1, primals_2)
convert_element_type: bf16[4, 3] = prims.convert_element_type(mul_1, bfloat16)
out add, mul_2, convert_element_type

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
full: f32[4, 3] = full([4, 3], 1.0, dtype=float32, device=cpu)
mul: f32[4, 3] = mul(tangents_1, sub)
mul_1: f32[4, 3] = mul(tangents_1, primals_2)
convert_element_type: bf16[4, 3] = prims.convert_element_type(mul, bfloat16)
out full, mul_1, convert_element_type

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias)
mul: f32[4, 3] = mul(sub, arg1_1)
add: f32[4, 3] = add(mul, 1.0)
out add

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
full: f32[4, 3] = full([4, 3], 1.0, dtype=float32, device=cpu)
out full

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_1)
mul: f32[4, 3] = mul(sub, primals_2)
add: f32[4, 3] = add(mul, 1.0)
out add, primals_1, primals_2
""",
    )


def test_python_scalar_reassociated():
    expect(
        golden("python_scalar_reassociated"),
        """\

joint, before
in primals_1: f32[4, 3], tangents_1: f32[4, 3]
sub: f32[4, 3] = sub(0.1, primals_1)
alias: f32[4, 3] = alias(sub)
add: f32[4, 3] = add(alias, primals_1)
out add, tangents_1

joint, algebraic
in primals_1: f32[4, 3], tangents_1: f32[4, 3]
full: f32[4, 3] = full([4, 3], 0.1, dtype=float32, device=cpu)
out full, tangents_1

inference, before
in arg0_1: f32[4, 3]
sub: f32[4, 3] = sub(0.1, arg0_1)
alias: f32[4, 3] = alias(sub)
add: f32[4, 3] = add(alias, arg0_1)
out add

inference, algebraic
in arg0_1: f32[4, 3]
full: f32[4, 3] = full([4, 3], 0.1, dtype=float32, device=cpu)
out full

post-grad forward, exact
in primals_1: f32[4, 3]
sub: f32[4, 3] = sub(0.1, primals_1)
add: f32[4, 3] = add(sub, primals_1)
out add
""",
    )


def test_two_seeds():
    expect(
        golden("two_seeds"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
add: f32[4, 3] = add(primals_2, sub)
tanh: f32[4, 3] = tanh(primals_1)
alias_1: f32[4, 3] = alias(tanh)
tanh_1: f32[4, 3] = tanh(primals_1)
alias_2: f32[4, 3] = alias(tanh_1)
sub_1: f32[4, 3] = sub(tanh, alias_2)
add_1: f32[4, 3] = add(add, sub_1)
alias_3: f32[4, 3] = alias(alias_1)
mul: f32[4, 3] = mul(alias_3, alias_3)
sub_2: f32[4, 3] = sub(1, mul)
mul_1: f32[4, 3] = mul(tangents_1, sub_2)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
add_2: f32[4, 3] = add(mul_1, tangents_1)
out add_1, add_2, convert_element_type

joint, finite
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
tanh: f32[4, 3] = tanh(primals_1)
alias: f32[4, 3] = alias(tanh)
add: f32[4, 3] = add.Scalar(convert_element_type, 0)
alias_1: f32[4, 3] = alias(alias)
mul: f32[4, 3] = mul(alias_1, alias_1)
sub: f32[4, 3] = sub(1, mul)
mul_1: f32[4, 3] = mul(tangents_1, sub)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
add_1: f32[4, 3] = add(mul_1, tangents_1)
out add, add_1, convert_element_type_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias)
add: f32[4, 3] = add(arg1_1, sub)
tanh: f32[4, 3] = tanh(arg0_1)
tanh_1: f32[4, 3] = tanh(arg0_1)
alias_1: f32[4, 3] = alias(tanh_1)
sub_1: f32[4, 3] = sub(tanh, alias_1)
add_1: f32[4, 3] = add(add, sub_1)
out add_1

inference, finite
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
straight_through: f32[4, 3] = ste_compile.straight_through(primals_2, primals_1, 'v + (s - s)')
tanh: f32[4, 3] = tanh(primals_1)
straight_through_1: f32[4, 3] = ste_compile.straight_through(straight_through, tanh, 'v + (s - s)')
out straight_through_1, primals_1
""",
    )


def test_residual_sum():
    expect(
        golden("residual_sum"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
add: f32[4, 3] = add(primals_1, primals_2)
abs: bf16[4, 3] = abs(primals_1)
add_1: f32[4, 3] = add(add, abs)
alias: f32[4, 3] = alias(primals_2)
sub: f32[4, 3] = sub(add_1, alias)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
convert_element_type_1: f32[4, 3] = prims.convert_element_type(primals_1, float32)
sign: f32[4, 3] = sign(convert_element_type_1)
convert_element_type_2: bf16[4, 3] = prims.convert_element_type(sign, bfloat16)
mul: bf16[4, 3] = mul(convert_element_type, convert_element_type_2)
convert_element_type_3: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
add_2: bf16[4, 3] = add(mul, convert_element_type_3)
out sub, add_2, tangents_1

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
abs: bf16[4, 3] = abs(primals_1)
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
convert_element_type_1: f32[4, 3] = prims.convert_element_type(abs, float32)
add: f32[4, 3] = add(convert_element_type, convert_element_type_1)
convert_element_type_2: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
convert_element_type_3: f32[4, 3] = prims.convert_element_type(primals_1, float32)
sign: f32[4, 3] = sign(convert_element_type_3)
convert_element_type_4: bf16[4, 3] = prims.convert_element_type(sign, bfloat16)
mul: bf16[4, 3] = mul(convert_element_type_2, convert_element_type_4)
convert_element_type_5: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
add_1: bf16[4, 3] = add(mul, convert_element_type_5)
out add, add_1, tangents_1

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
add: f32[4, 3] = add(arg0_1, arg1_1)
abs: bf16[4, 3] = abs(arg0_1)
add_1: f32[4, 3] = add(add, abs)
alias: f32[4, 3] = alias(arg1_1)
sub: f32[4, 3] = sub(add_1, alias)
out sub

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
abs: bf16[4, 3] = abs(arg0_1)
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
convert_element_type_1: f32[4, 3] = prims.convert_element_type(abs, float32)
add: f32[4, 3] = add(convert_element_type, convert_element_type_1)
out add

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
add: f32[4, 3] = add(primals_1, primals_2)
abs: bf16[4, 3] = abs(primals_1)
rounded: bf16[4, 3] = ste_compile.rounded(abs)
add_1: f32[4, 3] = add(add, rounded)
sub: f32[4, 3] = sub(add_1, primals_2)
out sub, primals_1
""",
    )


def test_residual_difference():
    expect(
        golden("residual_difference"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_2)
sub_1: f32[4, 3] = sub(sub, 2.5)
alias: f32[4, 3] = alias(primals_1)
sub_2: f32[4, 3] = sub(sub_1, alias)
neg: f32[4, 3] = neg(tangents_1)
convert_element_type: bf16[4, 3] = prims.convert_element_type(neg, bfloat16)
out sub_2, tangents_1, convert_element_type

joint, algebraic
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
neg: f32[4, 3] = neg(convert_element_type)
sub: f32[4, 3] = sub(neg, 2.5)
neg_1: f32[4, 3] = neg(tangents_1)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(neg_1, bfloat16)
out sub, tangents_1, convert_element_type_1

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
sub: f32[4, 3] = sub(arg0_1, arg1_1)
sub_1: f32[4, 3] = sub(sub, 2.5)
alias: f32[4, 3] = alias(arg0_1)
sub_2: f32[4, 3] = sub(sub_1, alias)
out sub_2

inference, algebraic
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
neg: f32[4, 3] = neg(convert_element_type)
sub: f32[4, 3] = sub(neg, 2.5)
out sub

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
sub: f32[4, 3] = sub(primals_1, primals_2)
sub_1: f32[4, 3] = sub(sub, 2.5)
sub_2: f32[4, 3] = sub(sub_1, primals_1)
out sub_2
""",
    )


def test_two_surrogates():
    expect(
        golden("two_surrogates"),
        """\

joint, before
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
add: f32[4, 3] = add(primals_1, primals_2)
sin: f32[4, 3] = sin(primals_2)
add_1: f32[4, 3] = add(add, sin)
alias: f32[4, 3] = alias(primals_2)
sub: f32[4, 3] = sub(add_1, alias)
sin_1: f32[4, 3] = sin(primals_2)
alias_1: f32[4, 3] = alias(sin_1)
sub_1: f32[4, 3] = sub(sub, alias_1)
cos: f32[4, 3] = cos(primals_2)
mul: f32[4, 3] = mul(tangents_1, cos)
convert_element_type: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
add_2: f32[4, 3] = add(mul, tangents_1)
out sub_1, convert_element_type, add_2

joint, algebraic
in primals_1: bf16[4, 3], primals_2: f32[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_1, float32)
cos: f32[4, 3] = cos(primals_2)
mul: f32[4, 3] = mul(tangents_1, cos)
convert_element_type_1: bf16[4, 3] = prims.convert_element_type(tangents_1, bfloat16)
add: f32[4, 3] = add(mul, tangents_1)
out convert_element_type, convert_element_type_1, add

inference, before
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
add: f32[4, 3] = add(arg0_1, arg1_1)
sin: f32[4, 3] = sin(arg1_1)
add_1: f32[4, 3] = add(add, sin)
alias: f32[4, 3] = alias(arg1_1)
sub: f32[4, 3] = sub(add_1, alias)
sin_1: f32[4, 3] = sin(arg1_1)
alias_1: f32[4, 3] = alias(sin_1)
sub_1: f32[4, 3] = sub(sub, alias_1)
out sub_1

inference, algebraic
in arg0_1: bf16[4, 3], arg1_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg0_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: bf16[4, 3], primals_2: f32[4, 3]
add: f32[4, 3] = add(primals_1, primals_2)
sin: f32[4, 3] = sin(primals_2)
add_1: f32[4, 3] = add(add, sin)
sub: f32[4, 3] = sub(add_1, primals_2)
sub_1: f32[4, 3] = sub(sub, sin)
out sub_1, primals_2
""",
    )


def test_site_of_site():
    expect(
        golden("site_of_site"),
        """\

joint, before
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
sin: f32[4, 3] = sin(primals_1)
alias: f32[4, 3] = alias(primals_1)
sub: f32[4, 3] = sub(primals_1, alias)
add: f32[4, 3] = add(primals_2, sub)
sin_1: f32[4, 3] = sin(primals_1)
sub_1: f32[4, 3] = sub(add, sin_1)
alias_1: f32[4, 3] = alias(sub_1)
add_1: f32[4, 3] = add(sin, alias_1)
cos: f32[4, 3] = cos(primals_1)
mul: f32[4, 3] = mul(tangents_1, cos)
out add_1, mul, None

joint, algebraic
in primals_1: f32[4, 3], primals_2: bf16[4, 3], tangents_1: f32[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(primals_2, float32)
add: f32[4, 3] = add.Scalar(convert_element_type, 0)
cos: f32[4, 3] = cos(primals_1)
mul: f32[4, 3] = mul(tangents_1, cos)
out add, mul, None

inference, before
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
sin: f32[4, 3] = sin(arg0_1)
alias: f32[4, 3] = alias(arg0_1)
sub: f32[4, 3] = sub(arg0_1, alias)
add: f32[4, 3] = add(arg1_1, sub)
sin_1: f32[4, 3] = sin(arg0_1)
sub_1: f32[4, 3] = sub(add, sin_1)
alias_1: f32[4, 3] = alias(sub_1)
add_1: f32[4, 3] = add(sin, alias_1)
out add_1

inference, algebraic
in arg0_1: f32[4, 3], arg1_1: bf16[4, 3]
convert_element_type: f32[4, 3] = prims.convert_element_type(arg1_1, float32)
out convert_element_type

post-grad forward, exact
in primals_1: f32[4, 3], primals_2: bf16[4, 3]
sin: f32[4, 3] = sin(primals_1)
straight_through: f32[4, 3] = ste_compile.straight_through(primals_2, primals_1, 'v + (s - s)')
straight_through_1: f32[4, 3] = ste_compile.straight_through(straight_through, sin, '(v - s) + s')
out straight_through_1, primals_1
""",
    )
