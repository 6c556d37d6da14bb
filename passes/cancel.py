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

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch.fx import Graph

from .effects import effects, keep
from .levels import LEVELS, Levels, Rules, check
from .meta import CANCELLED
from .nodes import aten, module_path, uncast
from .outcomes import Outcome, Reason, Refused, Site
from .replace import Rewrites, replace_with_value


def cancel(
    graph: Graph,
    sites: Iterable[Site],
    numerics: Levels,
    *,
    deferred: bool = True,
    can_keep: Callable[[], bool] = lambda: True,
) -> list[Outcome]:
    """Cancel, in place, the sites that `numerics` permits; returns an outcome for each site, in their order.

    A site is rewritten whole or not at all: one whose rewrite fails is left, and its outcome has the error. The random and
    mutating nodes of a surrogate stay in the forward (see `effects`). With `deferred=False`, so does everything of it that the
    backward reads. `can_keep` tells whether the compiler can keep nodes in the forward. It is asked only if the graph has nodes
    to keep; if it says no, every site of the graph is left.

        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> from ste_compile.passes import recognise
        >>> fn = lambda h, s: (h + (s.exp() - s.exp().detach())).relu()
        >>> graph = make_fx(fn, tracing_mode="fake")(torch.ones(2), torch.ones(2)).graph
        >>> [outcome.action for outcome in cancel(graph, recognise(graph), "finite")]
        ['cancelled']
        >>> [node.name for node in graph.nodes]
        ['h_1', 's_1', 'relu', 'output']
    """
    sites, rules = list(sites), check(numerics)
    before = {}
    if sites and rules.removes:
        drop_assertions(graph)
        before = effects(graph, all_of_it=not deferred)
    if before and not can_keep():
        return [Outcome(site.root, Reason.NO_EFFECTS.of()) for site in sites]
    rewrites = Rewrites(graph)
    outcomes = [_outcome(rewrites, site, rules) for site in sites]
    graph.output_node().meta[CANCELLED] = any(outcome.action == "cancelled" for outcome in outcomes)
    failed: list[Exception] = []  # whatever fails from here on, the sites above are cancelled, and their effects are kept
    dropped = _tried(failed, rewrites.finish) or ()
    _tried(failed, keep, graph, before)
    outcomes = [replace(each, why=Reason.WITH_ANOTHER.of()) if each.result in dropped else each for each in outcomes]
    return [*outcomes[:-1], *(replace(each, error=each.error or next(iter(failed), None)) for each in outcomes[-1:])]


def _tried(failed: list[Exception], step: Callable[..., Any], *args: Any) -> Any:
    try:
        return step(*args)
    except Exception as error:
        failed.append(error)


def drop_assertions(graph: Graph) -> None:
    """Erase the assertions on tensor metadata that `torch.export` puts ahead of each cast: they would keep a surrogate alive.
    They held for the fake tensors, and Inductor generates no code for them (2.13)."""
    for node in graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        graph.erase_node(node)


def module_paths(site: Site) -> tuple[tuple[str, str], ...]:
    """For each surrogate of a site, the paths of the two modules that decide on the level: the module whose code the site is, and
    the module that computes the surrogate."""
    return tuple((module_path(site.root), module_path(uncast(surrogate))) for surrogate in site.surrogates)


def _outcome(rewrites: Rewrites, site: Site, rules: Rules) -> Outcome:
    if site.refusal:
        return Outcome(site.root, site.refusal)
    _, level = rules.deciding(module_paths(site))
    if site.needs not in LEVELS[level].removes:
        return Outcome(site.root, Reason.LEVEL.of(site.needs))
    try:
        result = replace_with_value(rewrites, site.root, site.value, site.negated)
        return Outcome(result, Reason.PERMITTED.of(level))
    except Refused as refusal:
        return Outcome(site.root, refusal.why)
    except Exception as error:
        error.add_note(f"at the site {site.root.format_node()}")
        return Outcome(site.root, Reason.FAILED.of(error), error=error)
