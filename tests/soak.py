"""One process compiles, runs and drops random models, and prints what is left of them: memory, threads, files, child processes.

    python tests/soak.py --models 2000                                  # ste_aot_eager
    python tests/soak.py --models 2000 --backend ste --distinct 100     # Inductor; all but the first 100 come from its caches
    TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 python tests/soak.py --models 200 --backend ste

Each model runs a forward and a backward, at the levels in turn. Torch keeps some memory of its own for each: to compare, `--stock`
compiles the same models without the passes.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import tempfile
import threading
from pathlib import Path

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compilers, whose processes would stay

import torch
from fuzz import RESET_EVERY, drawn
from ste_compile.passes.levels import LEVELS

from ste_compile.testing.compiling import STOCK, own
from ste_compile.testing.runs import run


def model(number: int, backend: str, stock: bool) -> None:
    """Compile and run one model, and let it go."""
    program = drawn([], random.Random(f"soak {number}"))
    module, inputs = program.module(), tuple(program.inputs())
    if stock:
        compiled = torch.compile(own(module), backend=STOCK[backend])
    else:
        compiled = torch.compile(own(module), backend=backend, options={"numerics": [*LEVELS][number % len(LEVELS)]})
    run(compiled, inputs, {}, {"": module}, backward=True, train=True, rng_seed=0)


def left() -> str:
    """What this process holds now."""
    torch.compiler.reset()
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    graphs = sum(issubclass(type(each), torch.fx.GraphModule) for each in gc.get_objects())
    mib = int(status["VmRSS"].split()[0]) / 1024
    files = len(os.listdir("/proc/self/fd"))
    return (
        f"{mib:.0f} MiB, {len(gc.get_objects())} objects, {graphs} graphs, {threading.active_count()} Python threads of "
        f"{status['Threads'].strip()}, {files} files, {len(children)} children"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--distinct", type=int, help="different models, each taken again in turn (default: all)")
    parser.add_argument("--backend", choices=STOCK, default="ste_aot_eager")
    parser.add_argument("--stock", action="store_true", help="compile by the same backend of torch, without the passes")
    parser.add_argument("--every", type=int, default=200, help="models between two lines (default: 200)")
    arguments = parser.parse_args()
    for name in ("models", "distinct", "every"):
        if (number := getattr(arguments, name)) is not None and number < 1:
            parser.error(f"argument --{name}: must be at least 1, got {number}")
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for i in range(arguments.models):
            if i % RESET_EVERY == 0:
                torch.compiler.reset()
            try:
                model(i % (arguments.distinct or arguments.models), arguments.backend, arguments.stock)
            except Exception as error:  # stock torch cannot compile each program; what differs, fuzz.py finds
                failed += 1
                print(f"model {i}: {type(error).__name__}: {str(error)[:100]!r}", flush=True)
            if (i + 1) % arguments.every == 0:
                print(f"{i + 1} models, {failed} failed: {left()}", flush=True)


if __name__ == "__main__":
    main()
