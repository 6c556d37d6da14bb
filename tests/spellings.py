"""The spellings of `ste_compile.testing.spellings` that are promised alone, as functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ste_compile.testing import spellings
from ste_compile.testing.program import execute, plain


@dataclass(frozen=True)
class Spelling:
    """`fn(v, s)` with value `v` and surrogate `s`; `needs` is the level that removes the surrogate, `value` what is left then."""

    name: str
    fn: Callable[[Tensor, Tensor], Tensor]
    needs: str
    value: Callable[[Tensor, Tensor], Tensor]


def _function(name: str, operands: str, lines: tuple[str, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """The last line is the result, or an assignment of it."""
    names = dict(zip("vs", operands.split(", ")), **{name: name for name in ("a", "b", "c", "out")})
    *body, result = (line.format(**names) for line in lines)
    source = "\n    ".join([f"def {name}({operands}):", *body, f"return {result.removeprefix('out = ')}"]) + "\n"
    namespace = {"torch": torch}
    execute(source, f"<spelling {name}>", namespace)
    return namespace[name]


def _spelling(row: spellings.Spelling) -> Spelling:
    as_written, as_value = (tuple(plain(line, part) for line in row.lines) for part in (1, 2))
    fn = _function(row.name, row.operands, row.function or as_written)
    return Spelling(row.name, fn, row.needs, _function(f"{row.name}_value", row.operands, as_value))


SPELLINGS = [_spelling(row) for row in spellings.SITES if row.needs]
BY_NAME = {spelling.name: spelling for spelling in SPELLINGS}

# name -> dtypes of (value, surrogate)
DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "mixed": (torch.bfloat16, torch.float32),
}
