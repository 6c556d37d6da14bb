"""Where a node comes from in the user's source: file, line, and the expression as it was written.

Read from `node.meta["stack_trace"]`, which Dynamo fills: one frame a call, outermost first, with its code where the file can be
read, and from torch 2.13 on underlined (`^^^`) from where the expression begins; from Python 3.13 on not where that is all that a
statement computes.
"""

from __future__ import annotations

import ast
import functools
import linecache
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.fx import Node

from . import passes

_FRAME = re.compile(
    r'File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)(?:\n {4}(?P<code>.*)(?:\n {4}(?P<marks>[ ~^]+)$)?)?', re.M
)
_RESUMED = re.compile(r"^torch_dynamo_resume_in_(?P<function>.+)_at_(?P<line>\d+)$")  # Dynamo's name for the rest of a frame
_LIBRARIES = tuple(str(Path(file).parent) for file in (torch.__file__, passes.__file__, __file__))


@dataclass(frozen=True)
class Frame:
    """One call of the user's program: `code` is the expression that was running there. `resumed_at` is the line of the graph
    break after which Dynamo went on with this frame, or None."""

    file: str
    line: int
    function: str
    code: str
    resumed_at: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def frames(node: Node) -> tuple[Frame, ...]:
    """The calls that made `node`, outermost first; () where nothing is known of them."""
    found = []
    for match in _FRAME.finditer(node.meta.get("stack_trace") or ""):
        file, line, function, code, marks = match.group("file", "line", "function", "code", "marks")
        resumed = _RESUMED.match(function)
        expression = _expression(file, int(line), code or "", marks or "")
        begun = (resumed["function"], int(resumed["line"])) if resumed else (function, None)
        found.append(Frame(file, int(line), begun[0], expression, begun[1]))
    return tuple(found)


def users_frame(stack: tuple[Frame, ...]) -> Frame | None:
    """The innermost frame outside torch and this package: where the user would look."""
    theirs = [frame for frame in stack if not frame.file.startswith(_LIBRARIES)]
    return (theirs or list(stack))[-1] if stack else None


def _expression(file: str, line: int, code: str, marks: str) -> str:
    """The whole expression that begins where the marks begin, as Dynamo marks on to the end of the line (2.11 to 2.14); without
    marks what the statement computes."""
    source = linecache.getline(file, line)
    begins = len(source) - len(source.lstrip()) + len(marks) - len(marks.lstrip())
    expressions, computed = _expressions(file)
    if marks.strip():
        here = [e for e in expressions.get(line, ()) if _column(source, e.col_offset) == begins]
    else:
        here = computed.get(line, [])
    if not here:
        return code.strip()
    longest = max(here, key=lambda e: (e.end_lineno or 0, e.end_col_offset or 0))
    text = ast.get_source_segment("".join(linecache.getlines(file)), longest) or code
    return " ".join(text.split())


def _column(source: str, offset: int) -> int:
    return len(source.encode()[:offset].decode(errors="replace"))  # `ast` counts bytes


@functools.lru_cache(maxsize=32)
def _expressions(file: str) -> tuple[dict[int, list[ast.expr]], dict[int, list[ast.expr]]]:
    """The expressions of a file by their first line, and those that statements compute by the statement's; none where it
    cannot be read any more."""
    found: dict[int, list[ast.expr]] = {}
    computed: dict[int, list[ast.expr]] = {}
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return found, computed
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            found.setdefault(node.lineno, []).append(node)
        elif isinstance(node, ast.stmt) and isinstance(value := getattr(node, "value", None), ast.expr):
            computed.setdefault(node.lineno, []).append(value)
    return found, computed
