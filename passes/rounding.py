"""How eager's kernels and generated ones round: questions to a node that `fuse` and the lowerings ask."""

from __future__ import annotations

import torch
from torch.fx import Node

from .nodes import aten, behind, fake, is_cast, is_view
from .ops import ops

ROUNDED_DTYPES = (torch.float16, torch.bfloat16)  # held in fp32 by Inductor's kernels, which round when they store
# Real dtypes Inductor computes in its own kernels; complex falls back to eager's, which round by themselves.
FUSED_DTYPES = (*ROUNDED_DTYPES, torch.float32, torch.float64)
SUMS = (aten.add.Tensor, aten.sub.Tensor)


def is_rounded(node: Node) -> bool:
    return node.target is ops.rounded.default


def is_narrow(node: Node) -> bool:
    return fake(node).dtype in ROUNDED_DTYPES


def is_narrowed_first(node: Node, leaf: Node) -> bool:
    """Whether eager rounds a 0-dim operand of another dtype to the result's dtype before using it. It does, but CPU kernels
    do not round the second operand of a product or quotient, nor CUDA kernels an operand that is on the CPU (2.11 to 2.15)."""
    narrow, wide = fake(node), fake(leaf)
    if not (wide.ndim == 0 < narrow.ndim and wide.dtype != narrow.dtype in ROUNDED_DTYPES and wide.device == narrow.device):
        return False
    return narrow.device.type != "cpu" or node.target in SUMS or leaf is node.args[0]


def contracts(node: Node) -> bool:
    """Whether code for `node`'s device may multiply and add in one instruction, without rounding the product."""
    return fake(node).device.type == "cuda" and fake(node).dtype in FUSED_DTYPES


def may_be_product(node: Node) -> bool:
    """Whether `node` may be computed by a multiplication that a GPU's compiler can contract with the sum that reads `node`. It is
    not where `node` is an input of the graph or a result of `rounded` or `straight_through`, nor where it is a sum of these."""
    base = behind(node, is_view, is_cast)  # which multiply nothing
    operands = [each for each in base.args if isinstance(each, Node)] if base.target in SUMS else [base]
    return not all(_is_settled(behind(each, is_view, is_cast)) for each in operands)


def _is_settled(node: Node) -> bool:
    return node.op == "placeholder" or is_rounded(node) or node.target is ops.straight_through.default
