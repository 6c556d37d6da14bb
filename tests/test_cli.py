"""The command line, as a stranger types it."""

import json
import subprocess
import sys

import pytest
from ste_compile.passes.levels import LEVELS

from ste_compile.__main__ import main

from .compare import ALLOWED

MODEL = """
import torch, ste_compile

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seed = torch.nn.Linear(8, 8)

    def forward(self, h, scale=1):
        return ste_compile.ste_forward(h, self.seed(h.detach())) * scale

def example():
    return Model(), (torch.randn(4, 8),)

def with_kwargs():
    return Model(), [torch.randn(4, 8)], {"scale": 2}

def a_number():
    return 3

def no_tuple():
    return Model(), torch.randn(4, 8)

def wrong_shape():
    return Model(), (torch.randn(3),)

@torch.library.custom_op("model::liar", mutates_args=())
def liar(x: torch.Tensor) -> torch.Tensor:
    return x.clone()

liar.register_fake(lambda x: x.new_empty(3))

def not_compilable():
    return lambda x: liar(x) + 1, (torch.ones(2),)

name = "not a function"
"""


@pytest.fixture
def cli(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "broken.py").write_text("import torch\n1 / 0\n")

    def cli(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "ste_compile", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    return cli


def test_explain_prints_the_table_and_writes_what_is_asked_for(cli, tmp_path):
    done = cli("explain", "model.py:example", "--numerics", "finite", "--html", "out.html", "--json", "out.json", "--diff")
    assert done.returncode == 0, done.stderr
    assert "cancelled: permitted by numerics='finite'" in done.stdout and "model.py:10" in done.stdout
    assert "-addmm: f32[4, 8] = aten.addmm(" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["graphs"][0]["sites"][0]["action"] == "cancelled"
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>") and "wrote out.html" in done.stderr


def test_json_on_standard_output_is_json_alone(cli):
    done = cli("explain", "model.py:with_kwargs", "--json", "-")
    assert done.returncode == 0 and json.loads(done.stdout)["numerics"] == "exact"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    (
        (["explain", "nowhere.py:example"], 2, "no file 'nowhere.py'"),
        (["explain", "model.py"], 2, "'model.py' is not FILE.py:callable"),
        (["explain", "model.py:missing"], 2, "'model.py' has no callable 'missing'; its functions: a_number, example"),
        (["explain", "model.py:name"], 2, "has no callable 'name'"),
        (["explain", "model.py:a_number"], 2, "model.py:a_number returned int; allowed: (model, args) or (model, args, kwargs)"),
        (["explain", "model.py:no_tuple"], 2, "returned args of type Tensor"),
        (["explain", "model.py:example", "--html", "no/such/out.html"], 2, "the folder of 'no/such/out.html' does not exist"),
        (
            ["explain", "model.py:example", "--numerics", "fast"],
            2,
            f"numerics='fast' is not a level; allowed: {ALLOWED}",
        ),
        (["explain", "broken.py:example"], 1, "broken.py fails when it is imported:\nTraceback (most recent call last):\n  File"),
        (["explain", "model.py:wrong_shape"], 1, "mat1 and mat2 shapes cannot be multiplied"),
        (["explain", "model.py:not_compilable"], 3, "the model runs in eager, and its compilation fails:"),
        (["run", "nowhere.py"], 2, "no file 'nowhere.py'"),
        (["run", "-m", "nowhere"], 2, "no module 'nowhere'"),
        (["run", "-m", "no.where"], 2, "no module 'no.where'"),
        (["run", "--numerics", "fast", "model.py"], 2, f"numerics='fast' is not a level; allowed: {ALLOWED}"),
        (["run", "--report", "no/such/out.html", "model.py"], 2, "the folder of 'no/such/out.html' does not exist"),
        (["run", "--json", "-", "model.py"], 2, "--json -: standard output is the script's; a file is allowed"),
        (["run"], 2, "the following arguments are required: SCRIPT.py\n"),
        ([], 2, "run | explain | rewrite | backends"),
    ),
)
def test_a_mistake_gets_its_own_message_and_exit_code(cli, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    try:
        returned = main(arguments)  # not a process of its own: they take seconds to start
    except SystemExit as exit:
        returned = exit.code
    out, err = capsys.readouterr()
    assert returned == code and message in err, err
    assert "ste_compile/__main__" not in err and not out


def test_backends_and_help(cli):
    names = [line.split()[0] for line in cli("backends").stdout.splitlines()]
    assert names == [*(level.backend for level in LEVELS.values()), "ste_aot_eager"]
    text = cli("--help").stdout
    assert "examples:" in text and "exit codes: 0 done" in text
    assert "--html OUT" in cli("explain", "--help").stdout
