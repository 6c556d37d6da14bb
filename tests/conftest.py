import os

# A pass that fails must fail the test, not warn.
os.environ["STE_COMPILE_STRICT"] = "1"

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
