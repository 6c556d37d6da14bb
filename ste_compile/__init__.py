"""ste-compile: straight-through estimators that cost nothing they need not.

torch.compile(model, backend="ste")                             # "exact": bit for bit eager
torch.compile(model, backend="ste", options={"numerics": "finite"})
ste_compile.testing.assert_equivalent(model, *inputs)           # against eager
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import passes  # noqa: F401  registers the operators, which a graph that was written to a file may have
from .oracle import ste_forward
from .passes.levels import Numerics

if TYPE_CHECKING:
    from . import testing
    from .backends import backend
    from .deployment import rewrite
    from .inspection.explain import explain
    from .inspection.record import collect
    from .inspection.report import Report
    from .options import inductor_options

__version__ = "0.2.0"
__all__ = ["Numerics", "Report", "backend", "collect", "explain", "inductor_options", "rewrite", "ste_forward", "testing"]

# The other public names, and the module of each, imported when the name is first asked for: they need torch._dynamo, which takes
# a second or two to import. A model that only calls `ste_forward` does not need it. torch finds `"ste"` by an entry point.
_MODULES = {
    "Report": "inspection.report",
    "backend": "backends",
    "collect": "inspection.record",
    "explain": "inspection.explain",
    "inductor_options": "options",
    "rewrite": "deployment",
}


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
