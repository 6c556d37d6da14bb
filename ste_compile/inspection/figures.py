"""Amounts: work and memory that a graph is made of, that a site frees, that two graphs differ by; and how far values are off."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

# The fields of `Figures`: of a count, what is counted; of bytes, what is done with them.
COUNTS = {"operators": "operator", "matmuls": "matmul", "kernels": "kernel"}
BYTES = {"bytes_read": "read", "bytes_written": "written", "bytes_saved": "saved"}


@dataclass(frozen=True)
class Figures:
    """Amounts of work and memory; None where not measured: only `explain` measures kernels and bytes.

    `operators` and `matmuls` count graph nodes that compute (matmuls: matrix products, convolutions and fused attention among
    them). `kernels` are what Inductor launches for them after fusion, library calls included. `bytes_read` and `bytes_written`
    are Inductor's own count of memory traffic. `bytes_saved` are kept from the forward for the backward, besides inputs and
    parameters."""

    operators: int | None = None
    matmuls: int | None = None
    kernels: int | None = None
    bytes_read: int | None = None
    bytes_written: int | None = None
    bytes_saved: int | None = None

    def __add__(self, other: Figures) -> Figures:
        return self._each(other, lambda a, b: a + b)

    def __sub__(self, other: Figures) -> Figures:
        return self._each(other, lambda a, b: a - b)

    def _each(self, other: Figures, apply: Callable[[int, int], int]) -> Figures:
        return Figures(*(None if a is None or b is None else apply(a, b) for a, b in self._beside(other)))

    def __or__(self, other: Figures) -> Figures:
        """`other` where it was measured, else `self`."""
        return Figures(*(a if b is None else b for a, b in self._beside(other)))

    def _beside(self, other: Figures) -> zip[tuple[int | None, int | None]]:
        return zip(dataclasses.astuple(self), dataclasses.astuple(other))

    def __str__(self) -> str:
        """In words, zeros left out: "6 matmuls, 14 kernels, 28.7 MiB of traffic". Operators only where kernels are not known."""
        work = (self.kernels, "kernel") if self.kernels else (self.operators, "operator")
        words = [plural(count, noun) for count, noun in ((self.matmuls, "matmul"), work) if count]
        traffic = (self.bytes_read or 0) + (self.bytes_written or 0)
        words += [f"{mebibytes(traffic)} of traffic"] * (traffic > 0)
        words += [f"{mebibytes(self.bytes_saved)} saved for the backward"] * bool(self.bytes_saved)
        return ", ".join(words) or "nothing"


NOT_MEASURED = Figures()
NOTHING = Figures(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Values:
    """How far eager's result of a site is from the value that the estimator stands for, on real inputs (`explain(values=True)`).

    `off` of `elements` differ, by `ulp_most` at most and `ulp_median` at the median: steps between neighbouring numbers of
    `dtype`. The result has `distinct` different values, and the value that is meant has `distinct_meant`, such as the codes
    of a codebook or the levels of a grid (None: more than 65,536). `not_finite` elements of cancelled terms are infinite or NaN,
    which `finite` hides. `histogram` has (largest distance, how many elements), by powers of two."""

    dtype: str
    elements: int
    off: int
    ulp_most: int
    ulp_median: int
    distinct: int | None
    distinct_meant: int | None
    not_finite: int
    histogram: tuple[tuple[int, int], ...] = ()

    @property
    def is_on_a_grid(self) -> bool:
        """Whether the values that are meant are few enough to be those of a grid or a codebook."""
        return self.distinct_meant is not None and 4 * self.distinct_meant <= self.elements

    def __str__(self) -> str:
        """In words: "in eager 4.8% of elements are off, by 1 ulp of bfloat16 at the median and 3 at most"."""
        if not self.off:
            words = f"in eager all {self.elements:,} elements are what is meant"
        else:
            few = self.off * 2000 < self.elements  # less than 0.05%
            share = f"{self.off:,} of {self.elements:,}" if few else f"{self.off / self.elements:.1%}"
            words = f"in eager {share} of elements are off"
            if self.ulp_most:
                words += f", by {self.ulp_median:,} ulp of {self.dtype} at the median and {self.ulp_most:,} at most"
        if self.is_on_a_grid and self.distinct != self.distinct_meant:
            there = "more than 65,536" if self.distinct is None else f"{self.distinct:,}"
            words += f": {there} distinct values, where {self.distinct_meant:,} are meant"
        return words + f"; {self.not_finite:,} of the cancelled terms are not finite" * bool(self.not_finite)


def difference(figures: Figures) -> str:
    """A signed difference in words: "10 kernels fewer, 2.0 KiB more saved"; "" where there is none."""
    words = []
    for field, amount in dataclasses.asdict(figures).items():
        if amount and field in BYTES:
            words.append(f"{mebibytes(abs(amount))} {'less' if amount > 0 else 'more'} {BYTES[field]}")
        elif amount:
            words.append(f"{plural(abs(amount), COUNTS[field])} {'fewer' if amount > 0 else 'more'}")
    return ", ".join(words)


def mebibytes(count: int | None) -> str:
    """`count` bytes in the largest binary unit of which there is at least one: "9.1 MiB", "104 MiB"; "-" for None."""
    return "-" if count is None else " ".join(scaled(count))


def scaled(count: int) -> tuple[str, str]:
    """`count` bytes as (number, unit)."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size:
            return f"{count / size:.{1 if abs(count) < 100 * size else 0}f}", unit
    return str(count), "B"


def plural(count: int, noun: str) -> str:
    """ "1 site", "2 sites"."""
    return f"{count} {noun}{'s' * (count != 1)}"
