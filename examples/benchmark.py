"""Measure straight-through estimators: eager, stock torch.compile, a hand-written autograd.Function, ste-compile at each level,
and the host without the estimator, all on the same work, interleaved in one run.

    python examples/benchmark.py --work cnn --kinds conv --seeds 1 4 --json results.json --plot results.png
    python examples/benchmark.py --from results.json --plot results.png             # draws again, also a part: --work, --kinds
    python examples/benchmark.py --predict h100                                     # needs no GPU, measures nothing

A step is a forward and a backward; there is no optimiser, which would cost everyone the same. Where random numbers are drawn they
are eager's, so that losses can be compared (kernels are counted with Inductor's). Kernels and bytes (MiB in the tables) are
Inductor's own count. Peak memory is above what was allocated when the step began (on the CPU: what torch's allocator gave out;
libraries' own scratch memory is not in it). What is freed stays with the process, so that no step waits for the system to clear
pages. The JSON holds {"meta": {...}, "rows": [...]}, a flat row for each contestant:

    work, kind, seeds, contestant
    step ms, forward ms, backward ms, inference ms      [lower quartile, median, upper quartile]
    step/stock, inference/host alone, ...               the same of the ratios within each round
    saved, peak                                         bytes
    kernels forward, bytes forward, ... backward, ... inference
    compile s                                           first forward and backward in a fresh process with an empty cache
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmark_contestants import CONTESTANTS, TIMES, Contestant, Key, cache, cold, contestants_of, keep_memory, race
from benchmark_predict import DEVICES, predicted, prediction
from benchmark_results import SEEDED, Row, draw, goals, grouped, table
from compare import LEVELS, check, counted
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from workloads import WORK, Size, size_of

import ste_compile

SHORTEST = 0.3  # seconds of a round: one of fast work is run again until it lasts as long, as it is more easily disturbed


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 5) for value in statistics.quantiles(values, n=4, method="inclusive")]


def row(key: Key, contestant: Contestant, others: dict[str, Contestant]) -> Row:
    result: Row = dict(zip(("work", "kind", "seeds"), key), contestant=contestant.name)
    for name in TIMES:
        result[f"{name} ms"] = quartiles(contestant.times[name])
        for other in ("stock", "autograd.Function", "host alone"):
            if other in others:
                pairs = zip(contestant.times[name], others[other].times[name])
                result[f"{name}/{other}"] = quartiles([a / b for a, b in pairs])
    return result | {"saved": contestant.saved, "peak": contestant.peak}


def measure(key: Key, size: Size, rounds: int, warm: bool, counts: bool, progress: Progress) -> list[Row]:
    """The rows of all contestants on one work."""
    names = CONTESTANTS if WORK[key[0]].alone else CONTESTANTS[:-1]
    label = " ".join(str(part) for part in key if part not in ("-", 0))
    seconds: dict[str, float] = {}
    task = progress.add_task(label, total=2 * len(names) - 2 + rounds + (0 if warm else len(names) - 1))
    with contextlib.ExitStack() as stack:
        stack.callback(progress.remove_task, task)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for i, name in enumerate(names[1:]) if not warm else ():
            progress.update(task, description=f"{label}: compile {name}, cold")
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                seconds[name] = process.submit(cold, key, size, name, folder / str(i)).result()
            shutil.copytree(folder / str(i), folder / "all", dirs_exist_ok=True)  # to compile the same again without C++
            progress.advance(task)
        own = os.environ.get("TORCHINDUCTOR_CACHE_DIR") if warm else None
        stack.enter_context(cache(Path(own) if own else folder / "all"))
        torch.compiler.reset()
        contestants = contestants_of(key, size, names, warm)
        for contestant in contestants:
            progress.update(task, description=f"{label}: compile {contestant.name}")
            contestant.first()
            progress.advance(task)
        by_name = {contestant.name: contestant for contestant in contestants}
        check(by_name)
        turns = math.ceil(rounds * max(1.0, SHORTEST / race(contestants, 0)))
        for contestant in contestants:
            contestant.forget()
        progress.update(task, description=f"{label}: run", total=2 * len(names) - 2 + turns + len(seconds))
        for turn in range(turns):  # interleaved, so that a machine that slows down slows all
            race(contestants, turn)
            progress.advance(task)
        rows = {contestant.name: row(key, contestant, by_name) for contestant in contestants}
        for name in names[2:] if counts else ():
            progress.update(task, description=f"{label}: count kernels of {name}")
            ours, plain = counted(by_name[name], by_name[name].inputs, name if name in LEVELS else "exact")
            rows[name] |= ours if name in LEVELS else plain
            if name == "exact":
                rows["stock"] |= plain
            progress.advance(task)
    for name in seconds:
        rows[name]["compile s"] = round(seconds[name], 2)
    return list(rows.values())


def arguments(given: list[str] | None) -> argparse.Namespace:
    kinds = dict.fromkeys(kind for work in WORK.values() for kind in work.kinds if kind != "-")
    seeds = sorted({number for work in WORK.values() for number in work.seeds} - {0})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORK, help="default: all that have one of --kinds")
    parser.add_argument("--kinds", nargs="+", choices=kinds, help="of seed, or operator size; default: all")
    parser.add_argument(
        "--seeds", nargs="+", type=int, choices=seeds, default=[1, 3, 4], help="default: 1 3 4, as far as a host takes them"
    )
    parser.add_argument(
        "--rounds", type=int, default=30, help="steps of each contestant, at least 2; of fast work more (default: 30)"
    )
    parser.add_argument(
        "--warm", action="store_true", help="no compile times, which is faster: one cache for all, TORCHINDUCTOR_CACHE_DIR if set"
    )
    parser.add_argument(
        "--no-counts", action="store_true", help="of kernels and bytes, for which each level is compiled once more"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, those so far after each work")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw saved bytes and step time against the number of seeds")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="source", help="show what --json wrote, of --work and --kinds; run nothing"
    )
    parser.add_argument("--predict", choices=DEVICES, help="print what the code for a GPU would take there; runs nothing")
    chosen = parser.parse_args(given)
    if chosen.predict and (chosen.plot or chosen.source or chosen.json):
        parser.error("argument --predict: prints a table, and goes with none of --json, --plot, --from")
    if chosen.rounds < 2:
        parser.error(f"argument --rounds: must be at least 2, got {chosen.rounds}")
    chosen.keys = [
        (name, kind, number)
        for name in dict.fromkeys(chosen.work or WORK)
        for kind in WORK[name].kinds
        if not chosen.kinds or kind in chosen.kinds or (kind == "-" and chosen.work)
        for number in WORK[name].seeds
        if number in (0, *chosen.seeds)
    ]
    for name in {*(chosen.work or ())} - {key[0] for key in chosen.keys}:
        work = WORK[name]
        parser.error(f"argument --work: {name} has none of --kinds or --seeds, only {[*work.kinds]} and {[*work.seeds]}")
    works = {name for name, _, _ in chosen.keys}
    if chosen.source:
        try:
            chosen.results = json.loads(chosen.source.read_text())
            if chosen.work or chosen.kinds:
                wanted = {key[:2] for key in chosen.keys}
                chosen.results["rows"] = [each for each in chosen.results["rows"] if (each["work"], each["kind"]) in wanted]
            works = {each["work"] for each in chosen.results["rows"]}
        except (OSError, ValueError, LookupError, TypeError) as error:
            parser.error(f"argument --from: {chosen.source} does not hold what --json writes: {error!r}")
    if chosen.plot and works.isdisjoint(SEEDED):
        parser.error(f"argument --plot: needs a work with seeds, {' or '.join(SEEDED)}")
    for name in ("json", "plot"):  # not found out after hours
        if (path := getattr(chosen, name)) and not path.parent.is_dir():
            parser.error(f"argument --{name}: there is no folder {path.parent}")
    return chosen


def written(results: dict[str, Any]) -> str:
    """JSON, a line each contestant."""
    rows, others = ",\n".join(map(json.dumps, results["rows"])), {key: results[key] for key in results if key != "rows"}
    return f'{json.dumps(others)[:-1]}, "rows": [\n{rows}\n]}}\n'


def run(chosen: argparse.Namespace, size: Size | None, console: Console) -> dict[str, Any]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    meta = {"torch": str(torch.__version__), "ste-compile": ste_compile.__version__, "device": device}
    meta |= {"threads": torch.get_num_threads(), "rounds": chosen.rounds}
    results: dict[str, Any] = {"meta": meta, "rows": []}
    with Progress(*columns, console=console, transient=True) as progress:
        for key in progress.track(chosen.keys, description="works"):
            fitting = size or size_of(key[0], "cuda" if torch.cuda.is_available() else "cpu")
            results["rows"] += measure(key, fitting, chosen.rounds, chosen.warm, not chosen.no_counts, progress)
            if chosen.json:  # what there is so far
                chosen.json.write_text(written(results))
    return results


def main(given: list[str] | None = None, size: Size | None = None) -> None:
    chosen = arguments(given)
    console = Console(width=None if os.isatty(1) else 130)
    if chosen.predict:
        device = DEVICES[chosen.predict]
        with Progress(console=console, transient=True) as progress:
            rows = predicted(chosen.keys, device, progress)
        console.print(f"PREDICTED for one {chosen.predict}, from code generated by torch {torch.__version__}: {device}")
        console.print(prediction(rows))
        return
    results = chosen.results if chosen.source else run(chosen, size, console)
    meta = results["meta"]
    console.print(", ".join(f"{name} {meta[name]}" for name in ("torch", "ste-compile") if name in meta), end=", ")
    console.print(f"{meta['device']}, {meta['threads']} threads, {meta['rounds']} rounds")
    groups = grouped(results["rows"])
    for rows in groups:
        console.print(table(rows))
    console.print(goals(groups))
    if chosen.plot:
        draw(results["rows"], chosen.plot)


if __name__ == "__main__":
    keep_memory()
    main()
