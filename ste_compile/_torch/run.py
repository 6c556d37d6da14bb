"""Inductor's entry, and where it keeps its caches: for `python -m ste_compile run`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .imports import inductor_config


def compiled_by(compile_graph: Callable[..., Any]) -> None:
    """Have `compile_graph(compile_fx, gm, inputs, **kwargs)` called, from now on, in the place of Inductor's entry, `compile_fx`.
    Whoever hands a graph to Inductor looks that function up in its module each time (2.11 to 2.15)."""
    from torch._inductor import compile_fx as module

    module.compile_fx = functools.wraps(module.compile_fx)(functools.partial(compile_graph, module.compile_fx))


def inductor_cache() -> Path | None:
    """The folder of Inductor's caches; None where they are off."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    on = inductor_config.fx_graph_cache and not inductor_config.force_disable_caches
    return Path(cache_dir()) if on else None
