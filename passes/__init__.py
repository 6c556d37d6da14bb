"""The passes, in the order in which a graph meets them. FX graphs in, FX graphs out; nothing here knows Inductor.

number_values   which nodes hold the same value
recognise       joint or inference graph -> sites: sums in which a term cancels (`linear_form`, by the table in `operators`), and
                what their arithmetic is (`arithmetic`)
cancel          joint, inference or partitioned forward: what the level permits
keep, release   (`effects`) the random operators and mutations of a cancelled surrogate: `keep` makes a result of the forward
                read them, so that the partitioner leaves them there; `release` undoes it once the graph has been partitioned
defer           partitioned backward: what moved there from the forward, in `regions` of its own, each in the `layout` that its
                convolutions and norms are fast in
tag, fuse       the sites that are not cancelled: `tag` marks them in the joint or inference graph, `fuse` rewrites them in the
                post-grad graph to the operators of `ops`
                (`rounding`: what rounds where; `operands`: what a site reads, as eager gives it)
freed           for the report: what each site keeps in the forward

What they share: `nodes` (questions to a node), `levels`, `outcomes` (sites, outcomes, reasons), `meta` (what they leave in a
node's `meta`), and for rewrites `replace`, `unused`, `new_nodes` and `memory` (which results share memory). There are no import
cycles, and no module imports anything of the package above.
"""

from .cancel import cancel, module_paths
from .defer import defer
from .effects import release
from .freed import freed, needed
from .fuse import cast_chain, fuse, tag
from .outcomes import Outcome, Reason, Refused, Site, Sum, Why
from .recognise import recognise
from .replace import Rewrites, replace_with_value
from .values import number_values

__all__ = [
    "Outcome",
    "Reason",
    "Refused",
    "Rewrites",
    "Site",
    "Sum",
    "Why",
    "cancel",
    "cast_chain",
    "defer",
    "freed",
    "fuse",
    "module_paths",
    "needed",
    "number_values",
    "recognise",
    "release",
    "replace_with_value",
    "tag",
]
