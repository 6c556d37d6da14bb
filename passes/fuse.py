"""Compute the sites that stay as eager computes them: every intermediate rounded to its dtype, in one kernel.

    %bf16 = prims.convert_element_type(%seed, bfloat16)
    %sub = aten.sub(%bf16, %bf16)                  ->   %add = ste_compile.straight_through(%host, %seed,
    %add = aten.add(%host, %sub)                                                             "v + (s - s)", bfloat16)

Inductor computes 16-bit arithmetic in fp32 and rounds when it stores: `x + (q - x)` loses a rounding, and a cast to fp16 its
overflow. Two steps mend that. `tag` runs where the detach markers still are, in the joint or inference graph. `fuse` runs after
the graph has been partitioned: a custom operator is opaque to the min-cut partitioner, which would save more for it. The tag
travels from one to the other in `node.meta`.

A site in none of the operator's three orders keeps its nodes. Each gets a `ste_compile.rounded` behind it, which rounds, and
which Inductor fuses like any other pointwise operator. On a GPU the compiler of a kernel may make one instruction of a product
and a sum, in any dtype, which rounds only once: there `rounded` stands behind every product that a site reads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.fx import Graph, Node

from .arithmetic import match_order
from .meta import TAG
from .new_nodes import emit
from .nodes import aten, behind, fake, is_cast, is_copy, is_marker, is_matmul, is_view, prims, tensor
from .operands import rounded_inside, rounded_operand
from .operators import is_number
from .ops import ops
from .outcomes import Mismatch, Outcome, Reason, Site, Why
from .replace import check_same, same_strides
from .rounding import FUSED_DTYPES, SUMS, contracts, is_narrow, is_narrowed_first, is_rounded
from .unused import drop_unused, is_no_output, return_instead
from .values import number_values

UNMARKED = {Reason.ERROR_IS_USED, Reason.OWN_SURROGATE, Reason.APART}
# The shape of an expression: (operator, shapes of its node arguments), or None for a leaf.
Shape = tuple[Any, list[Any]] | None


def tag(site: Site, key: Any = None) -> None:
    """Mark the root of a site for `fuse`, and note what later passes could lose: the shape of its arithmetic, and the casts of
    its surrogate, of which Inductor merges neighbours (`pointless_convert`, 2.11 to 2.15). `key` comes back in the outcome.

    A site whose rounding error is used is not marked: whatever measures the error may read the operands unrounded, from
    Inductor's registers, and must read the same as the site. Nor is a root that is a matrix product (`addmm`): its own kernel
    rounds it."""
    if is_matmul(site.root) or (site.refusal and site.refusal.reason in UNMARKED):
        return
    casts = cast_chain(site.surrogates[0])[1] if site.surrogates else []
    site.root.meta[TAG] = {"shape": _shape(site.root, set(site.tree), {}), "casts": casts, "key": key}


def fuse(graph: Graph) -> list[Outcome]:
    """Rewrite, in place, every tagged site of a post-grad graph; returns an outcome for each, in graph order.

    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> from ste_compile.passes import recognise, tag
    >>> fn = lambda x, q: x + (q - x).detach()
    >>> graph = make_fx(fn, tracing_mode="fake")(torch.ones(2).half(), torch.ones(2).half()).graph
    >>> for site in recognise(graph):
    ...     tag(site)
    >>> [(outcome.result.name, outcome.action, outcome.result.args[2]) for outcome in fuse(graph)]
    [('straight_through', 'fused', '(v - s) + s')]
    """
    roots = [node for node in graph.nodes if TAG in node.meta]
    if not roots:
        return []
    values = number_values(graph)
    matches = [match_order(root, values) for root in roots]  # before a rewrite puts nodes without a number in shared arithmetic
    outcomes = []
    replaced: dict[Node, Node] = {}  # for the results of the graph, which are exchanged at the end, all at once
    for root, match in reversed(list(zip(roots, matches))):
        mark = root.meta.pop(TAG)
        try:
            node, why = _fuse_one(graph, root, mark, match, replaced)
            outcomes.append(Outcome(node, why, mark["key"]))
        except Mismatch as mismatch:
            outcomes.append(Outcome(root, mismatch.why, mark["key"]))
        except Exception as error:
            error.add_note(f"at the site {root.format_node()}")
            outcomes.append(Outcome(root, Reason.FAILED.of(error), mark["key"], error))
    return_instead(graph, replaced)
    return outcomes[::-1]


def _fuse_one(
    graph: Graph, root: Node, mark: dict[str, Any], match: tuple[str, Node, Node] | None, replaced: dict[Node, Node]
) -> tuple[Node, Why]:
    """The node that holds the result now, and what was done. Every user reads that node, except the graph's output, for which
    `replaced` gets an entry."""
    if fake(root).dtype not in FUSED_DTYPES:
        return root, Reason.OWN_KERNELS.of(fake(root).dtype)
    if layout := next((fake(n).layout for n in _operands(root, mark["shape"]) if fake(n).layout is not torch.strided), None):
        return root, Reason.OWN_KERNELS.of(f"a {layout} tensor")
    if match and _promotes_alike(match[1], match[2]):
        order, value, surrogate = match
        surrogate, cast = _ahead_of_last_cast(graph, root, surrogate, mark["casts"])
        operands = [rounded_inside(graph, root, operand) for operand in (value, surrogate)]
        fused = emit(graph, root, ops.straight_through.default, (*operands, order, *cast))
        if same_strides(fake(fused), fake(root)):
            check_same(root, tensor(root), tensor(fused))
            root.replace_all_uses_with(fused, delete_user_cb=is_no_output)
            replaced |= {root: fused} if root.users else {}
            drop_unused(graph, root)
            return fused, Reason.ONE_OPERATOR.of(order)
        # The operands of a sum may stand in another order than in `order`, and eager's result has the layout of the first.
        drop_unused(graph, fused)
    interior = _interior(root, mark["shape"])
    if interior is None:
        return root, Reason.REWRITTEN.of()
    if any(node.kwargs.get("alpha", 1) not in (1, -1) for node in interior):
        return root, Reason.ALPHA.of()
    replaced |= _round_all(graph, interior)
    return root, Reason.EACH_ROUNDED.of()


def cast_chain(node: Node) -> tuple[Node, list[torch.dtype]]:
    """The node under a chain of casts, and the dtypes from that node's own to the last cast's."""
    node = _holding(node)
    dtypes = [fake(node).dtype]
    while is_cast(node) and fake(node.args[0]).is_floating_point():
        node = _holding(node.args[0])
        dtypes.insert(0, fake(node).dtype)
    return node, dtypes


def _ahead_of_last_cast(graph: Graph, root: Node, surrogate: Node, casts: list[torch.dtype]) -> tuple[Node, list[torch.dtype]]:
    """The surrogate ahead of its last cast, and that cast's dtype, if any. Casts merged since `tag` are put back: each rounds."""
    base, found = cast_chain(surrogate)
    if casts[-1:] != found[-1:] or found[0] not in casts:
        casts = found
    rest = casts[casts.index(found[0]) + 1 :]
    for dtype in rest[:-1]:
        base = emit(graph, root, prims.convert_element_type.default, (base, dtype))
    return base, rest[-1:]


def _promotes_alike(value: Node, surrogate: Node) -> bool:
    """Whether both operands are rounded to the dtype that `torch.promote_types` gives: not so a 0-dim one of a wider dtype."""
    left, right = fake(value), fake(surrogate)
    return (left.ndim > 0) == (right.ndim > 0) or left.dtype == right.dtype


def _holding(node: Any) -> Any:
    """The node behind whatever passes its value on: markers, copies, and the `rounded` of another site that reads it."""
    return behind(node, is_marker, is_copy, is_rounded)


def _computed(node: Any) -> Any:
    """As `_holding`, and behind views too: Inductor renames, merges and drops views (2.11 to 2.15); a view computes nothing."""
    return behind(node, is_marker, is_copy, is_rounded, is_view)


def _inputs(node: Node) -> list[Node]:
    return [argument for argument in node.args if isinstance(argument, Node)]


def _shape(node: Node, tree: set[Node], known: dict[Node, Shape]) -> Shape:
    node = _computed(node)
    if node not in known:
        known[node] = (node.target, [_shape(a, tree, known) for a in _inputs(node)]) if node in tree else None
    return known[node]


def _operands(root: Node, shape: Shape) -> list[Node]:
    """`root`, and the leaves of its arithmetic, where that still has `shape`."""
    return [root, *(leaf for leaves in (_interior(root, shape) or {}).values() for leaf in leaves)]


def _interior(root: Node, shape: Shape) -> dict[Node, list[Node]] | None:
    """The nodes of the arithmetic that still has `shape`, each with its leaf inputs, root first; None where it has another."""
    interior: dict[Node, list[Node]] = {}
    stack = [(root, shape)]
    while stack:
        node, shape = stack.pop()
        node = _computed(node)
        if shape is None or node in interior:
            continue
        target, below = shape
        if node.target is not target or len(_inputs(node)) != len(below):
            return None
        interior[node] = [a for a, inner in zip(_inputs(node), below) if inner is None]
        stack += zip(_inputs(node), below)
    return interior


def _round_all(graph: Graph, interior: dict[Node, list[Node]]) -> dict[Node, Node]:
    """Round what goes into the arithmetic of a site, and every result in it, to its own dtype; on a GPU, wide products too.
    Returns what is read in each result's place. Raises `Mismatch`, with the graph as it was, where a rounded value would look
    different to its readers."""
    made: list[Node] = []
    rounded: list[tuple[Node, Node]] = []  # a value, and what is read in its place
    inputs, results = {}, {}
    try:
        for node, leaves in interior.items():
            for leaf in dict.fromkeys(leaves):
                value = leaf
                if is_narrowed_first(node, leaf):
                    made.append(value := emit(graph, node, prims.convert_element_type.default, (leaf, fake(node).dtype)))
                new = rounded_operand(graph, node, value, made)
                if new is not leaf:
                    inputs[node, leaf] = new
                    rounded.append((value, new))
            rounds = is_narrow(node) or (contracts(node) and node.target not in SUMS)
            if rounds and not any(map(is_rounded, node.users)):
                results[node] = emit(graph, node.next, ops.rounded.default, (node,), like=node)
                made.append(results[node])
                rounded.append((node, results[node]))
        for value, new in rounded:
            check_same(value, tensor(value), tensor(new))
    except BaseException:
        for node in reversed(made):
            graph.erase_node(node)
        raise
    for (node, leaf), new in inputs.items():
        node.replace_input_with(leaf, new)
    for node in interior:
        if is_narrow(node) and fake(node).device.type == "cpu" and is_number(node.args[0]):
            # Eager's CPU kernels round a Python number that is the first operand, not one that is the second; CUDA's round none.
            node.update_arg(0, torch.tensor(node.args[0], dtype=fake(node).dtype).item())
        if contracts(node) and node.target is aten.neg.default:  # Triton computes it as 0 - x: +0 for +0, not -0
            node.target, node.args = aten.mul.Tensor, (*node.args, -1)
    for node, result in results.items():
        node.replace_all_uses_with(result, delete_user_cb=partial(_reads_besides, result))
    return results


def _reads_besides(result: Node, user: Node) -> bool:
    return user is not result and is_no_output(user)
