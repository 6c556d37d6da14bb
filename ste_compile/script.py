"""Execute a script or a module in this process as `python SCRIPT.py` and `python -m MODULE` would."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import io
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType

_interrupted = False


def end_like_python() -> None:
    """Where a script ends with a KeyboardInterrupt, `python` ends by SIGINT, after everything else. Call this first: what is
    registered with atexit later runs earlier."""

    def end() -> None:
        if _interrupted and os.name == "posix":
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)

    atexit.register(end)


def execute(target: str, arguments: Sequence[str], *, as_module: bool) -> None:
    """Execute a file, or a module by its name, with `sys.argv`, `sys.path`, `__main__` and tracebacks as without us.

    Whatever is raised, SystemExit among it, leaves this function. The traceback that Python prints of it begins in the script.
    """
    global _interrupted
    sys.argv[:] = [target, *arguments]
    try:
        if as_module:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            _execute_file(Path(target))
    except BaseException as error:
        _interrupted = isinstance(error, KeyboardInterrupt) and not as_module  # (of a module, `python -m` makes exit code 1)
        _hide_own_frames()
        raise


def _execute_file(path: Path) -> None:
    # Not by `runpy.run_path`, which takes `__main__` away again while threads and pickles may still ask for it.
    name = str(path.absolute())
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=name, __builtins__=builtins, __loader__=SourceFileLoader("__main__", name), __spec__=None, __cached__=None
    )
    sys.modules["__main__"] = main
    if not sys.flags.safe_path:
        sys.path[0] = str(path.resolve().parent)
    with io.open_code(name) as file:
        source = file.read()
    exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)


def _hide_own_frames() -> None:
    """Leave the frames of this package out at the top of the traceback that this process ends with."""
    shown = sys.excepthook
    own = str(Path(__file__).parent)

    def without_own_frames(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        trace = below(trace, own, "<frozen runpy>")
        shown(kind, error.with_traceback(trace), trace)

    sys.excepthook = without_own_frames


def below(trace: TracebackType | None, *files: str) -> TracebackType | None:
    """A traceback without the frames at its top whose file's name begins with one of `files`."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(files):
        trace = trace.tb_next
    return trace
