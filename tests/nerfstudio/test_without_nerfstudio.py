from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "restage"

HIDE = """
import importlib.abc, importlib.util, sys

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "nerfstudio":
            raise ModuleNotFoundError(name)

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "nerfstudio" else found(name, package)
sys.meta_path.insert(0, Hide())
"""


def test_where_nerfstudio_is_missing_the_import_says_what_to_run() -> None:
    script = f"""{HIDE}
from restage.records import InputError
try:
    import restage.nerfstudio.methods
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "make nerfstudio" in done.stdout


def test_nothing_else_of_restage_imports_the_nerfstudio_package() -> None:
    name = "restage.nerfstudio"
    for path in PACKAGE.rglob("*.py"):
        if path.parent == PACKAGE / "nerfstudio":
            continue
        lines = path.read_text().splitlines()
        imports = [line for line in lines if line.lstrip().startswith(("import ", "from "))]
        for line in imports:
            words = line.replace(",", " ").split()
            assert not any(word == name or word.startswith(name + ".") for word in words), path
            assert "nerfstudio" not in words[1].split(".")[:1], f"{path} imports nerfstudio itself: {line}"
