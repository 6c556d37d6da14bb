import concurrent.futures
import multiprocessing

import pytest

COUNT = 1 << 14  # elements of each tensor


@pytest.fixture(scope="module")
def generated():
    """`whole_source` in a process of its own: torch remembers for good whether there is a device and a Triton to run on it."""
    from ..triton_source import whole_source

    known = {}
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:

        def source(fn, dtypes, level):
            key = fn, tuple(dtypes), level
            if key not in known:
                known[key] = process.submit(whole_source, fn, [((COUNT,), dtype) for dtype in dtypes], level).result()
            return known[key]

        yield source
