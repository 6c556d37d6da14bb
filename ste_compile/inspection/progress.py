"""A line on the terminal that says what takes its time. Nothing is written where standard error is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

CLEAR = "\r\x1b[2K"


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Show `what` during the block, and leave the line empty after it."""
    stream = sys.stderr
    if stream is None or not stream.isatty():
        yield
        return
    stream.write(f"{CLEAR}ste-compile: {what} ...")
    stream.flush()
    try:
        yield
    finally:
        stream.write(CLEAR)
        stream.flush()
