import pytest

from ste_compile.testing.gpu import own_process

COUNT = 1 << 14  # elements of each tensor


@pytest.fixture(scope="module")
def generated():
    """`whole_source` in a process of its own."""
    from ..triton_source import whole_source

    known = {}
    with own_process() as process:

        def source(fn, dtypes, level):
            key = fn, tuple(dtypes), level
            if key not in known:
                known[key] = process.submit(whole_source, fn, [((COUNT,), dtype) for dtype in dtypes], level).result()
            return known[key]

        yield source
