"""The command line: `python -m ste_compile explain FILE.py:callable`, `rewrite IN.pt2 OUT.pt2`, and `backends`."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .inspection.figures import mebibytes, plural
from .inspection.progress import doing
from .inspection.report import Report
from .passes.levels import DEFAULT, LEVELS

EPILOG = """\
examples:
  python -m ste_compile explain model.py:example
  python -m ste_compile explain model.py:example --numerics finite --html report.html
  python -m ste_compile explain model.py:example --json - | jq '.graphs[].sites[] | {file, line, action}'
  python -m ste_compile rewrite model.pt2 smaller.pt2 --numerics algebraic
  python -m ste_compile backends

`example` is called without arguments and returns (model, args) or (model, args, kwargs):

  def example():
      return Model(), (torch.randn(8, 16),)

exit codes: 0 done; 1 the model fails in eager, its traceback is shown; 2 wrong arguments; 3 the model runs, its compilation fails
"""


class Wrong(Exception):
    """A wrong argument; the message says which, what came, and what is allowed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ste_compile",
        description="Inspect what ste-compile does to a model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ste-compile {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="explain | rewrite | backends")
    explain = commands.add_parser(
        "explain",
        help="compile a model once, forward and backward, and report every straight-through site",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("target", metavar="FILE.py:callable", help="what returns (model, args) or (model, args, kwargs)")
    explain.add_argument("--numerics", choices=tuple(LEVELS), default=DEFAULT, help=f"the level (default: {DEFAULT})")
    explain.add_argument("--html", metavar="OUT", type=Path, help="also write the report as one self-contained page")
    explain.add_argument("--json", metavar="OUT", help="also write it as JSON; - for standard output, in place of the table")
    explain.add_argument("--diff", action="store_true", help="also print what the passes change in each graph, as a diff")
    rewrite = commands.add_parser("rewrite", help="write an exported program without the surrogates that a level removes")
    rewrite.add_argument("source", metavar="IN.pt2", help="what torch.export.save wrote")
    rewrite.add_argument("target", metavar="OUT.pt2", help="where to write the new program")
    rewrite.add_argument("--numerics", choices=tuple(LEVELS), default="finite", help="the level (default: finite)")
    commands.add_parser("backends", help="list the names that torch.compile(backend=...) knows from this package")
    parsed = parser.parse_args(arguments)
    if parsed.command == "backends":
        return _backends()
    parser, run = (rewrite, _rewrite) if parsed.command == "rewrite" else (explain, _explain)
    try:
        return run(parsed)
    except Wrong as wrong:
        parser.print_usage(sys.stderr)
        print(f"error: {wrong}", file=sys.stderr)
        return 2


def _backends() -> int:
    from . import backends

    for name in (*(level.backend for level in LEVELS.values()), "ste_aot_eager"):
        summary = inspect.getdoc(getattr(backends, name)).splitlines()[0]  # type: ignore[union-attr]
        print(f"{name:<15}{summary.split(': ', 1)[-1].rstrip('.')}")
    return 0


def _rewrite(parsed: argparse.Namespace) -> int:
    import torch

    from .deployment import rewrite

    _check_folder(parsed.target)
    for path in (parsed.source, parsed.target):
        if not path.endswith(".pt2"):
            raise Wrong(f"{path!r} must end in .pt2, as torch.export.save asks for")
    if not Path(parsed.source).is_file():
        raise Wrong(f"no file {parsed.source!r}")
    try:
        before = torch.export.load(parsed.source)
    except Exception as error:
        raise Wrong(f"{parsed.source!r} cannot be loaded by torch.export.load: {error}") from None
    after, report = rewrite(before, numerics=parsed.numerics)
    torch.export.save(after, parsed.target)
    print(report)
    held = [{**program.state_dict, **program.constants} for program in (before, after)]
    gone = [name for name in held[0] if name not in held[1]]
    size = sum(held[0][name].nbytes for name in gone)
    print(f"removed {plural(len(gone), 'tensor')}, {mebibytes(size)}{': ' if gone else ''}{', '.join(gone)}")
    return 0


def _check_folder(path: str | Path) -> None:
    if not Path(path).absolute().parent.is_dir():
        raise Wrong(f"the folder of {str(path)!r} does not exist")


def _explain(parsed: argparse.Namespace) -> int:
    for option in (parsed.html, Path(parsed.json) if parsed.json not in (None, "-") else None):
        if option is not None:
            _check_folder(option)
    if parsed.html:
        try:  # now, and not after minutes of compiling
            Report("", "", ()).to_html()
        except ModuleNotFoundError as error:
            raise Wrong(f"--html: {error}") from None
    make = _load(parsed.target)
    try:
        with doing("running the model in eager"):
            model, args, kwargs = _unpacked(make(), parsed.target)
            _once(model, args, kwargs)
    except Wrong:
        raise
    except Exception as error:
        _show(error, "the model fails in eager:")
        return 1
    from .inspection.explain import explain

    try:
        report = explain(model, *args, numerics=parsed.numerics, **kwargs)
    except Exception as error:
        _show(error, "the model runs in eager, and its compilation fails:")
        return 3
    if parsed.json == "-":
        print(report.to_json())
    else:
        print(report)
    if parsed.diff:
        print(_diff(report))
    if parsed.json not in (None, "-"):
        Path(parsed.json).write_text(report.to_json(), encoding="utf-8")
    if parsed.html:
        report.to_html(parsed.html)
        print(f"wrote {parsed.html}", file=sys.stderr)
    return 0


def _load(target: str) -> Callable[[], Any]:
    file, separator, name = target.rpartition(":")
    if not separator or not file or not name:
        raise Wrong(f"{target!r} is not FILE.py:callable")
    path = Path(file)
    if not path.is_file():
        raise Wrong(f"no file {file!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Wrong(f"{file!r} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.absolute().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        _show(error, f"{file} fails when it is imported:")
        raise SystemExit(1) from None
    made: Any = getattr(module, name, None)
    if not callable(made):
        names = sorted(n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__)
        raise Wrong(f"{file!r} has no callable {name!r}; its functions: {', '.join(names) or 'none'}")
    return made  # type: ignore[no-any-return]


def _unpacked(made: Any, target: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    parts = (*made, {}) if isinstance(made, tuple) and len(made) == 2 else made
    allowed = "allowed: (model, args) or (model, args, kwargs), args a tuple or list, kwargs a dict"
    if not isinstance(parts, tuple) or len(parts) != 3 or not callable(parts[0]):
        shape = f"({', '.join(type(part).__name__ for part in made)})" if isinstance(made, tuple) else type(made).__name__
        raise Wrong(f"{target} returned {shape}; {allowed}")
    model, args, kwargs = parts
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, dict):
        raise Wrong(f"{target} returned args of type {type(args).__name__}, kwargs of type {type(kwargs).__name__}; {allowed}")
    return model, tuple(args), kwargs


def _once(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    from .inspection.explain import kept

    with kept(model, args, kwargs):
        model(*args, **kwargs)


def _show(error: Exception, heading: str) -> None:
    """The traceback as the user's own program would have printed it, without our frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, "<frozen importlib._bootstrap>"):
        trace = trace.tb_next
    print(heading, file=sys.stderr)
    traceback.print_exception(type(error), error, trace, file=sys.stderr)


def _diff(report: Report) -> str:
    """Of each forward and inference graph with sites: as stock hands it to Inductor, against ours."""
    lines: list[str] = []
    for graph in report.graphs:
        texts = {view.name: [line.text for line in view.lines] for view in graph.views}
        for kind in ("forward", "inference") if graph.sites else ():
            before, after = texts.get(f"stock {kind}", []), texts.get(kind, [])
            lines += difflib.unified_diff(before, after, f"{graph.name} stock {kind}", f"{graph.name} {kind}", n=1, lineterm="")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
