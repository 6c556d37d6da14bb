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

from dataclasses import dataclass
from typing import Literal

Numerics = Literal["exact", "finite", "algebraic"]


@dataclass(frozen=True)
class Level:
    """One level. `removes` are the needs (`Site.needs`) of the sites that it cancels. `backend` is its name for
    `torch.compile(backend=...)`, an entry point in pyproject.toml. `compared` is how `ste_compile.testing` holds a model with
    cancelled sites against eager: to the bit, by `==`, or within eager's own rounding."""

    removes: frozenset[str]
    backend: str
    compared: Literal["bits", "values", "bound"]


LEVELS: dict[Numerics, Level] = {
    "exact": Level(frozenset(), "ste", "bits"),
    "finite": Level(frozenset({"finite"}), "ste_finite", "values"),
    "algebraic": Level(frozenset({"finite", "algebraic"}), "ste_algebraic", "bound"),
}
DEFAULT: Numerics = "exact"


def check(numerics: object) -> Numerics:
    """`numerics` itself, or a `ValueError` that names what came and what is allowed."""
    if not isinstance(numerics, str) or numerics not in LEVELS:
        raise ValueError(f"numerics={numerics!r} is not a level; allowed: {', '.join(map(repr, LEVELS))}")
    return numerics
