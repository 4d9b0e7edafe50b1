"""How many small faults the tests of a module notice: plants them one at a time and runs the tests of each.

    python -m benchmarks.mutants restage/scores/statistics.py tests/scores/test_statistics.py
    python -m benchmarks.mutants restage/records.py tests/test_records.py --lines 120-150   # only some lines

A mutant is the module with one comparison, operator, condition, constant, argument or returned value changed, or one
statement deleted. Docstrings, annotations, decorators, `__all__` and the texts of errors are left alone. A mutant is
killed if a test fails, or takes ten times as long. Each runs in a fork of a process that has loaded all that does not
import the module, and sees the changed source in place of the file, which is never written to. Processes that a test
starts by itself see the unchanged module. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import json
import os
import pickle
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
DELETED = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Delete)


@dataclass(frozen=True)
class Mutant:
    line: int
    kind: str
    change: str
    source: str


Variant = tuple[str, ast.AST]


def changed(node: ast.AST, **fields: Any) -> Any:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def without(items: list[Any], index: int) -> list[Any]:
    return items[:index] + items[index + 1 :]


def replaced(items: list[Any], index: int, item: Any) -> list[Any]:
    return [*items[:index], item, *items[index + 1 :]]


def variants_of_constant(node: ast.Constant) -> Iterator[Variant]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int | float):
        yield "constant", ast.Constant(value + 1)
        if isinstance(value, float) and value:
            yield "constant", ast.Constant(value / 2)
    elif isinstance(value, str):
        yield "constant", ast.Constant(f"XX{value}XX")


def variants_of_call(node: ast.Call) -> Iterator[Variant]:
    for index, argument in enumerate(node.args):
        if not isinstance(argument, ast.Starred | ast.Constant):
            yield "argument", changed(node, args=replaced(node.args, index, ast.Constant(None)))
    for index, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            yield "argument", changed(node, keywords=without(node.keywords, index))


def variants_of(node: ast.AST) -> Iterator[Variant]:
    """All small faults of one node, those of its children not among them."""
    match node:
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                for other in COMPARISONS[type(operator)]:
                    yield "comparison", changed(node, ops=replaced(node.ops, index, other()))
        case ast.BinOp() | ast.AugAssign() if type(node.op) in OPERATORS:
            yield "arithmetic", changed(node, op=OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield "boolean", changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            for index in range(len(node.values)):
                yield "boolean", changed(node, values=without(node.values, index))
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield "boolean", node.operand
        case ast.If() | ast.IfExp():
            for value in (True, False):
                yield "condition", changed(node, test=ast.Constant(value))
        case ast.comprehension():
            for index in range(len(node.ifs)):
                yield "condition", changed(node, ifs=without(node.ifs, index))
        case ast.Constant():
            yield from variants_of_constant(node)
        case ast.Call():
            yield from variants_of_call(node)
        case ast.Return(value=ast.AST()) if not isinstance(node.value, ast.Constant):
            yield "return", changed(node, value=ast.Constant(None))
    if isinstance(node, DELETED):
        yield "statement", ast.Pass()


class Planter(ast.NodeTransformer):
    """Plants the n-th fault of a module; without a number, only counts them."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted, self.count = wanted, 0
        self.line, self.kind, self.change = 0, "", ""

    def visit(self, node: ast.AST) -> Any:
        if is_left_alone(node):
            return node
        for kind, variant in variants_of(node):
            if self.count == self.wanted:
                self.line, self.kind = getattr(node, "lineno", self.line), kind
                self.change = f"{first_line(node)}  ->  {first_line(variant)}"
                self.count += 1
                return variant
            self.count += 1
        if isinstance(node, ast.Raise):  # the text of an error is for people
            return node
        skipped = {"annotation", "returns", "decorator_list"}
        if isinstance(node, ast.expr | ast.stmt):
            self.line = node.lineno if self.count <= self.wanted else self.line
        for name, value in ast.iter_fields(node):
            if name in skipped:
                continue
            if isinstance(value, list):
                setattr(node, name, [self.visit(item) if isinstance(item, ast.AST) else item for item in value])
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node


def is_left_alone(node: ast.AST) -> bool:
    """Whether nothing in a node is to be changed: imports, documentation, names for others."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.AugAssign(target=ast.Name(id="__all__")):
            return True
    return False


def first_line(node: ast.AST) -> str:
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))
    return re.sub(r"\s+", " ", text)[:110]


def mutants_of(source: str) -> list[Mutant]:
    counter = Planter()
    counter.visit(ast.parse(source))
    mutants = []
    for number in range(counter.count):
        planter = Planter(number)
        tree = ast.fix_missing_locations(planter.visit(ast.parse(source)))
        mutants.append(Mutant(planter.line, planter.kind, planter.change, ast.unparse(tree)))
    return mutants


def see_source(module: Path, source: str) -> None:
    """Let this process find another source in a module's place, and no compiled file of it."""
    read = SourceFileLoader.get_data

    def get_data(self: SourceFileLoader, path: str) -> bytes:
        if Path(path).resolve() == module:
            return source.encode()
        if path.endswith(".pyc") and Path(path).name.startswith(f"{module.stem}."):
            raise OSError("the module has another source")
        return read(self, path)

    SourceFileLoader.get_data = get_data  # type: ignore[method-assign]
    sys.dont_write_bytecode = True


def in_fork(work: Callable[[], Any], timeout_s: float) -> Any:
    """What `work` returns in a fork of this process; None if it takes too long or ends otherwise."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        result = None
        with contextlib.suppress(BaseException):
            result = work()
        with os.fdopen(sink, "wb") as file:
            pickle.dump(result, file)
        os._exit(0)
    os.close(sink)

    def end(*_: Any) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        with os.fdopen(source, "rb") as file:
            text = file.read()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        end()
        os.waitpid(child, 0)
    return pickle.loads(text) if text else None


def run_tests(tests: list[str]) -> tuple[int, list[str]]:
    """Exit code of pytest, and the modules it has loaded."""
    before = set(sys.modules)
    # Types are checked by the hook that this process has installed: the plugin wants to come before the first module.
    addopts = "addopts=--import-mode=importlib --strict-markers"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:jaxtyping", "-o", addopts]
    code = int(pytest.main([*tests, *options]))
    return code, [name for name in sys.modules if name not in before]


def importers_of(module: Path) -> set[str]:
    """Names of the module and of all that import it, at the top of the file or within, directly or not."""
    imports: dict[str, set[str]] = {}
    for path in Path("restage").rglob("*.py"):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        found = imports.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
    known = {".".join(module.relative_to(Path.cwd()).with_suffix("").parts)}
    while more := {name for name, found in imports.items() if found & known} - known:
        known |= more
    return known


def load_all_but(names: set[str], loaded: list[str]) -> None:
    """Load what the tests need and what does not change, so that forks have it."""
    for name in loaded:
        is_test = name.startswith(("tests", "benchmarks", "miniature", "conftest", "_pytest", "__"))
        # A package is loaded before its modules; where its `__init__` imports one of ours, it comes later.
        if not is_test and not any(other == name or other.startswith(f"{name}.") for other in names):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each fork would look through all of it, and copy the memory by looking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--lines", default="", help="first and last line of what is changed, such as 20-40")
    parser.add_argument("--every", type=int, default=1, help="plant every n-th fault only")
    options = parser.parse_args()
    module: Path = options.module.resolve()
    mutants = mutants_of(module.read_text())[:: options.every]
    if options.lines:
        first, last = (int(part) for part in options.lines.split("-"))
        mutants = [mutant for mutant in mutants if first <= mutant.line <= last]
    install_import_hook("restage", "beartype.beartype")
    found = in_fork(lambda: run_tests(options.tests), 1200)
    if found is None or found[0]:
        raise SystemExit("the tests fail without a fault")
    load_all_but(importers_of(module), found[1])
    start = time.monotonic()
    in_fork(lambda: run_tests(options.tests), 1200)
    base_s = time.monotonic() - start

    def killed_by_tests(mutant: Mutant) -> bool:
        def work() -> int:
            see_source(module, mutant.source)
            return run_tests(options.tests)[0]

        return in_fork(work, 20 + 10 * base_s) != 0

    made, killed = Counter[str](), Counter[str]()
    for mutant in mutants:
        made[mutant.kind] += 1
        if killed_by_tests(mutant):
            killed[mutant.kind] += 1
        else:
            print(f"survived: line {mutant.line}: {mutant.kind}: {mutant.change}", flush=True)
    share = killed.total() / max(1, made.total())
    kinds = {kind: [killed[kind], made[kind]] for kind in sorted(made)}
    record = {
        "module": str(options.module),
        "mutants": made.total(),
        "killed": killed.total(),
        "share": round(share, 4),
    }
    print(json.dumps({**record, "killed_and_made_by_kind": kinds, "seconds": round(time.monotonic() - start)}))


if __name__ == "__main__":
    main()
