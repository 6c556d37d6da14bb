"""What was found in a graph, kept beside Inductor's caches: no pass runs on a graph that comes from them.

    CACHE/ste_compile/KEY.json      a `Report` of what was compiled of one graph from Dynamo

The key is of all that decides what is found, source lines among it, so that a report never names a line that was moved.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .report import Graph, Report


def key_of(gm: GraphModule, inputs: Sequence[Any], *more: Any) -> str:
    """The key of a graph from Dynamo that is compiled for inputs like these. `more` is what else decides: passes, level."""
    kinds = sorted({each.device.type for each in inputs if isinstance(each, Tensor)})
    autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds if _has_autocast(kind)]
    digest = hashlib.sha256(repr((torch.__version__, torch.is_grad_enabled(), autocast, *more)).encode())
    for each in inputs:
        digest.update(_described(each).encode())
    for module in gm.modules():
        if isinstance(module, GraphModule):
            digest.update(module.code.encode())
            for node in module.graph.nodes:
                digest.update(str(node.stack_trace).encode())
    return digest.hexdigest()


def keep(cache: Path, key: str, graphs: Sequence[Graph]) -> None:
    """Write what was found, in the place of what was found before."""
    path = _path(cache, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, Report.of(graphs).to_json())


def load(cache: Path, key: str) -> tuple[Graph, ...] | None:
    """What `keep` wrote; None where it wrote nothing, or what this version cannot read."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return Report.from_json(_path(cache, key).read_text(encoding="utf-8")).graphs
    return None


def write(path: Path, text: str) -> None:
    """Write a file atomically: if this process is killed meanwhile, the file is as it was before."""
    whole = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        whole.write_text(text, encoding="utf-8")
        os.replace(whole, path)
    finally:
        whole.unlink(missing_ok=True)


def _path(cache: Path, key: str) -> Path:
    return cache / "ste_compile" / f"{key}.json"


def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value}"
    layout = (value.shape, value.stride()) if value.layout == torch.strided else value.shape
    return f"{type(value).__name__} {value.dtype} {value.device} {layout} {value.requires_grad}"
