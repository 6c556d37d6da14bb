import gc
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core: threads of each would only wait for each other's
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A pass that fails must fail the test, not warn.
os.environ["STE_COMPILE_STRICT"] = "1"

import pytest
import torch

# Whether the passes still find what they must, leave what they must, and rewrite it as reviewed: under a minute on two cores.
QUICK = {"test_recognise", "test_linear_form", "test_negative", "test_compensated", "test_goldens", "test_replace", "test_fuse"}
SLOW = ("cost", "adds_up", "generated", "ste_algebraic", "unchanged")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in QUICK and not any(word in item.name for word in SLOW):
            item.add_marker("quick")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield


@pytest.fixture
def alone():
    """A job of one process: this one. DDPOptimizer takes a flag back when an object is freed that a frame holds (2.15). A frame that
    is collected later, while the next part is compiled, takes it from that one, which then fails: so nothing is collected."""
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    dist.destroy_process_group()
