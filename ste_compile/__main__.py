"""The command line, `python -m ste_compile`: `run SCRIPT.py`, `explain FILE.py:callable`, `rewrite IN.pt2 OUT.pt2`, and more."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .inspection.figures import mebibytes, plural
from .inspection.progress import doing
from .inspection.report import Report
from .inspection.target import Wrong, load, once, show, unpacked
from .passes import levels
from .passes.levels import DEFAULT, LEVELS
from .script import end_like_python, execute

EPILOG = """\
examples:
  python -m ste_compile run train.py --lr 0.1
  python -m ste_compile run --numerics finite --report report.html -m package.train --lr 0.1
  torchrun --nproc-per-node 2 -m ste_compile run train.py
  python -m ste_compile explain model.py:example
  python -m ste_compile explain model.py:example --numerics finite --numerics encoder.quantizer=algebraic --html report.html
  python -m ste_compile explain model.py:example --numerics finite --suggest
  python -m ste_compile explain model.py:example --json - | jq '.graphs[].sites[] | {file, line, action}'
  python -m ste_compile rewrite model.pt2 smaller.pt2 --numerics algebraic
  python -m ste_compile backends

`run` executes a script as `python` would. Every `torch.compile` in it that goes to Inductor gets the passes. A table at its end
goes to standard error, of rank 0 alone.

`explain` calls `example` without arguments, which returns (model, args) or (model, args, kwargs):

  def example():
      return Model(), (torch.randn(8, 16),)

exit codes: 0 done; 1 the model fails in eager, its traceback is shown; 2 wrong arguments; 3 it runs, its compilation fails;
of `run`, the script's own
"""
COMMANDS = "run | explain | rewrite | backends"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ste_compile",
        description="Run a script with the passes, and inspect what they do to a model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ste-compile {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar=COMMANDS)
    run = _run_parser(commands)
    explain = commands.add_parser(
        "explain",
        help="compile a model once, forward and backward, and report every straight-through site",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("target", metavar="FILE.py:callable", help="what returns (model, args) or (model, args, kwargs)")
    _add_numerics(explain, DEFAULT)
    explain.add_argument("--html", metavar="OUT", type=Path, help="also write the report as one self-contained page")
    explain.add_argument("--json", metavar="OUT", help="also write it as JSON; - for standard output, in place of the table")
    explain.add_argument(
        "--values", action="store_true", help="also say how far eager's values are from what the sites stand for"
    )
    explain.add_argument("--suggest", action="store_true", help="also say which edits would free more, each tried, best first")
    explain.add_argument("--diff", action="store_true", help="also print what the passes change in each graph, as a diff")
    rewrite = commands.add_parser("rewrite", help="write an exported program without the surrogates that a level removes")
    rewrite.add_argument("source", metavar="IN.pt2", help="what torch.export.save wrote")
    rewrite.add_argument("target", metavar="OUT.pt2", help="where to write the new program")
    _add_numerics(rewrite, "finite")
    commands.add_parser("backends", help="list the names that torch.compile(backend=...) knows from this package")
    parsed = parser.parse_args(arguments)
    if parsed.command == "backends":
        return _backends()
    parser, command = {"run": (run, _run), "rewrite": (rewrite, _rewrite), "explain": (explain, _explain)}[parsed.command]
    try:
        parsed.rules = _rules(parsed.numerics or [parsed.level])
        return command(parsed)
    except (Wrong, levels.Unmatched) as wrong:
        parser.print_usage(sys.stderr)
        print(f"error: {wrong}", file=sys.stderr)
        return 2


def _add_numerics(parser: argparse.ArgumentParser, default: str) -> None:
    words = f"the level (default: {default}), or that of one module, as in seeds.*=finite; may be given more than once"
    parser.add_argument("--numerics", metavar="[MODULE=]LEVEL", action="append", help=words)
    parser.set_defaults(level=default)


def _rules(texts: list[str]) -> levels.Rules:
    try:
        return levels.parsed(texts)
    except ValueError as error:
        raise Wrong(f"argument --numerics: {error}") from None


def _run_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        usage="%(prog)s [-h] [--numerics [MODULE=]L] [--report OUT] [--json OUT] (SCRIPT.py | -m MODULE) [ARGS ...]",
        help="execute a training script as it is, with the passes in every torch.compile of it that goes to Inductor",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_numerics(parser, DEFAULT)
    parser.add_argument("--report", "--html", metavar="OUT", type=Path, help="also write the report as one self-contained page")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write it as JSON")
    parser.add_argument("-m", dest="as_module", action="store_true", help="what follows is a module's name, as after `python -m`")
    parser.add_argument("target", metavar="SCRIPT.py", help="the script")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="its arguments").required = False
    return parser


def _run(parsed: argparse.Namespace) -> int:
    if str(parsed.json) == "-":
        raise Wrong("--json -: standard output is the script's; a file is allowed")
    files = {path: text for path, text in ((parsed.report, Report.to_html), (parsed.json, Report.to_json)) if path}
    _check_files(files, parsed.report)
    if parsed.as_module:
        try:
            known = importlib.util.find_spec(parsed.target)
        except (ModuleNotFoundError, ValueError):
            known = None
        if known is None:
            raise Wrong(f"no module {parsed.target!r}")
    elif not Path(parsed.target).is_file():
        raise Wrong(f"no file {parsed.target!r}")
    from . import _torch
    from .run import Run

    try:
        _torch.check()
        _torch.check(_torch.RUN)
    except RuntimeError as error:
        raise Wrong(str(error)) from None
    end_like_python()
    Run(parsed.rules, files).start()
    execute(parsed.target, parsed.arguments, as_module=parsed.as_module)
    return 0


def _backends() -> int:
    from . import backends

    names = *(level.backend for level in LEVELS.values()), "ste_aot_eager"
    for name in names:
        summary = inspect.getdoc(getattr(backends, name)).splitlines()[0]  # type: ignore[union-attr]
        print(f"{name:<{max(map(len, names)) + 2}}{summary.split(': ', 1)[-1].rstrip('.')}")
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
    after, report = rewrite(before, numerics=parsed.rules)
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


def _check_files(paths: Iterable[Path], page: Path | None) -> None:
    """Check that the files can be written, before minutes of compiling."""
    for path in paths:
        _check_folder(path)
    if page:
        try:
            Report("", "", ()).to_html()
        except ModuleNotFoundError as error:
            raise Wrong(str(error)) from None


def _explain(parsed: argparse.Namespace) -> int:
    json = Path(parsed.json) if parsed.json not in (None, "-") else None
    _check_files(filter(None, (parsed.html, json)), parsed.html)
    make = load(parsed.target)
    try:
        with doing("running the model in eager"):
            model, args, kwargs = unpacked(make(), parsed.target)
            once(model, args, kwargs)
    except Wrong:
        raise
    except Exception as error:
        show(error, "the model fails in eager:")
        return 1
    from .inspection.explain import explain

    try:
        report = explain(model, *args, numerics=parsed.rules, values=parsed.values, suggest=parsed.suggest, **kwargs)
    except levels.Unmatched:
        raise
    except Exception as error:
        show(error, "the model runs in eager, and its compilation fails:")
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


def _diff(report: Report) -> str:
    """A diff of each forward and inference graph with sites: stock's, as handed to Inductor, against ours."""
    lines: list[str] = []
    for graph in report.graphs:
        texts = {view.name: [line.text for line in view.lines] for view in graph.views}
        for kind in ("forward", "inference") if graph.sites else ():
            before, after = texts.get(f"stock {kind}", []), texts.get(kind, [])
            lines += difflib.unified_diff(before, after, f"{graph.name} stock {kind}", f"{graph.name} {kind}", n=1, lineterm="")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
