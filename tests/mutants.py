"""Mutation testing of `passes/`: break the passes in every small way cosmic-ray knows, and see whether a test notices.

    pip install cosmic-ray
    python tests/mutants.py --jobs 2                  # all mutants, hours
    python tests/mutants.py --jobs 2 --sample 200     # so many of them, drawn with --seed

Each mutant runs in a fork of one process that has imported torch but not the passes, so that it costs its tests and not torch's
import. A mutant is killed by a failing test or by a timeout. Mutants of annotations, docstrings and `__all__` are left out: nothing
evaluates them. Survivors are printed as diffs.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.update(STE_COMPILE_STRICT="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")

import pytest
import torch
import torch._dynamo
import torch._inductor.compile_fx
from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_item import MutationSpec

ROOT = Path(__file__).parents[1]
# The quick ones first: a mutant dies at the first test that fails.
TESTS = ["linear_form", "negative", "regressions", "safety_net", "goldens", "hard_effects", "hard_failures", "hard_places", "aliasing"]
DESELECTED = "not cost and not compensation_read and not inductor"  # those measure time, or compile C++
TIMEOUT = 600  # seconds


def mutants() -> Iterator[tuple[MutationSpec, str]]:
    """(what, mutated source) of every mutant that could make a difference."""
    for path in sorted((ROOT / "passes").glob("*.py")):
        source = path.read_text()
        inert = _inert_lines(ast.parse(source))
        for item in _all_work_items([path], {}):
            (spec,) = item.mutations
            (line, column), (end_line, end_column) = spec.start_pos, spec.end_pos
            if any(a <= (line, column) and (end_line, end_column) <= b for a, b in inert):
                continue
            mutated = mutate_code(source, get_operator(spec.operator_name)(), spec.occurrence)
            if mutated and mutated != source:
                yield spec, mutated


def _inert_lines(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if (isinstance(node, ast.arg) and node.annotation) or isinstance(node, ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef) and node.returns:
            found.append(node.returns)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "Shape", "Term", "Counts", "Addend"):
            found.append(node)
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in found]  # type: ignore[attr-defined]


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module of the passes from other source."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self.module = "ste_compile.passes" + (f".{path.stem}" if path.stem != "__init__" else "")

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != self.module:
            return None
        search = [str(self.path.parent)] if self.path.stem == "__init__" else None
        return importlib.util.spec_from_file_location(name, self.path, loader=self, submodule_search_locations=search)

    def get_data(self, path: str) -> bytes:
        return self.source.encode()

    def get_filename(self, name: str) -> str:
        return str(self.path)

    def path_stats(self, path: str) -> dict[str, object]:
        raise OSError("never from a cache")


def start(spec: MutationSpec | None, source: str) -> int:
    """Run the tests on a mutant (None: as they are) in a fork; returns its process id."""
    if pid := os.fork():
        return pid
    signal.alarm(TIMEOUT)
    if spec is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.meta_path.insert(0, Mutated(Path(spec.module_path), source))
    sys.dont_write_bytecode = True
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "-k", DESELECTED]
    code = 1
    try:
        code = pytest.main([*arguments, *(str(ROOT / "tests" / f"test_{name}.py") for name in TESTS)])
    finally:
        os._exit(int(code))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="how many mutants (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = list(mutants())
    total = len(chosen)
    random.Random(arguments.seed).shuffle(chosen)
    chosen = chosen[: arguments.sample]
    if os.waitpid(start(None, ""), 0)[1] != 0:
        print("the tests fail without a mutation")
        return 2
    running: dict[int, tuple[MutationSpec, str]] = {}
    killed, survivors, begun, waiting = 0, [], time.monotonic(), iter(chosen)
    while True:
        while len(running) < arguments.jobs and (each := next(waiting, None)):
            running[start(*each)] = each
        if not running:
            break
        pid, status = os.wait()
        spec, source = running.pop(pid)
        killed += status != 0
        if status == 0:
            survivors.append(spec)
            before = Path(spec.module_path).read_text().splitlines()
            name = f"{Path(spec.module_path).name} {spec.operator_name} {spec.occurrence}"
            print(*difflib.unified_diff(before, source.splitlines(), name, "survived", n=0, lineterm=""), sep="\n", flush=True)
        done = killed + len(survivors)
        if done % 50 == 0:
            print(f"{done} of {len(chosen)}: {killed} killed, {(time.monotonic() - begun) / done:.1f} s each", flush=True)
    print(f"{total} mutants, {len(chosen)} tried (seed {arguments.seed}): {killed} killed, {len(survivors)} survived, "
          f"{killed / max(1, len(chosen)):.0%}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
