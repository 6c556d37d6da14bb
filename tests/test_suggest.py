"""`explain(..., suggest=True)`: each edit that is suggested, once it is made, gives the totals that were promised."""

import dataclasses
import inspect
import json

import pytest
import torch
from torch import nn

import ste_compile
from ste_compile.__main__ import main
from ste_compile.inspection import calls, suggest
from ste_compile.inspection.figures import NOT_MEASURED, NOTHING, Figures
from ste_compile.inspection.record import Recorder, recording
from ste_compile.inspection.report import Report
from ste_compile.inspection.suggestion import Place, Suggestion, rank

from .test_explain import Broken, Terminal, line_of


def totals(report):
    """What all forward and inference graphs of ours amount to."""
    return sum((part.ours for graph in report.graphs for part in graph.parts if part.kind != "backward"), NOTHING)


def explained(fn, *args, **asked):
    torch._dynamo.reset()
    return ste_compile.explain(fn, *args, **asked)


def assert_kept(report, suggestion, edited):
    """Given the report of the edited code, it has what the suggestion promised."""
    assert suggestion.tried and suggestion.gains
    assert totals(report) - totals(edited) == suggestion.frees


class Quantizer(nn.Module):
    def forward(self, x):
        return x + ((8 * x).round() / 8 - x).detach()


class Seeded(nn.Module):
    """A quantizer, and seeds of two kinds."""

    def __init__(self):
        super().__init__()
        self.linear, self.quantizer = nn.Linear(16, 16), Quantizer()
        self.seeds = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(2))

    def forward(self, x):
        h = self.quantizer(self.linear(x))
        for seed in self.seeds:
            h = ste_compile.ste_forward(h, seed(h.detach()))
        return h


def test_a_level_for_each_module_is_kept():
    """Given sites in modules, one suggestion for each module and level, the lowest that cancels them: to ask for it gives what was
    promised. Modules of a list are one. Broken by: the rule "" changed; seen to fail."""
    model, x = Seeded(), torch.randn(8, 16)
    report = explained(model, x, suggest=True)
    (first,) = (each for each in report.suggestions if "seeds" in each.edit)
    assert first is report.suggestions[0] and [site.expression for site in first.sites] == ["host + (seed - seed.detach())"] * 2
    file, line = line_of(Seeded.forward, "ste_forward")
    assert first.edit == (
        f'Ask for numerics={{"": "exact", "seeds.*": "finite"}} for {file}:{line}: '
        "a cancelled NaN or infinity no longer reaches the output."
    )
    assert first.frees.matmuls == 2
    assert_kept(report, first, explained(model, x, numerics={"": "exact", "seeds.*": "finite"}))
    again = explained(model, x, numerics={"": "algebraic", "seeds.0": "exact", "quantizer": "algebraic"}, suggest=True)
    assert ['"seeds.0": "finite"' in each.edit for each in again.suggestions] == [True]


def test_a_level_for_a_function_is_kept():
    def fn(x, w):
        y = x @ w
        return (y + (y.round() - y).detach()) * (w.sum() + (w.exp() - w.exp().detach()).sum())

    args = torch.randn(8, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    report = explained(fn, *args, suggest=True)
    assert report.suggestions
    for each in report.suggestions:
        (level,) = (level for level in ("finite", "algebraic") if f'numerics="{level}"' in each.edit)
        assert_kept(report, each, explained(fn, *args, numerics=level))


class Logged(nn.Module):
    """A seed that is also read for a log. `edit`: what is done about it."""

    def __init__(self, read, edit="none"):
        super().__init__()
        self.seed = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.read, self.edit = read, edit

    def forward(self, h):
        seed = self.seed(h.detach())
        out = ste_compile.ste_forward(h, seed).relu()
        if self.edit == "leave out":
            return out
        if self.edit == "detach":
            return out, self.read(seed.detach())
        return out, self.read(seed)


def similarity(seed):
    return (seed @ seed.T).logsumexp(-1).mean()


def spread(seed):
    return seed.exp().mean()


@pytest.mark.parametrize(
    ("read", "grad", "edits"),
    (
        (similarity, True, ["leave out", "detach"]),  # its own gradient needs the product, which nothing else saves
        (spread, True, ["leave out"]),  # its gradient needs what the seed's own needs too
        (spread, False, ["leave out"]),
        (lambda seed: seed, True, ["leave out"]),  # a result of the model
    ),
    ids=("similarity", "spread", "inference", "result"),
)
def test_to_give_up_a_second_use_is_kept(read, grad, edits):
    """Given a surrogate that something else reads, to leave that out frees its forward; to detach what it reads frees what only the
    gradient of that use needs, if anything. Each is suggested where it frees something, and gives what was promised.

    Broken by: zeros in the place of the result, inside the graph; seen to fail."""
    x = torch.randn(16, 32)
    with torch.set_grad_enabled(grad):
        report = explained(Logged(read), x, numerics="finite", suggest=True)
        assert ["detach" if "Detach" in each.edit else "leave out" for each in report.suggestions] == edits
        site = line_of(Logged.forward, "ste_forward")
        for each, edit in zip(report.suggestions, edits):
            assert each.kind == "second use" and each.sites == (Place(*site, "host + (seed - seed.detach())"),)
            assert_kept(report, each, explained(Logged(read, edit), x, numerics="finite"))
    assert report.suggestions[0].frees.matmuls == 2 + (read is similarity)
    if read in (similarity, spread):
        file, line = line_of(read, "return")
        assert f"({file}:{line})" in report.suggestions[0].edit
    else:
        assert report.suggestions[0].edit.startswith("Leave out the result `self.seed(h.detach())`")


class Hidden(nn.Module):
    """What a seed is computed from is read for a log."""

    def __init__(self, log=True):
        super().__init__()
        self.first, self.last, self.log = nn.Linear(32, 32), nn.Linear(32, 32), log

    def forward(self, h):
        hidden = self.first(h.detach()).tanh()
        out = ste_compile.ste_forward(h, self.last(hidden)).relu()
        return (out, hidden.mean()) if self.log else out


def test_a_second_use_of_what_the_surrogate_is_computed_from():
    x = torch.randn(16, 32)
    report = explained(Hidden(), x, numerics="finite", suggest=True)
    (each,) = report.suggestions
    assert "hidden.mean()" in each.edit and each.frees.matmuls == 1
    assert_kept(report, each, explained(Hidden(log=False), x, numerics="finite"))


class Layered(nn.Module):
    """A seed in each layer; a loss of each is added to the loss."""

    def __init__(self, edit="none"):
        super().__init__()
        self.seeds, self.edit = nn.ModuleList(nn.Linear(32, 32) for _ in range(2)), edit

    def forward(self, h):
        logs = []
        for layer in self.seeds:
            seed = layer(h).tanh()
            h = ste_compile.ste_forward(h, seed).relu()
            if self.edit != "leave out":
                read = seed.detach() if self.edit == "detach" else seed
                logs.append((read @ read.T).logsumexp(-1).mean())
        loss = h.pow(2).mean()
        for each in logs:
            loss = loss + 0.1 * each
        return loss


def test_one_line_that_reads_many_surrogates_is_one_edit():
    """Given a loss of the seeds that is added to the loss in a loop, to leave that line out, or to detach what it reads, gives what
    was promised. Broken by: one edit for each read; the loss taken for what depends on the site; seen to fail."""
    x = torch.randn(16, 32)
    report = explained(Layered(), x, numerics="finite", suggest=True)
    assert ["Detach" in each.edit for each in report.suggestions] == [False, True] and report.tries == 2
    for each, edit in zip(report.suggestions, ("leave out", "detach")):
        assert_kept(report, each, explained(Layered(edit), x, numerics="finite"))


@pytest.mark.parametrize(
    ("write", "without", "is_read"),
    (
        (lambda kept, s: kept.mul_(0.9).add_(0.1 * s.detach()), lambda kept, s: kept.mul_(0.9), False),
        (lambda kept, s: kept.copy_(s.detach()), lambda kept, s: None, False),
        (lambda kept, s: kept.copy_(s.detach()), None, True),
    ),
)
def test_a_buffer_that_the_model_reads_is_no_by_product(write, without, is_read):
    """Given a surrogate that is kept in a buffer, or its running mean, that can be left out if the rest of the model does not read
    the buffer, and gives what was promised."""
    seed, kept = nn.Linear(32, 32), torch.zeros(16, 32)

    def fn(h, write):
        s = seed(h).tanh()
        write(kept, s)
        out = ste_compile.ste_forward(h, s)
        return out * kept if is_read else out

    x = torch.randn(16, 32)
    report = explained(fn, x, write, numerics="finite", suggest=True)
    assert [each.frees.matmuls for each in report.suggestions] == [1] * (not is_read)
    for each in report.suggestions:
        assert_kept(report, each, explained(fn, x, without, numerics="finite"))


def test_what_a_later_graph_reads_is_not_left_out():
    """Given a surrogate that is read again after a graph break, to leave it out is not tried to the end."""
    seed = nn.Linear(32, 32)

    def fn(h):
        s = seed(h).tanh()
        out = ste_compile.ste_forward(h, s)
        torch._dynamo.graph_break()
        return out * s

    report = explained(fn, torch.randn(16, 32), numerics="finite", suggest=True)
    (each,) = report.suggestions
    assert each.said_of_freeing() == "not tried: RuntimeError: a later graph reads what would be left out"


def test_what_the_value_needs_is_no_second_use():
    """Given codes that are computed from the surrogate, as in a VQ-VAE, and a loss on them, there is nothing to suggest. Broken by:
    whatever stays taken for a second use; seen to fail."""

    def fn(x, codes):
        q = codes[torch.cdist(x, codes).argmin(-1)]
        return x + (q - x).detach(), (x - q.detach()).pow(2).mean()

    args = torch.randn(16, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    report = explained(fn, *args, numerics="algebraic", suggest=True)
    assert (report.suggestions, report.tries) == ((), 0)
    assert str(report).endswith("nothing to suggest") and "Nothing to suggest." in report.to_html()


def test_a_graph_break_is_named_and_not_tried():
    """Given a surrogate on the other side of a break, the break's line and reason."""
    report = explained(Broken(), torch.randn(4, 8), numerics="finite", suggest=True)
    (each,) = report.suggestions
    file, line = line_of(Broken.forward, "graph_break")
    assert each.kind == "graph break" and f"Remove the graph break at {file}:{line}" in each.edit
    assert (each.tried, each.frees, each.said_of_freeing()) == (False, NOT_MEASURED, "not tried: the code must change")
    assert report.tries == 0


def test_ranked_by_bytes_then_kernels():
    """Saved, written, read, then kernels; what was not tried comes last."""
    frees = [Figures(9, 9, 9, 9, 9, 0), Figures(0, 0, 0, 0, 0, 1), Figures(0, 0, 1, 0, 5, 0), Figures(0, 0, 2, 0, 5, 0)]
    assert sorted(frees, key=rank, reverse=True) == [frees[i] for i in (1, 0, 3, 2)]
    assert not Suggestion("", (), "", Figures(3, 0, 0, 0, 0, 0), True).gains


def seeds(h, s):
    for _ in range(2):
        h = (h + (s.sin() - s.sin().detach())).cos()
    return h


def test_no_more_tries_than_the_limit_and_a_try_that_fails(monkeypatch):
    """Given more edits than are tried, the rest says so; a try that fails says with what, and costs nothing else."""
    model, x = Seeded(), torch.randn(8, 16)
    monkeypatch.setattr(suggest, "MOST", 1)
    report = explained(model, x, suggest=True)
    assert report.tries == 1 and [each.tried for each in report.suggestions] == [True, False]
    assert "make one of those first" in report.suggestions[1].why_not

    def failing(*args, **kwargs):
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(suggest, "with_passes", failing)
    report = explained(model, x, suggest=True)
    assert [each.tried for each in report.suggestions] == [False, False] and report.tries == 1
    assert report.suggestions[0].said_of_freeing() == "not tried: ZeroDivisionError: first line"


MODEL = f"""
import torch
{inspect.getsource(seeds)}
def example():
    return seeds, (torch.randn(64, requires_grad=True), torch.randn(64, requires_grad=True))
"""


def test_in_the_table_the_json_and_the_page(tmp_path, capsys, monkeypatch):
    """From the command line; without being asked there is none, nor a word of it. Older JSON has none either."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    page, out = tmp_path / "report.html", tmp_path / "report.json"
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert main(["explain", f"{tmp_path / 'model.py'}:example", "--suggest", "--html", str(page), "--json", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    report = Report.from_json(out.read_text())
    assert Report.from_json(report.to_json()) == report and len(report.suggestions) == report.tries == 1
    (each,) = report.suggestions
    assert len(each.sites) == 2 and "suggestions, and what each would free of the forward:" in shown
    assert {*each.edit.replace(f"{tmp_path}/", "").split(), *each.said_of_freeing().split()} <= {*shown.split()}
    text = page.read_text()
    assert 'id="suggestions"' in text and each.said_of_freeing() in text
    assert "trying a suggestion, 1 of 1: level" in terminal.getvalue()
    data = json.loads(out.read_text())
    del data["suggestions"], data["tries"]
    old = Report.from_json(json.dumps(data))
    assert (old.suggestions, old.tries) == ((), None) and "suggest" not in str(old) and 'id="suggestions"' not in old.to_html()
    assert dataclasses.replace(report, suggestions=(), tries=None) == old


class Far(nn.Module):
    """A seed computed first and joined late: DDP's buckets end between the two. A layer has 1 MiB of weights."""

    def __init__(self, last):
        super().__init__()
        self.seed = nn.Linear(512, 512, bias=False)
        self.layers = nn.ModuleList(nn.Linear(512, 512, bias=False) for _ in range(2))
        self.last = nn.ModuleList(nn.Linear(512, 512, bias=False) for _ in range(last))

    def forward(self, h):
        seed = self.seed(h).tanh()
        for layer in self.layers:
            h = layer(h).relu()
        h = ste_compile.ste_forward(h, seed)
        for layer in self.last:
            h = layer(h).relu()
        return h


def test_the_bucket_that_holds_a_site_and_its_surrogate_is_kept(alone):
    """Given DDP, the smallest `bucket_cap_mb` that keeps both in one bucket gives what was promised, and a smaller one does not.

    Broken by: the number one too small; a site taken for the node of the same name in another part; seen to fail."""
    x, wrap = torch.randn(4, 512), nn.parallel.DistributedDataParallel
    wrapped = wrap(Far(1), bucket_cap_mb=1)
    report = explained(wrapped, x, numerics="finite", suggest=True)
    (each,) = report.suggestions
    file, line = line_of(Far.forward, "seed = ")
    assert each.edit == (
        f"Set bucket_cap_mb=3 in DistributedDataParallel: `self.seed(h).tanh()` ({file}:{line}) is then in one bucket with its site."
    )
    assert each.frees.matmuls == 1 and wrapped.bucket_bytes_cap == 2**20
    assert_kept(report, each, explained(wrap(Far(1), bucket_cap_mb=3), x, numerics="finite"))
    smaller = explained(wrap(Far(1), bucket_cap_mb=2), x, numerics="finite")
    assert totals(smaller).matmuls == totals(report).matmuls


def test_where_no_bucket_holds_both_to_cut_nothing_is_kept(alone):
    """Given a site in DDP's first bucket, which ends at 1 MiB whatever is asked for."""
    x, wrapped = torch.randn(4, 512), nn.parallel.DistributedDataParallel(Far(0), bucket_cap_mb=1)
    report = explained(wrapped, x, numerics="finite", suggest=True)
    (each,) = report.suggestions
    assert each.kind == "DDP" and "optimize_ddp=False" in each.edit
    with torch._dynamo.config.patch(optimize_ddp=False):
        assert_kept(report, each, explained(wrapped, x, numerics="finite"))


class Blocked(nn.Module):
    """A seed that is detached by a block without gradients, or by `.detach()`."""

    def __init__(self, block=True):
        super().__init__()
        self.seed, self.block = nn.Linear(32, 32), block

    def forward(self, h):
        seed = self.seed(h).tanh()
        if self.block:
            with torch.no_grad():
                fixed = seed.clone()
        else:
            fixed = seed.clone().detach()
        return h + (seed - fixed)


def through_options(fn, *args, numerics):
    """What a forward amounts to that stock's backend compiles with our options."""
    torch._dynamo.reset()
    meter, recorder = calls.Meter(), Recorder()
    options = {**ste_compile.inductor_options(numerics=numerics), **calls.after_fusion(meter.scheduled)}
    with recording(recorder):
        torch.compile(fn, options=options)(*args)
    (each,) = recorder.records
    return each.parts["forward"] | meter.totals[each.compilation, "forward"]


def test_a_block_without_gradients_that_inductor_options_do_not_see():
    """Given a site that this package's backends alone find, `.detach()` gives through `inductor_options` what was promised."""
    x = torch.randn(16, 32)
    report = explained(Blocked(), x, numerics="finite", suggest=True)
    (each,) = report.suggestions
    file, line = line_of(Blocked.forward, "fixed = seed")
    assert each.kind == "no_grad" and f"Write `.detach()` on `seed.clone()` ({file}:{line})" in each.edit
    lost, kept = (through_options(Blocked(block), x, numerics="finite") for block in (True, False))
    assert each.tried and each.frees == lost - kept and each.frees.matmuls == 1
    assert totals(report) == totals(explained(Blocked(False), x, numerics="finite"))


def test_a_block_without_gradients_inside_another_is_kept():
    """Given a model that is run without gradients, where Dynamo shows no such block, `.detach()` gives what was promised."""
    x = torch.randn(16, 32)
    with torch.no_grad():
        report = explained(Blocked(), x, numerics="finite", suggest=True)
        (each,) = report.suggestions
        file, line = line_of(Blocked.forward, "fixed = seed")
        assert not report.sites and f"Write `.detach()` on `seed.clone()` ({file}:{line})" in each.edit
        assert [(site.file, site.line) for site in each.sites] == [line_of(Blocked.forward, "return h")]
        assert each.frees.matmuls == 1
        assert_kept(report, each, explained(Blocked(False), x, numerics="finite"))
