"""An edit that would free more, as data: what `Report.suggestions` holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .figures import NOT_MEASURED, Figures, difference, plural


@dataclass(frozen=True)
class Place:
    """Where a site is: the user's `file` and `line`, and the sum itself."""

    file: str
    line: int
    expression: str


@dataclass(frozen=True)
class Suggestion:
    """An edit that gives sites what they lose (`explain(suggest=True)`).

    `kind` is "level", "second use", "graph break", "DDP" or "no_grad". `edit` says in one sentence what to change, with file and
    line. `frees` is by how much the forward and inference graphs shrink, all of them together: what they amount to now, less
    what they amounted to when the edit was `tried`. Where it was not, `frees` is not measured, and `why_not` is the reason.

        >>> edit = Suggestion("level", (Place("vq.py", 12, "x + (q - x).detach()"),), 'Ask for numerics="algebraic".')
        >>> edit.tried, edit.frees.kernels
        (False, None)
    """

    kind: str
    sites: tuple[Place, ...]
    edit: str
    frees: Figures = NOT_MEASURED
    tried: bool = False
    why_not: str = ""

    @property
    def gains(self) -> bool:
        """Whether it brings anything: fewer bytes, all of them together, or as many and fewer kernels."""
        *amounts, work = rank(self.frees)
        return (sum(amounts), work) > (0, 0)

    def said_of_freeing(self) -> str:
        """In words: "2 matmuls fewer, 9.1 MiB less saved", or why that is not known."""
        return difference(self.frees) if self.tried else f"not tried: {self.why_not}"


def rank(frees: Figures) -> tuple[int, ...]:
    """What counts first: bytes saved for the backward, written, read, then kernels (operators, where these are not known). The
    larger is better."""
    work = frees.operators if frees.kernels is None else frees.kernels
    return tuple(each or 0 for each in (frees.bytes_saved, frees.bytes_written, frees.bytes_read, work))


def said_of_useless(tries: int, suggestions: Sequence[Suggestion]) -> str:
    """How many of the edits that were tried bring nothing, in words; "" where there is none."""
    count = tries - sum(each.tried for each in suggestions)
    return f"{plural(count, 'edit')} {'was' if count == 1 else 'were'} tried that would free nothing" if count else ""
