"""Run everything that needs a GPU, and write down what was seen, with device and versions.

    python tests/gpu/on_device.py results.json             # the tests of `test_device.py`, then the benchmark
    python tests/gpu/on_device.py results.json --no-benchmark

The file holds {"device", "torch", "triton", "tests": {name: outcome}, "printed", "benchmark"}; the exit code is 1 if a test failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def tested(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The outcome of each test, and what tests printed."""
    report = folder / "tests.xml"
    workers = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    options = [*workers, "-q", "-p", "no:cacheprovider", "-o", "junit_logging=system-out", f"--junitxml={report}"]
    subprocess.run([sys.executable, "-m", "pytest", *options, str(HERE / "test_device.py")], cwd=ROOT)
    if not report.exists():
        sys.exit("pytest wrote no report: see its words above")
    outcomes, printed = {}, []
    for case in ET.parse(report).iter("testcase"):
        bad = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        outcomes[case.get("name", "?")] = "passed" if bad is None else f"{bad.tag}: {bad.get('message', '')}"[:300]
        printed += [each.text.strip() for each in case.iter("system-out") if each.text and each.text.strip()]
    return outcomes, printed


def benchmarked(folder: Path, rounds: int) -> Any:
    results = folder / "benchmark.json"
    command = ["examples/benchmark.py", "--warm", "--rounds", str(rounds), "--seeds", "4", "--json", str(results)]
    subprocess.run([sys.executable, *command], cwd=ROOT)
    return json.loads(results.read_text()) if results.exists() else "failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="FILE", help="the JSON file to write")
    parser.add_argument("--rounds", type=int, default=20, help="of the benchmark (default: 20)")
    parser.add_argument("--no-benchmark", action="store_true", help="the tests alone")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU: torch.cuda.is_available() is false")
    if not chosen.results.absolute().parent.is_dir():
        parser.error(f"argument FILE: there is no folder {chosen.results.absolute().parent}")
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else None
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton}
    with tempfile.TemporaryDirectory() as name:
        found["tests"], found["printed"] = tested(Path(name))
        chosen.results.write_text(json.dumps(found, indent=1) + "\n")  # before the benchmark, which takes longer
        if not chosen.no_benchmark:
            found["benchmark"] = benchmarked(Path(name), chosen.rounds)
            chosen.results.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any(outcome.startswith(("failure", "error")) for outcome in found["tests"].values()))


if __name__ == "__main__":
    main()
