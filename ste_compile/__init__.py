"""ste-compile: straight-through estimators that cost nothing they need not.

torch.compile(model, backend="ste")                             # "exact": bit for bit eager
torch.compile(model, backend="ste", options={"numerics": "finite"})
ste_compile.testing.assert_equivalent(model, *inputs)           # against eager
"""

from . import testing
from .backends import backend
from .deployment import rewrite
from .inspection.explain import explain
from .inspection.record import collect
from .inspection.report import Report
from .options import inductor_options
from .oracle import ste_forward
from .passes.levels import Numerics

__version__ = "0.1.0"
__all__ = ["Numerics", "Report", "backend", "collect", "explain", "inductor_options", "rewrite", "ste_forward", "testing"]
