"""Where a node comes from in the user's source: file, line, and the expression as it was written.

It is read from `node.meta["stack_trace"]`, which Dynamo fills: one frame for each call, outermost first. A frame quotes its line
of code, where the file can be read. From torch 2.13 on, marks (`^^^`) below the line begin where the expression begins; from
Python 3.13 on there are no marks where the expression is all that the statement computes.

A model of many layers has few places in its source. Each is looked up once, and again when its file has been edited.
"""

from __future__ import annotations

import ast
import functools
import linecache
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.fx import Node

from .. import passes

_FRAME = re.compile(
    r'File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)(?:\n {4}(?P<code>.*)(?:\n {4}(?P<marks>[ ~^]+)$)?)?', re.M
)
_RESUMED = re.compile(r"^torch_dynamo_resume_in_(?P<function>.+)_at_(?P<line>\d+)$")
_LIBRARIES = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, passes.__file__, Path(__file__).parent))


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
    return _frames(node.meta.get("stack_trace") or "")


def users_frame(stack: tuple[Frame, ...]) -> Frame | None:
    """The innermost frame outside torch and this package: where the user would look."""
    theirs = [frame for frame in stack if not frame.file.startswith(_LIBRARIES)]
    return (theirs or list(stack))[-1] if stack else None


def place(node: Node) -> str:
    """`file:line` of the user's frame that made `node`; "" where nothing is known of it. It reads no file."""
    return _place(node.meta.get("stack_trace") or "")


@functools.lru_cache(maxsize=2**12)
def _place(trace: str) -> str:
    return str(users_frame(tuple(frame for frame, _ in _calls(trace))) or "")


def forget_edited() -> None:
    """Forget what was read of files that have been edited since. Called once a compilation: to ask the file system for each node
    would be slow."""
    for file, known in tuple(_files.items()):
        linecache.checkcache(file)
        if known.lines != linecache.getlines(file):
            _files.clear()
            _frames.cache_clear()
            return


@functools.lru_cache(maxsize=2**12)
def _frames(trace: str) -> tuple[Frame, ...]:
    return tuple(replace(frame, code=_expression(frame.file, frame.line, frame.code, marks)) for frame, marks in _calls(trace))


def _calls(trace: str) -> Iterator[tuple[Frame, str]]:
    """The frames of a stack trace with the code it quotes, and its marks."""
    for match in _FRAME.finditer(trace):
        file, line, function, code, marks = match.group("file", "line", "function", "code", "marks")
        name, resumed_at = resumed(function)
        yield Frame(file, int(line), name, (code or "").strip(), resumed_at), marks or ""


def resumed(function: str) -> tuple[str, int | None]:
    """(function, line of the graph break) of Dynamo's name for what runs the rest of a function after a break, such as
    `torch_dynamo_resume_in_forward_at_12`; (name, None) of any other name."""
    match = _RESUMED.match(function)
    return (match["function"], int(match["line"])) if match else (function, None)


def _expression(file: str, line: int, code: str, marks: str) -> str:
    """The longest expression that begins where the marks begin. Where they end says nothing: Dynamo marks to the end of the line
    (2.11 to 2.15). Without marks, what the statement computes; `code` where neither is found."""
    known = _file(file)
    source = known.lines[line - 1] if line <= len(known.lines) else ""
    begins = len(source) - len(source.lstrip()) + len(marks) - len(marks.lstrip())
    if marks.strip():
        here = [e for e in known.expressions.get(line, ()) if _column(source, e[1]) == begins]
    else:
        here = known.computed.get(line, [])
    if not here:
        return code
    longest = max(here, key=lambda e: e[2:])
    return " ".join(_segment(known.lines, *longest).split())


def _column(source: str, offset: int) -> int:
    return len(source.encode()[:offset].decode(errors="replace"))  # `ast` counts bytes


def _segment(lines: list[str], first: int, start: int, last: int, end: int) -> str:
    """As `ast.get_source_segment`, which splits the whole file each time."""
    text = [line.encode() for line in lines[first - 1 : last]]
    text[-1] = text[-1][:end]
    text[0] = text[0][start:]
    return b"".join(text).decode(errors="replace")


_Span = tuple[int, int, int, int]  # first line, column there, last line, column there: as `ast` counts


@dataclass(frozen=True)
class _File:
    """A file's lines; its expressions, by their first line; and those that are the value of a statement, by the statement's first
    line. Without expressions where the file cannot be read any more."""

    lines: list[str]
    expressions: dict[int, list[_Span]]
    computed: dict[int, list[_Span]]


_files: dict[str, _File] = {}


def _file(file: str) -> _File:
    known = _files.get(file)
    if known is None:
        linecache.checkcache(file)
        known = _files[file] = _parsed(linecache.getlines(file))
    return known


def _parsed(lines: list[str]) -> _File:
    found = _File(lines, {}, {})
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError):
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            found.expressions.setdefault(node.lineno, []).append(_span(node))
        elif isinstance(node, ast.stmt) and isinstance(value := getattr(node, "value", None), ast.expr):
            found.computed.setdefault(node.lineno, []).append(_span(value))
    return found


def _span(e: ast.expr) -> _Span:
    return e.lineno, e.col_offset, e.end_lineno or e.lineno, e.end_col_offset or e.col_offset
