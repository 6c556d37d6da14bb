"""Straight-through sites, and what only looks like one, as source text: random programs draw them, and tests compile them.

`v` is the value, `s` the surrogate, `m` a large number without a gradient; all are names of tensors. A line may hold one site,
written `SITE(expression; value)`: a program reads it as the expression, and the oracle of the levels that cancel it as the value
with the expression's gradients.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..passes.levels import Numerics


def adds_a_number(text: str) -> bool:
    """Whether source text adds or subtracts a Python number that is no factor: `{a} + 1`, and not `{a} * 0.5`."""
    return re.search(r"[+-] [\d.]+(?![\d.]| \*)|\d [+-] ", text) is not None


@dataclass(frozen=True)
class Spelling:
    """`lines` are assignments, of which the last gives the result. `same`: the operands must have one dtype and shape. `untraced`
    as in `program.Line`.

    A spelling with `needs`, the level that removes its surrogate, is also tested by itself, as a function of `operands`. Its text
    is `lines`, or else `function`, whose last line is the result: a program has one site a line, and a function need not.
    """

    name: str
    lines: tuple[str, ...]
    needs: Numerics | None = None
    operands: str = "v, s"
    function: tuple[str, ...] = ()
    same: bool = False
    untraced: bool = False

    @property
    def is_number(self) -> bool:
        """Whether the value is a Python number."""
        return "torch.tensor(" in self.lines[-1]

    @property
    def adds_a_number(self) -> bool:
        """Whether a Python number is added or subtracted. One that cancels against another looks like a magic constant, and makes
        no site of a line."""
        return any(map(adds_a_number, self.lines))


def _site(name: str, needs: Numerics | None, expression: str, value: str = "{v}", **more: Any) -> Spelling:
    return Spelling(name, (f"{{out}} = SITE({expression}; {value})",), needs, **more)


SITES = (
    _site("seed", "finite", "{v} + ({s} - {s}.detach())"),
    _site("seed_commuted", "finite", "({s} - {s}.detach()) + {v}"),
    _site("seed_subtracted", "finite", "{v} - ({s}.detach() - {s})"),
    _site("seed_data", "finite", "{v} + ({s} - {s}.data)"),
    _site("cast_before_detach", "finite", "{v} + ({s}.to({v}.dtype) - {s}.to({v}.dtype).detach())"),
    _site("cast_after_detach", "finite", "{v} + ({s}.to({v}.dtype) - {s}.detach().to({v}.dtype))"),
    _site("cast_type_as", "finite", "{v} + ({s}.type_as({v}) - {s}.type_as({v}).detach())"),
    _site("cast_float", "finite", "{v} + ({s}.float() - {s}.float().detach())"),
    _site("cast_bfloat16", "finite", "{v} + ({s}.bfloat16() - {s}.detach().bfloat16())"),
    _site("cast_double", "finite", "{v} + ({s}.half().to({v}.dtype) - {s}.half().to({v}.dtype).detach())"),
    _site("cast_difference", "finite", "{v} + ({s} - {s}.detach()).to({v}.dtype)"),
    _site("vq", "algebraic", "{s} + ({v} - {s}).detach()", operands="q, x"),
    _site("vq_commuted", "algebraic", "({v} - {s}).detach() + {s}", operands="q, x"),
    _site("vq_subtracted", "algebraic", "{s} - ({s} - {v}).detach()", operands="q, x"),
    _site("gumbel", "algebraic", "{v} - {s}.detach() + {s}", operands="hard, soft"),
    _site("gumbel_parentheses", "algebraic", "({v} - {s}).detach() + {s}", operands="hard, soft"),
    _site("five_term", "algebraic", "{v}.detach() - {s}.detach() + {s}", operands="hard, x"),
    _site("trailing", "algebraic", "{v} + {s} - {s}.detach()", operands="hard, soft"),
    _site("trailing_detached", "algebraic", "{v}.detach() + {s} - {s}.detach()", operands="hard, soft"),
    _site("clip", "finite", "{s} - {s}.detach() + torch.clip({s}, -1, 1).detach()", "torch.clip({s}, -1, 1)", operands="v, x"),
    _site("gradient_scale", "algebraic", "({s} - {s} * 0.3).detach() + {s} * 0.3", "{s}", operands="v, x"),
    _site("blend", "finite", "{s}.detach() + ({s} - {s}.detach()) * 0.3", "{s}", operands="v, x"),
    _site("blend_tensor", "finite", "{s}.detach() + ({s} - {s}.detach()) * {v}", "{s}", operands="v, x"),
    Spelling("nested", ("{out} = {s} * SITE({v}.detach() - {s}.detach() + {s}; {v})",), "algebraic", operands="mask, x"),
    _site("alpha", "algebraic", "torch.sub(torch.add({v}, {s}, alpha=2), {s}.detach(), alpha=2)"),
    _site("negated", "finite", "-({s}.detach() - {s}) + {v}"),
    _site("value_subtracted", "finite", "({s} - {s}.detach()) - {v}", "-{v}"),
    _site("python_scalar", "finite", "1.0 + ({s} - {s}.detach()) * {v}", "torch.tensor(1.0)"),
    _site("python_scalar_reassociated", "algebraic", "(0.1 - {s}).detach() + {s}", "torch.tensor(0.1, dtype=torch.float64)"),
    Spelling("in_place", ("{a} = {v}.clone()", "{a}.add_({s})", "{out} = SITE({a}.sub_({s}.detach()); {v})"), "algebraic",
             function=("{out} = {v}.to(torch.promote_types({v}.dtype, {s}.dtype), copy=True)",
                       "{out}.add_({s}).sub_({s}.detach())", "{out}"), same=True),
    Spelling("in_place_zero", ("{a} = {s}.clone()", "{a}.sub_({s}.detach())", "{out} = SITE({a}.add_({v}); {v})"), same=True),
    Spelling("two_seeds", ("{a} = SITE({v} + ({s} - {s}.detach()); {v})", "{b} = {s}.tanh()",
                           "{out} = SITE({a} + ({b} - {b}.detach()); {a})"), "finite",
             function=("{v} + ({s} - {s}.detach()) + ({s}.tanh() - {s}.tanh().detach())",)),
    _site("residual_sum", "algebraic", "({v} + {s} + {v}.abs()) - {s}.detach()",
          "{v}.to({s}.dtype) + {v}.abs().to({s}.dtype)", same=True),
    _site("residual_difference", "algebraic", "({s} - {v} - 2.5) - {s}.detach()", "-{v}.to({s}.dtype) - 2.5", same=True),
    _site("two_surrogates", "algebraic", "{v} + {s} + {s}.sin() - {s}.detach() - {s}.sin().detach()"),
    Spelling("site_of_site", ("{a} = SITE({v} + ({s} - {s}.detach()); {v})", "{b} = {s}.sin()",
                              "{out} = SITE({b} + ({a} - {b}).detach(); {a})"), "algebraic",
             function=("{s}.sin() + (({v} + ({s} - {s}.detach())) - {s}.sin()).detach()",)),
    Spelling("shared_surrogate", ("{a} = SITE({v} + ({s} - {s}.detach()); {v})", "{b} = {v}.sin()",
                                  "{b} = SITE({b} + ({s} - {s}.detach()); {b})", "{out} = {a} * {b}")),
    Spelling("shared_zero", ("{a} = {s} - {s}.detach()", "{b} = SITE({v} + {a}; {v})", "{c} = {v}.sin()",
                             "{a} = SITE({c} + {a} * 0.5; {c})", "{out} = {a} * {b}")),
    Spelling("shared_difference", ("{a} = ({v} - {s}).detach()", "{b} = SITE({s} + {a}; {v})", "{c} = SITE({a} + {s}; {v})",
                                   "{out} = {c} * {b}")),
    Spelling("no_grad", ("with torch.no_grad(): {a} = {v} - {s}", "{out} = SITE({s} + {a}; {v})"), untraced=True),
    Spelling("no_grad_surrogate", ("with torch.no_grad(): {a} = {s}.clone()", "{out} = SITE({v} + ({s} - {a}); {v})"),
             untraced=True),
    Spelling("detach_in_place", ("{out} = SITE({s} + ({v} - {s}).detach_(); {v})",)),
    Spelling("detached_clone", ("{a} = {s}.clone()", "{a}.detach_()", "{out} = SITE({v} + ({s} - {a}); {v})")),
    Spelling("viewed_zero", ("{a} = ({s} - {s}.detach()).flatten().reshape({s}.shape)", "{out} = SITE({v} + {a}; {v})")),
    _site("masked_zero", None, "{v} + torch.where({v} > 0, {s} - {s}.detach(), 0.0)"),
    _site("mean_of_zero", None, "{v} + ({s} - {s}.detach()).mean()"),
    _site("product_added", None, "torch.addcmul({v}, {s} - {s}.detach(), {v}.sin())", same=True),
)  # fmt: skip

# No line of these may be rewritten.
NEAR = (
    Spelling("no_marker", ("{out} = {v} + ({s} - {s})",)),
    Spelling("both_detached", ("{out} = {v} + ({s}.detach() - {s}.detach())",)),
    Spelling("no_residual", ("{out} = {s} - {s}.detach()",)),
    Spelling("lerp", ("{out} = {v} + 0.3 * ({s} - {v})",)),
    Spelling("lerp_detached", ("{out} = {v}.detach() + 0.3 * ({s} - {v})",)),
    Spelling("torch_lerp", ("{out} = torch.lerp({v}, {s}.detach(), 0.3)",), same=True),
    Spelling("gradient_by_sum", ("{out} = 0.5 * {v} + 0.5 * {v}.detach()",)),
    Spelling("gradient_reversal", ("{out} = 2 * {v}.detach() - {v}",)),
    Spelling("different_values", ("{out} = {v} + ({s} - {s}.sin().detach())",)),
    Spelling("scaled_apart", ("{out} = {v} + 0.3 * {s} - 0.2 * {s}.detach()",)),
    Spelling("two_dropouts", ("{out} = {v} + (F.dropout({s}) - F.dropout({s}).detach())",)),
    Spelling("split_precision", ("{out} = {v} + ({s}.double() - {s}.double().half().double().detach())",)),
    Spelling("split_precision_trailing", ("{out} = ({v} + {s}.double()) - {s}.double().half().double().detach()",)),
    Spelling("kahan", ("{a} = {v} + {s}", "{out} = ({a} - {v}) - {s}")),
    Spelling("kahan_detached", ("{a} = {v} + {s}", "{out} = ({a} - {v}.detach()) - {s}")),
    Spelling("kahan_in_one", ("{a} = {v} + {s}", "{b} = {v}.cos()", "{out} = ({b} + {s}) - ({a} - {v}.detach())")),
    Spelling("two_sum", ("{a} = {v} + {s}", "{b} = {a} - {v}.detach()", "{out} = ({v} - ({a} - {b})) + ({s} - {b})")),
    Spelling("measured", ("{a} = {s} + ({v} - {s}).detach()", "{out} = {a} - {v}.detach()")),
    Spelling(
        "two_layouts",
        ("{a} = {s}.flatten().repeat(3, 2)", "{b} = {a}.t().contiguous().t()", "{out} = {v} + ({a}.sum() - {b}.detach().sum())"),
    ),
    Spelling("apart", ("{out} = {s} + ({v} - {s}).flatten().detach().view(({v} - {s}).shape)",)),
    Spelling("magic_tensor", ("{out} = ({v} + {m}).detach() - {m}",)),
    Spelling("magic_detached", ("{out} = ({v} + {m}) - {m}.detach()",)),
    Spelling("magic_view", ("{a} = {m}.float().expand(1)", "{out} = ({v} + {a}).detach() - {a}")),
    Spelling("magic_scaled", ("{out} = ({v} + {m} * 0.5).detach() - {m} * 0.5",)),
    Spelling("magic_no_grad", ("with torch.no_grad(): {a} = {v} + {m}", "{out} = {a} - {m}")),
    Spelling("dither", ("{a} = 100 * torch.rand_like({v})", "{out} = ({v} + {a}).detach() - {a}")),
    Spelling("magic_constant", ("{out} = ({v} + 12582912.0).detach() - 12582912.0",)),
)
