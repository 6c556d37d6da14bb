"""The Triton code Inductor generates for an H100, on a machine without a GPU: it is stopped once the source exists. Needs the
`triton` package beside torch; nothing is launched."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch._inductor.config as inductor_config
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ste_compile import lowering
from ste_compile.hooks import run_joint, run_post_grad
from ste_compile.testing.gpu import pretended_cuda


class _Generated(Exception):
    pass


@contextlib.contextmanager
def _pretended() -> Iterator[None]:
    """A CUDA that is not there, and a cache of its own, which torch would leave behind, as it is stopped by an error."""
    with (
        pretended_cuda(),
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict("os.environ", TORCHINDUCTOR_CACHE_DIR=folder),
    ):
        yield


def triton_source(fn: Callable[..., Any], specs: Sequence[tuple[Any, torch.dtype]], numerics: str | None) -> str:
    """What Inductor generates for `fn` in inference, with the passes at a level or without: the kernels, without their tuning
    metadata, and the calls, in order."""
    return _essence(whole_source(fn, specs, numerics))


def whole_source(fn: Callable[..., Any], specs: Sequence[tuple[Any, torch.dtype]], numerics: str | None) -> str:
    """The module that Inductor generates for `fn`, the same way."""
    sources: list[str] = []

    def codegen(self: Any) -> Any:
        code = original(self)[0]
        sources.append(getattr(code, "value", code))
        raise _Generated

    original = GraphLowering.codegen
    lowering.register()
    with _pretended(), mock.patch.object(GraphLowering, "codegen", codegen), FakeTensorMode():
        args = [torch.empty(shape, dtype=dtype, device="cuda") for shape, dtype in specs]
        gm = make_fx(lambda *a: out if isinstance(out := fn(*a), tuple) else (out,), decomposition_table=select_decomp_table())(
            *args
        )
        if numerics:
            run_joint(gm.graph, numerics)
            gm.graph.eliminate_dead_code()
            gm.recompile()
        try:
            with inductor_config.patch(post_grad_custom_pre_pass=run_post_grad if numerics else None):
                compile_fx_inner(gm, args)
        except Exception:
            if not sources:
                raise
    return sources[0]


def _essence(source: str) -> str:
    kernels = re.findall(r"@triton\.jit\n(.*?)\n'''", source, re.DOTALL)
    calls = [line.strip() for line in source.splitlines() if re.search(r"\.run\(|= extern_kernels\.|extern_kernels\.\w+\(", line)]
    return "\n\n".join([*kernels, "\n".join(calls)])
