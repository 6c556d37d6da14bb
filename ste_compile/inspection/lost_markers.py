"""Detaches that not every way to compile sees: by a block of `torch.no_grad` or `torch.inference_mode`, or by `detach_()`.

    with torch.no_grad():            d = (q - x).detach()
        d = q - x              ->
    return x + d                     return x + d

elsewhere    a backend of this package reads such a detach off the graph from Dynamo; `inductor_options` and `torch.export` do not
inside       where gradients are off already, Dynamo's graph shows nothing of such a block: the block is read off the source, and
             markers are put into the graph to see what that would free
"""

from __future__ import annotations

import ast
import functools
import linecache
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

import torch
from torch.fx import Graph, GraphModule, Node

from ..marking import detach
from ..passes import Site
from ..passes.nodes import is_marker, module_path
from . import source
from .edits import Edit, Key, Seen, Try, at, listed, origin, said
from .suggestion import Place

BLOCKS = ("no_grad", "inference_mode")
Block = tuple[str, int]  # file, line of the `with`, or of the decorated function
Lines = dict[int, tuple[int, ...]]  # line -> the lines where the blocks begin that it is in


def find(seen: Seen) -> Iterator[Edit]:
    yield from _elsewhere(seen)
    if not torch.is_grad_enabled():
        yield from _inside(seen)


def _elsewhere(seen: Seen) -> Iterator[Edit]:
    """One edit for all sites with a marker that was not in the graph as Dynamo made it, but was put there by our backend."""
    keys: list[Key] = []
    places: dict[str, None] = {}
    for traced in seen.traced:
        known = {node.name for node in traced.graph.nodes}
        for key, record, _ in seen.sites():
            for marker in _markers(record.sites[key[1]]) if key[0] in traced.records else ():
                if origin(marker) not in known:
                    keys.append(key)
                    places[_in_module(marker)] = None
    if keys:
        words = (
            f"Write `.detach()` on {listed(places)} for inductor_options and torch.export, which see neither a block "
            'without gradients nor detach_(), or keep to backend="ste", which does.'
        )
        yield Edit(tuple(dict.fromkeys(keys)), words, Try(marks=False), undone=True)


def _markers(site: Site) -> Iterator[Node]:
    around = dict.fromkeys(chain(site.tree, *(node.all_input_nodes for node in site.tree)))
    yield from (node for node in around if is_marker(node) and origin(node))


def _in_module(node: Node) -> str:
    path = module_path(node)
    return said(node) + (f" of {path}" if path else "")


def _inside(seen: Seen) -> Iterator[Edit]:
    """One edit for each block whose results are read outside of it."""
    for number, traced in enumerate(seen.traced):
        left: defaultdict[Block, list[tuple[Node, Node]]] = defaultdict(list)
        for value, reader, block in _leaving(traced.graph):
            left[block].append((value, reader))
        for block, pairs in left.items():
            values = listed(_in_module(value) for value, _ in pairs)
            words = f"Write `.detach()` on {values}: where gradients are off already, Dynamo shows no block without them."
            yield Edit(tuple(_place(reader) for _, reader in pairs), words, Try(change=at(number, partial(_mark, block=block))))


def _leaving(graph: Graph) -> Iterator[tuple[Node, Node, Block]]:
    """What a block computes and a node outside of it reads, with the block."""
    parsed = functools.cache(_parsed)  # for this graph alone: a file may be edited
    blocks = {node: _blocks(node, parsed) for node in graph.nodes if node.op not in ("placeholder", "output")}
    for value, theirs in blocks.items():
        tensor = value.meta.get("example_value")
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            for reader in value.users:
                yield from ((value, reader, block) for block in theirs if reader in blocks and block not in blocks[reader])


def _mark(gm: GraphModule, block: Block) -> None:
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    readers: defaultdict[Node, list[Node]] = defaultdict(list)
    for value, reader, left in _leaving(gm.graph):
        if left == block:
            readers[value].append(reader)
    for value, theirs in readers.items():
        detach(value, theirs, {value}, order)
    gm.recompile()


def _place(node: Node) -> Place:
    stack = source.frames(node)
    frame = source.users_frame(stack)
    return Place(frame.file, frame.line, stack[-1].code) if frame else Place("", 0, node.name)


def _blocks(node: Node, parsed: Callable[[str], Lines]) -> tuple[Block, ...]:
    """The blocks without gradients that the calls of a node are written in."""
    found = ((frame.file, line) for frame in source.frames(node) for line in parsed(frame.file).get(frame.line, ()))
    return tuple(dict.fromkeys(found))


def _parsed(file: str) -> Lines:
    """The blocks without gradients of a file."""
    found: defaultdict[int, tuple[int, ...]] = defaultdict(tuple)
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return {}
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            switches = [item.context_expr for item in node.items]
        elif isinstance(node, ast.FunctionDef):
            switches = node.decorator_list
        else:
            continue
        if any(_switches_off(each) for each in switches):
            for line in range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1):
                found[line] += (node.lineno,)
    return dict(found)


def _switches_off(expression: ast.expr) -> bool:
    called = expression.func if isinstance(expression, ast.Call) else expression
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name in BLOCKS
