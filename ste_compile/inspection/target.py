"""What `python -m ste_compile explain FILE.py:callable` names: a function that makes a model and its arguments."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..script import below

MAIN = str(Path(__file__).parents[1] / "__main__.py")


class Wrong(Exception):
    """A wrong argument; the message says which, what came, and what is allowed."""


def load(target: str) -> Callable[[], Any]:
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
        show(error, f"{file} fails when it is imported:")
        raise SystemExit(1) from None
    made: Any = getattr(module, name, None)
    if not callable(made):
        names = sorted(n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__)
        raise Wrong(f"{file!r} has no callable {name!r}; its functions: {', '.join(names) or 'none'}")
    return made  # type: ignore[no-any-return]


def unpacked(made: Any, target: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    parts = (*made, {}) if isinstance(made, tuple) and len(made) == 2 else made
    allowed = "allowed: (model, args) or (model, args, kwargs), args a tuple or list, kwargs a dict"
    if not isinstance(parts, tuple) or len(parts) != 3 or not callable(parts[0]):
        shape = f"({', '.join(type(part).__name__ for part in made)})" if isinstance(made, tuple) else type(made).__name__
        raise Wrong(f"{target} returned {shape}; {allowed}")
    model, args, kwargs = parts
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, dict):
        raise Wrong(f"{target} returned args of type {type(args).__name__}, kwargs of type {type(kwargs).__name__}; {allowed}")
    return model, tuple(args), kwargs


def once(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    from .calls import kept

    with kept(model, args, kwargs):
        model(*args, **kwargs)


def show(error: Exception, heading: str) -> None:
    """The traceback as the user's own program would have printed it, without our frames."""
    trace = below(error.__traceback__, __file__, MAIN, "<frozen importlib._bootstrap>")
    print(heading, file=sys.stderr)
    traceback.print_exception(type(error), error, trace, file=sys.stderr)
