"""Random programs, until one differs: the project's promise, tried at scale.

    python tests/fuzz.py --programs 20000 --inductor 300 --seed 0

Each program is held, at all three levels, in training and in inference, against its own oracle: an eager program that says what
the level promises, to the bit. Most go by the passes on one trace of AOTAutograd's joint graph (`ste_compile.testing.traced`).
Every twentieth is compiled with `ste_aot_eager` and all of torch.compile (`ste_compile.testing.check`); so is every program that
writes to an argument or a buffer, but that at one level and in one mode, in turn. `--inductor` programs more are compiled by
Inductor, at a level each in turn, and held against the same oracle, as near as stock Inductor takes it. A program whose oracle
stock Inductor cannot compile counts as "unknown".

A program that differs is shrunk and printed; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial

os.environ["STE_COMPILE_STRICT"] = "1"  # a pass that fails is a difference too

import torch

from ste_compile.testing.check import LEVELS, MODES, StockFails, check
from ste_compile.testing.program import Program
from ste_compile.testing.strategies import build
from ste_compile.testing.traced import check_traced

FULL_EVERY = 20
RESET_EVERY = 50
ATTEMPTS = {"full_or_traced": 300, "inductor": 20}  # programs tried while shrinking


def drawn(choices: list[int], more: random.Random | None = None) -> Program:
    """The program of these choices; `more` are drawn, and noted, where they end, or else are 0."""
    used = 0

    def draw(n: int) -> int:
        nonlocal used
        if used == len(choices):
            choices.append(more.randrange(n) if more else 0)
        used += 1
        return choices[used - 1] % n

    return build(draw)


def full_or_traced(program: Program, number: int) -> collections.Counter[str]:
    if number % FULL_EVERY == 0:
        return check(program) + collections.Counter(full=1)
    if (counts := check_traced(program)) is not None:
        return counts + collections.Counter(traced=1)
    level, mode = LEVELS[number % 3], MODES[number % 2]
    return check(program, [level], [mode]) + collections.Counter(full=1)


def inductor(program: Program, level: str) -> collections.Counter[str]:
    return check(program, [level], backend="ste") + collections.Counter(inductor=1)


def failure(run: Callable[[Program], object], choices: list[int]) -> str:
    try:
        run(drawn(list(choices)))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def shrunk(run: Callable[[Program], object], choices: list[int], attempts: int = 300) -> tuple[list[int], str]:
    """Simpler choices that fail alike: without a stretch of them, or with a smaller one."""
    message = failure(run, choices)
    kind = message.partition(":")[0]
    width = max(1, len(choices) // 2)
    while attempts > 0:
        improved = False
        candidates = [choices[:i] + choices[i + width :] for i in range(0, len(choices), width)]
        candidates += [
            [*choices[:i], value, *choices[i + 1 :]] for i, c in enumerate(choices) if width == 1 and c for value in {0, c - 1}
        ]
        for candidate in candidates:
            attempts -= 1
            if attempts > 0 and (found := failure(run, candidate)).startswith(kind) and found:
                choices, message, improved = candidate, found, True
                break
        if not improved:
            if width == 1:
                break
            width //= 2
    return choices, message


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=1000, help="programs at graph level")
    parser.add_argument("--inductor", type=int, default=0, help="programs through Inductor")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    failures, start = 0, time.monotonic()
    for i in range(arguments.programs + arguments.inductor):
        if (
            i % RESET_EVERY == 0
        ):  # compiled code keeps its module's class, and torch patches nn.Module, which walks all its subclasses
            torch.compiler.reset()
        choices: list[int] = []
        program = drawn(choices, random.Random(f"{arguments.seed} {i}"))
        run = partial(full_or_traced, number=i)
        if i >= arguments.programs:
            run = partial(inductor, level=LEVELS[i % len(LEVELS)])
        try:
            counts += run(program)
        except StockFails:
            counts["unknown"] += 1
        except Exception as error:
            failures += 1
            print(f"--- program {i} of seed {arguments.seed}: {type(error).__name__}", flush=True)
            choices, message = shrunk(run, choices, ATTEMPTS[run.func.__name__])
            print(message if "class Model" in message else f"{message}\n{drawn(choices)!r}", flush=True)
        counts.update(lines=len(program.lines), sites=len(program.sites()), near=len(program.near()))
        if (i + 1) % 500 == 0 or i + 1 == arguments.programs + arguments.inductor:
            rate = (i + 1) / (time.monotonic() - start)
            print(f"{i + 1} programs, {failures} differ, {rate:.1f}/s: {dict(sorted(counts.items()))}", flush=True)
    print(
        f"seed {arguments.seed}, torch {torch.__version__}: {arguments.programs} programs at graph level "
        f"({counts['traced']} traced, {counts['full']} in full), {counts['inductor']} through Inductor, {failures} differ, "
        f"{counts['unknown']} unknown"
    )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
