from __future__ import annotations

import ast
import builtins
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "restage"
MODULES = sorted(
    ".".join(("restage", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if "assets" not in path.parts
)
# Need a package that only an environment of its own has.
NEEDS_EXTRA = [name for name in MODULES if name.startswith("restage.nerfstudio")]


def _path(module: str) -> Path:
    path = PACKAGE.parent / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("name", [module for module in MODULES if module not in NEEDS_EXTRA])
def test_every_public_name_of_a_module_can_be_imported(name: str) -> None:
    module = importlib.import_module(name)
    missing = [public for public in getattr(module, "__all__", ()) if not hasattr(module, public)]
    assert not missing, f"{name}.__all__ names what is not there: {missing}"


@pytest.mark.parametrize("name", NEEDS_EXTRA)
def test_every_public_name_of_a_module_that_cannot_be_imported_here_is_bound_in_it(name: str) -> None:
    tree = ast.parse(_path(name).read_text())
    lists = re.findall(r"^__all__ \+?= (\[.*?\])", _path(name).read_text(), re.MULTILINE | re.DOTALL)
    missing = {public for names in lists for public in ast.literal_eval(names)} - bound_names(tree)
    assert not missing, f"{name}.__all__ names what is not there: {missing}"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_and_what_is_public(name: str) -> None:
    path = _path(name)
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    has_code = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
    assert "__all__" in names or not has_code, f"{path} has no __all__"


def bound_names(tree: ast.AST) -> set[str]:
    """All names that a file binds anywhere."""
    found = {*dir(builtins), "__file__", "__name__", "__doc__", "__path__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
    return found


# ruff and pyright are told not to look for undefined names, since shapes in jaxtyping strings are not names.
@pytest.mark.parametrize("folder", ["restage", "benchmarks", "miniature"])
def test_every_name_that_is_used_is_bound_somewhere_in_its_file(folder):
    root = Path(__file__).parents[1]
    unknown = []
    for path in sorted((root / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        bound = bound_names(tree)
        used = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
        unknown += [f"{path.relative_to(root)}:{node.lineno} {node.id}" for node in used if node.id not in bound]
    assert not unknown
