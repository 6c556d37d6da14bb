"""The passes, in the order in which a graph meets them. FX graphs in, FX graphs out; nothing here knows Inductor.

number_values   which nodes hold the same value
linear_form     which atoms a value adds up, and behind which detach markers
recognise       joint or inference graph -> sites
cancel          joint, inference or partitioned forward: what the level permits
tag, fuse       what is left: marked now, rewritten in the post-grad graph
"""

from .cancel import cancel
from .fuse import fuse, tag
from .recognise import Outcome, Site, recognise
from .replace import Refused, replace_with_value
from .values import number_values

__all__ = ["Outcome", "Refused", "Site", "cancel", "fuse", "number_values", "recognise", "replace_with_value", "tag"]
