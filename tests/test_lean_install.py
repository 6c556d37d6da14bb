"""What works without the extra `ste-compile[report]`, and what the rest says."""

import os
import subprocess
import sys
import textwrap

import pytest

import ste_compile

from .reports import big, small

EXTRA = ("pygments", "rich")
PAGE = ("ste_compile.inspection.page", "ste_compile.inspection.drawing")


@pytest.fixture
def hidden(monkeypatch):
    """Make a package look as if it were not installed; the page is imported anew."""

    def hidden(*packages):
        for name in [name for name in sys.modules if name in PAGE or name.split(".")[0] in packages]:
            monkeypatch.delitem(sys.modules, name)
        for name in packages:
            monkeypatch.setitem(sys.modules, name, None)

    return hidden


def run(program, *arguments, **environment):
    """A fresh process in which the extra is not there."""
    lean = f"import sys\nfor name in {EXTRA}: sys.modules[name] = None\n"
    command = [sys.executable, "-c", lean + textwrap.dedent(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ, **environment))
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.parametrize("package", ("pygments", "jinja2", "networkx"))
def test_the_page_names_what_it_needs_and_the_extra(hidden, tmp_path, package):
    hidden(package)
    with pytest.raises(ModuleNotFoundError, match=rf"^the page needs {package}: pip install 'ste-compile\[report\]'$"):
        small().to_html(tmp_path / "index.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "report", (small(), big(200, 20), ste_compile.Report("exact", "2.13.0", ())), ids=("small", "big", "empty")
)
def test_without_rich_the_text_has_the_same_words_line_by_line(hidden, report):
    """Broken by: a plain rendering that leaves out a column; seen to fail."""
    tables = {word.strip(":") for word in str(report).split() if set(word) != {"\N{BOX DRAWINGS LIGHT HORIZONTAL}"}}
    hidden("rich")
    plain = str(report)
    assert "\N{BOX DRAWINGS LIGHT HORIZONTAL}" not in plain and max(map(len, plain.splitlines())) <= 100
    assert tables == {word.strip(":") for word in plain.split()}


def test_without_rich_each_figure_stands_after_its_heading(hidden):
    hidden("rich")
    assert "\nforward\n  operators: 30 -> 21\n  matmuls: 5 -> 3\n  kernels: 12 -> 7\n  read: 42.0 -> 28.0 MiB\n" in str(small())


MODEL = """
import torch, ste_compile

def model(h, s):
    return h + (s.sin() - s.sin().detach())

def example():
    return model, (torch.ones(4), torch.ones(4))
"""


def test_explain_and_its_progress_work():
    """Given a terminal, and nothing of the extra, `explain` compiles, says how far it is, and its report is printed."""
    done = run(
        MODEL
        + """
sys.stderr.isatty = lambda: True
report = ste_compile.explain(model, torch.ones(4), torch.ones(4), numerics="finite")
assert [site.action for site in report.sites] == ["cancelled"]
print(report)
"""
    )
    assert "action: cancelled: permitted by numerics='finite'" in done.stdout
    assert "ste-compile: compiling as stock does, 2 of 2 ..." in done.stderr


def test_the_command_line_prints_its_table(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    program = "from ste_compile.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    done = run(program, "explain", f"{tmp_path / 'model.py'}:example", "--numerics", "finite")
    assert "action: cancelled: permitted by numerics='finite'" in done.stdout and "site: " in done.stdout


def test_a_script_is_run_and_its_table_printed(tmp_path):
    (tmp_path / "script.py").write_text(f"{MODEL}\ntorch.compile(model)(torch.ones(4), torch.ones(4, requires_grad=True))\n")
    program = "from ste_compile.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    done = run(program, "run", "--numerics", "finite", str(tmp_path / "script.py"))
    assert "in training: cancelled: permitted by numerics='finite'" in done.stderr and "site " in done.stderr


def test_a_dump_is_written_but_for_its_page_and_one_warning_says_why(tmp_path):
    """Given two graphs, each folder has all else. Broken by: a warning for each record, or for each time it has grown; seen to fail."""
    program = (
        MODEL
        + """
torch.compile(model, backend="ste_aot_eager")(torch.ones(4), torch.ones(4, requires_grad=True)).sum().backward()
torch.compile(lambda h, s: model(h, s), backend="ste_aot_eager")(torch.ones(4), torch.ones(4))
"""
    )
    done = run(program, STE_COMPILE_DUMP=str(tmp_path), STE_COMPILE_STRICT="1", PYTHONWARNINGS="always")
    written = [{path.name for path in folder.iterdir()} for folder in sorted(tmp_path.iterdir())]
    assert written == [
        {"before.py", "after.py", "forward.py", "backward.py", "sites.json"},
        {"before.py", "after.py", "inference.py", "sites.json"},
    ]
    assert done.stderr.count("no index.html is written, the page needs pygments: pip install 'ste-compile[report]'") == 1
