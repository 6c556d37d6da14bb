"""`explain(..., values=True)`: what eager's arithmetic makes of each site, counted on real inputs."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import ste_compile
from ste_compile.__main__ import main
from ste_compile.inspection import values
from ste_compile.inspection.figures import Values
from ste_compile.inspection.report import Report
from ste_compile.testing import count_off, tally
from ste_compile.testing.compare import ulp_distance
from ste_compile.testing.compiling import own

from .compare import finite_values
from .spellings import DTYPES, SPELLINGS


def seen(fn, *args, **options):
    """What is seen of a function's sites, in order."""
    torch._dynamo.reset()
    meter = values.ValueMeter()
    torch.compile(own(fn), backend=meter, **options)(*args)
    return [each for found in meter.found.values() for each in found]


def counted(result, meant):
    """The same, counted apart: (elements, off, furthest, median, histogram)."""
    off = (result != meant) & ~(result.isnan() & meant.isnan())
    distances = ulp_distance(result[off], meant[off]).sort().values
    histogram = {}
    for distance in distances.tolist():
        bound = next(2**power for power in range(64) if distance <= 2**power)
        histogram[bound] = histogram.get(bound, 0) + 1
    median = int(distances[(len(distances) - 1) // 2]) if len(distances) else 0
    return result.numel(), int(off.sum()), int(distances.max()) if len(distances) else 0, median, tuple(sorted(histogram.items()))


@pytest.mark.parametrize("dtypes", DTYPES)
def test_every_spelling_is_counted_element_for_element(dtypes):
    """Broken by: the value not cast to the result's dtype; a bound of the histogram; seen to fail."""
    for spelling in SPELLINGS:
        generator = torch.Generator().manual_seed(0)
        v, s = (finite_values(dtype, (16, 24), generator).requires_grad_() for dtype in DTYPES[dtypes])
        if spelling.name == "nested":  # whose result is a product with the site
            continue
        result = spelling.fn(v, s).detach()
        meant = torch.as_tensor(spelling.value(v, s)).detach().to(result.dtype).expand(result.shape)
        last = seen(spelling.fn, v, s)[-1]
        found = last.elements, last.off, last.ulp_most, last.ulp_median, last.histogram
        assert found == counted(result, meant), spelling.name
        assert (last.distinct, last.distinct_meant) == (len(result.unique()), len(meant.unique()))
        assert last.not_finite == 0


def test_distances_beyond_those_that_are_told_apart(monkeypatch):
    """Few are told apart here: the furthest is known all the same, and so is how many are off."""
    monkeypatch.setattr(tally, "MOST", 8)
    monkeypatch.setattr(tally, "PIECE", 16)
    x, q = (torch.randn(64, generator=torch.Generator().manual_seed(i)) * 10**i for i in (0, 4))
    fn = lambda x, q: q + (x - q).detach()  # noqa: E731
    (found,) = seen(fn, x.requires_grad_(), q.requires_grad_())
    assert (found.elements, found.off, found.ulp_most) == counted(fn(x, q).detach(), x.detach())[:3]
    assert sum(count for _, count in found.histogram) == found.off and found.distinct is None


def test_terms_that_are_not_finite_are_counted():
    """As the site has them: after the cast."""
    h, s = torch.ones(6).half(), torch.tensor([1.0, 6e4, 7e4, torch.inf, torch.nan, 0.0], requires_grad=True)

    def fn(h, s):
        s = s.half()
        return h + (s - s.detach())

    (found,) = seen(fn, h, s)
    assert (found.elements, found.off, found.not_finite, found.ulp_most) == (6, 3, 3, 0)
    assert str(found).startswith("in eager 50.0% of elements are off")
    assert str(found).endswith("; 3 of the cancelled terms are not finite")


class Vq(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.codes = nn.Linear(8, 4), nn.Parameter(torch.randn(16, 4))

    def forward(self, x):
        z = self.encoder(x)
        q = self.codes[torch.cdist(z.float(), self.codes.float()).argmin(-1)].to(z.dtype)
        return z + (q - z).detach()


@pytest.mark.parametrize("how", ("training", "no_grad", "autocast", "dynamic"))
def test_codes_that_leave_their_codebook(how):
    """In each way to call it, with eager's numbers."""
    torch.manual_seed(0)
    model, x = Vq(), torch.randn(512, 8)
    if how != "autocast":
        model, x = model.bfloat16(), x.bfloat16()
    if how == "dynamic":
        torch._dynamo.mark_dynamic(x, 0)
    with torch.set_grad_enabled(how != "no_grad"), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        (found,) = seen(model.forward, x)
        result = model(x)
    assert found.dtype == "bfloat16" and found.elements == 2048 and found.is_on_a_grid
    assert found.distinct == len(result.unique()) > found.distinct_meant
    assert f"{found.distinct} distinct values, where {found.distinct_meant} are meant" in str(found)


def test_the_memory_of_one_forward(monkeypatch):
    """Given activations that a training forward keeps, to look at the sites takes no more than eager's forward does.

    Broken by: every node's result held until the end; seen to fail."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    peak_of = importlib.import_module("benchmark_contestants").peak_of
    monkeypatch.setattr(tally, "PIECE", 2**12)
    monkeypatch.setattr(tally, "MOST", 2**10)
    h, s = (torch.randn(2**18, requires_grad=True) for _ in range(2))

    def fn(h, s):
        for _ in range(4):
            s = s.sin().exp().tanh()
            h = (h + (s - s.detach())).cos()
        return h

    meter = values.ValueMeter()
    compiled = torch.compile(own(fn), backend=meter)
    eager = peak_of(lambda: fn(h, s), torch.device("cpu"))
    compiled(h, s)  # Dynamo's own, once
    torch._dynamo.reset()
    ours = peak_of(lambda: torch.compile(own(fn), backend=meter)(h, s), torch.device("cpu"))
    assert [len(found) for found in meter.found.values()] == [8] and ours <= 1.05 * eager


MODEL = """
import torch
def model(x, q):
    return x + (q - x).detach()
def example():
    torch.manual_seed(0)
    x, q = (torch.randn(64, 64).bfloat16().requires_grad_() for _ in range(2))
    return model, (x, q)
"""


def test_the_report_has_them(tmp_path, capsys):
    """In the table, the JSON and the page; a level that mends it is named until it is asked for."""
    (tmp_path / "model.py").write_text(MODEL)
    page, out = tmp_path / "report.html", tmp_path / "report.json"
    command = ["explain", f"{tmp_path / 'model.py'}:example", "--values", "--html", str(page), "--json", str(out)]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    report = Report.from_json(out.read_text())
    (site,) = report.sites
    assert isinstance(site.values, Values) and site.values.off and site.values.ulp_most >= site.values.ulp_median >= 1
    assert (
        "in eager" in shown
        and "algebraic" in shown
        and site.said_of_values().endswith("; numerics='algebraic' gives what is meant")
    )
    text = page.read_text()
    assert text.count("<rect x=") >= len(site.values.histogram) > 1 and 'class="bars"' in text and str(site.values) in text
    assert main([*command, "--numerics", "algebraic"]) == 0
    assert not Report.from_json(out.read_text()).sites[0].said_of_values().endswith("what is meant")
    assert json.loads(out.read_text())["graphs"][0]["sites"][0]["values"]["off"] == site.values.off


@pytest.mark.parametrize("shape", ((), (0,), (3, 0), (40, 7, 5), (7,)))
def test_every_element_is_looked_at_once(shape, monkeypatch):
    """Broken by: a piece too many, or none of a tensor without elements; seen to fail."""
    monkeypatch.setattr(tally, "PIECE", 16)
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    for each in (x, x.mT if x.ndim > 1 else x):
        assert torch.cat([*tally._pieces(each), torch.empty(0)]).equal(each.reshape(-1))


def test_without_being_asked_nothing_is_measured():
    report = ste_compile.explain(lambda h, s: h + (s - s.detach()), torch.ones(4), torch.ones(4), numerics="finite")
    assert all(site.values is None and not site.said_of_values() for site in report.sites)


def test_two_tensors_from_anywhere_are_counted_as_a_site_is():
    """Broken by: the gradient of a result, which has no bits to view; dtypes that differ taken as they come."""
    x, q = (torch.randn(256, generator=torch.Generator().manual_seed(i)) for i in range(2))
    fn = lambda x, q: x + (q - x).detach()  # noqa: E731
    (site,) = seen(fn, x.requires_grad_(), q)
    assert site.off and count_off(fn(x, q), q) == site
    whole = count_off(torch.tensor([1, 2, 3]), torch.tensor([1, 5, 3]))
    assert (whole.dtype, whole.elements, whole.off, whole.ulp_most, whole.distinct) == ("int64", 3, 1, 0, 3)


@pytest.mark.parametrize(
    "result, meant, error, message",
    [
        ([1.0], torch.ones(1), TypeError, "count_off: result must be a tensor, got list"),
        (torch.ones(1), 1.0, TypeError, "count_off: meant must be a tensor, got float"),
        (torch.ones(1), torch.ones(1).half(), TypeError, "one dtype that is real, got torch.float32 and torch.float16"),
        (torch.ones(1) * 1j, torch.ones(1) * 1j, TypeError, "one dtype that is real, got torch.complex64"),
        (torch.ones(2), torch.ones(3), ValueError, r"the shapes must be equal, got \(2,\) and \(3,\)"),
    ],
)
def test_what_cannot_be_counted_is_named(result, meant, error, message):
    with pytest.raises(error, match=message):
        count_off(result, meant)


def test_under_ddp_a_site_is_measured_whatever_bucket_it_is_in(alone, monkeypatch):
    """Given two layers in two buckets, thus two graphs, each with a site. Broken by: sites of a second graph taken for the first's,
    since both have one line; seen to fail."""
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 1)

    def quantized(x):
        return (x * 4).round() / 12

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x + (quantized(x) - x).detach())
            return x

    model, x = Model(), torch.randn(32, 64, requires_grad=True)
    report = ste_compile.explain(nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1e-6), x, values=True)
    found = [site.values for graph in report.graphs for site in graph.sites]
    with torch.no_grad():
        first = x + (quantized(x) - x)
        h = model.layers[0](first)
        second = h + (quantized(h) - h)
    expected = [count_off(first, quantized(x)), count_off(second, quantized(h))]
    assert len(report.graphs) == 2 and found == expected and all(each.off for each in expected)
