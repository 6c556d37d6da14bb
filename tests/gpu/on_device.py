"""Run everything that needs a GPU, and write down what was seen, with device and versions.

    python tests/gpu/on_device.py results.json             # the tests of `test_device.py`, then the benchmark
    python tests/gpu/on_device.py results.json --no-benchmark
    python tests/gpu/on_device.py results.json --no-tests --rows "cnn conv" "vqvae -"

The file holds {"meta", "tests", "printed", "rows"}: how many tests passed and which others there were, what they printed, and the rows
of the benchmark, which `python examples/benchmark.py --from FILE` shows. A file that is there is added to. The exit code is 1 if a
test or a row failed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import ste_compile

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS = (
    "cnn conv", "cnn bottleneck", "transformer mlp", "transformer attention", "vqvae -", "bitnet -", "operator 2^26", "cnn norm",
    "cnn depthwise", "router -", "lsq -",
)  # fmt: skip
MORE = "stages residual", "stages narrow", "stages separable", "vqvae 8192-codes"


def tested(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """How many tests passed, with the outcome of each other one, and what tests printed."""
    report = folder / "tests.xml"
    workers = ["-n", str(min(12, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    options = [*workers, "-q", "-p", "no:cacheprovider", "-o", "junit_logging=system-out", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, str(HERE / "test_device.py")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"})
    if not report.exists():
        sys.exit("pytest wrote no report: see its words above")
    outcomes: dict[str, Any] = {"passed": 0}
    printed = []
    for case in ET.parse(report).iter("testcase"):
        if (bad := next((each for each in case if each.tag in ("failure", "error", "skipped")), None)) is not None:
            outcomes[case.get("name", "?")] = f"{bad.tag}: {bad.get('message', '')}"[:300]
        else:
            outcomes["passed"] += 1
        words = "\n".join(each.text or "" for each in case.iter("system-out"))
        printed += [said] if (said := re.sub(r"^-+ Captured \w+ -+$", "", words, flags=re.M).strip()) else []
    return outcomes, printed


def benchmarked(keys: Sequence[Any], rounds: int, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """The results of each row, none of one that failed. Compiling takes most of the time, so that all is compiled side by side, and
    then measured one by one."""
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    benchmark = _examples()
    alone = {key for key in keys if benchmark.WORK[key[0]].alone}
    jobs = [(key, name) for name in benchmark.CONTESTANTS[1:] for key in keys if name != "host alone" or key in alone]
    spawn, workers = multiprocessing.get_context("spawn"), min(16, os.cpu_count() or 1)
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, max_tasks_per_child=8) as processes:
        concurrent.futures.wait([processes.submit(_compile, *job) for job in jobs])
    for timed in folder.rglob("*.best_config"):  # while others ran: to be chosen again
        timed.unlink()
    with benchmark.Progress() as progress:
        for key in keys:
            try:
                yield benchmark.measure(key, benchmark.size_of(key[0], "cuda"), rounds, True, False, progress)
            except Exception:
                print(key, traceback.format_exc()[-2000:], file=sys.stderr)
                yield []


def _examples() -> Any:
    if str(ROOT / "examples") not in sys.path:
        sys.path.insert(0, str(ROOT / "examples"))
    return importlib.import_module("benchmark")


def _compile(key: Any, name: str) -> None:
    os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    benchmark = _examples()
    torch.compiler.reset()
    (contestant,) = benchmark.contestants_of(key, benchmark.size_of(key[0], "cuda"), (name,), cached=True)
    contestant.step()
    contestant.infer()
    del contestant
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="FILE", help="the JSON file to write")
    parser.add_argument("--rounds", type=int, default=20, help="of the benchmark (default: 20)")
    parser.add_argument("--no-benchmark", action="store_true", help="the tests alone")
    parser.add_argument("--no-tests", action="store_true", help="the benchmark alone")
    parser.add_argument(
        "--rows", nargs="+", default=ROWS, choices=(*ROWS, *MORE), help="of the benchmark (default: the first 11)"
    )
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU: torch.cuda.is_available() is false")
    if not chosen.results.absolute().parent.is_dir():
        parser.error(f"argument FILE: there is no folder {chosen.results.absolute().parent}")
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else None
    found: dict[str, Any] = json.loads(chosen.results.read_text()) if chosen.results.exists() else {"meta": {}, "rows": []}
    found["meta"] |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton}
    found["meta"]["ste-compile"] = ste_compile.__version__
    failed = False

    def write() -> None:
        chosen.results.write_text(_examples().written(found))

    with tempfile.TemporaryDirectory() as name:
        if not chosen.no_tests:
            found["tests"], found["printed"] = tested(Path(name))
            failed = any(str(outcome).startswith(("failure", "error")) for outcome in found["tests"].values())
            write()  # before the benchmark, which takes longer
        if not chosen.no_benchmark:
            works = _examples().WORK
            keys = [(work, kind, max(n for n in works[work].seeds if n <= 4)) for work, kind in map(str.split, chosen.rows)]
            found["meta"] |= {"threads": torch.get_num_threads(), "rounds": chosen.rounds}
            for rows in benchmarked(keys, chosen.rounds, Path(name)):
                failed |= not rows
                found["rows"] += rows
                write()
    sys.exit(failed)


if __name__ == "__main__":
    main()
