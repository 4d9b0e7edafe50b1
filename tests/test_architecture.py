from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "restage"
MODULES = {
    ".".join(("restage", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "assets" not in path.parts
}

# Every room of the house, low to high: a module imports from its own room and from rooms before it in this list.
ROOMS = (
    "records",
    "run",
    "scores",
    "work",
    "diffusion",
    "scenes",
    "regions",
    "world",
    "clips",
    "prompts",
    "pairs",
    "train",
    "edit",
    "generate",
    "compare",
    "studies",
    "audit",
    "report",
    "recipes",
    "api",
    "diagnose",
    "view",
    "serve",
    "nerfstudio",
    "doctor",
    "commands",
    "cli",
)


@functools.cache
def imports_of(name: str) -> set[str]:
    """The modules of the package that a module imports, at its top, inside functions, and for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import"
            module = node.module or ""
            parts = [f"{module}.{alias.name}" for alias in node.names]
            found |= {part if part in MODULES else module for part in parts}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    # Importing a module runs the packages around it first.
    found |= {other.rsplit(".", depth)[0] for other in found for depth in range(1, other.count(".") + 1)}
    found = {other for other in found if not f"{name}.".startswith(f"{other}.")}
    return {other for other in found if other in MODULES and other not in ("restage", name)}


def find_circle(edges: dict[str, set[str]]) -> list[str]:
    """Some circle in a graph, or nothing."""
    finished: set[str] = set()
    for start in edges:
        trail: list[tuple[str, list[str]]] = [(start, sorted(edges[start]))]
        while trail:
            node, rest = trail[-1]
            on_trail = [name for name, _ in trail]
            if not rest or node in finished:
                finished.add(node)
                trail.pop()
                continue
            other = rest.pop()
            if other in on_trail:
                return [*on_trail[on_trail.index(other) :], other]
            if other not in finished:
                trail.append((other, sorted(edges[other])))
    return []


def test_every_module_is_in_a_room_of_the_list() -> None:
    rooms = {name.split(".")[1] for name in MODULES if "." in name}
    assert rooms <= set(ROOMS)


@pytest.mark.parametrize("name", [name for name in MODULES if "." in name])
def test_imports_point_from_high_rooms_to_low_ones(name: str) -> None:
    own = name.split(".")[1]
    for other in imports_of(name):
        room = other.split(".")[1]
        assert ROOMS.index(room) <= ROOMS.index(own), f"{name} imports {other}, which is in a higher room"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert find_circle({name: imports_of(name) for name in MODULES}) == []


def test_a_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) in (["b", "c", "b"], ["c", "b", "c"])


@pytest.mark.parametrize("name", MODULES)
def test_the_package_needs_nothing_of_the_clone_around_it(name: str) -> None:
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    assert not found & {"benchmarks", "miniature", "tests"}


def test_only_whole_runs_and_commands_know_the_report() -> None:
    allowed = {"report", "recipes", "commands"}
    users = {name for name in MODULES if any(other.startswith("restage.report") for other in imports_of(name))}
    assert {name.split(".")[1] for name in users} <= allowed
