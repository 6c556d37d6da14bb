"""Every spelling of a straight-through estimator that the passes promise to know, one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spelling:
    """`fn(v, s)` with value `v` and surrogate `s`; `needs` is the level that removes the surrogate, `value` what is left then."""

    name: str
    fn: Callable[[Tensor, Tensor], Tensor]
    needs: str
    value: Callable[[Tensor, Tensor], Tensor] = lambda v, s: v


def _add_inplace(v: Tensor, s: Tensor) -> Tensor:
    out = v.to(torch.promote_types(v.dtype, s.dtype), copy=True)
    out.add_(s).sub_(s.detach())
    return out


SPELLINGS = [
    Spelling("seed", lambda v, s: v + (s - s.detach()), "finite"),
    Spelling("seed_commuted", lambda v, s: (s - s.detach()) + v, "finite"),
    Spelling("seed_subtracted", lambda v, s: v - (s.detach() - s), "finite"),
    Spelling("seed_data", lambda v, s: v + (s - s.data), "finite"),
    Spelling("cast_before_detach", lambda v, s: v + (s.to(v.dtype) - s.to(v.dtype).detach()), "finite"),
    Spelling("cast_after_detach", lambda v, s: v + (s.to(v.dtype) - s.detach().to(v.dtype)), "finite"),
    Spelling("cast_type_as", lambda v, s: v + (s.type_as(v) - s.type_as(v).detach()), "finite"),
    Spelling("cast_float", lambda v, s: v + (s.float() - s.float().detach()), "finite"),
    Spelling("cast_bfloat16", lambda v, s: v + (s.bfloat16() - s.detach().bfloat16()), "finite"),
    Spelling("cast_double", lambda v, s: v + (s.half().to(v.dtype) - s.half().to(v.dtype).detach()), "finite"),
    Spelling("cast_difference", lambda v, s: v + (s - s.detach()).to(v.dtype), "finite"),
    Spelling("vq", lambda q, x: x + (q - x).detach(), "algebraic"),
    Spelling("vq_commuted", lambda q, x: (q - x).detach() + x, "algebraic"),
    Spelling("vq_subtracted", lambda q, x: x - (x - q).detach(), "algebraic"),
    Spelling("gumbel", lambda hard, soft: hard - soft.detach() + soft, "algebraic"),
    Spelling("gumbel_parentheses", lambda hard, soft: (hard - soft).detach() + soft, "algebraic"),
    Spelling("five_term", lambda hard, x: hard.detach() - x.detach() + x, "algebraic"),
    Spelling("trailing", lambda hard, soft: hard + soft - soft.detach(), "algebraic"),
    Spelling("trailing_detached", lambda hard, soft: hard.detach() + soft - soft.detach(), "algebraic"),
    Spelling("clip", lambda v, x: x - x.detach() + torch.clip(x, -1, 1).detach(), "finite", lambda v, x: torch.clip(x, -1, 1)),
    Spelling("gradient_scale", lambda v, x: (x - x * 0.3).detach() + x * 0.3, "algebraic", lambda v, x: x),
    Spelling("blend", lambda v, x: x.detach() + (x - x.detach()) * 0.3, "finite", lambda v, x: x),
    Spelling("blend_tensor", lambda v, x: x.detach() + (x - x.detach()) * v, "finite", lambda v, x: x),
    Spelling("nested", lambda mask, x: x * (mask.detach() - x.detach() + x), "algebraic", lambda mask, x: x * mask),
    Spelling("alpha", lambda v, s: torch.sub(torch.add(v, s, alpha=2), s.detach(), alpha=2), "algebraic"),
    Spelling("in_place", _add_inplace, "algebraic"),
    Spelling("negated", lambda v, s: -(s.detach() - s) + v, "finite"),
    Spelling("value_subtracted", lambda v, s: (s - s.detach()) - v, "finite", lambda v, s: -v),
    Spelling("python_scalar", lambda v, s: 1.0 + (s - s.detach()) * v, "finite", lambda v, s: torch.ones(())),
    Spelling("python_scalar_reassociated", lambda v, s: (0.1 - s).detach() + s, "algebraic", lambda v, s: torch.tensor(0.1)),
    Spelling("two_seeds", lambda v, s: v + (s - s.detach()) + (s.tanh() - s.tanh().detach()), "finite"),
    Spelling("two_surrogates", lambda v, s: v + s + s.sin() - s.detach() - s.sin().detach(), "algebraic"),
    Spelling("site_of_site", lambda v, s: s.sin() + ((v + (s - s.detach())) - s.sin()).detach(), "algebraic"),
]  # fmt: skip

BY_NAME = {spelling.name: spelling for spelling in SPELLINGS}

# name -> dtypes of (value, surrogate)
DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "mixed": (torch.bfloat16, torch.float32),
}
