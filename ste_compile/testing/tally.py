"""How far two tensors are from each other, counted piece by piece, in little memory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..inspection.figures import Values
from .compare import ULP_DTYPES, check_tensors, ulp_distance

PIECE = 2**20  # elements looked at in one go
MOST = 2**16  # distinct values that are counted, and distances in ulp that are told apart


@dataclass
class Tally:
    """What has been counted of one site so far. `dtype` is that of its result."""

    dtype: torch.dtype
    elements: int = 0
    off: int = 0
    not_finite: int = 0
    near: Tensor = field(default_factory=lambda: torch.zeros(MOST, dtype=torch.int64))  # how often each distance below MOST
    far: Counter[int] = field(default_factory=Counter)  # how often each larger one; from MOST of them on, by powers of two
    furthest: int = 0
    distinct: list[Tensor | None] = field(default_factory=lambda: [torch.empty(0), torch.empty(0)])  # of the result, of the value

    def look(self, result: Tensor, value: Tensor) -> None:
        """Hold a result against the value that is meant, of one shape and dtype."""
        if result.is_floating_point() and result.itemsize == 1:  # fp8 has few kernels of its own
            result, value = result.float(), value.float()
        for piece, meant in zip(_pieces(result), _pieces(value)):
            self._look(piece, meant)

    def _look(self, result: Tensor, value: Tensor) -> None:
        differs = (result != value) & ~(result.isnan() & value.isnan())
        self.elements += result.numel()
        self.off += int(differs.sum())
        if self.dtype in ULP_DTYPES:
            apart = differs & result.isfinite() & value.isfinite()
            distances = ulp_distance(result[apart], value[apart]).cpu()
            self.furthest = max(self.furthest, int(distances.max()) if distances.numel() else 0)
            self.near += torch.bincount(distances[distances < MOST], minlength=MOST)
            for distance in distances[distances >= MOST].tolist():
                self.far[distance if distance in self.far or len(self.far) < MOST else _bound(distance)] += 1
        for i, each in enumerate((result, value)):
            if (known := self.distinct[i]) is not None:
                found = torch.cat([known.to(each), each]).unique()
                self.distinct[i] = found if len(found) <= MOST else None

    def values(self) -> Values:
        """All of it, as the report has it."""
        counts = [(distance, int(self.near[distance])) for distance in self.near.nonzero().flatten().tolist()]
        counts += sorted(self.far.items())
        histogram: Counter[int] = Counter()
        for distance, count in counts:
            histogram[_bound(distance)] += count
        sums = itertools.accumulate(count for _, count in counts)
        half = sum(count for _, count in counts) / 2
        median = next((distance for (distance, _), before in zip(counts, sums) if before >= half), 0)
        distinct, meant = (None if each is None else len(each) for each in self.distinct)
        name = str(self.dtype).removeprefix("torch.")
        return Values(
            name,
            self.elements,
            self.off,
            self.furthest,
            median,
            distinct,
            meant,
            self.not_finite,
            tuple(sorted(histogram.items())),
        )


def count_off(result: Tensor, meant: Tensor) -> Values:
    """How many elements of a result are not the value that they stand for, and by how many ulp they are off. It counts of any two
    tensors what `explain(..., values=True)` counts of a site in eager. 0 and -0 are equal, and so are two NaNs.

    Args:
        result, meant: one shape and one dtype, floating point, integer or bool, on one device.

    Returns:
        `Values`: how many `elements` there are, and how many are `off`; by how many ulp, `ulp_median` and `ulp_most`, 0 for a
        dtype without ulp; how many values are `distinct`, and `distinct_meant`; and a `histogram` of the distances.

    Raises:
        TypeError: an argument is not a tensor, is complex, or the dtypes differ.
        ValueError: the shapes differ.

        >>> x, q = torch.tensor([0.1, 1.0, 10.0, 1000.0]), torch.full((4,), 0.1)
        >>> found = count_off(x + (q - x), q)
        >>> found.off, found.elements, found.ulp_most, found.distinct, found.distinct_meant
        (3, 4, 3277, 4, 1)
    """
    check_tensors("count_off", result=result, meant=meant)
    if result.dtype != meant.dtype or result.is_complex():
        raise TypeError(f"count_off: result and meant must have one dtype that is real, got {result.dtype} and {meant.dtype}")
    if result.shape != meant.shape:
        raise ValueError(f"count_off: the shapes must be equal, got {tuple(result.shape)} and {tuple(meant.shape)}")
    tally = Tally(result.dtype)
    with torch.no_grad():
        tally.look(result, meant)
    return tally.values()


def _bound(distance: int) -> int:
    """The least power of two that is not less than `distance`."""
    return 1 << (distance - 1).bit_length()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The elements in order, in pieces."""
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    if rows.ndim > 1 and rows.numel() > PIECE * len(rows):
        for row in rows:
            yield from _pieces(row)
        return
    count = PIECE * len(rows) // max(1, rows.numel())
    yield from (piece.reshape(-1) for piece in rows.split(max(1, count)))
