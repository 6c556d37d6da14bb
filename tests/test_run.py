"""`python -m ste_compile run`: the script as `python` would execute it, and what its `torch.compile` did.

Broken by: `_hide_own_frames`, `end_like_python` or the handler of SIGTERM left out; `runpy.run_path` in the place of `_execute_file`; a
recorder that is not `with_caches`; a key without source lines; nothing kept; a handler that always kills; seen to fail.
"""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from ste_compile import run as running
from ste_compile.inspection import kept, summary
from ste_compile.inspection.figures import Figures
from ste_compile.inspection.report import Break, Graph, Operand, Part, Report, Site

PLAIN = {
    "arguments": """
        import sys, pickle
        class Pickled: pass
        print(sys.argv, sys.path[0], __name__, __file__, __spec__, sys.modules["__main__"].__dict__ is globals())
        print(type(pickle.loads(pickle.dumps(Pickled()))).__module__)
        sys.exit(3)
        """,
    "exception": """
        import atexit
        atexit.register(print, "at exit")
        def fails():
            raise KeyError("wrong")
        fails()
        """,
    "syntax": "x = (",
    "interrupted": "raise KeyboardInterrupt",
}


@pytest.fixture
def python(tmp_path):
    def python(*arguments, **env):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, **env})

    return python


@pytest.mark.parametrize("name", PLAIN)
def test_a_script_is_executed_as_python_would(python, tmp_path, name):
    """Output, exit code and traceback are the same, and only the table comes after them."""
    (tmp_path / "scripts").mkdir()
    script = f"scripts/{name}.py"
    (tmp_path / script).write_text(textwrap.dedent(PLAIN[name]))
    wanted, ours = python(script, "--lr", "1", "--", "-m"), python("-m", "ste_compile", "run", script, "--lr", "1", "--", "-m")
    assert ours.returncode == wanted.returncode and ours.stdout == wanted.stdout
    assert ours.stderr.startswith(wanted.stderr)
    assert "nothing was compiled: torch.compile was not called" in ours.stderr[len(wanted.stderr) :]


def test_a_module_is_executed_as_python_would(python, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text("import sys; print(sys.argv, __name__, __package__, __spec__.name); 1 / 0")
    wanted, ours = python("-m", "package", "-x"), python("-m", "ste_compile", "run", "-m", "package", "-x")
    assert ours.stdout == wanted.stdout and ours.returncode == wanted.returncode == 1
    own = re.compile(r'  File "<frozen runpy>".*\n')  # of which `python -m` shows its own
    assert own.sub("", ours.stderr).startswith(own.sub("", wanted.stderr))


TRAIN = """
import sys, torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.host, self.seed = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    def forward(self, x):
        h = self.host(x)
        s = self.seed(h.detach())
        return h + (s - s.detach())
torch.manual_seed(0)
net = Net()
for i in range(2):
    loss = torch.compile(net)(torch.randn(4, 8)).pow(2).mean()
    loss.backward()
    print(loss.item())
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_is_compiled_and_what_comes_from_a_cache(python, tmp_path):
    """Given one cache directory, the second run is served from it, and reports what the first one found; a third, of which the cache
    was filled by the passes without `run`, says so. Killed, it says what was found until then, and its file is whole."""
    (tmp_path / "train.py").write_text(TRAIN)
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    run = ("-m", "ste_compile", "run", "--numerics", "finite", "--json", "out.json", "train.py")

    first = python(*run, **cache)
    assert first.returncode == 0, first.stderr
    found = json.loads((tmp_path / "out.json").read_text())["graphs"]
    (site,) = found[0]["sites"]
    assert (site["file"], site["line"], site["action"]) == (str(tmp_path / "train.py"), 10, "cancelled")
    assert {part["kind"] for part in found[0]["parts"]} == {"forward", "backward"} and not found[0]["from_cache"]
    assert "train.py:10" in first.stderr and "frees 1 matmul, 2 operators" in first.stderr
    assert "train.py:17: backend='eager' is not Inductor, and gets no passes" in first.stderr

    again = python(*run, **cache)
    assert again.stdout == first.stdout
    assert "1 graph, 1 of them from a compile cache" in again.stderr
    rows = [done.stderr.partition("ste-compile, torch")[2].splitlines()[1:] for done in (first, again)]
    assert rows[0] == rows[1] and rows[0]
    (served,) = json.loads((tmp_path / "out.json").read_text())["graphs"]
    assert served["from_cache"] and served["sites"][0]["frees"] == site["frees"]

    for path in (tmp_path / "cache" / "ste_compile").iterdir():
        path.unlink()
    (tmp_path / "out.json").unlink()
    with open(tmp_path / "err", "w+") as errors:
        command = [sys.executable, *run]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **cache},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        while process.stdout.readline() != "ready\n":
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
        process.stdin.close(), process.stdout.close()
        errors.seek(0)
        text = errors.read()
    assert "terminated by SIGTERM; this is what was compiled until then" in text
    assert "1 more graph came from a compile cache that keeps no word of their sites" in text
    assert Report.from_json((tmp_path / "out.json").read_text()).graphs == ()


def test_ranks_report_apart_and_the_first_one_prints(monkeypatch, tmp_path, capsys):
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank)), monkeypatch.setenv("WORLD_SIZE", "2")
        running.Run("exact", {tmp_path / "out.json": Report.to_json}).end()
        assert ("ste-compile, torch" in capsys.readouterr().err) is (rank == 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.rank_1.json"]


def test_a_handler_that_calls_ours_decides_what_happens_next(monkeypatch, capsys):
    """Given a script that composes its own handler of SIGTERM with the one that was there, ours prints, and kills nobody."""
    run = running.Run("exact", {})
    before = signal.signal(signal.SIGTERM, lambda number, frame: run._terminated(number, frame))
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "terminated by SIGTERM" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_loses_no_table(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("STE_COMPILE_STRICT", raising=False)
    run = running.Run("exact", {tmp_path / "gone" / "out.json": Report.to_json})
    with pytest.warns(UserWarning, match="_write failed and was skipped: FileNotFoundError"):
        run.end()
    assert "0 sites, 0 graphs" in capsys.readouterr().err


def traced(source):
    scope = {}
    exec(compile(source, "model.py", "exec"), scope)
    return torch.fx.symbolic_trace(scope["f"])


def test_what_decides_what_is_found_is_in_the_key():
    gm, moved = traced("def f(h, s):\n    return h + s"), traced("def f(h, s):\n    return h + s")
    next(iter(moved.graph.nodes)).stack_trace = "line 2"
    ones = [torch.ones(2, 2), torch.ones(2, 2)]
    key = kept.key_of(gm, ones)
    others = [
        kept.key_of(traced("def f(h, s):\n    return h - s"), ones),
        kept.key_of(moved, ones),
        kept.key_of(gm, ones, "another level"),
        kept.key_of(gm, [ones[0], torch.ones(2, 3)]),
        kept.key_of(gm, [ones[0], ones[1].double()]),
        kept.key_of(gm, [ones[0], torch.ones(2, 4)[:, ::2]]),
        kept.key_of(gm, [ones[0], torch.ones(2, 2, requires_grad=True)]),
    ]
    with torch.no_grad():
        others.append(kept.key_of(gm, ones))
    with torch.autocast("cpu"):
        others.append(kept.key_of(gm, ones))
    assert key == kept.key_of(gm, [torch.zeros(2, 2), torch.zeros(2, 2)])
    assert len({key, *others}) == 1 + len(others)


def test_what_another_version_kept_is_not_read(tmp_path):
    graph = Graph("0/0", True, "finite", ())
    kept.keep(tmp_path, "key", [graph])
    assert kept.load(tmp_path, "key") == (graph,) and kept.load(tmp_path, "other") is None
    (path,) = (tmp_path / "ste_compile").iterdir()  # nothing half-written beside it
    for text in ("{", "{}", path.read_text().replace('"schema": 1', '"schema": 0')):
        path.write_text(text)
        assert kept.load(tmp_path, "key") is None


def site(line, action, **more):
    frees = Figures(operators=3, matmuls=1)
    where = dict(file="/m/model.py", line=line, code="x", expression="h + (s - s.detach())")
    return Site(0, "add", **where, value=Operand("h", "f32[4]"), surrogates=(), casts=(), needs="finite", order="", action=action,
        reason="because", frees=frees, **more)  # fmt: skip


@pytest.mark.parametrize("rich", (True, False))
def test_a_line_of_code_is_one_row(rich, monkeypatch):
    """Given one line in two training graphs and one for inference, and another in training alone, each has one row, in a table or
    in plain lines. Broken by: plain lines of cells that must have a single line, seen to fail."""
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    training = Graph(
        "0/0", True, "finite", (site(3, "cancelled"), site(9, "left", notes=tuple("abcde"))), (Part("forward", Figures()),)
    )
    again, inference = Graph("0/1", True, "finite", (site(3, "cancelled"),)), Graph("0/2", False, "finite", (site(3, "fused"),))
    breaks = (Break("/m/model.py", 4, "no reason"),)
    text = summary.render(Report("finite", "2.13.0", (training, again, inference), breaks=breaks), [], lost=2)
    assert text.count("model.py:3") == text.count("model.py:9") == 1
    words = " ".join(text.split())
    assert "cancelled (2 times, in 2 graphs): because" in words and "frees 2 matmuls, 6 operators" in words
    assert "fused: because" in words and "and 2 notes like these" in words
    assert "2 more graphs came from a compile cache" in words and "graph break at /m/model.py:4, no reason" in words
    assert max(map(len, text.splitlines())) <= 100


def test_a_table_that_fails_says_so(monkeypatch, capsys):
    """Broken by: an error of ours that is taken for a closed standard error, seen to fail."""
    monkeypatch.setattr(summary, "render", lambda *args: int("not a number"))
    monkeypatch.delenv("STE_COMPILE_STRICT", raising=False)
    with pytest.warns(UserWarning, match="_table failed and was skipped: ValueError.*not a number"):
        running.Run("finite", {}).end()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "calls, said",
    (
        ([], "nothing was compiled: torch.compile was not called"),
        ([summary.Call("a.py", 3, "inductor")], "torch.compile was called (a.py:3), but no graph of it went there"),
        ([summary.Call("a.py", 3, "mine")], "a.py:3: backend='mine' is not Inductor, and gets no passes"),
    ),
)
def test_where_nothing_is_compiled_it_says_why(calls, said):
    assert said in " ".join(summary.render(Report("exact", "2.13.0", ()), calls).split())
