"""The backends that are compared, and functions that are compiled as if nothing had been before."""

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
    """`fn` behind a code object of its own: Dynamo keeps the compiled versions of one code object in one list, so that a shared
    one would find the compiled code of others there, and count against the recompile limit. And of a name of its own: what
    Dynamo has learned of the sizes of one name's arguments, it makes symbolic when the name comes again."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=f"call_{next(_calls)}")
    return call


def fresh(backend: Callable[..., Any]) -> Callable[..., Any]:
    """A backend that equals no other, so that after a graph break no code compiled by others is found."""
    return lambda gm, inputs, **kwargs: backend(gm, inputs, **kwargs)
