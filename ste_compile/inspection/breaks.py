"""Where Dynamo stopped, why, and what runs in eager because of it. Without this list, a model that is not compiled would look
like one without sites.

graph_breaks    all breaks of what is compiled in a block so far, read off three places:
                    each break        the log that TORCH_LOGS=graph_breaks prints: a place and a reason
                    a skipped frame   Dynamo's metrics of the compilation: the function that it gave up
                    a skipped rest    the reasons of breaks after which Dynamo did not resume
break_before    the break after which a site's code was resumed
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import _torch
from .report import Break
from .source import Frame, resumed

_LOGGED = re.compile(
    r"in user code at (?P<file>[^\n]+):(?P<line>\d+)\nGraph Break Reason: (?P<reason>.*?)(?:\n+User code traceback:|\Z)", re.S
)
# The end of a part into which DDPOptimizer cuts a graph, so that gradients are sent while others are computed.
CUT = Break("", 0, "DDPOptimizer's between buckets of gradients (`bucket_cap_mb`, `torch._dynamo.config.optimize_ddp`)")
_UNKNOWN = "for a reason Dynamo did not keep"


def break_before(stack: Sequence[Frame]) -> Break | None:
    """The graph break after which one of these calls was resumed; None where each ran from its start."""
    for frame in stack:
        if frame.resumed_at is not None:
            reason = _torch.graph_break_reason(frame.file, frame.resumed_at)
            return Break(frame.file, frame.resumed_at, reason or _UNKNOWN)
    return None


@contextlib.contextmanager
def graph_breaks() -> Iterator[Callable[[], tuple[Break, ...]]]:
    """Yields a function that returns all breaks so far in what Dynamo compiled in the block, also when called after it."""
    if not _torch.can("breaks"):
        yield tuple
        return
    found: dict[tuple[str, int], Break] = {}
    utils = _torch.dynamo_utils()
    limit = utils._compilation_metrics.maxlen or 0
    utils.set_compilation_metrics_limit(1 << 20)  # by default torch keeps the last 64 (2.11 to 2.15)
    metrics, reasons = len(utils.get_compilation_metrics()), len(utils.graph_break_reasons)
    ended = False

    def so_far() -> tuple[Break, ...]:
        if not ended:
            _read(utils.graph_break_reasons[reasons:], utils.get_compilation_metrics()[metrics:], found)
        return tuple(found.values())

    try:
        with _logged(found):
            yield so_far
    finally:
        so_far()
        ended = True
        utils.set_compilation_metrics_limit(limit)


def _read(reasons: Sequence[Any], metrics: Sequence[Any], found: dict[tuple[str, int], Break]) -> None:
    """Add the frames that Dynamo gave up, and those that it did not resume after a break."""
    for stop in reasons:
        if stop.reason == "step_unsupported" and stop.user_stack:  # Dynamo's word for a break after which it does not resume
            frame = stop.user_stack[-1]
            _add(found, frame.filename, frame.lineno or 0, "", _function(frame.name, rest=True))
    for tried in metrics:
        if tried.fail_type:
            file, line = tried.fail_user_frame_filename, tried.fail_user_frame_lineno
            if not file:
                file, line = tried.co_filename, tried.co_firstlineno
            _add(found, file or "", line or 0, tried.fail_reason or "", _function(tried.co_name or "a frame"))


def _add(found: dict[tuple[str, int], Break], file: str, line: int, reason: str, eager: str = "") -> None:
    """One break for each place: its first reason, and what runs in eager for it once that is known."""
    known = found.get((file, line))
    words = known.reason if known else _torch.break_in_words(reason) or _UNKNOWN
    found[file, line] = Break(file, line, words, eager or (known.eager if known else ""))


def _function(name: str, rest: bool = False) -> str:
    """A function in words; of the frame that Dynamo makes to resume one, "the rest of" it."""
    function, line = resumed(name)
    return f"the rest of {function}" if rest or line is not None else function


@contextlib.contextmanager
def _logged(found: dict[tuple[str, int], Break]) -> Iterator[None]:
    """Read Dynamo's log of graph breaks. Whether that log is printed does not change."""

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := _LOGGED.search(record.getMessage()):
                _add(found, match["file"], int(match["line"]), match["reason"])

    logger, reader = logging.getLogger(_torch.GRAPH_BREAK_LOG), Reader(logging.DEBUG)
    level, propagate = logger.level, logger.propagate
    if not logger.isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    logger.addHandler(reader)
    try:
        yield
    finally:
        logger.removeHandler(reader)
        logger.setLevel(level)
        logger.propagate = propagate
