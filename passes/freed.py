"""Which nodes each site keeps alive: what cancelling it takes out of the forward.

This counts references in the part of the graph that the forward's outputs need. Cancelling a site hands its users to its value;
what is then used by nobody is freed, and belongs to that site. A node that two sites keep alive belongs to the one that is
counted last, so that the amounts of all sites add up to the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from torch.fx import Graph, Node

from .nodes import ancestors, is_backward, is_pure
from .outcomes import Site, Sum


def needed(graph: Graph, outputs: Collection[Node]) -> set[Node]:
    """What the forward runs for its `outputs`, and for what it does besides (random numbers, writes). Inputs included."""
    acts = (node for node in graph.nodes if node.op == "call_function" and not is_pure(node) and not is_backward(node))
    return ancestors(graph, (*outputs, *acts))


def freed(graph: Graph, sites: Sequence[Site], cancelled: Collection[int], outputs: Collection[Node]) -> dict[Node, int]:
    """Node -> index of the site that frees it from the forward, whose results are `outputs`; other nodes are not in it.

    The sites whose indices are in `cancelled` are counted first, then those that another level would cancel; in each group, the
    last site of the graph comes first.
    Refused sites free nothing. The graph is not changed.

        >>> import torch
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> from ste_compile.passes import recognise
        >>> graph = make_fx(lambda h, s: h + (s.exp() - s.exp().detach()))(torch.ones(2), torch.ones(2)).graph
        >>> names = (node.name for node in freed(graph, recognise(graph), {0}, graph.output_node().all_input_nodes))
        >>> [name for name in names if name not in ("detach", "alias")]  # the marker: from torch 2.14 on an `alias` here too
        ['add', 'sub', 'exp_1', 'exp']
    """
    runs = needed(graph, outputs)
    held = Counter(outputs)
    for node in runs:
        held.update(node.all_input_nodes)
    owner: dict[Node, int] = {}
    replaced: dict[Node, Node] = {}
    order = sorted(range(len(sites)), key=lambda i: (i not in cancelled, -i))
    for index in order:
        site = sites[index]
        if site.refusal or site.root in owner or site.root not in runs:
            continue
        if isinstance(site.value, Node):
            replaced[site.root] = site.value
            held[site.value] += held[site.root]
        elif isinstance(site.value, Sum):  # one reader more, which `cancel` makes
            held.update(site.value.nodes())
        held[site.root] = 0
        _release(site.root, index, held, replaced, owner)
    return owner


def _release(node: Node, index: int, held: Counter[Node], replaced: dict[Node, Node], owner: dict[Node, int]) -> None:
    stack = [node]
    while stack:
        node = stack.pop()
        owner[node] = index
        for used in node.all_input_nodes:
            while used in replaced:
                used = replaced[used]
            held[used] -= 1
            if not held[used] and is_pure(used):
                stack.append(used)
