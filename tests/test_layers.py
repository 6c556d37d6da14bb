"""The layers of the package: who may import whom. Read off the sources, imports inside functions included.

ste_compile/inspection, testing, backends, hooks, lowering, ...     may import what is below
ste_compile/_torch                                                  private torch, and nothing of ours
passes                                                              public torch, and nothing above them
"""

import ast
import graphlib
import pathlib

import pytest

pytestmark = pytest.mark.quick
ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = {"ste_compile.passes": ROOT / "passes", "ste_compile": ROOT / "ste_compile"}


def name_of(path):
    package, folder = next(each for each in PACKAGES.items() if path.is_relative_to(each[1]))
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join((package, *parts[: -1 if parts[-1] == "__init__" else None]))


SOURCES = {name_of(path): path for folder in PACKAGES.values() for path in folder.rglob("*.py")}


def imported(module):
    """The modules of this package that a module imports, by their full names."""
    path = SOURCES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text())
    for_types = [
        each for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" for each in node.body
    ]
    for node in ast.walk(tree):
        if node in for_types:  # never run
            continue
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in SOURCES)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join((*base, *([node.module] if node.module else [])))
            for each in node.names:
                found = f"{source}.{each.name}" if f"{source}.{each.name}" in SOURCES else source
                if found in SOURCES:
                    yield found


GRAPH = {module: set(imported(module)) - {module} for module in SOURCES}


@pytest.mark.parametrize("layer", ("ste_compile.passes", "ste_compile._torch"))
def test_the_lower_layers_import_nothing_of_what_is_above_them(layer):
    """Broken by: `from ..hooks import ...` in a pass."""
    inside = {module for module in GRAPH if f"{module}.".startswith(f"{layer}.")}
    assert inside
    assert {module: above for module in inside if (above := GRAPH[module] - inside)} == {}


def test_no_module_imports_itself_by_way_of_others():
    """Broken by: a helper that is imported from a module that needs it, inside a function too. The error names the cycle."""
    modules = {module: {each for each in others if SOURCES[each].name != "__init__.py"} for module, others in GRAPH.items()}
    assert len(list(graphlib.TopologicalSorter(modules).static_order())) >= len(SOURCES)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_module_is_longer_than_a_few_pages(module):
    lines = len(SOURCES[module].read_text().splitlines())
    assert lines <= 250
