"""Cancelled sites whose surrogate the forward computes all the same, because something else reads it.

    seed = self.seed(h)
    h = h + (seed - seed.detach())
    return h, seed.pow(2).mean()        # the second use: keeps `seed`, and all of `self.seed`, in the forward

There are two edits, and both are tried to see which of them frees anything:

`detach`      cuts the gradient of the other use. What only that gradient needs is no longer saved. The forward runs as before,
              and still saves what the site's own gradient needs: to keep it is cheaper than to compute it again.
`leave out`   removes the other use and all that is computed from it. Then the surrogate's forward is freed, as at any other site.

Neither is offered where the value of the site is itself computed from what is read, as the codes of a VQ-VAE are: the forward
would still need it. `leave out` is offered only where the other use is a by-product, such as a summand of a loss. It is not one
where something computed from it reaches a result that also depends on the site in another way. Uses in one place of the code, as
in a loop over layers, are one edit.

To try an edit, the graph from Dynamo is changed before AOTAutograd sees it, just as the edit would change it. Where a result is
left out, the compiled graph returns one result less, and the code after the graph is given zeros in its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from .. import _torch
from ..passes import Site, Sum
from ..passes.nodes import ancestors, is_cast, is_collective, is_marker, is_pure, uncast
from .calls import Change
from .edits import Edit, Key, Seen, Try, listed, origin, said
from .graph_record import Record
from .without_use import LeftOut, Read, detach, is_by_product, writes

WRITTEN = "what writes it to a buffer or an argument"  # AOTAutograd does that at the end, in a node of its own


@dataclass(frozen=True)
class _Use:
    """A node of the joint or inference graph that stays in the forward for its `readers`, or as a result, and would else be
    freed."""

    node: Node
    readers: tuple[Node, ...]
    is_result: bool
    is_surrogate: bool

    def said(self, how: str) -> str:
        """The uses as the user wrote them, with their places; `how` is a format string for those that read."""
        words = listed(said(_inner(each)) if origin(each) else WRITTEN for each in self.readers)
        read = [how.format(words)] * bool(words)
        return " and ".join([*read, *([f"the result {said(self.node)}"] * self.is_result)])


def find(seen: Seen) -> Iterator[Edit]:
    """The edits for the uses of each place, the smaller one first."""
    places: defaultdict[str, dict[_Use, list[Key]]] = defaultdict(dict)
    for number, record in enumerate(seen.records):
        for index in range(len(record.sites)):
            for use in _uses(record, index):
                places[f"{use.said('{}')} of {said(use.node)}"].setdefault(use, []).append((number, index))
    for uses in places.values():
        yield from _edits(seen, uses)


def _uses(record: Record, index: int) -> Iterator[_Use]:
    """What a cancelled site would free, were it not read elsewhere: its surrogates, and what these are computed from."""
    site = record.sites[index]
    if site.refusal or record.outcomes[index].action != "cancelled":
        return
    results = set(_torch.forward_outputs(record.graph))
    stays = record.stays - ancestors(record.graph, _values(site))
    read = [below for node, owner in record.owner.items() if owner == index for below in node.all_input_nodes]
    surrogates = dict.fromkeys(map(uncast, site.surrogates))
    for node in surrogates | dict.fromkeys(map(uncast, read)):
        readers = tuple(user for user in node.users if user in record.stays)
        if node.op != "call_function" or node not in stays or not is_pure(node) or is_collective(node):
            continue
        inside = origin(node) in map(origin, readers)  # one call of the user's: there is nothing to edit
        if (readers or node in results) and not inside:
            yield _Use(node, readers, node in results, node in surrogates)


def _values(site: Site) -> list[Node]:
    found = site.value.nodes() if isinstance(site.value, Sum) else [site.value]
    return [node for node in found if isinstance(node, Node)]


def _inner(reader: Node) -> Node:
    """What reads a value behind a `detach` or a cast."""
    while (is_marker(reader) or is_cast(reader)) and len(reader.users) == 1:
        reader = next(iter(reader.users))
    return reader


def _edits(seen: Seen, uses: dict[_Use, list[Key]]) -> Iterator[Edit]:
    sites = tuple(dict.fromkeys(key for keys in uses.values() for key in keys))
    use = next(iter(uses))
    reads: defaultdict[int, list[Read]] = defaultdict(list)
    by_product = shown = True
    for each, keys in uses.items():
        number = next(i for i, traced in enumerate(seen.traced) if keys[0][0] in traced.records)
        graph = seen.traced[number].graph
        output = [graph.output_node().name] * each.is_result
        node = seen.traced[number].named(origin(each.node))
        users = {user.name for user in node.users} if node else set()
        writers = {user.name for user in node.users if writes(user)} if node else set()
        named = {*filter(None, map(origin, each.readers)), *output}
        if not all(map(origin, each.readers)):
            shown, named = shown and bool(writers), named | writers
        reads[number].append(Read(origin(each.node), frozenset(named)))
        shown = shown and named <= users
    if not shown:
        yield Edit(
            sites,
            f"Leave out {use.said('{}')} in the steps that do not need it.",
            why_not="Dynamo's graph does not show it alone",
        )
        return
    for number, theirs in reads.items():
        roots = [origin(seen.records[i].sites[index].root) for i, index in sites if i in seen.traced[number].records]
        by_product = by_product and is_by_product(seen.traced[number].graph, theirs, roots)
    training = seen.records[sites[0][0]].training
    detached = all(is_marker(reader) for each in uses for reader in each.readers) and not use.is_result
    if training and not detached and (by_product or use.is_surrogate):
        words = f"Detach {use.said('what {} reads')}, if no gradient is wanted through it."
        yield Edit(sites, words, Try(change=_detaching(reads)))
    if by_product:
        what = said(use.node) if use.readers else "it"
        words = f"Leave out {use.said('{}')} in the steps that do not need it: the forward computes {what} for that alone."
        yield Edit(sites, words, Try(change=LeftOut(reads)))


def _detaching(reads: Mapping[int, Sequence[Read]]) -> Change:
    def change(number: int, gm: GraphModule) -> None:
        if number in reads:
            detach(gm, reads[number])

    return change
