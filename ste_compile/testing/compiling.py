"""The backends that are compared, and functions that are compiled as if nothing had been compiled before."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from .. import backends

# our backend -> the same without the passes
STOCK = {"ste_aot_eager": "aot_eager", "ste": "inductor"}
OURS = {"ste_aot_eager": backends.ste_aot_eager, "ste": backends.ste}
_calls = itertools.count()


def own(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` behind a code object of its own, with a name of its own. Dynamo keeps all compiled versions of one code object
    together: with a shared one, code that was compiled for others would be found, and would count against the recompile limit.
    And Dynamo remembers argument sizes by a function's name: with a shared name, it would make sizes symbolic."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=f"call_{next(_calls)}")
    return call


def fresh(backend: Callable[..., Any]) -> Callable[..., Any]:
    """A backend that equals no other, so that after a graph break no code compiled by others is found."""
    return lambda gm, inputs, **kwargs: backend(gm, inputs, **kwargs)
