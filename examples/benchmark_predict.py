"""What the works of `benchmark.py` would take on a GPU that is not there: launches, bytes and FLOPs of the CUDA code that
Inductor generates for them, and the time that these come to. A prediction to hold measurements against, not a measurement."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import rich.box
import torch
import torch.nn.functional as F
from benchmark_contestants import Key
from benchmark_results import HOST, Row, grouped, number, ratio, title
from compare import compiled
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from workloads import WORK, size_of

from ste_compile.testing.gpu import Launch, cuda_code, stand_in


@dataclass(frozen=True)
class Device:
    """What a launch is taken to reach: bytes and FLOPs a second, with tensor cores in bfloat16 and without in float32, and the
    seconds that it takes whatever it does."""

    bandwidth: float
    bf16: float
    fp32: float
    launch: float

    def seconds(self, launches: Sequence[Launch], autocast: bool) -> float:
        rate = self.bf16 if autocast else self.fp32
        return sum(max((each.read + each.written) / self.bandwidth, each.flops / rate) + self.launch for each in launches)

    def __str__(self) -> str:
        rates = f"{self.bf16 / 1e12:g} TFLOP/s in bf16, {self.fp32 / 1e12:g} in fp32"
        return f"{self.bandwidth / 1e12:g} TB/s, {rates}, {self.launch * 1e6:g} us a launch"


DEVICES = {"h100": Device(3.0e12, 790e12, 60e12, 2e-6)}
NAMES = {True: ("stock", "finite", HOST), False: ("stock", "finite", "algebraic")}  # whether there is a host alone
PARTS = {"step": ("forward", "backward"), "inference": ("inference",)}


def predicted(keys: Sequence[Key], device: Device, progress: Progress) -> list[Row]:
    """A flat row for each work and contestant: launches, bytes, FLOPs and milliseconds of a step and of an inference."""
    wanted = [(key, name) for key in keys for name in NAMES[WORK[key[0]].alone]]
    with stand_in() as process:
        return [
            process.submit(_row, key, name, device).result() for key, name in progress.track(wanted, description="generate code")
        ]


def _row(key: Key, name: str, device: Device) -> Row:
    work, size = WORK[key[0]], size_of(key[0], "cuda")
    F.scaled_dot_product_attention = _flash  # which a CPU build of torch does not choose

    def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
        model, inputs = work.make(*key[1:], size)
        if name == HOST:
            model.seeds = nn.ModuleList()
        return model, inputs

    row: Row = dict(zip(("work", "kind", "seeds"), key), contestant=name)
    for part, kinds in PARTS.items():
        torch.compiler.reset()
        compile_it = functools.partial(compiled, name, draws=False)
        code = cuda_code(build, compile_it, train=part == "step", autocast=work.autocast)
        launches = [launch for each in code if each.kind in kinds for launch in each.launches]
        row[f"{part} launches"] = len(launches)
        row[f"{part} bytes"] = sum(each.read + each.written for each in launches)
        row[f"{part} flops"] = sum(each.flops for each in launches)
        row[f"{part} ms"] = 1e3 * device.seconds(launches, work.autocast)
    return row


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return result


def prediction(rows: Sequence[Row]) -> Table:
    result = Table(box=rich.box.SIMPLE, padding=0)
    for column in (
        "work", "", "launches\nstep", "\ninfer", "GB\nstep", "\ninfer", "TFLOP\nstep", "\ninfer",
        "ms\nstep", "\n/stock", "ms\ninfer", "\n/stock", "\n/host",
    ):  # fmt: skip
        result.add_column(column, justify="right" if len(result.columns) > 1 else "left", no_wrap=True)
    for contestants in grouped(rows):
        stock, host = contestants["stock"], contestants.get(HOST, {})
        for name, row in contestants.items():
            launches, gigabytes, teraflops = (
                [number(row[f"{part} {figure}"] / scale, form) for part in PARTS]
                for figure, scale, form in (("launches", 1, ".0f"), ("bytes", 1e9, ".2f"), ("flops", 1e12, ".2f"))
            )
            step, infer = row["step ms"], row["inference ms"]
            times = (
                step,
                ratio(step, stock["step ms"]),
                infer,
                *(ratio(infer, each.get("inference ms")) for each in (stock, host)),
            )
            label = title(contestants) if row is stock else ""
            result.add_row(label, name, *launches, *gigabytes, *teraflops, *map(number, times))
    return result
