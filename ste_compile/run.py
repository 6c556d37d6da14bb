"""`python -m ste_compile run`: the passes in every `torch.compile` of a script that goes to Inductor, and one table at its end.

`torch.compile` is wrapped, to know what the script asked for. Inductor's entry is wrapped too, to add the passes to each graph
that gets there. The script's output, exit code and signals, and Inductor's caches, are as they would be without us.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.fx import GraphModule

from . import _torch
from .backends import from_dynamo
from .hooks import guarded
from .inspection import kept, record, summary
from .inspection.breaks import graph_breaks
from .inspection.graph_record import Record
from .inspection.progress import doing
from .inspection.report import Graph, Report
from .options import inductor_options, passes_of
from .passes import levels
from .passes.levels import Levels

_compiling: ContextVar[bool] = ContextVar("ste_compile_run_compiling", default=False)


class Run:
    """Records what this process compiles from now on. `files`: where to write the report -> how to write it, as `Report.to_json`.

    They are written after each compilation and at the end, so that a process that is killed leaves what was found until then.
    The table is printed on standard error: by rank 0 alone, in a distributed job, where each rank writes files of its own."""

    def __init__(self, numerics: Levels, files: Mapping[Path, Callable[[Report], str]]) -> None:
        self.rules, self.files = levels.check(numerics), files
        self.rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        if ranks > 1 and self.rank:
            self.files = {path.with_stem(f"{path.stem}.rank_{self.rank}"): to_text for path, to_text in files.items()}
        self.found: dict[Any, tuple[Graph, ...]] = {}  # compilation -> what is known of it
        self.lost = 0  # compilations that a cache served, and of which nothing was kept
        self.calls: list[summary.Call] = []
        self.process = os.getpid()
        self._written = (0.0, 0.0)  # when files were written, and how long that took
        self._ending = contextlib.ExitStack()
        self._breaks = self._ending.enter_context(graph_breaks())

    def start(self) -> None:
        """Wrap `torch.compile`, and arrange for the end of the process."""
        torch.compile = functools.wraps(torch.compile)(functools.partial(self._asked, torch.compile))
        atexit.register(self.end)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminated)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._forked)

    def report(self) -> Report:
        report = Report.of((graph for graphs in list(self.found.values()) for graph in graphs), self._breaks())
        return report if report.graphs else replace(report, numerics=str(self.rules))

    def end(self, why: str = "") -> None:
        """Print the table and write the files. In a process that the script forked, do nothing."""
        if os.getpid() != self.process:
            return
        self._ending.close()
        guarded(self._write)
        table = guarded(self._table, why) if self.rank == 0 else None
        if table:
            with contextlib.suppress(OSError, ValueError):  # standard error may be closed
                print(table, file=sys.stderr, flush=True)

    def _table(self, why: str) -> str:
        report = self.report()
        unmatched = levels.unmatched(self.rules, report.modules())
        return summary.render(report, self.calls, self.lost, why, unmatched)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM: write everything, then end the process. Where a handler that the script has installed since
        calls this one, only write: that handler decides what happens next."""
        self.end("terminated by SIGTERM")
        atexit.unregister(self.end)
        if signal.getsignal(number) == self._terminated:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _forked(self) -> None:
        """In a process that the script forked, SIGTERM does what it does by default."""
        if signal.getsignal(signal.SIGTERM) == self._terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _asked(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Called in the place of `torch.compile`, `stock`: note the call, and pass it on."""
        if not self.calls:
            _torch.compiled_by(self._compile)
        caller = sys._getframe(1)
        backend = kwargs.get("backend") or "inductor"
        name = backend if isinstance(backend, str) else getattr(backend, "__name__", type(backend).__name__)
        call = summary.Call(caller.f_code.co_filename, caller.f_lineno, name)
        if call not in self.calls:
            self.calls.append(call)
        return stock(*args, **kwargs)

    def _compile(self, stock: Callable[..., Any], gm: GraphModule, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Called in the place of Inductor's entry, `stock`. That calls itself again after it has set options; only the outermost
        call adds the passes."""
        name = _torch.compile_id()
        if _compiling.get() or not name:
            return stock(gm, inputs, *args, **kwargs)
        seen = _Seen(self)
        token = _compiling.set(True)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(doing(f"compiling graph {name}"))
                stack.enter_context(record.recording(seen.recorder))
                given = kwargs.get("config_patches")
                if not (record.under_way() or passes_of(given)):  # else the script asks for the passes itself
                    kwargs["config_patches"] = given = inductor_options(numerics=self.rules, options=given)
                    stack.enter_context(from_dynamo(gm))
                guarded(seen.begin, gm, inputs, given)
                compiled = stock(gm, inputs, *args, **kwargs)
        finally:
            _compiling.reset(token)
        guarded(seen.compiled, name)
        guarded(self._write_if_cheap)
        return compiled

    def _write_if_cheap(self) -> None:
        """Write the files, but not so often that it takes more than a tenth of the time."""
        ended, took = self._written
        if time.monotonic() - ended > 9 * took:
            self._write()

    def _write(self) -> None:
        started, report = time.monotonic(), self.report()
        for path, to_text in self.files.items():
            kept.write(path, to_text(report))
        self._written = time.monotonic(), time.monotonic() - started


class _Seen:
    """What is seen of one compilation: of a graph from Dynamo, of which Inductor makes a forward now and a backward later."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.graphs: dict[int, Graph] = {}  # by the id of the record
        self.served = False  # by a cache
        self.kept: tuple[Path, str] | None = None  # where what is found is kept for the next process
        self.recorder = record.Recorder(self.changed, graphs=bool(run.files), with_caches=True)

    def begin(self, gm: GraphModule, inputs: Any, options: Mapping[str, Any] | None) -> None:
        cache, passes = _torch.inductor_cache(), passes_of(options)
        if cache and passes and (identity := passes.uuid()):
            self.kept = cache, kept.key_of(gm, inputs, identity)

    def changed(self, known: Record) -> None:
        if self.served:
            return
        self.graphs[known.id] = known.describe()
        self.run.found[self] = graphs = tuple(self.graphs.values())
        if self.kept and any(graph.parts for graph in graphs):
            kept.keep(*self.kept, graphs)

    def compiled(self, name: str) -> None:
        """Called when the forward has been compiled. If no pass has seen it, it came from a cache."""
        if any(graph.parts for graph in self.graphs.values()):
            return
        self.served = True
        graphs = kept.load(*self.kept) if self.kept else None
        if graphs is not None:
            self.run.found[self] = tuple(replace(graph, name=name, from_cache=True) for graph in graphs)
        elif not self.graphs:
            self.run.lost += 1
