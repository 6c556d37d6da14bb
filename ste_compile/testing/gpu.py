"""The CUDA code of a compiled model, generated on a machine that has no GPU.

    def build():
        return torch.nn.Linear(64, 64), (torch.randn(8, 64),)

    def count():
        return [(code.kind, len(code.launches)) for code in cuda_code(build, torch.compile, train=True)]

    if __name__ == "__main__":
        with stand_in() as process:
            print(process.submit(count).result())  # [('forward', 4), ('backward', 3)] with torch 2.13

Needs a CPU build of torch, its triton package, and g++. `Launch` has what each launch reads, writes and computes, as Inductor and
torch's formulas count it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from .._torch.cuda_code import CudaCode, Launch, cuda_code
from .._torch.pretended_cuda import build_guard, pretended_cuda

__all__ = ["CudaCode", "Launch", "cuda_code", "own_process", "pretended_cuda", "stand_in"]


@contextlib.contextmanager
def stand_in() -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A process in which fake CUDA tensors can be differentiated, as `cuda_code(train=True)` does. A RuntimeError where none can
    be had: with a CUDA build of torch, which has a CUDA of its own, or without a compiler."""
    if torch.version.cuda or torch.version.hip:
        raise RuntimeError(f"a stand-in for CUDA needs a CPU build of torch, and this is torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder, own_process(LD_PRELOAD=str(build_guard(Path(folder)))) as process:
        process.submit(_forget).result()
        yield process


def _forget() -> None:
    """Do not load the stand-in into processes that this one starts."""
    del os.environ["LD_PRELOAD"]


@contextlib.contextmanager
def own_process(**environment: str) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A new process, with these variables added to its environment. For as long as a process lives, torch remembers whether there
    is a device and a Triton to run on it, and Triton whether it interprets kernels."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        with mock.patch.dict(os.environ, environment):
            process.submit(int).result()  # starts it
        yield process
