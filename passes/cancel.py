"""Remove the surrogates that a level lets cancel: every user of the site reads the value instead.

    %sub = aten.sub(%seed, %alias)                ->
    %add = aten.add(%host, %sub)                        %relu = aten.relu(%host)
    %relu = aten.relu(%add)

Inductor has no such rule: it computes `seed - seed` and all that leads to it, in training and in inference, and keeps the
seed's activations for the backward. Here the seed has no user left in the forward, so inference drops it and the partitioner of a
training graph may run it where the backward needs it. *Where* is the partitioner's policy, not this pass's: it works alike on
joint graphs, inference graphs and partitioned forwards.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Graph

from ..numerics import REMOVES, Numerics
from .defer import CANCELLED
from .effects import effects, keep
from .recognise import Outcome, Site
from .replace import Refused, Rewrites, replace_with_value
from .values import aten


def cancel(graph: Graph, sites: Iterable[Site], numerics: Numerics, *, deferred: bool = True) -> list[Outcome]:
    """Cancel, in place, the sites that `numerics` permits; returns an outcome for each site, in their order.

    A site is rewritten whole or not at all; what is random or mutates in a surrogate stays in the forward (see `effects`), and
    where not `deferred`, so does all that the backward will read of it.

        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> from ste_compile.passes import recognise
        >>> fn = lambda h, s: (h + (s.exp() - s.exp().detach())).relu()
        >>> graph = make_fx(fn, tracing_mode="fake")(torch.ones(2), torch.ones(2)).graph
        >>> [outcome.action for outcome in cancel(graph, recognise(graph), "finite")]
        ['cancelled']
        >>> [node.name for node in graph.nodes]
        ['h_1', 's_1', 'relu', 'output']
    """
    sites = list(sites)
    if sites and REMOVES[numerics]:
        _drop_assertions(graph)
    before = effects(graph, all_of_it=not deferred) if sites and REMOVES[numerics] else {}
    try:
        outcomes = _cancel(graph, sites, numerics)
    finally:  # also for the sites that were cancelled before another one failed
        keep(graph, before)
    graph.output_node().meta[CANCELLED] = any(outcome.action == "cancelled" for outcome in outcomes)
    return outcomes


def _drop_assertions(graph: Graph) -> None:
    """`torch.export` asserts, ahead of each cast, what it casts: it would keep a surrogate alive. It held of the fake values, and
    Inductor checks it no more than that (2.13)."""
    for node in graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        graph.erase_node(node)


def _cancel(graph: Graph, sites: list[Site], numerics: Numerics) -> list[Outcome]:
    rewrites = Rewrites(graph)
    outcomes: list[Outcome] = []
    try:
        for site in sites:
            outcomes.append(_outcome(rewrites, site, numerics))
    finally:
        dropped = rewrites.finish()
    return [
        Outcome(each.result, "cancelled", "only another cancelled site used it") if each.result in dropped else each
        for each in outcomes
    ]


def _outcome(rewrites: Rewrites, site: Site, numerics: Numerics) -> Outcome:
    if site.refusal:
        return Outcome(site.root, "left", site.refusal)
    if site.needs not in REMOVES[numerics]:
        return Outcome(site.root, "left", f"removing it needs numerics={site.needs!r}")
    try:
        result = replace_with_value(rewrites, site.root, site.value, site.negated)
        return Outcome(result, "cancelled", f"permitted by numerics={numerics!r}")
    except Refused as refusal:
        return Outcome(site.root, "left", str(refusal))
    except Exception as error:
        error.add_note(f"at the site {site.root.format_node()}")
        raise
