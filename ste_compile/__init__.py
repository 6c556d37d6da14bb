"""ste-compile: straight-through estimators that cost nothing they need not.

torch.compile(model, backend="ste")                             # "exact": bit for bit eager
torch.compile(model, backend="ste", options={"numerics": "finite"})
ste_compile.testing.assert_equivalent(model, *inputs)           # against eager
"""

from . import testing
from .backends import backend
from .explain import explain
from .numerics import Numerics
from .options import inductor_options
from .oracle import ste_forward
from .record import collect
from .report import Report

__version__ = "0.1.0"
__all__ = ["Numerics", "Report", "backend", "collect", "explain", "inductor_options", "ste_forward", "testing"]
