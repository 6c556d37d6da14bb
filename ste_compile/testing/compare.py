"""Two tensors, bit by bit and ulp by ulp."""

from __future__ import annotations

import torch
from torch import Tensor

from ..passes.levels import LEVELS, Numerics

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ULP_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FARTHEST = torch.iinfo(torch.int64).max


def same_bits(ours: Tensor, eager: Tensor) -> Tensor:
    """Elementwise, for one dtype: the same bits, or both NaN (IEEE 754 leaves a NaN's sign and payload open, and eager's
    vectorised and scalar kernels already differ in them). A complex number is two elements, in a last dimension of size 2."""
    if ours.is_complex():
        ours, eager = torch.view_as_real(ours.resolve_conj()), torch.view_as_real(eager.resolve_conj())
    integer = INTEGERS[ours.element_size()]
    bits = [t.detach().resolve_neg().contiguous().view(integer) for t in (ours, eager)]
    return (bits[0] == bits[1]) | (_isnan(ours) & _isnan(eager))


def _isnan(x: Tensor) -> Tensor:
    return (x.float() if x.is_floating_point() and x.element_size() == 1 else x).isnan()  # fp8 has no kernel of its own


def bitwise_equal(ours: Tensor, eager: Tensor) -> bool:
    """Whether two tensors have one dtype, one shape and the same bits. A NaN equals any NaN; 0 and -0 differ.

    Args:
        ours, eager: any shape and dtype, floating point, complex, integer or bool. Strides are not looked at.

    Raises:
        TypeError: an argument is not a tensor.

        >>> bitwise_equal(torch.tensor([0.0, float("nan")]), torch.tensor([0.0, -float("nan")]))
        True
        >>> bitwise_equal(torch.tensor([0.0]), torch.tensor([-0.0]))
        False
    """
    check_tensors("bitwise_equal", ours=ours, eager=eager)
    return ours.dtype == eager.dtype and ours.shape == eager.shape and bool(same_bits(ours, eager).all())


def ulp_distance(ours: Tensor, eager: Tensor) -> Tensor:
    """Elementwise, how many steps from one representable number to the next lie between the two.

    0 and -0, and two NaNs, are 0 apart. For a NaN and a number, and for a distance that int64 cannot hold, it is int64's maximum.

    Args:
        ours, eager: one shape, and one dtype of float16, bfloat16, float32, float64.

    Returns:
        An int64 tensor of that shape.

    Raises:
        TypeError: an argument is not a tensor, or the dtypes differ or are others.
        ValueError: the shapes differ.

        >>> ulp_distance(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0000001, -0.0, float("nan")]))
        tensor([                  1,                   0, 9223372036854775807])
    """
    check_tensors("ulp_distance", ours=ours, eager=eager)
    if ours.dtype != eager.dtype or ours.dtype not in ULP_DTYPES:
        allowed = ", ".join(str(dtype) for dtype in ULP_DTYPES)
        raise TypeError(f"ulp_distance: ours and eager must have one dtype of {allowed}, got {ours.dtype} and {eager.dtype}")
    if ours.shape != eager.shape:
        raise ValueError(f"ulp_distance: the shapes must be equal, got {tuple(ours.shape)} and {tuple(eager.shape)}")
    a, b = _rank(ours), _rank(eager)
    distance = (a - b).abs()
    overflow = ((a < 0) != (b < 0)) & (distance - a.abs() < 0)
    nan = (ours.isnan(), eager.isnan())
    distance = distance.masked_fill(overflow | (distance < 0) | (nan[0] ^ nan[1]), FARTHEST)
    return distance.masked_fill(nan[0] & nan[1], 0)


def _rank(x: Tensor) -> Tensor:
    """The place of each number among all of its dtype, 0 for both zeros: an IEEE number's bits are its sign and that place."""
    integer = INTEGERS[x.element_size()]
    bits = x.detach().resolve_neg().contiguous().view(integer).long()
    return torch.where(bits < 0, -(bits & torch.iinfo(integer).max), bits)


def check_tensors(name: str, **arguments: object) -> None:
    for argument, given in arguments.items():
        if not isinstance(given, Tensor):
            raise TypeError(f"{name}: {argument} must be a tensor, got {type(given).__name__}")


def describe(ours: Tensor, eager: Tensor, wrong: Tensor) -> str:
    """How many elements are wrong, and the worst of them: the furthest in ulp, or the first where there are no ulp."""
    if ours.is_complex():
        ours, eager = torch.view_as_real(ours.resolve_conj()), torch.view_as_real(eager.resolve_conj())
    distance = ulp_distance(ours, eager) if ours.dtype in ULP_DTYPES else wrong.long()
    flat = int(distance.masked_fill(~wrong, -1).flatten().argmax())
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), ours.shape))
    values = f"{_number(ours, flat)}, and in eager {_number(eager, flat)}"
    text = f"{int(wrong.sum())} of {ours.numel()} elements differ, the worst at {at}: {values}"
    if ours.dtype not in ULP_DTYPES:
        return text
    ulp = int(distance.flatten()[flat])
    return text + (", not comparable in ulp" if ulp == FARTHEST else f", {ulp} ulp apart")


def _number(x: Tensor, flat: int) -> str:
    return repr(x.flatten()[flat].item())


def permitted(ours: Tensor, eager: Tensor, level: Numerics) -> Tensor:
    """Elementwise, what a level permits without a bound: the same bits; where it cancels sites also equal numbers, and anything
    where eager is not finite. A complex number is two elements, as in `same_bits`."""
    same = same_bits(ours, eager)
    if LEVELS[level].compared == "bits" or not (eager.is_floating_point() or eager.is_complex()):
        return same
    if eager.is_complex():
        ours, eager = torch.view_as_real(ours.resolve_conj()), torch.view_as_real(eager.resolve_conj())
    if eager.element_size() == 1:
        ours, eager = ours.float(), eager.float()
    return same | (ours == eager) | ~eager.isfinite()


def error(x: Tensor, reference: Tensor) -> Tensor:
    """|x - reference| in float64, of finite elements; NaN for others, which no bound admits."""
    if x.is_complex():
        x, reference = torch.view_as_real(x.resolve_conj()), torch.view_as_real(reference.resolve_conj())
    distance = (x.double() - reference.double()).abs()
    return distance.masked_fill(~(x.isfinite() & reference.isfinite()), float("nan"))


def largest(x: Tensor, reference: Tensor) -> float:
    return float(error(x, reference).nan_to_num(0).max())


def ulp(x: Tensor) -> float:
    """An ulp of a tensor's largest finite magnitude, to within a factor of two."""
    return torch.finfo(x.dtype).eps * largest(x, torch.zeros_like(x))


def stock_bound(stock: Tensor, eager: Tensor) -> float:
    """How far from eager the code that Inductor generates may be: 1.5 times as far as stock Inductor's furthest element, since
    other fusions vectorise and add up in another order, plus 4 ulp, since stock may be right by luck in few elements."""
    return 1.5 * largest(stock, eager) + 4 * ulp(eager)
