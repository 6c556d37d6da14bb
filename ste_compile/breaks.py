"""Where Dynamo stopped, why, and what of it runs in eager: what `explain` would else show as no graph, or as none with a site.

    for each break        the log that TORCH_LOGS=graph_breaks prints: a place and a reason
    for a skipped frame   Dynamo's metrics of the compilation: which function it gave up
    for a skipped rest    the reason of a graph after which Dynamo did not resume
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from itertools import pairwise

from . import _torch
from .report import Break

LOG = "torch._dynamo.symbolic_convert.__graph_breaks"
_LOGGED = re.compile(
    r"in user code at (?P<file>[^\n]+):(?P<line>\d+)\nGraph Break Reason: (?P<reason>.*?)(?:\n+User code traceback:|\Z)", re.S
)
_RESUMED = re.compile(r"^torch_dynamo_resume_in_(.+)_at_\d+$")


@contextlib.contextmanager
def graph_breaks() -> Iterator[list[Break]]:
    """A list that holds, after the block, each break of what Dynamo compiled in it."""
    found: dict[tuple[str, int], Break] = {}
    breaks: list[Break] = []
    if not _torch.can("breaks"):
        yield breaks
        return
    utils = _torch.dynamo_utils()
    limit = utils._compilation_metrics.maxlen or 0
    utils.set_compilation_metrics_limit(1 << 20)  # it keeps the last 64 (2.11 to 2.15)
    metrics, reasons = len(utils.get_compilation_metrics()), len(utils.graph_break_reasons)
    try:
        with _logged(found):
            yield breaks
    finally:
        for stop in utils.graph_break_reasons[reasons:]:
            if stop.reason == "step_unsupported" and stop.user_stack:
                frame = stop.user_stack[-1]
                _add(found, frame.filename, frame.lineno or 0, "", _function(frame.name, rest=True))
        for tried in utils.get_compilation_metrics()[metrics:]:
            if tried.fail_type:
                file, line = tried.fail_user_frame_filename, tried.fail_user_frame_lineno
                if not file:
                    file, line = tried.co_filename, tried.co_firstlineno
                _add(found, file or "", line or 0, tried.fail_reason or "", _function(tried.co_name or "a frame"))
        utils.set_compilation_metrics_limit(limit)
        breaks += found.values()


def _add(found: dict[tuple[str, int], Break], file: str, line: int, reason: str, eager: str = "") -> None:
    known = found.get((file, line))
    words = known.reason if known else _sentence(reason)
    found[file, line] = Break(file, line, words, eager or (known.eager if known else ""))


def _function(name: str, rest: bool = False) -> str:
    resumed = _RESUMED.match(name)
    return f"the rest of {resumed[1] if resumed else name}" if resumed or rest else name


def _sentence(reason: str) -> str:
    """What Dynamo met and how it explains that, without what it did then, hints, and debug output."""
    lines = [text.strip() for text in reason.strip().splitlines()]
    for what, explanation in pairwise(lines):
        if explanation.startswith("Explanation: "):
            return f"{what}. {explanation.removeprefix('Explanation: ')}"
    return lines[0] if lines else "for a reason Dynamo did not keep"


@contextlib.contextmanager
def _logged(found: dict[tuple[str, int], Break]) -> Iterator[None]:
    """Read Dynamo's log of graph breaks; it is printed if it was to be printed, and not otherwise."""

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := _LOGGED.search(record.getMessage()):
                _add(found, match["file"], int(match["line"]), match["reason"])

    logger, reader = logging.getLogger(LOG), Reader(logging.DEBUG)
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
