"""What torch logs of a compilation: Dynamo's graph breaks and metrics, and the artifacts of TORCH_TRACE."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

GRAPH_BREAK_LOG = "torch._dynamo.symbolic_convert.__graph_breaks"  # the logger of TORCH_LOGS=graph_breaks


def dynamo_utils() -> Any:
    """The module in which Dynamo keeps its metrics and the reasons of graph breaks."""
    from torch._dynamo import utils

    return utils


def graph_break_reason(file: str, line: int) -> str:
    """Why Dynamo broke the graph at a line, in a sentence, and where that was if it was in a call made there; "" if unknown."""
    for reason in reversed(dynamo_utils().graph_break_reasons):
        stack = list(reason.user_stack)
        if any(frame.filename == file and frame.lineno == line for frame in stack):
            inner = stack[-1]
            inside = "" if (inner.filename, inner.lineno) == (file, line) else f" (inside, at {inner.filename}:{inner.lineno})"
            return break_in_words(reason.reason, inside)
    return ""


def break_in_words(reason: str, inside: str = "") -> str:
    """Dynamo's reason for a graph break in words: what it met, followed by `inside`, and its explanation, without the hints and
    debug output of that text. "" if there is no text."""
    lines = [text.strip() for text in reason.strip().splitlines()]
    for what, explanation in pairwise(lines):
        if explanation.startswith("Explanation: "):
            return f"{what}{inside}. {explanation.removeprefix('Explanation: ')}"
    return f"{lines[0]}{inside}" if lines else ""


def trace_enabled() -> bool:
    """Whether TORCH_TRACE asks for artifacts. (Other handlers of that logger, such as pytest's, ask for none.)"""
    from torch._logging._internal import LazyTraceHandler, trace_log

    return any(isinstance(handler, LazyTraceHandler) for handler in trace_log.handlers)


def trace_artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    """A file among those that `tlparse` shows of the graph being compiled; nothing without TORCH_TRACE."""
    from torch._logging._internal import trace_structured

    if trace_enabled():
        trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=payload)
