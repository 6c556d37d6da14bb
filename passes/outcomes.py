"""What `recognise` finds and what the passes did about it, as data: sites, outcomes, and the reasons for both."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch.fx import Node


class Reason(Enum):
    """Why a site was cancelled, fused or left. Code asks for the member; its words are for people."""

    # refusals: no level cancels such a site
    ERROR_IS_USED = "its rounding error is used: terms that only rounding keeps apart are subtracted from it again"
    OWN_SURROGATE = "its value adds up its own surrogate: what rounding leaves of their difference may be what is wanted"
    APART = "a view, or a cast that rounds, stands between what it takes off and what it adds"
    NO_GRADIENT = "what cancels has no gradient to carry: a number that is added and taken off again may round on purpose"
    ROUNDED_LATER = "what reads it may round it on purpose, with a number that has no gradient and is added and taken off again"
    NO_HOLDER = "no node of the graph holds what is left after the surrogates cancel"
    SCALED = "the value is scaled by alpha={}"
    NO_STRIDES = "its result is {}: only what has strides can be put in its place"
    # cancelled
    PERMITTED = "permitted by numerics={!r}"
    WITH_ANOTHER = "only another cancelled site used it"
    # not cancelled, though not refused
    LEVEL = "removing it needs numerics={!r}"
    NO_EFFECTS = "this torch would lose what a surrogate does besides its value"
    OTHER_DEVICE = "the value is on {}, the result on {}"
    OTHER_LAYOUT = "the value is {}, the result {}"
    UNKNOWN_SIZE = "the size {} of the result is known only from a surrogate"
    OTHER_STRIDES = "the result has strides {}, which no dense copy of the value has"
    UNDONE = "its rewrite was undone: {}"  # the check after the rewrite found what a reader would have seen
    FAILED = "its rewrite failed: {!r}"
    # fused
    ONE_OPERATOR = "one operator, {}"
    EACH_ROUNDED = "its own arithmetic, every intermediate rounded"
    # not fused
    OWN_KERNELS = "{} is computed by eager's own kernels, which round as eager does"
    REWRITTEN = "another pass has rewritten its arithmetic since it was recognised"
    ALPHA = "alpha: eager's vectorised and scalar kernels themselves round it differently"

    def of(self, *details: Any) -> Why:
        """This reason with its details filled in."""
        return Why(self, self.value.format(*details))


# reason -> what was done; "left" for any other
ACTIONS = {
    Reason.PERMITTED: "cancelled",
    Reason.WITH_ANOTHER: "cancelled",
    Reason.ONE_OPERATOR: "fused",
    Reason.EACH_ROUNDED: "fused",
}


@dataclass(frozen=True)
class Why:
    """A reason and its words."""

    reason: Reason
    words: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Sum:
    """A value that no node of a graph holds: what is left of `(v + s + b) - s'` is v + b. `addends` are pairs (sign, node),
    those with sign 1 first; pairs (sign, Python number) may follow."""

    addends: tuple[tuple[int, Any], ...]

    def nodes(self) -> list[Node]:
        return [each for _, each in self.addends if isinstance(each, Node)]

    def __str__(self) -> str:
        text = "".join(f" {'+' if sign > 0 else '-'} {each}" for sign, each in self.addends)
        return text.removeprefix(" + ").removeprefix(" ")


@dataclass(frozen=True)
class Site:
    """One straight-through estimator in a graph.

    `root` holds its result. `value` is what the result keeps, negated where `negated`: a node, a Python number, or a `Sum` that
    no node holds; None where it cannot be written down. `surrogates` are the cancelled terms. `needs` is the least level that may
    remove them, "finite" or "algebraic". `order` is the IEEE arithmetic, one of "v + (s - s)", "(v - s) + s" and "(v + s) - s",
    or None for another arithmetic; `tree` are the nodes of that arithmetic, root first. `refusal` says why the site must be left
    as it is; None where it need not be."""

    root: Node
    value: Any
    surrogates: tuple[Node, ...]
    needs: str
    order: str | None = None
    negated: bool = False
    tree: tuple[Node, ...] = ()
    refusal: Why | None = None


@dataclass(frozen=True)
class Outcome:
    """What was done about a site, and `why`. `result` is the node that holds the site's result now. `key` is what `tag` was
    given. `error` is what went wrong in the pass on the way."""

    result: Node
    why: Why
    key: Any = None
    error: Exception | None = None

    @property
    def action(self) -> str:
        """ "cancelled", "fused" or "left"."""
        return ACTIONS.get(self.why.reason, "left")


class Refused(Exception):
    """A site that must be left as it is; `why` is the reason, and the message its words."""

    def __init__(self, why: Why) -> None:
        super().__init__(str(why))
        self.why = why


class Mismatch(Refused):
    """A rewrite after which a reader would have seen a difference. The check that follows each rewrite found it, and the rewrite
    was undone. This should never happen: strict mode raises it."""

    def __init__(self, what: str) -> None:
        super().__init__(Reason.UNDONE.of(what))
