"""Surrogates that Dynamo traced into another graph than their sites, since it stopped between the two. They are inputs of the
site's graph, so that nothing upstream of them is freed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from torch.fx import Node

from .breaks import CUT
from .describe import from_outside
from .edits import Edit, Key, Seen
from .graph_record import Record
from .report import Break


def outside(record: Record, index: int) -> list[Node]:
    """The inputs that come from another graph and that only a site reads."""
    return from_outside(record.frees[index], record.stays, record.foreign)


def find(seen: Seen) -> Iterator[Edit]:
    """One edit for each graph break that lies between cancelled sites and their surrogates. It cannot be tried, since the user's
    code itself would have to change."""
    found: defaultdict[Break, list[Key]] = defaultdict(list)
    for key, record, site in seen.sites():
        started_by = record.started_by
        if site.action == "cancelled" and started_by and started_by is not CUT and outside(record, key[1]):
            found[started_by].append(key)
    for each, keys in found.items():
        reason = each.reason.partition(". ")[0].rstrip(".")
        words = f"Remove the graph break at {each.file}:{each.line}, or move it ahead of the surrogate: {reason}."
        yield Edit(tuple(keys), words, why_not="the code must change")
