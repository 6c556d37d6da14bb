"""The passes, in the order in which a graph meets them. FX graphs in, FX graphs out; nothing here knows Inductor.

number_values   which nodes hold the same value
linear_form     which atoms a value adds up, and behind which detach markers
recognise       joint or inference graph -> sites
cancel          joint, inference or partitioned forward: what the level permits
keep, release   what a cancelled surrogate drew or mutated: read by the forward until it has been partitioned
defer           partitioned backward: what moved there from the forward, in regions of its own
tag, fuse       what is left: marked now, rewritten in the post-grad graph
freed           for the report: what each site keeps in the forward
"""

from .cancel import LEVEL, cancel
from .defer import CANCELLED, REGION, defer
from .effects import release
from .freed import freed, needed
from .fuse import cast_chain, fuse, tag
from .recognise import Outcome, Site, recognise
from .replace import UNDONE, Refused, Rewrites, replace_with_value
from .values import number_values

__all__ = [
    "CANCELLED",
    "LEVEL",
    "REGION",
    "UNDONE",
    "Outcome",
    "Refused",
    "Rewrites",
    "Site",
    "cancel",
    "cast_chain",
    "defer",
    "freed",
    "fuse",
    "needed",
    "number_values",
    "recognise",
    "release",
    "replace_with_value",
    "tag",
]
