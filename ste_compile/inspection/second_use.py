"""Cancelled sites whose surrogate the forward computes all the same, because something else reads it.

    seed = self.seed(h)
    h = h + (seed - seed.detach())
    return h, seed.pow(2).mean()        # the second use: keeps `seed`, and all of `self.seed`, in the forward

Two edits, and which of them frees anything is seen by trying both:

`detach`      cuts the gradient of the other use. What only that gradient needs is saved no more. The forward runs as before, and
              keeps as before what the site's own gradient needs: it is at hand, and dearer to compute again than to keep.
`leave out`   does without the other use, and all that comes of it. Then the surrogate's forward goes, as at any other site.

Neither is offered where the value of the site is itself computed from what is read, as the codes of a VQ-VAE are: it would stay
all the same. To leave out is not, where what comes of the other use reaches a result that depends on the site: it is no
by-product.

What is counted: the graph from Dynamo is changed before AOTAutograd sees it, just as the edit would change it. With a result left
out the compiled graph returns one less, and zeros take its place outside of it, for the code that goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from .. import _torch
from ..passes import Site, Sum
from ..passes.nodes import ancestors, hint, is_cast, is_collective, is_marker, is_pure, uncast
from .edits import Edit, Key, Seen, Traced, Try, at, origin, said
from .graph_record import Record

SHOWN = 3  # uses that a sentence names


@dataclass(frozen=True)
class _Use:
    """A node of the joint or inference graph that stays in the forward for its `readers`, or as a result, and would else be
    freed."""

    node: Node
    readers: tuple[Node, ...]
    is_result: bool
    is_surrogate: bool

    def names(self) -> set[str]:
        return {origin(reader) for reader in self.readers}


def find(seen: Seen) -> Iterator[Edit]:
    """The edits for each second use, the smaller one first."""
    for number, traced in enumerate(seen.traced):
        sites: dict[_Use, list[Key]] = {}
        for record_number in traced.records:
            record = seen.records[record_number]
            for index in range(len(record.sites)):
                for use in _uses(record, index):
                    sites.setdefault(use, []).append((record_number, index))
        for use, keys in sites.items():
            roots = [origin(seen.records[r].sites[i].root) for r, i in keys]
            yield from _edits(traced, number, use, roots, tuple(keys), seen.records[keys[0][0]].training)


def _uses(record: Record, index: int) -> Iterator[_Use]:
    """What a cancelled site would free, were it not read elsewhere: its surrogates, and what these are computed from."""
    site = record.sites[index]
    if site.refusal or record.outcomes[index].action != "cancelled":
        return
    results = set(_torch.forward_outputs(record.graph))
    needed_anyway = ancestors(record.graph, _values(site))
    read = [below for node, owner in record.owner.items() if owner == index for below in node.all_input_nodes]
    surrogates = dict.fromkeys(map(uncast, site.surrogates))
    for node in surrogates | dict.fromkeys(map(uncast, read)):
        if (
            node.op != "call_function"
            or node not in record.stays
            or node in needed_anyway
            or not is_pure(node)
            or is_collective(node)
        ):
            continue
        readers = tuple(user for user in node.users if user in record.stays)
        if readers or node in results:
            yield _Use(node, readers, node in results, node in surrogates)


def _values(site: Site) -> list[Node]:
    found = site.value.nodes() if isinstance(site.value, Sum) else [site.value]
    return [node for node in found if isinstance(node, Node)]


def _edits(
    traced: Traced, number: int, use: _Use, roots: Sequence[str], sites: tuple[Key, ...], training: bool
) -> Iterator[Edit]:
    node, read = traced.named(origin(use.node)), _said(use)
    readers = _readers(traced.graph, use)
    if node is None or readers is None:
        yield Edit(
            sites, f"Leave out {read} in the steps that do not need it.", why_not="Dynamo's graph does not show it by itself"
        )
        return
    main = _below(traced.graph, {each for each in map(traced.named, roots) if each})
    left_out = _below(traced.graph, {each for each in node.users if each.name in readers and each.op != "output"})
    by_product = not any(each in main and each in left_out for each in _results(traced.graph))
    if training and not all(map(is_marker, use.readers)) and (by_product or use.is_surrogate):
        words = f"Detach what {read} reads, if no gradient is wanted through it."
        yield Edit(sites, words, Try(change=at(number, lambda gm: _detach(gm, node.name, readers))))
    if by_product:
        words = f"Leave out {read} in the steps that do not need it: the forward computes {said(use.node)} for that alone."
        yield Edit(sites, words, Try(change=at(number, lambda gm: _leave_out(gm, node.name, readers))))


def _readers(graph: Graph, use: _Use) -> set[str] | None:
    """The readers' names in Dynamo's graph; None where one of its calls computes a reader along with what it reads."""
    node = next((node for node in graph.nodes if node.name == origin(use.node)), None)
    output = graph.output_node()
    names = use.names() | ({output.name} if use.is_result else set())
    return names if node is not None and names <= {user.name for user in node.users} else None


def _said(use: _Use) -> str:
    """The other uses as the user wrote them, with their places."""
    words = list(dict.fromkeys(map(said, map(_inner, use.readers))))
    words = [*words[:SHOWN], *([f"{len(words) - SHOWN} more uses"] * (len(words) > SHOWN))]
    return " and ".join([*words, *(["the result that it is"] * use.is_result)])


def _inner(reader: Node) -> Node:
    """What reads a value behind a `detach` or a cast."""
    while (is_marker(reader) or is_cast(reader)) and len(reader.users) == 1:
        reader = next(iter(reader.users))
    return reader


# Dynamo's graph, changed as the edit would


def _detach(gm: GraphModule, name: str, readers: Collection[str]) -> None:
    node = _named(gm, name)
    users = [user for user in node.users if user.name in readers]
    with gm.graph.inserting_after(node):
        detached = gm.graph.call_method("detach", (node,))
    detached.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, detached)
    gm.recompile()


def _leave_out(gm: GraphModule, name: str, readers: Collection[str]) -> Callable[[Any], Any]:
    graph, node = gm.graph, _named(gm, name)
    output = graph.output_node()
    gone = _below(graph, {user for user in node.users if user.name in readers and user is not output})
    results = _results(graph)
    out = {i for i, each in enumerate(results) if each in gone or (each is node and output.name in readers)}
    missing = {i: _zeros(results[i]) for i in out}
    output.args = (tuple(each for i, each in enumerate(results) if i not in out),)
    _erase(graph, gone)
    gm.recompile()

    def finish(left: Any) -> tuple[Any, ...]:
        rest = iter(left)
        return tuple(missing[i]() if i in missing else next(rest) for i in range(len(results)))

    return finish


def _named(gm: GraphModule, name: str) -> Node:
    found = next((node for node in gm.graph.nodes if node.name == name), None)
    if found is None:
        raise RuntimeError(f"compiled again, the graph has no {name}")
    return found


def _results(graph: Graph) -> list[Any]:
    results: Any = graph.output_node().args[0]
    return list(results) if isinstance(results, (list, tuple)) else [results]


def _below(graph: Graph, nodes: Collection[Node]) -> set[Node]:
    """`nodes`, and whatever is computed from them: not the output."""
    found = set(nodes)
    for node in graph.nodes:
        if node.op != "output" and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _erase(graph: Graph, gone: set[Node]) -> None:
    """Erase nodes, and what was computed for them alone."""
    for node in reversed(graph.nodes):
        idle = not node.users and node.op not in ("placeholder", "output")
        if node in gone and idle:
            gone |= {each for each in node.all_input_nodes if each.users.keys() == {node} and not _acts(each)}
            graph.erase_node(node)


def _acts(node: Node) -> bool:
    """Whether a node of Dynamo's graph may change what it reads, as `add_` does."""
    return node.is_impure() or str(node.target).endswith("_")


def _zeros(node: Node) -> Callable[[], Any]:
    value = node.meta.get("example_value")
    if not isinstance(value, torch.Tensor):
        raise RuntimeError(f"the result {node.name} is no tensor")
    size = [hint(each) for each in value.shape]
    return lambda: torch.zeros(size, dtype=value.dtype, device=value.device)
