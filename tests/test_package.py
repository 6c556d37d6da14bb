"""The package as it is read and shipped."""

import ast
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re

import pytest

import ste_compile

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = [*(ROOT / "ste_compile").rglob("*.py"), *(ROOT / "passes").glob("*.py"), *(ROOT / "examples").glob("*.py")]


OPERATORS = "torch.ops."  # their names are in a schema that torch publishes


def is_private(name):
    """Whether a dotted name leads through a private part of torch, `torch._C` or `torch.utils._pytree`."""
    return name.startswith("torch.") and not name.startswith(OPERATORS) and re.search(r"\._(?!_)", name)


def torch_names(node):
    """The dotted names that a node imports, or reads as attributes of `torch`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Attribute) and re.fullmatch(r"torch(\.\w+)+", name := ast.unparse(node)):
        return [name]
    return []


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.parent.name != "_torch"], ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_only_one_package_uses_private_torch(path):
    """Breaks if a private name is used without `_torch`, which says what happens on a torch that lacks it."""
    found = {name for node in ast.walk(ast.parse(path.read_text())) for name in torch_names(node) if is_private(name)}
    assert not found


MODULES = [
    m.name
    for package in (
        ste_compile,
        *map(importlib.import_module, ("ste_compile.inspection", "ste_compile.passes", "ste_compile.testing")),
    )
    for m in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    if not m.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    import torch

    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"torch": torch})
    assert not failed


def test_public_names_have_docstrings_with_an_example():
    for name in ("backend", "inductor_options", "ste_forward"):
        assert ">>>" in getattr(ste_compile, name).__doc__
    for name in ste_compile.testing.__all__:
        assert ">>>" in getattr(ste_compile.testing, name).__doc__
    for name in importlib.import_module("ste_compile.passes").__all__:
        assert getattr(importlib.import_module("ste_compile.passes"), name).__doc__


PAGES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in ("ste_compile", "passes", "tests", "examples"))]
PAGES += [ROOT / ".github" / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    """To a file, and to a heading of it. Broken by a file or a heading that is renamed."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)):
        path, _, heading = target.partition("#")
        if not path.startswith("http"):
            found = page.parent / path if path else page
            assert found.exists(), target
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE) if heading else ()
            assert not heading or heading in {re.sub(r"[^a-z0-9_ -]", "", each.lower()).replace(" ", "-") for each in headings}, (
                target
            )


def test_the_first_page_shows_lines_that_are_there():
    """In its two printed reports. Broken by a line that is added above them."""
    for file, start in (
        ("examples/morphogenetic.py", "ste_compile.ste_forward(h,"),
        ("tests/programs/accelerate_loop.py", "nn.functional.gumbel_softmax("),
    ):
        line = re.search(rf"{pathlib.Path(file).name}:(\d+) ", PAGES[0].read_text())[1]
        assert start in (ROOT / file).read_text().splitlines()[int(line) - 1]


def test_the_first_page_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", ste_compile.__all__)
def test_the_reference_has_a_section_for_each_public_name(name):
    """With its parameters, in order, and their defaults.
    Broken by a parameter that the section does not have."""
    heading = re.search(rf"^## `ste_compile\.{name}(.*)`$", (ROOT / "ste_compile" / "README.md").read_text(), re.MULTILINE)
    assert heading
    if heading[1]:
        signature = inspect.signature(getattr(ste_compile, name))
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY]
        first = [
            p.replace(annotation=p.empty, kind=p.POSITIONAL_OR_KEYWORD)
            for p in signature.parameters.values()
            if p.kind is p.POSITIONAL_ONLY
        ]
        assert heading[1].replace('"', "'") == str(inspect.Signature([*first, *bare]))


def test_there_is_no_integration_without_a_test():
    """Each row of its table names tests, and each of them is there.
    Broken by a test that is renamed."""
    table = (ROOT / "tests" / "README.md").read_text().split("## Integrations")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    for row in rows:
        named = re.findall(r"(test_\w+)\.py(?:::(test_\w+))?", row)
        assert named, row
        for module, test in named:
            (path,) = (ROOT / "tests").rglob(f"{module}.py")
            assert f"def {test or 'test_'}" in path.read_text(), row
