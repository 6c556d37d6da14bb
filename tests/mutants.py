"""Mutation testing of `passes/`: break the passes in every small way cosmic-ray knows, and see whether a test notices.

    pip install cosmic-ray
    python tests/mutants.py --jobs 2                  # all mutants, hours
    python tests/mutants.py --jobs 2 --sample 200     # so many of them, drawn with --seed; or --minutes 60

The tests run once on the passes as they are, to learn which statements each executes. A mutant gets the tests that execute its
statement (all of them where it is executed by the import), those that killed most so far and take least first, up to
`--seconds`, in a fork of one process that has imported torch but not the passes. It is killed by a failing test or by a timeout.
Mutants of annotations, docstrings, `__all__` and the `*` of a signature are left out: nothing evaluates them. So is `==` for `is`:
the passes ask so of nodes, operators, dtypes, layouts, enum members and None, none of which equals another. So is `is` for `==`:
of dtypes, names and small integers, which are most of what is compared, CPython has one object each. So is the order of names,
as `op <= "output"` for `==`: it says nothing of what they name. Survivors are printed as diffs.

Seen on torch 2.13.0: of 400 of `--seed 54 --seconds 150`, 375 were killed (93.8%). Of the 25, most are equivalent, as `>= 0` for
`== 0` of a number of dimensions; some make a difference to speed, or to nothing that the tests of graphs see; four got tests.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import difflib
import gc
import importlib.abc
import importlib.util
import itertools
import math
import os
import pickle
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# One thread each, and no processes or plugins besides: a fork must not inherit them.
os.environ.update(STE_COMPILE_STRICT="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
os.environ.update(TORCHINDUCTOR_COMPILE_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")

import expecttest  # noqa: F401  the tests' own imports, once for all forks
import functorch.compile  # noqa: F401
import hypothesis  # noqa: F401
import jinja2  # noqa: F401
import networkx  # noqa: F401
import pytest
import rich  # noqa: F401
import torch
from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_item import MutationSpec

ROOT = Path(__file__).parents[1]
TESTS = [
    "linear_form",
    "negative",
    "regressions",
    "safety_net",
    "goldens",
    "hard_effects",
    "hard_failures",
    "hard_places",
    "aliasing",
]
TESTS += ["recognise", "replace", "freed", "effects", "fuse", "defer", "ops", "compensated", "rules", "memory", "layout"]
DESELECTED = "not cost and not compensation_read and not inductor"  # those measure time, or compile C++

SAME = tuple(f"ReplaceComparisonOperator_{each}" for each in ("Is_Eq", "IsNot_NotEq", "Eq_Is", "NotEq_IsNot"))  # change nothing
ORDER = tuple(f"ReplaceComparisonOperator_{a}_{b}" for a in ("Eq", "NotEq") for b in ("Lt", "LtE", "Gt", "GtE"))  # not of names

Range = tuple[tuple[int, int], tuple[int, int]]  # from (line, column) to (line, column)
Place = tuple[str, int]  # (file, first line) of a statement
Seen = dict[str, tuple[float, set[Place]]]  # test -> (seconds, the statements of the passes that it executes)


def mutants() -> Iterator[tuple[MutationSpec, str]]:
    """(what, mutated source) of every mutant that could make a difference."""
    for path in sorted((ROOT / "passes").glob("*.py")):
        source = path.read_text()
        tree = ast.parse(source)
        inert, names = _inert_lines(tree), _comparisons_of_names(tree)
        for item in _all_work_items([path], {}):
            (spec,) = item.mutations
            means_nothing = spec.operator_name.endswith(SAME) or (spec.operator_name.endswith(ORDER) and _within(spec, names))
            if means_nothing or _within(spec, inert):
                continue
            mutated = mutate_code(source, get_operator(spec.operator_name)(), spec.occurrence)
            if mutated and mutated != source:
                yield spec, mutated


def _inert_lines(tree: ast.Module) -> list[Range]:
    found: list[ast.AST] = []
    stars: list[Range] = []
    for node in ast.walk(tree):
        if (isinstance(node, ast.arg) and node.annotation) or isinstance(node, ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef) and node.returns:
            found.append(node.returns)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "Shape", "Term", "Counts", "Addend"):
            found.append(node)
        if isinstance(node, ast.arguments) and node.kwonlyargs and not node.vararg:
            first = node.kwonlyargs[0]
            before = (*node.posonlyargs, *node.args)
            begin = (before[-1].end_lineno, before[-1].end_col_offset) if before else (first.lineno, 0)
            stars.append((begin, (first.lineno, first.col_offset)))
    return [*map(_range, found), *stars]


def _comparisons_of_names(tree: ast.Module) -> list[Range]:
    """Where the operators of comparisons with a string stand."""
    found: list[Range] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for left, right in itertools.pairwise((node.left, *node.comparators)):
                if any(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in (left, right)):
                    found.append((_range(left)[1], _range(right)[0]))
    return found


def _within(spec: MutationSpec, ranges: list[Range]) -> bool:
    return any(begin <= spec.start_pos and spec.end_pos <= end for begin, end in ranges)


def _range(node: Any) -> Range:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _called(tree: ast.Module) -> list[ast.AST]:
    """What a call executes, not the import: the statements of functions, and the bodies of lambdas."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    statements = [each for node in functions for outer in node.body for each in ast.walk(outer) if isinstance(each, ast.stmt)]
    return [*statements, *(node.body for node in ast.walk(tree) if isinstance(node, ast.Lambda))]


def place(spec: MutationSpec) -> Place | None:
    """The innermost of these that a mutant is in; None where the import executes it."""
    path, line = Path(spec.module_path), spec.start_pos[0]
    lines = [node.lineno for node in _called(ast.parse(path.read_text())) if node.lineno <= line <= node.end_lineno]  # type: ignore[attr-defined]
    return (path.name, max(lines)) if lines else None


def observed(path: Path) -> str:
    """The source of a module of the passes that calls `executes((file, line))` ahead of each statement of a function, and in each
    lambda."""
    tree = ast.parse(path.read_text())

    def executes(node: ast.stmt | ast.expr) -> ast.expr:
        return ast.parse(f"executes({(path.name, node.lineno)})", mode="eval").body

    called = {id(node) for node in _called(tree)}
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.Lambda):
            node.body = ast.BoolOp(ast.Or(), [executes(node.body), node.body])
        for name in ("body", "orelse", "finalbody"):
            if isinstance(block := getattr(node, name, None), list) and any(id(each) in called for each in block):
                setattr(node, name, [each for statement in block for each in (ast.Expr(executes(statement)), statement)])
    return ast.unparse(ast.fix_missing_locations(tree))


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


class Plugin:
    """Runs the tests of `limits` (None: all) in that order, each for so many seconds at most, up to the first that fails; keeps
    what each executes."""

    def __init__(self, limits: dict[str, float] | None) -> None:
        self.limits = limits
        self.executed: set[Place] = set()
        self.seen: Seen = {}
        self.failed = ""
        builtins.executes = self.executed.add  # type: ignore[attr-defined]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.limits is not None:
            found = {item.nodeid: item for item in items}
            items[:] = [found[test] for test in self.limits if test in found]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.executed.clear()
        signal.setitimer(signal.ITIMER_REAL, self.limits[item.nodeid] if self.limits else 600)
        begun = time.monotonic()
        try:
            return (yield)
        finally:
            self.seen[item.nodeid] = (time.monotonic() - begun, self.executed.copy())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or (report.failed and report.nodeid) or ""


def start(sources: dict[Path, str], limits: dict[str, float] | None) -> tuple[int, int]:
    """Run tests, with other sources, in a fork; returns its process id, and where to read its `Plugin`'s (failed, seen)."""
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        return pid, reading
    plugin, code = Plugin(limits), 1
    sys.meta_path[:0] = [Mutated(*each) for each in sources.items()]
    if limits is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    files = sorted({test.split("::")[0] for test in limits}) if limits else [f"tests/test_{name}.py" for name in TESTS]
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore", "--rootdir", str(ROOT), "-k", DESELECTED]
    try:
        code = pytest.main([*arguments, *(str(ROOT / file) for file in files)], [plugin])
    finally:
        with open(writing, "wb") as pipe:
            pickle.dump((plugin.failed, plugin.seen if limits is None else {}), pipe)
        os._exit(0 if code in (0, pytest.ExitCode.NO_TESTS_COLLECTED) else 1)


def heard(reading: int) -> tuple[str, Seen]:
    """What the fork sent: nothing if it was ended by the clock."""
    with open(reading, "rb") as pipe:
        said = pipe.read()
    return pickle.loads(said) if said else ("", {})


def choose(seen: Seen, where: Place | None, kills: Counter[str], seconds: float) -> dict[str, float]:
    """test -> its limit, the most promising first, until they take `seconds`. The more of a function's parameters have run, the
    less another promises, except of what the import executes: there a parameter is often for one row of a table."""
    cost = {test: (0.2 + took) / (1 + kills[test]) for test, (took, places) in seen.items() if where is None or where in places}
    function: Counter[str] = Counter()
    for test in sorted(cost, key=cost.__getitem__):
        function[test.split("[")[0]] += 1
        cost[test] *= function[test.split("[")[0]] if where else 1
    limits: dict[str, float] = {}
    for test in sorted(cost, key=cost.__getitem__):
        if (seconds := seconds - seen[test][0]) > 0:
            limits[test] = 10 + 10 * seen[test][0]
    return limits


def warm_up() -> None:
    """What the first compilation in a process imports and builds."""
    torch.set_num_threads(1)
    for backend in ("aot_eager_decomp_partition", "inductor"):
        fn = torch.compile(lambda x, y: (x.sin() + (y - y.detach())).relu(), backend=backend)
        fn(torch.ones(3, requires_grad=True), torch.ones(3)).sum().backward()
        torch._dynamo.reset()
    gc.collect()
    gc.freeze()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="how many mutants (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600, help="of tests that a mutant gets at most")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no more are tried")
    arguments = parser.parse_args()
    chosen = list(mutants())
    total = len(chosen)
    random.Random(arguments.seed).shuffle(chosen)
    chosen = chosen[: arguments.sample]
    warm_up()
    pid, reading = start({path: observed(path) for path in (ROOT / "passes").glob("*.py")}, None)
    failed, seen = heard(reading)
    if os.waitpid(pid, 0)[1] != 0:
        print("the tests fail without a mutation:", failed)
        return 2
    print(f"{total} mutants, {len(seen)} tests in {sum(took for took, _ in seen.values()):.0f} s", flush=True)
    running: dict[int, tuple[int, MutationSpec, str]] = {}
    kills: Counter[str] = Counter()
    killed, survived, begun, waiting = 0, 0, time.monotonic(), iter(chosen)
    while True:
        in_time = time.monotonic() - begun < 60 * arguments.minutes
        while in_time and len(running) < arguments.jobs and (each := next(waiting, None)):
            spec, source = each
            pid, reading = start({Path(spec.module_path): source}, choose(seen, place(spec), kills, arguments.seconds))
            running[pid] = reading, spec, source
        if not running:
            break
        pid, status = os.wait()
        reading, spec, source = running.pop(pid)
        failed, _ = heard(reading)
        if status:
            killed += 1
            kills[failed] += 1
        else:
            survived += 1
            before = Path(spec.module_path).read_text().splitlines()
            name = f"{Path(spec.module_path).name} {spec.operator_name} {spec.occurrence}"
            print(*difflib.unified_diff(before, source.splitlines(), name, "survived", n=0, lineterm=""), sep="\n", flush=True)
        done = killed + survived
        if done % 50 == 0:
            print(f"{done} of {len(chosen)}: {killed} killed, {(time.monotonic() - begun) / done:.1f} s each", flush=True)
    tried = killed + survived
    print(
        f"{total} mutants, {tried} tried (seed {arguments.seed}): {killed} killed, {survived} survived, "
        f"{killed / max(1, tried):.1%}; torch {torch.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
