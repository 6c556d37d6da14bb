"""What must never be touched: the graph comes out as it went in, node for node."""

import pytest
import torch
from ste_compile.passes import Reason, recognise
from torch.fx.experimental.proxy_tensor import make_fx

import ste_compile

from .graphs import captured, show
from .spellings import BY_NAME


def kahan(total, y, compensation):
    y = y - compensation
    t = total + y
    return t, (t - total) - y


def kahan_detached(total, y, compensation):
    y = y - compensation
    t = total + y
    return t, (t - total.detach()) - y


def kahan_in_one(total, y, x):
    """The correction is never a node of its own: the next term takes it in."""
    t = total + y
    return t, (x + y) - (t - total.detach())


def kahan_long(total, *terms):
    """Unrolled past the longest linear form that is kept."""
    compensation = torch.zeros_like(total)
    for _ in range(8):
        for term in terms:
            y = term - compensation
            t = total + y
            compensation = (t - total.detach()) - y
            total = t
    return total, compensation


def two_sum(a, b, _):
    s = a + b
    bb = s - a
    return s, (a - (s - bb)) + (b - bb)


def two_sum_detached(a, b, _):
    s = a + b
    bb = s - a.detach()
    return s, (a - (s - bb)) + (b - bb)


def veltkamp_split(a, _, __):
    c = a * 4097.0
    high = c - (c - a).detach()
    return high, a - high


def round_by_magic_constant(x, _, __):
    return (x + 12582912.0).detach() - 12582912.0, x + 1


def round_by_magic_tensor(x, _, __):
    magic = torch.full((), 12582912.0)
    return (x + magic).detach() - magic, x + 1


def split_precision(x, h, _):
    """Not `x - x`: what bfloat16 loses of x."""
    return h + (x - x.bfloat16().float().detach())


def split_precision_trailing(x, h, _):
    return (h + x) - x.bfloat16().float().detach()


NEGATIVE = {
    "no_marker": lambda h, s, _: h + (s - s),
    "no_marker_in_16_bits": lambda h, s, _: h.bfloat16() + (s.bfloat16() - s.bfloat16()),
    "both_detached": lambda h, s, _: h + (s.detach() - s.detach()),
    "no_residual": lambda _, s, __: s - s.detach(),
    "zero_times": lambda h, s, _: (s - s.detach()) * h,
    "lerp": lambda a, b, _: a + 0.3 * (b - a),
    "lerp_detached": lambda a, b, _: a.detach() + 0.3 * (b - a),
    "gradient_by_sum": lambda x, _, __: 0.5 * x + 0.5 * x.detach(),
    "gradient_reversal": lambda x, _, __: 2 * x.detach() - x,
    "different_values": lambda h, s, k: h + (s - k.detach()),
    "commitment_loss": lambda q, x, _: (q.detach() - x).pow(2).mean() + (q - x.detach()).pow(2).mean(),
    "scaled_apart": lambda h, s, _: h + 0.3 * s - 0.2 * s.detach(),
    "two_dropouts": lambda h, s, _: h + (torch.nn.functional.dropout(s) - torch.nn.functional.dropout(s).detach()),
    **{f.__name__: f for f in (kahan, kahan_detached, kahan_in_one, two_sum, two_sum_detached)},
    **{f.__name__: f for f in (split_precision, split_precision_trailing)},
    **{f.__name__: f for f in (veltkamp_split, round_by_magic_constant, round_by_magic_tensor, kahan_long)},
}


@pytest.mark.parametrize("grad", (True, False), ids=("joint", "inference"))
@pytest.mark.parametrize("name", NEGATIVE)
def test_unchanged(name, grad):
    """Given code that is no straight-through estimator, when compiled at the most permissive level, then no node changes."""
    args = [torch.randn(4, 3, requires_grad=grad) for _ in range(3)]
    which = "joint" if grad else "inference"
    before = show(captured(NEGATIVE[name], args)[which].graph)
    assert show(captured(NEGATIVE[name], args, numerics="algebraic")[which].graph) == before


@pytest.mark.parametrize("name", ("kahan_detached", "two_sum_detached", "kahan_in_one"))
def test_a_compensated_sum_keeps_its_compensation(name):
    """Given what a rewrite to zero would destroy, the compiled error term is eager's, and not zero."""
    args = [torch.randn(64) for _ in range(3)]
    ours = torch.compile(NEGATIVE[name], backend="ste_aot_eager", options={"numerics": "algebraic"})(*args)
    for mine, theirs in zip(ours, NEGATIVE[name](*args)):
        assert torch.equal(mine, theirs) and mine.any()


def _sites(fn, *args, grad=True):
    found = []
    captured(fn, args, before=lambda gm: found.extend(recognise(gm.graph)))
    return found


def test_refusals_say_why():
    """Given sites that must be left, each carries its reason."""
    a, b, c = (torch.randn(4, requires_grad=True) for _ in range(3))
    (poisoned,) = [s for s in _sites(kahan_detached, a, b, c) if s.refusal]
    assert poisoned.refusal.reason is Reason.ERROR_IS_USED and "rounding error" in str(poisoned.refusal)
    for alpha in (2, 0.5):
        (scaled,) = _sites(lambda h, s, alpha=alpha: torch.add(s - s.detach(), h, alpha=alpha), a, b)
        assert str(scaled.refusal) == f"the value is scaled by alpha={alpha}"
    (held,) = _sites(lambda h, s, t: ((o := h + s) * 2, (o + t) - s.detach()), a, b, c)
    assert held.refusal == Reason.NO_HOLDER.of()


def test_measuring_how_far_eager_strays_is_left_alone():
    """Given `(y - q)` beside `y = x + (q - x).detach()`, the difference is a rounding error someone asked for."""

    def model(x, q):
        y = x + (q - x).detach()
        return y, (y - q.detach()).abs().max()

    x, q = torch.randn(1000), torch.randn(1000)
    y, error = torch.compile(model, backend="ste_aot_eager", options={"numerics": "algebraic"})(x, q)
    assert error > 0 and torch.equal(y, model(x, q)[0])


def test_what_exact_leaves_says_why():
    """Given arithmetic the operator does not cover, exact leaves it to Inductor and reports the reason."""
    args = [torch.randn(4) for _ in range(2)]
    compiled = torch.compile(BY_NAME["alpha"].fn, backend="ste_aot_eager")
    with ste_compile.collect() as recorder:
        compiled(*args)
    (site,) = recorder.sites()
    assert site.action == "left" and site.reason.startswith("alpha")


def test_mutation_ends_recognition():
    """Given an input that the graph mutates, sites before the mutation are found, and the mutation happens once."""

    def model(h, s):
        out = h + (s - s.detach())
        h.add_(1)
        return out

    for numerics in ("exact", "finite"):
        torch._dynamo.reset()
        h, s = torch.zeros(4), torch.ones(4)
        out = torch.compile(model, backend="ste_aot_eager", options={"numerics": numerics})(h, s)
        assert torch.equal(out, torch.zeros(4)) and torch.equal(h, torch.ones(4))


def test_a_value_read_on_both_sides_of_a_mutation_is_not_one_value():
    """Given a graph that is not functional, where `s * 2` means another number each time, nothing after the mutation is a site."""

    def model(h, s):
        before = s * 2
        s.add_(1)
        return h + (s * 2 - before.detach())

    graph = make_fx(model, tracing_mode="fake")(torch.ones(2), torch.ones(2)).graph
    _, s = graph.find_nodes(op="placeholder")
    (mutation,) = graph.find_nodes(op="call_function", target=torch.ops.aten.add_.Tensor)
    mutation.replace_all_uses_with(s)  # as the `copy_` of a mutated input stands in AOTAutograd's graphs: read by no one
    assert not recognise(graph)
