"""Amounts of work and memory: what a graph is made of, what a site frees, what two graphs differ by."""

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
