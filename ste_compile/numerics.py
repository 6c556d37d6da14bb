"""The three levels: what each promises about a site's forward value, and so what it may remove.

| level | the forward value of a site | removes |
|---|---|---|
| `exact` | bit for bit eager's, on the same inputs: NaN, Inf, the sign of zero, overflow of a cast, every rounding | nothing |
| `finite` | `==` eager's where what cancels is finite after its cast, as is what multiplies it | what cancels exactly, `t - t'` |
| `algebraic` | the value the estimator stands for, no further from eager's than eager's own rounding | also `x + (q - x)'` |

Gradients follow from the same formulas at every level. (A NaN is a NaN: IEEE 754 leaves its sign and payload open, and so do
eager's vectorised kernels.)
"""

from __future__ import annotations

from typing import Literal

Numerics = Literal["exact", "finite", "algebraic"]

# level -> the needs (`Site.needs`) it may meet by removing the surrogate
REMOVES: dict[Numerics, frozenset[str]] = {
    "exact": frozenset(),
    "finite": frozenset({"finite"}),
    "algebraic": frozenset({"finite", "algebraic"}),
}


def check(numerics: object) -> Numerics:
    """`numerics` itself, or a `ValueError` that names what came and what is allowed."""
    if not isinstance(numerics, str) or numerics not in REMOVES:
        raise ValueError(f"numerics={numerics!r} is not a level; allowed: {', '.join(map(repr, REMOVES))}")
    return numerics
