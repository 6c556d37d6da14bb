"""Surrogates that DDPOptimizer cut off from their sites: a bucket of DDP's gradients ended between the two.

DDPOptimizer goes through the graph from Dynamo from its end, adds up the bytes of the parameters, and begins another bucket where
the sum reaches `bucket_cap_mb` (1 MiB for the first bucket). To find a number that would do, the graph is traced once more,
uncut and without Inductor, and DDPOptimizer is asked where it would cut it with that number. Where no number does, because the
site is in the first bucket and the surrogate is not, the edit is not to cut at all.

What one part hands to the next is an input there, and inputs do not count as saved. With fewer parts, the report may therefore
count more saved bytes although no more memory is kept.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from typing import Any

from torch import nn
from torch.fx import GraphModule

from .. import _torch
from ..passes.nodes import leaves
from ..state import modules_of
from .breaks import CUT
from .broken_graphs import outside
from .calls import called
from .edits import Edit, Key, Seen, Try, first_line, listed, origin, said

MIB = 2**20


def find(seen: Seen) -> Iterator[Edit]:
    """One edit for all sites that the same number helps."""
    cut = [key for key, record, site in seen.sites() if site.action == "cancelled" and record.started_by is CUT]
    cut = [(number, index) for number, index in cut if outside(seen.records[number], index)]
    if not cut:
        return
    wrapped = _wrapped(seen)
    found: defaultdict[int | None, list[Key]] = defaultdict(list)
    surrogates: defaultdict[int | None, set[str]] = defaultdict(set)
    try:
        whole = _whole(seen)
        for key in cut:
            gm, site, needed = _in_whole(seen, whole, wrapped[0].bucket_bytes_cap, key)
            number = _enough(gm, site, needed)
            found[number].append(key)
            surrogates[number] |= {said(node) for node in gm.graph.nodes if node.name in needed}
    except Exception as error:
        words = "Set bucket_cap_mb in DistributedDataParallel so that the surrogate is in one bucket with its site."
        yield Edit(tuple(cut), words, why_not=first_line(error))
        return
    for number, keys in found.items():
        what = listed(sorted(surrogates[number]))
        if number is None:
            words = (
                f"Set torch._dynamo.config.optimize_ddp=False, since {what} is in another bucket than its site at any "
                "bucket_cap_mb: gradients are then sent after the backward, not during it."
            )
            yield Edit(tuple(keys), words, Try(around=_torch.without_buckets, regrouped=True))
        else:
            words = f"Set bucket_cap_mb={number} in DistributedDataParallel: {what} is then in one bucket with its site."
            yield Edit(tuple(keys), words, Try(around=partial(_capped, wrapped, number * MIB), regrouped=True))


def _wrapped(seen: Seen) -> list[Any]:
    """The DDP modules among those that are called: at least one, where DDPOptimizer cut a graph."""
    call = seen.call
    given = [each for each in leaves((call.args, call.kwargs)) if isinstance(each, nn.Module)]
    parts = [part for module in (*modules_of(call.fn).values(), *given) for part in module.modules()]
    return [part for part in parts if hasattr(part, "bucket_bytes_cap")]


@contextlib.contextmanager
def _capped(modules: Sequence[Any], cap: int) -> Iterator[None]:
    before = [module.bucket_bytes_cap for module in modules]
    try:
        for module in modules:
            module.bucket_bytes_cap = cap
        yield
    finally:
        for module, each in zip(modules, before):
            module.bucket_bytes_cap = each


def _whole(seen: Seen) -> dict[str, GraphModule]:
    """The graphs from Dynamo, uncut, by the compile ids that their parts have in the report."""
    graphs: list[GraphModule] = []

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        return gm

    with _torch.without_buckets(), _torch.recompiling():
        called(seen.call, backend)
    names = dict.fromkeys(record.name for record in seen.records)
    if len(graphs) != len(names):
        raise RuntimeError(f"traced again, there are {len(graphs)} graphs, and not {len(names)}")
    return dict(zip(names, graphs))


def _in_whole(seen: Seen, whole: dict[str, GraphModule], cap: int, key: Key) -> tuple[GraphModule, str, set[str]]:
    """The uncut graph of a site, and in it the names of the site and of the surrogates that its part lacks. A part calls its
    inputs as the whole does; its other nodes are those of its bucket, in order."""
    number, index = key
    record = seen.records[number]
    gm, root = whole[record.name], origin(record.sites[index].root)
    parts = [each for each in seen.traced if any(seen.records[i].name == record.name for i in each.records)]
    position = next(i for i, each in enumerate(parts) if number in each.records)
    nodes, buckets = parts[position].graph.nodes, _torch.buckets(gm, cap)
    theirs = [node.name for node in nodes if node.op not in ("placeholder", "output")]
    ours = [node.name for node in gm.graph.nodes if len(parts) == len(buckets) and node.name in buckets[position][1]]
    if len(theirs) != len(ours):
        raise RuntimeError("traced again, the graph has other buckets")
    inputs = [node.name for node in nodes if node.op == "placeholder"]
    given = record.graph.find_nodes(op="placeholder")
    return gm, ours[theirs.index(root)], {inputs[given.index(node)] for node in outside(record, index)}


def _enough(gm: GraphModule, site: str, surrogates: Set[str]) -> int | None:
    """The smallest whole `bucket_cap_mb` that keeps a site and its surrogates in one bucket; None where none does."""
    number = 1
    while True:
        buckets = _torch.buckets(gm, number * MIB)
        last = next(i for i, (_, names) in enumerate(buckets) if site in names)
        first = next(i for i, (_, names) in enumerate(buckets) if not surrogates.isdisjoint(names))
        if first >= last:
            return number
        if number * MIB > sum(size for size, _ in buckets):
            return None
        number = max(number + 1, sum(size for size, _ in buckets[first + 1 : last]) // MIB + 1)  # what is between has to fit
