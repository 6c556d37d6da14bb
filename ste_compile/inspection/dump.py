"""Write what is compiled to a folder, without a change to the model: `STE_COMPILE_DUMP=DIR`, or `options={"dump": DIR}`.

    DIR/[rank_R/]graph_N/before.py          the joint or inference graph, before any pass
                         after.py           ... after recognition and cancellation
                         forward.py, ...    each graph as Inductor gets it, sites fused
                         sites.json         a `Report` of this graph; `Report.from_json` reads it
                         index.html         the same as a page, where what `ste-compile[report]` brings is installed

N goes on from what is there: a folder is never written over.
"""

from __future__ import annotations

import functools
import itertools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from .graph_record import Record
from .record import Recorder
from .report import Report

VARIABLE = "STE_COMPILE_DUMP"
# file -> what it holds, beside the graphs as Python code
FORMATS: dict[str, Callable[[Report], str]] = {"sites.json": Report.to_json, "index.html": Report.to_html}


def recorders(option: object = None) -> list[Recorder]:
    """The recorder that dumps to the folder named by the option or, without the option, by the environment variable; [] where
    neither names one. Raises `TypeError` for an option that is no path."""
    directory = os.environ.get(VARIABLE) if option is None else option
    if not isinstance(directory, (str, os.PathLike, type(None))):
        raise TypeError(f"options={{'dump': {option!r}}} is not a path: a string or os.PathLike is allowed")
    return [_recorder(Path(directory).absolute())] if directory else []


@functools.cache
def _recorder(directory: Path) -> Recorder:
    folders: dict[int, Path] = {}

    def write(record: Record) -> None:
        if record.id not in folders:
            folders[record.id] = _new_folder(directory)
        folder = folders[record.id]
        for name, code in record.code.items():
            (folder / f"{name}.py").write_text(code, encoding="utf-8")
        report = Report.of([record.describe()])
        for name, to_text in FORMATS.items():
            try:
                (folder / name).write_text(to_text(report), encoding="utf-8")
            except ModuleNotFoundError as error:
                _without(name, str(error))

    return Recorder(changed=write, code=True)


@functools.cache
def _without(file: str, why: str) -> None:
    """Warn, once."""
    warnings.warn(f"ste_compile: no {file} is written, {why}", stacklevel=2)


def _new_folder(directory: Path) -> Path:
    if dist.is_available() and dist.is_initialized():
        directory = directory / f"rank_{dist.get_rank()}"
    for number in itertools.count():
        folder = directory / f"graph_{number}"
        try:
            folder.mkdir(parents=True)  # fails where it exists: processes that write to one place do not meet
            return folder
        except FileExistsError:
            continue
    raise AssertionError
