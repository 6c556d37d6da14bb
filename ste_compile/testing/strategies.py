"""Random programs around straight-through estimators, for hypothesis: `pip install "ste-compile[test]"`.

from hypothesis import given
from ste_compile.testing.strategies import check, programs

@given(programs())
def test_my_backend(program): check(program)
"""

from __future__ import annotations

from typing import Any

from .builder import build
from .check import check
from .program import Program

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError('ste_compile.testing.strategies needs hypothesis: pip install "ste-compile[test]"') from error

__all__ = ["build", "check", "programs"]


@st.composite
def programs(draw: Any, statements: int = 8) -> Program:
    """Random programs of at most `statements` statements, for `check`.

    >>> from hypothesis import find
    >>> program = find(programs(), lambda program: program.sites())
    >>> check(program)["cancelled"] > 0
    True
    """
    return build(lambda n: draw(st.integers(0, n - 1)) if n > 1 else 0, statements)
