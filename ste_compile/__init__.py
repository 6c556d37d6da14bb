"""ste-compile: straight-through estimators that cost nothing they need not.

torch.compile(model, backend="ste")                             # "exact": bit for bit eager
torch.compile(model, backend="ste", options={"numerics": "finite"})
"""

from .backends import backend, inductor_options
from .numerics import Numerics
from .oracle import ste_forward

__version__ = "0.1.0"
__all__ = ["Numerics", "backend", "inductor_options", "ste_forward"]
