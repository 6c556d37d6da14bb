"""The results of `benchmark.py` as tables, goals and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.box
from rich.table import Table

Row = dict[str, Any]
MIB = 2**20


def title(rows: Sequence[Row]) -> str:
    row = rows[0]
    kind = "" if row["kind"] == "-" else f", {row['kind']}"
    seeds = f" x {row['seeds']}" if row["seeds"] else ""
    return f"{row['work']}{kind}{seeds}"


def table(rows: Sequence[Row]) -> Table:
    return Table(title=title(rows))


def goals(grouped: Sequence[Sequence[Row]]) -> str:
    return ""


def draw(rows: Sequence[Row], path: Path) -> None:
    pass
