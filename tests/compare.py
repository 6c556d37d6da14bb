"""What each level promises, as comparisons."""

from __future__ import annotations

import torch
from ste_compile.passes.levels import LEVELS
from torch import Tensor

from ste_compile.testing.compare import same_bits

ALLOWED = ", ".join(map(repr, LEVELS))  # as an error says it of a level that is none


def assert_same_bits(ours: Tensor, eager: Tensor, what: str = "") -> None:
    assert ours.dtype == eager.dtype and ours.shape == eager.shape, (
        f"{what}: {ours.dtype}{ours.shape}, {eager.dtype}{eager.shape}"
    )
    wrong = ~same_bits(ours, eager)
    at = wrong.flatten().nonzero().flatten()[:3]
    assert not wrong.any(), f"{what}: {wrong.sum()} elements differ: {ours.flatten()[at]} is not eager's {eager.flatten()[at]}"


def assert_equal_values(ours: Tensor, eager: Tensor, what: str = "") -> None:
    """`==`: 0 and -0 are equal; nothing may be NaN."""
    assert ours.dtype == eager.dtype and ours.shape == eager.shape, what
    assert (ours == eager).all(), f"{what}: {(ours != eager).sum()} of {ours.numel()} elements differ"


def hard_values(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal numbers of many magnitudes, with every kind of special value among them, an fp16 overflow too."""
    size = torch.Size(shape).numel()
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    values *= 10.0 ** torch.randint(-6, 7, (size,), generator=generator)
    special = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30, -1e30, 65504.0, 65520.0, 1e-30, -1e-8, 3.3961e38]
    )
    where = torch.rand(size, generator=generator) < 0.3
    drawn = special[torch.randint(len(special), (size,), generator=generator)].double()
    return torch.where(where, drawn, values).to(dtype).view(shape)


def finite_values(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(4).to(dtype)
