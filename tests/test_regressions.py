"""What random programs have found, each as the few lines it shrank to."""

import pytest
import torch
from ste_compile.passes import cancel, recognise
from ste_compile.passes.levels import LEVELS

import ste_compile
from ste_compile.testing import assert_equivalent
from ste_compile.testing.compare import same_bits
from ste_compile.testing.spellings import SITES

from .compare import assert_same_bits, hard_values
from .gpu.functions import multiple, recast, widened, widened_factor, widened_host, widened_multiple
from .spellings import SPELLINGS


@pytest.mark.parametrize("numerics", LEVELS)
def test_a_cast_value_needs_no_gradient_in_inference(numerics):
    """Given a value that is cast where its site was, in inference, then the result does not require a gradient, as eager's does not.
    (The eager kernel of `prims.convert_element_type` hands `requires_grad` on, under no_grad too.)"""
    host, seed = torch.randn(3).bfloat16().requires_grad_(), torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert_equivalent(lambda h, s: h + (s - s.detach()), host, seed, numerics=numerics)


@pytest.mark.parametrize("swapped", (False, True))
@pytest.mark.parametrize("numerics", LEVELS)
def test_a_site_of_two_layouts_has_the_layout_of_its_first_operand(numerics, swapped):
    """Given a channels_last tensor and a contiguous one, a sum has the layout of the first: so has the fused operator, which adds
    the other way round."""
    x, q = torch.randn(2, 4, 3, 4).to(memory_format=torch.channels_last), torch.randn(2, 4, 3, 4)
    x, q = (q, x) if swapped else (x, q)
    for fn in (lambda x, q: x + (q - x).detach(), lambda x, q: (q - x).detach() + x, lambda h, s: (s - s.detach()) + h):
        assert_equivalent(fn, x.requires_grad_(), q.requires_grad_(), numerics=numerics)


@pytest.mark.parametrize(
    "surrogate", (lambda s: s + 1, lambda s: 1 - s, lambda s: 2 * s - 1), ids=("s + 1", "1 - s", "2 * s - 1")
)
def test_a_surrogate_with_a_constant_in_it_is_one(surrogate):
    """Given a surrogate that adds a Python number, whose two occurrences cancel as the surrogate's do, the site is found."""
    for fn in (
        lambda q, s: (q - surrogate(s)).detach() + surrogate(s),
        lambda q, s: q - surrogate(s).detach() + surrogate(s),
    ):
        torch._dynamo.reset()
        with ste_compile.collect() as recorder:
            compiled = torch.compile(fn, backend="ste_aot_eager", options={"numerics": "algebraic"})
            q, s = torch.randn(9), torch.randn(9, requires_grad=True)
            assert torch.equal(compiled(q, s), q)
        assert [site.action for site in recorder.sites()] == ["cancelled"]


def test_a_constant_that_cancels_alone_rounds():
    """Given a magic constant beside a site, it is added and subtracted still."""

    def fn(x, s):
        return ((x + 12582912.0) - 12582912.0) + (s - s.detach()), (x + s - s.detach() + 12582912.0) - 12582912.0

    args = torch.randn(9), torch.randn(9)
    assert all(map(torch.equal, torch.compile(fn, backend="ste_aot_eager", options={"numerics": "algebraic"})(*args), fn(*args)))


@pytest.mark.parametrize("numerics", LEVELS)
def test_sites_that_share_a_difference_in_two_dtypes(numerics):
    """Given a 0-dim bfloat16 value, which the operator does not cover, and one difference in two sites, both are fused."""

    def fn(x, v):
        difference = (v - x).detach()
        return (x + difference) * (difference + x)

    assert_equivalent(fn, torch.randn(3, 4, requires_grad=True), torch.randn((), dtype=torch.bfloat16), numerics=numerics)


def test_a_compensation_read_from_a_fused_site_is_no_worse_than_stock():
    """Given a compensated sum of 16-bit numbers that the same kernel computes, then under Inductor its error term is as small as
    stock's: the site is left as it is, with a gradient or without. Broken by: `_look_through` doing nothing; seen to fail."""

    def fn(x, y):
        v = y.cos()
        return ((x + v) - x.detach()) - v

    for needs_it in (False, True):
        x, y = torch.randn(3, 4).bfloat16().requires_grad_(needs_it), torch.randn(3, 1).half()
        with ste_compile.collect() as recorder:
            torch.compile(fn, backend="ste_aot_eager")(x, y)
        assert [(site.action, site.why) for site in recorder.sites()] == [("left", "error_is_used")]
        assert_equivalent(fn, x, y, backend="ste")


def test_a_surrogate_that_is_itself_half_detached():
    """Given a surrogate of which a part is already detached, its detached copy cancels it all the same."""

    def fn(x, q):
        soft = 0.5 * x + 0.5 * x.detach()
        return soft + (q - soft).detach()

    with ste_compile.collect() as recorder:
        compiled = torch.compile(fn, backend="ste_aot_eager", options={"numerics": "algebraic"})
        x, q = torch.randn(9, requires_grad=True), torch.randn(9)
        assert torch.equal(compiled(x, q), q)
    assert [site.action for site in recorder.sites()] == ["cancelled"]


def test_an_effect_is_kept_by_a_result_that_shares_no_memory():
    """Given a cancelled surrogate that draws random numbers, and results of which two are one memory, then the draw is held by the
    third: a copy of one of the two would no longer share."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def fn(x, s):
        noisy = torch.rand_like(s) * s
        base = x.exp()
        return base.view(-1), base, x.cos() + (noisy - noisy.detach())

    graph = make_fx(fn, tracing_mode="fake")(torch.randn(3), torch.randn(3)).graph
    assert [outcome.action for outcome in cancel(graph, recognise(graph), "finite")] == ["cancelled"]
    view, base, last = graph.output_node().args[0]
    assert view.args[0] is base and last.target is torch.ops.ste_compile.after.default


def test_an_estimator_whose_value_adds_up_its_surrogate_is_a_near_miss():
    """Given `s + (v - s)'` with a `v` that is itself a sum with `s`, which also measures a rounding error, the site is left at every
    level, exactly as it is, and reported with its reason."""

    def fn(h, x):
        s = x.sin()
        return s + ((h + s) - s).detach()

    h, x = torch.randn(9) * 1e4, torch.randn(9, requires_grad=True)
    for numerics in LEVELS:
        torch._dynamo.reset()
        with ste_compile.collect() as recorder:
            compiled = torch.compile(fn, backend="ste_aot_eager", options={"numerics": numerics})
            assert torch.equal(compiled(h, x), fn(h, x))
        (site,) = recorder.sites()
        assert site.action == "left" and site.reason.startswith("its value adds up its own surrogate")


def test_a_value_that_is_also_written_to_an_input_gets_memory_of_its_own():
    """Given a site whose value is an input after its update, the result is not the input: Inductor updates in place. (Stock's
    `x[:1].mul_(3); return x.clone()` returns `x` itself, 2.13.)"""

    def fn(x):
        x[:1].mul_(3)
        seed = x.exp()
        return x + (seed - seed.detach())

    compiled = torch.compile(fn, backend="ste_finite")
    x = torch.randn(3, 4)
    result = compiled(x)
    assert torch.equal(result, x)
    result.add_(1)
    assert torch.equal(result, x + 1)


SPLITS = {"chunk": lambda x: x.chunk(2, -1), "split": lambda x: x.split([1, 3], -1), "unbind": lambda x: x.unbind(-1)}


@pytest.mark.parametrize("computed", (False, True), ids=("input", "computed"))
@pytest.mark.parametrize("parts", SPLITS.values(), ids=SPLITS)
def test_a_part_of_a_split_keeps_its_strides_where_it_is_rounded(parts, computed):
    """Given a 16-bit part of a split in a site that keeps its own arithmetic, what is rounded is what was split, under the split:
    a rounded copy of the part itself has other strides, and the site was left unfused."""

    def fn(x):
        v = parts(x.sin() if computed else x)[0]
        s = v.exp()
        return v + s + s.sin() - s.detach() - s.sin().detach()

    with ste_compile.collect() as recorder:
        assert_equivalent(fn, torch.randn(2, 3, 4).half().requires_grad_())
    assert {site.action for site in recorder.sites()} == {"fused"}


# Views of a zero, (t - t') with t of 4x6 numbers, and of its halves
VIEWED = {
    "same_shape": lambda x, t: x + (t - t.detach()).reshape(x.shape),
    "flat_and_back": lambda x, t: x + (t - t.detach()).view(-1).view(x.shape),
    "flat_halves": lambda x, t: x + (t.view(-1) - t.view(-1).detach()).view(x.shape),
    "flat": lambda x, t: x.view(-1) + (t - t.detach()).view(-1),
    "transposed_twice": lambda x, t: x + (t - t.detach()).t().t(),
    "transposed_halves": lambda x, t: x.t() + (t.t() - t.t().detach()),
    "transposed_copy": lambda x, t: x + (t - t.detach()).t().clone().t(),
    "one_more_dimension": lambda x, t: x + (t - t.detach()).unsqueeze(0).squeeze(0),
    "expanded": lambda x, t: x + (t - t.detach()).expand(4, 6),
    "broadcast": lambda x, t: x + (t[:1] - t[:1].detach()).expand(2, 4, 6),
    "sliced": lambda x, t: x[1:] + (t - t.detach())[1:],
}


def test_views_in_a_site_s_arithmetic_may_be_renamed_or_dropped():
    """Given views in the arithmetic of sites whose cast overflows, then under Inductor, which renames, merges and drops views, each
    site is fused all the same, and is NaN where eager's is.

    Broken by: `fuse._computed` that stops at views; seen to fail."""
    x, s = torch.randn(4, 6).half(), torch.randn(4, 6) * 60000
    assert (s.half().isinf()).any()

    def fn(x, s):
        return tuple(each(x, (s + i).half()) for i, each in enumerate(VIEWED.values()))

    with ste_compile.collect() as recorder:
        results = torch.compile(fn, backend="ste")(x, s)
    assert [site.action for site in recorder.sites()] == ["fused"] * len(VIEWED), [site.reason for site in recorder.sites()]
    for name, ours, wanted in zip(VIEWED, results, fn(x, s), strict=True):
        assert_same_bits(ours, wanted, name)


@pytest.mark.parametrize("scalar", ("value", "surrogate"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_a_scalar_of_a_wider_dtype_is_rounded_where_eager_rounds_it(dtype, scalar):
    """Given every spelling with a 0-dim float32 operand beside one of 16 bits, `exact` gives eager's bits in generated code, and
    stock does not.

    Broken by: `rounding.is_narrowed_first` that is always false, or true of the second operand of a product; seen to fail."""
    # Operands that must have one dtype; `alpha`, which is left; a product outside of the site.
    without = {"alpha", "nested", *(each.name for each in SITES if each.same)}
    fns = [each.fn for each in SPELLINGS if each.name not in without]

    def model(tensor, scalar_):
        results = [fn(*((scalar_, tensor) if scalar == "value" else (tensor, scalar_))) for fn in fns]
        product = tensor * scalar_  # of which eager's CPU kernels do not round the second operand
        return [*results, product - (product - tensor).detach(), tensor.sin() + (tensor - tensor.detach()) * scalar_]

    for number in (0.158712, 3.14159, 65530.0):  # (the last is infinite in float16)
        tensor, number = torch.randn(512).to(dtype).requires_grad_(), torch.tensor(number, requires_grad=True)
        torch._dynamo.reset()
        eager, ours = model(tensor, number), torch.compile(model, backend="ste")(tensor, number)
        for fn, mine, theirs in zip([*fns, "product", "scaled"], ours, eager, strict=True):
            assert_same_bits(mine, theirs, f"{fn}, {number}")
    torch._dynamo.reset()
    assert not all(map(torch.equal, torch.compile(model)(tensor, number), eager))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_what_is_read_through_casts_and_multiples_is_rounded_as_in_eager(dtype):
    """Given operands that are casts to float32, or multiples, of 16-bit products which Inductor holds in float32, `exact` gives
    eager's bits in generated code, and stock does not.

    Broken by: `operands._below` without casts, or without multiples; seen to fail."""
    fns = widened, widened_factor, widened_multiple, multiple, recast, widened_host

    def model(*args):
        return [fn(*args) for fn in fns]

    args = [hard_values(dtype, (1000,), torch.Generator().manual_seed(0)) for _ in range(3)]
    torch._dynamo.reset()
    eager, ours = model(*args), torch.compile(model, backend="ste")(*args)
    for fn, mine, theirs in zip(fns, ours, eager, strict=True):
        assert_same_bits(mine, theirs, fn.__name__)
    torch._dynamo.reset()
    assert not all(same_bits(*pair).all() for pair in zip(torch.compile(model)(*args), eager))
