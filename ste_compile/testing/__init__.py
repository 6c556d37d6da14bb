"""Test a model of your own against eager PyTorch.

    from ste_compile.testing import assert_equivalent

    def test_model():
        assert_equivalent(MyModel(), torch.randn(8, 3), numerics="finite")

`ste_compile.testing.strategies` draws random programs with hypothesis (`pip install "ste-compile[test]"`).
"""

from .compare import bitwise_equal, ulp_distance
from .equivalence import assert_equivalent
from .tally import count_off

__all__ = ["assert_equivalent", "bitwise_equal", "count_off", "ulp_distance"]
