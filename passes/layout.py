"""Which convolutions of a region stay contiguous on a CPU, where Inductor would lay them out channels-last.

    %conv = aten.convolution(%x, %weight, ...)             %conv = ste_compile.convolution(%x, %weight, ...)
    %view = aten.reshape(%conv, [N, 8, C // 8, H * W])  ->  %view = aten.reshape(%conv, [N, 8, C // 8, H * W])
    %stats = aten.var_mean(%view, [2, 3])                  %stats = aten.var_mean(%view, [2, 3])

A group norm has one coefficient for each block of channels. Its gradient's loop runs over channels fastest where images are
channels-last, and reads the coefficients at `channel // size`. Inductor's C++ backend does not vectorise a loop if 12% of its
operations are such reads (`KernelOpStats`, 2.13 to 2.15), and with 16-bit images this one has 6 in 31. Contiguous, it is
vectorised over the pixels. (In 2.11 it is vectorised over the channels of a block, and nothing is to be gained.) Seen on one
thread (64x32x32x32, bf16, AVX-512, torch 2.13), in ns for each element:

    forward / gradient of          contiguous    channels-last
    group norm, 8 blocks           4.4 / 4.1       5.6 / 7.4
    group norm, 1 block            4.5 / 4.1       4.6 / 4.2
    instance norm                  4.3 / 4.1       4.1 / 4.1
    batch norm                     4.7 / 3.9       4.5 / 4.0
    layer norm over the channels   4.5 / 12.6      4.2 / 6.3
    squeeze and excite             0.1 / 0.1       0.1 / 0.2
    GELU                           0.5 / 0.7       0.5 / 0.7
    channel shuffle                0.1 / 0.1       1.0 / 1.2
    (a gradient that arrives in the other layout costs 0.5 more, whichever it is)

A convolution itself wants channels-last: contiguous, oneDNN reorders what it reads and writes, which costs 0.7 to 0.8 ns for each
element of its input and output, forward and backward together, whether it is 3x3, depthwise or 1x1. A channel shuffle does not
pay for that, nor a group norm in float32, whose loop runs over blocks and is vectorised (steps of 0.84 of stock's instead of
0.94). A group norm in 16 bits does, unless the convolution's other side is many times larger (`WORTH`), and only where oneDNN has
convolutions in 16 bits: on CPUs with AVX-512, with or without instructions for bfloat16 (0.85 instead of 0.96). A CPU without
AVX-512 uses ATen's own convolution, which takes eight times as long contiguous. On a GPU nothing changes: there cuDNN wants
channels-last, and the loop costs the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch.fx import Graph, Node

from .nodes import aten, fake, hint, is_cast, tensor
from .ops import ops

WORTH = 5.0  # 4 ns for each element that a group norm reads, at 0.8 ns for each that the convolution reads and writes
REDUCTIONS = (aten.var_mean.correction, aten.sum.dim_IntList, aten.mean.dim)


def stay_contiguous(graph: Graph, laid_out: set[Node], dtypes: Collection[torch.dtype]) -> set[Node]:
    """Replace, in place, the convolutions of `dtypes` that are better contiguous by `ste_compile.convolution`. Returns the nodes
    that are contiguous because of it. An *image* is a node with a 4-dimensional tensor.

    `laid_out` are the nodes that the compiler would lay out channels-last. For that it looks for `aten.convolution`, so that the
    replaced ones keep the layout of what they read.
    """
    convolutions = graph.find_nodes(op="call_function", target=aten.convolution.default)
    slow = [node for node in convolutions if node in laid_out and fake(node).device.type == "cpu" and fake(node).dtype in dtypes]
    if not slow:
        return set()
    group = _groups(graph)
    blocks = {group[node] for node in group if _is_read_by_blocks(node)}
    kept: set[Node] = set()
    for node in slow:
        images = [each for each in (node, node.all_input_nodes[0]) if each in group]
        worth = WORTH * sum(_size(each) for each in images if group[each] in blocks)
        if 0 < sum(map(_size, images)) <= worth:
            node.target = ops.convolution.default
            kept |= {node, *node.all_input_nodes[:2]}
    touched = {group[node] for node in kept if node in group} & blocks
    return kept | {node for node in group if group[node] in touched}


def _shape(image: Node) -> list[int]:
    """Of symbolic sizes, those of the first call: to compare sizes themselves would guard them."""
    return [hint(size) for size in fake(image).shape]


def _size(image: Node) -> int:
    return math.prod(_shape(image))


def _groups(graph: Graph) -> dict[Node, Node]:
    """Image -> the first image of its group. A group are images computed one from the other, element by element, with no other
    image of that shape as input: all of them are in one layout."""
    group: dict[Node, Node] = {}
    for node in graph.nodes:
        if not _is_image(node):
            continue
        images = [each for each in node.all_input_nodes if _is_image(each) and _shape(each) == _shape(node)]
        alike = len(images) == 1 and (is_cast(node) or torch.Tag.pointwise in getattr(node.target, "tags", ()))
        group[node] = group[images[0]] if alike else node
    return group


def _is_image(node: Node) -> bool:
    value = tensor(node)
    return value is not None and value.ndim == 4


def _is_read_by_blocks(node: Node) -> bool:
    """Whether arithmetic reads a view of an image in which the channels are in several blocks of several."""
    batch, channels, *_ = _shape(node)
    for view in node.users:
        if view.target in (aten.view.default, aten.reshape.default) and fake(view).ndim > 2:
            first, blocks, *_ = _shape(view)
            several = 1 < blocks < channels and not channels % blocks
            if several and first == batch and any(user.target in REDUCTIONS for user in view.users):
                return True
    return False
