"""Where a saving is lost, the way to get it back: `explain(suggest=True)`.

    find    each kind of near miss has a finder: what is known of the sites and graphs -> edits
    try     compile once more as if an edit had been made: what the forward and inference graphs then amount to
    rank    by bytes, then kernels; what brings nothing is counted, and left out

A new kind is a row of `KINDS`. A finder says what is known and never guesses; an edit that no compile here can imitate says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest

from .. import _torch
from ..hooks import guarded
from . import broken_graphs, buckets, lost_markers, other_levels, second_use
from .calls import with_passes
from .edits import Edit, Seen, Try, first_line
from .figures import NOTHING, Figures
from .progress import doing
from .record import Recorder
from .report import Graph, Report
from .suggestion import Suggestion, rank

MOST = 8  # compiles; the edits beyond are listed, and say that they were not tried

# kind -> what finds its edits
KINDS: dict[str, Callable[[Seen], Iterator[Edit]]] = {
    "level": other_levels.find,
    "second use": second_use.find,
    "DDP": buckets.find,
    "no_grad": lost_markers.find,
    "graph break": broken_graphs.find,
}


def suggested(seen: Seen) -> Report:
    """The report, with what would free more. A try that fails costs nothing: its edit is listed as not tried, with the error."""
    edits = _in_turn(seen) if _torch.can("suggestions") else []
    now, found, tries = _totals(seen.report.graphs), [], 0
    trying = [edit for _, edit in edits if edit.attempt][:MOST]
    for kind, edit in edits:
        where = tuple(map(seen.place, edit.sites))
        suggestion = Suggestion(kind, where, edit.words, why_not=edit.why_not)
        if edit in trying:
            with doing(f"trying a suggestion, {tries + 1} of {len(trying)}: {kind}"):
                suggestion = _tried(seen, suggestion, edit, now)
            tries += 1
        elif edit.attempt:
            suggestion = replace(suggestion, why_not=f"{MOST} others were; make one of those first, and ask again")
        found.append(suggestion)
    found = [each for each in found if not each.tried or each.gains]
    found.sort(key=lambda each: (each.tried, rank(each.frees)), reverse=True)
    return replace(seen.report, suggestions=tuple(found), tries=tries)


def _in_turn(seen: Seen) -> list[tuple[str, Edit]]:
    """The edits of all kinds: the most hopeful of each kind, then the next of each."""
    kinds = []
    for kind, find in KINDS.items():
        edits = sorted(guarded(_all, find, seen) or (), key=lambda edit: rank(edit.hope), reverse=True)
        kinds.append([(kind, edit) for edit in edits])
    return [each for each in chain(*zip_longest(*kinds)) if each]


def _all(find: Callable[[Seen], Iterator[Edit]], seen: Seen) -> list[Edit]:
    return list(find(seen))


def _totals(graphs: Sequence[Graph]) -> Figures:
    """What all forward and inference graphs amount to."""
    return sum((part.ours for graph in graphs for part in graph.parts if part.kind != "backward"), NOTHING)


def _tried(seen: Seen, suggestion: Suggestion, edit: Edit, now: Figures) -> Suggestion:
    try:
        then = _attempt(seen, edit.attempt or Try())
    except Exception as error:
        return replace(suggestion, why_not=first_line(error))
    return replace(suggestion, frees=then - now if edit.undone else now - then, tried=True)


def _attempt(seen: Seen, attempt: Try) -> Figures:
    recorder = Recorder(graphs=False)
    with attempt.around(), _torch.recompiling():
        with_passes(seen.call, attempt.rules or seen.rules, recorder, attempt.change, backward=False, marks=attempt.marks)
    graphs = recorder.report().graphs
    if len(graphs) != len(seen.report.graphs) and not attempt.regrouped:
        raise RuntimeError(f"it compiled {len(graphs)} graphs, and not {len(seen.report.graphs)}")
    return _totals(graphs)
