"""The results of `benchmark.py` as tables, goals and a picture. They need the rows alone, so that a file of them will do."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import rich.box
from rich.table import Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]
Rows = dict[str, Row]  # of one work, by contestant
SEEDED = ("cnn", "stages", "stages-contiguous", "transformer")
OTHERS = ("vqvae", "bitnet", "lsq", "router")
FUNCTION, HOST = "autograd.Function", "host alone"
TRAINING, INFERENCE = ("forward", "backward"), ("inference",)


def grouped(rows: Sequence[Row]) -> list[Rows]:
    groups = itertools.groupby(rows, lambda row: (row["work"], row["kind"], row["seeds"]))
    return [{row["contestant"]: row for row in group} for _, group in groups]


def title(rows: Rows) -> str:
    row = rows["stock"]
    kind = "" if row["kind"] == "-" else f" {row['kind']}"
    return f"{row['work']}{kind}" + (f" x {row['seeds']}" if row["seeds"] else "")


def total(row: Row, figure: str, parts: Sequence[str]) -> int | None:
    """Kernels or bytes of some graphs; None for eager, which has no graphs."""
    return sum(row[f"{figure} {part}"] for part in parts) if f"{figure} {parts[0]}" in row else None


def ratio(ours: float | None, other: float | None) -> float | None:
    return ours / other if ours is not None and other else None


def number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def table(rows: Rows) -> Table:
    stock, host = rows["stock"], rows.get(HOST, {})
    heading = (
        f"{title(rows)}: stock steps in {stock['step ms'][1]:.3g} ms, infers in {stock['inference ms'][1]:.3g} ms, "
        f"saves {stock['saved'] / 2**20:.1f} MiB, peaks at {stock['peak'] / 2**20:.1f} MiB"
    )
    result = Table(title=heading, title_justify="left", box=rich.box.SIMPLE, padding=0)
    result.add_column(no_wrap=True)
    for column in (
        "step\n/stock", "\nquartiles", "\n/Function", "infer\n/stock", "\n/host", "saved\n/stock", "\n/host", "peak\n/stock",
        "kernels\ntrain", "\ninfer", "MiB\ntrain", "\ninfer", "compile\ns",
    ):  # fmt: skip
        result.add_column(column, justify="right", no_wrap=True)
    for name, row in rows.items():
        low, middle, high = row["step/stock"]
        memory = [ratio(row[figure], other.get(figure)) for figure, other in (("saved", stock), ("saved", host), ("peak", stock))]
        accessed = (ratio(total(row, "bytes", parts), 2**20) for parts in (TRAINING, INFERENCE))
        result.add_row(
            name, f"{middle:.2f}", f"{low:.2f}-{high:.2f}", number(row[f"step/{FUNCTION}"][1]),
            number(row["inference/stock"][1]), number(row.get(f"inference/{HOST}", [None] * 3)[1]),
            *map(number, memory),
            *(number(total(row, "kernels", parts), "d") for parts in (TRAINING, INFERENCE)),
            *(number(amount, ".1f") for amount in accessed), number(row.get("compile s"), ".1f"),
        )  # fmt: skip
    return result


@dataclass(frozen=True)
class Goal:
    """A figure of one contestant to another's is to be at most `bound`, or below it where `strict`, in some works."""

    figure: str
    ours: str
    other: str
    bound: float
    works: Sequence[str]
    measure: Callable[[Row, Row], float | None]
    strict: bool = False

    def __str__(self) -> str:
        return f"{self.figure} {self.ours}/{self.other}"

    def of(self, rows: Rows) -> tuple[float, bool] | None:
        """The figure, and whether the goal holds."""
        if rows["stock"]["work"] not in self.works:
            return None
        value = self.measure(rows[self.ours], rows[self.other])
        return None if value is None else (value, value < self.bound or (value == self.bound and not self.strict))


def timed(figure: str) -> Callable[[Row, Row], float | None]:
    return lambda ours, other: ours[f"{figure}/{other['contestant']}"][1]


def in_bytes(figure: str) -> Callable[[Row, Row], float | None]:
    return lambda ours, other: 1.0 if ours[figure] == other[figure] else ratio(ours[figure], other[figure])


def worst(figure: str) -> Callable[[Row, Row], float | None]:
    """Of training and inference; None where they were not counted."""
    parts = TRAINING, INFERENCE
    return lambda ours, other: (
        max(total(ours, figure, p) / total(other, figure, p) for p in parts) if f"{figure} forward" in ours else None
    )


HOSTED, ALL = (*SEEDED, "operator"), (*SEEDED, *OTHERS, "operator")
GOALS = (
    Goal("saved", "finite", HOST, 1, HOSTED, in_bytes("saved")),
    Goal("step", "finite", "stock", 1, SEEDED, timed("step")),
    Goal("step", "finite", FUNCTION, 1.02, ALL, timed("step")),
    Goal("inference", "finite", HOST, 1.05, HOSTED, timed("inference")),
    Goal("peak", "finite", "stock", 1, ALL, in_bytes("peak")),
    Goal("step", "exact", "stock", 1.02, ALL, timed("step")),
    Goal("kernels", "exact", "stock", 1, ALL, worst("kernels")),
    Goal("bytes", "exact", "stock", 1, ALL, worst("bytes")),
    Goal("step", "algebraic", "stock", 1, OTHERS, timed("step")),
    Goal("bytes", "algebraic", "stock", 1, OTHERS, worst("bytes"), strict=True),
)


def goals(groups: Sequence[Rows]) -> Table:
    """Of each row of work, the figures and which of them fall short."""
    short = [(title(rows), goal, found[0]) for rows in groups for goal in GOALS if (found := goal.of(rows)) and not found[1]]
    held = sum(found[1] for rows in groups for goal in GOALS if (found := goal.of(rows)))
    caption = [
        f"{held} goals hold, {len(short)} fall short (!)",
        *(f"{where}: {goal} {value:.4f}" for where, goal, value in short),
    ]
    result = Table(
        title="goals", title_justify="left", caption="\n".join(caption), caption_justify="left", box=rich.box.SIMPLE, padding=0
    )
    result.add_column(no_wrap=True)
    for goal in GOALS:
        sign = "<" if goal.strict else "<="
        result.add_column(
            f"{goal.figure}\n{goal.ours}\n/{goal.other.removeprefix('autograd.')}\n{sign} {goal.bound:g}", no_wrap=True
        )
    for rows in groups:
        found = [goal.of(rows) for goal in GOALS]
        result.add_row(title(rows), *("" if f is None else f"{f[0]:.4f}" + (" !" if not f[1] else "") for f in found))
    return result


WIDEST = 7  # kinds beside each other
# Lines that coincide stay visible: thin ones above broad ones, dashed above whole.
STYLES: dict[str, dict[str, Any]] = {
    "eager": {"color": "#b8b8b8", "linewidth": 1.2},
    "stock": {"color": "#a0a0a0", "linewidth": 4},
    "exact": {"color": "#c8384c", "linewidth": 1.4, "linestyle": (0, (3, 2))},
    "autograd.Function": {"color": "#f0c264", "linewidth": 4},
    "finite": {"color": "#00798c", "linewidth": 2},
    "algebraic": {"color": "#0b1f4b", "linewidth": 1.2, "linestyle": (0, (2, 3))},
    "host alone": {"color": "#e4e4e4", "linewidth": 8, "zorder": 1},
}


MEASURES: dict[str, Callable[[Row, Row], float]] = {
    "saved bytes": lambda row, host: row["saved"] / host["saved"],
    "training step": lambda row, host: row[f"step/{HOST}"][1],
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Saved bytes and step time, as ratios to the host alone, against the number of seeds. A column for each kind that was
    measured with several numbers of seeds; if none was, for each kind. Where they are many, each host has a band of its own."""
    seeded = [rows for rows in grouped(rows) if rows["stock"]["work"] in SEEDED]
    measured = Counter((rows["stock"]["work"], rows["stock"]["kind"]) for rows in seeded)
    kinds = [kind for kind, numbers in measured.items() if numbers > 1] or list(measured)
    if not kinds:
        raise ValueError(f"a picture needs rows with seeds, of {' or '.join(SEEDED)}")
    bands = [kinds] if len(kinds) <= WIDEST else [[*band] for _, band in itertools.groupby(kinds, lambda kind: kind[0])]
    columns = max(map(len, bands))
    size = (1 + 1.8 * max(columns, 3), 5 * len(bands))
    figure, axes = plt.subplots(2 * len(bands), columns, sharey="row", squeeze=False, figsize=size, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for band, saved, step in zip(bands, axes[::2], axes[1::2]):
        for (work, kind), *pair in zip(band, saved, step):
            _draw_kind(pair, [rows for rows in seeded if (rows["stock"]["work"], rows["stock"]["kind"]) == (work, kind)])
            pair[0].set_title(f"{work},\n{kind}" if len(work) > 12 else f"{work}, {kind}", fontsize=10)
        for axis, label in zip((saved[0], step[0]), MEASURES):
            axis.set_ylabel(f"{label}\n/ host alone")
    figure.align_ylabels()
    handles, ncols = axes[0, 0].get_legend_handles_labels(), len(STYLES) if columns > 3 else 4
    figure.legend(*handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_kind(pair: Sequence[Any], shown: Sequence[Rows]) -> None:
    """One kind with each number of seeds, on an axis for each measure."""
    seeds = [rows["stock"]["seeds"] for rows in shown]
    for axis, measure in zip(pair, MEASURES.values()):
        axis.set_axis_on()
        for name, style in STYLES.items():
            values = [measure(rows[name], rows[HOST]) for rows in shown]
            axis.plot(seeds, values, label=name, marker="o", markersize=style["linewidth"] + 1, **style)
        axis.set_xticks(seeds)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    pair[0].tick_params(labelbottom=False)
    pair[1].set_xlabel("seeds")
