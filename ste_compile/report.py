"""What the passes found and did, for whoever asks while they run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from .passes import Outcome

log = logging.getLogger("ste_compile")

_collected: ContextVar[list[Outcome] | None] = ContextVar("ste_compile_outcomes", default=None)


@contextlib.contextmanager
def collect() -> Iterator[list[Outcome]]:
    """The outcomes of every graph compiled inside the block, in order: a site is "cancelled" or "left" in the joint or inference
    graph, and what was left is "fused" or again "left" in each graph that is compiled from it. A cached compile runs no pass.

        >>> import torch
        >>> fn = torch.compile(lambda h, s: h + (s - s.detach()), backend="ste_aot_eager", options={"numerics": "finite"})
        >>> with collect() as outcomes:
        ...     _ = fn(torch.ones(2), torch.ones(2))
        >>> [outcome.action for outcome in outcomes]
        ['cancelled']
    """
    outcomes: list[Outcome] = []
    token = _collected.set(outcomes)
    try:
        yield outcomes
    finally:
        _collected.reset(token)


def add(outcomes: Sequence[Outcome]) -> None:
    """Log what was done to one graph, and hand it to `collect`."""
    for outcome in outcomes:
        log.debug("%s: %s (%s)", outcome.root.name, outcome.action, outcome.reason)
    if (collected := _collected.get()) is not None:
        collected.extend(outcomes)
