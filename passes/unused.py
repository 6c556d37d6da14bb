"""Clean up a graph after nodes were replaced: let it return the stand-ins, and drop what nobody reads any more."""

from __future__ import annotations

from torch.fx import Graph, Node, map_arg

from .nodes import is_pure


def return_instead(graph: Graph, replaced: dict[Node, Node]) -> set[Node]:
    """Exchange the graph's results by `replaced` (node -> its stand-in); returns the nodes dropped, which nobody reads now."""
    output = graph.output_node()
    output.args = map_arg(output.args, lambda node: replaced.get(node, node))
    dropped: set[Node] = set()
    for node in replaced:
        if node not in dropped:  # with an earlier one that read it
            dropped |= drop_unused(graph, node)
    return dropped


def is_no_output(user: Node) -> bool:
    return user.op != "output"


def drop_unused(graph: Graph, node: Node) -> set[Node]:
    """Erase `node`, and what only it used, as far as the nodes are pure. Random and mutating nodes stay."""
    dropped: set[Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node in dropped or node.users or not is_pure(node):
            continue
        stack += node.all_input_nodes
        graph.erase_node(node)
        dropped.add(node)
    return dropped
