"""Nodes and sites in words and numbers, for the report.

of a node     `type_of`, `line`, `computes`
of nodes      `count`, `bytes_of`; `with_regions` and `saved_by` choose the nodes
of a site     `operand` (its value, or a surrogate), `casts`, `edges`, `notes`
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Graph, Node, map_arg

from .. import _torch
from ..passes import Site, Sum, cast_chain
from ..passes.memory import storages, stored
from ..passes.meta import REGION
from ..passes.nodes import (
    OpOverload,
    arg,
    fake,
    hint,
    is_cast,
    is_collective,
    is_marker,
    is_matmul,
    is_pure,
    layers,
    leaves,
    module_path,
    uncast,
)
from . import source
from .figures import Figures
from .report import Break, Line, Operand

SHORT = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.complex64: "c64",
    torch.complex128: "c128", torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8",
    torch.bool: "b8",
}  # fmt: skip


def short(dtype: torch.dtype) -> str:
    return SHORT.get(dtype, str(dtype).removeprefix("torch."))


def type_of(node: Any) -> str:
    """`bf16[128, 48]`, for a node or what it holds; of anything but tensors, the Python type."""
    value = node.meta.get("val") if isinstance(node, Node) else node
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(type_of, value))})"
    if isinstance(value, torch.Tensor):
        return f"{short(value.dtype)}[{', '.join(map(str, value.shape))}]"
    return type(value).__name__


def computes(node: Node) -> bool:
    """Whether a node is work at all: views, tuple access and arithmetic on sizes are not."""
    if node.op != "call_function" or not any(isinstance(v, torch.Tensor) for v in leaves(node.meta.get("val"))):
        return False
    if not isinstance(node.target, OpOverload):
        return node.target.__module__ != "_operator"  # Python's, `getitem` among them
    return not node.target.is_view


def with_regions(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph. In place of the call of a region of the deferred forward: the nodes of that region."""
    module = graph.owning_module
    for node in graph.nodes:
        called: Any = None
        if module and node.target is torch.ops.higher_order.invoke_subgraph:
            called = module.get_submodule(arg(node).target)
        if called and called.graph.output_node().meta.get(REGION):
            yield from (each for each in called.graph.nodes if each.op == "call_function")
        else:
            yield node


def count(nodes: Iterable[Node]) -> Figures:
    """How much work nodes are, as far as the graph alone tells: kernels and bytes are known once it is compiled."""
    working = [node for node in nodes if computes(node)]
    return Figures(operators=len(working), matmuls=sum(map(is_matmul, working)))


def saved_by(graph: Graph) -> list[Node]:
    """What a forward graph saves for the backward, besides inputs (parameters among them) and symbolic sizes. Of several nodes
    that share memory, one."""
    known = set().union(*map(storages, graph.find_nodes(op="placeholder")))
    by_storage = {storage: node for node in _torch.saved(graph) for storage in storages(node)}
    return [node for storage, node in by_storage.items() if storage not in known]


def bytes_of(nodes: Iterable[Node]) -> int:
    """The bytes of memory that nodes hold, shared memory counted once."""
    kept = {identity: storage for node in nodes for identity, storage in stored(node).items()}
    return sum(hint(storage.nbytes()) for storage in kept.values())


def line(node: Node) -> Line:
    """`name: type = op(arguments)`, and the user's `file:line`. The state is "fused" of our own operators, else "kept": what the
    passes did with a node is not known here."""
    where = source.place(node) if node.op == "call_function" else ""
    if node.op == "placeholder":
        text = f"{node.name}: {type_of(node)} = input()"
    elif node.op == "output":
        text = f"return {_argument(node.args[0])}"
    else:
        target = str(node.target) if isinstance(node.target, (str, OpOverload)) else node.target.__name__
        arguments = [*map(_argument, node.args), *(f"{k}={_argument(v)}" for k, v in node.kwargs.items())]
        text = f"{node.name}: {type_of(node)} = {target.removesuffix('.default')}({', '.join(arguments)})"
    ours = isinstance(node.target, OpOverload) and node.target.namespace == "ste_compile"
    return Line(node.name, text, "fused" if ours else "kept", where)


class _Name(str):
    """A node's name: printed bare, where a string argument is printed in quotes."""

    __repr__ = str.__str__


def _argument(value: Any) -> str:
    value = map_arg(value, lambda node: _Name(node.name))
    return repr(value) if isinstance(value, str) else str(value).replace("torch.", "")


def operand(value: Any) -> Operand:
    """A site's value or surrogate, with the module that computed it."""
    if not isinstance(value, Node):
        kind = "" if value is None else "a sum" if isinstance(value, Sum) else "Python number"
        return Operand(str(value), kind)
    return Operand(value.name, type_of(value), module_path(uncast(value)))


def casts(site: Site) -> tuple[str, ...]:
    """The casts inside a site and right before it, each once: `f32 -> bf16`."""
    found = [(fake(arg(n)).dtype, fake(n).dtype) for n in site.tree if is_cast(n)]
    for surrogate in site.surrogates:
        found += pairwise(cast_chain(surrogate)[1])
    return tuple(dict.fromkeys(f"{short(a)} -> {short(b)}" for a, b in found if a != b))


def notes(
    site: Site,
    action: str,
    frees: Figures,
    freed: Sequence[Node],
    stays: Set[Node],
    foreign: Collection[Node],
    started_by: Break | None,
) -> tuple[str, ...]:
    """Near misses: what another level would free, and what keeps more from being freed. `frees` is what the site frees, or would
    free; `freed` are the nodes that it alone keeps in the forward, `stays` those that the forward runs all the same; `foreign`
    are inputs that may be computed in another graph; `started_by` is the graph break that the graph goes on after."""
    if site.refusal:
        return ()
    found = []
    read = [below for node in freed for below in node.all_input_nodes]
    if action != "cancelled" and frees.operators:
        found.append(f"numerics={site.needs!r} would free {frees}")
    for each in from_outside(freed, stays, foreign) if started_by else ():
        found.append(
            f"{each.name} comes from outside this graph: {str(started_by).rstrip('.')}; nothing upstream of it can be freed"
        )
    for each in dict.fromkeys((*site.surrogates, *read)):
        if is_collective(each) and each in stays and stays.isdisjoint(each.users):  # it stays, and for nobody else
            found.append(f"{each.name} is a collective: every rank runs it, and what it needs, in the forward")
    for surrogate in dict.fromkeys(map(uncast, site.surrogates)):
        if surrogate.op == "placeholder" or surrogate not in stays or is_collective(surrogate):
            continue
        elif not is_pure(surrogate):
            found.append(f"surrogate {surrogate.name} is random, or changes something: it stays in the forward")
        else:
            found.append(f"surrogate {surrogate.name} stays: the forward also uses it {_elsewhere(surrogate, stays)}")
    return tuple(found)


def from_outside(freed: Sequence[Node], stays: Set[Node], foreign: Collection[Node]) -> list[Node]:
    """The `foreign` inputs that `freed` nodes read, and that no node which stays reads."""
    read = dict.fromkeys(below for node in freed for below in node.all_input_nodes)
    return [each for each in read if each in foreign and stays.isdisjoint(each.users)]


def _elsewhere(node: Node, stays: Set[Node]) -> str:
    user = next((user for user in node.users if user in stays), None)
    if user is None:
        return "as a result"
    where = source.place(user)
    return f"in {user.name}" + (f", {where}" if where else "")


def edges(site: Site) -> tuple[tuple[str, str], ...]:
    """The arithmetic of a site, what goes into it, and who reads it: (from, to), by name."""
    return tuple(dict.fromkeys(_edges(site)))


def _edges(site: Site) -> Iterator[tuple[str, str]]:
    inside = dict.fromkeys((site.root, *site.tree))  # in order: every rank, and every run, says the same
    outside = dict.fromkeys(below for node in inside for below in node.all_input_nodes if below not in inside)
    for node in inside:
        yield from ((below.name, node.name) for below in node.all_input_nodes)
    for each in outside:
        for above, below in pairwise(layers(each, is_marker, is_cast)):
            yield below.name, above.name
    yield from ((site.root.name, user.name) for user in list(site.root.users)[:3])
