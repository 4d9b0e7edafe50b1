from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "restage"
MODULES = sorted(
    ".".join(("restage", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if "assets" not in path.parts
)
# Need a package that only an environment of its own has.
NEEDS_EXTRA = {"restage.nerfstudio_methods"} | {
    f"restage.nerfstudio.{name}" for name in ("export", "pipelines", "scene", "splatfacto", "trainer", "views")
}


def _path(module: str) -> Path:
    path = PACKAGE.parent / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("name", [module for module in MODULES if module not in NEEDS_EXTRA])
def test_every_public_name_of_a_module_can_be_imported(name: str) -> None:
    module = importlib.import_module(name)
    missing = [public for public in getattr(module, "__all__", ()) if not hasattr(module, public)]
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


# The layers of the house, low to high: a module imports from its own package and from lower layers.
LAYERS = (
    {"records"},
    {"diffusion", "scenes", "world"},
    {"prompts", "pairs", "train", "edit", "compare", "report", "miniature", "show", "stages"},
    {"recipes", "view"},
    {"cli"},
)


def _layer(name: str) -> int | None:
    for level, members in enumerate(LAYERS):
        if name in members:
            return level
    return None


@pytest.mark.parametrize("name", [module for module in MODULES if module.count(".")])
def test_imports_point_from_high_layers_to_low_ones(name: str) -> None:
    own = name.split(".")[1]
    level = _layer(own)
    if level is None:
        pytest.skip(f"{own} is in no layer")
    for node in ast.walk(ast.parse(_path(name).read_text())):
        imported: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported = [node.module] if node.module != "restage" else [f"restage.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        for target in imported:
            if not target.startswith("restage.") or target.split(".")[1] == own:
                continue
            other = _layer(target.split(".")[1])
            assert other is None or other <= level, f"{name} imports {target}, which is above it"


@pytest.mark.parametrize("name", [module for module in MODULES if module.startswith("restage.")])
def test_no_module_imports_the_report(name: str) -> None:
    if name.split(".")[1] in ("report", "recipes", "cli"):
        return
    assert "restage.report" not in _path(name).read_text(), f"{name} uses the report, which only reads"
