from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import restage
from restage.cli import run

CLONE = Path(__file__).parents[2]


def test_the_command_of_a_clone_is_found_from_any_folder(tmp_path: Path) -> None:
    # As an editable install does: it finds the package, and nothing beside it.
    program = (
        "import importlib.util as util, sys\n"
        f"spec = util.spec_from_file_location('restage', {str(CLONE / 'restage' / '__init__.py')!r})\n"
        "sys.modules['restage'] = module = util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert util.find_spec('miniature') is None\n"
        "from restage.cli import run\n"
        "sys.exit(run(['miniature', 'train', 'clip']))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "training/pictures does not exist" in done.stderr, done.stderr


def test_an_installed_package_says_that_the_recipes_are_in_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(restage, "__file__", str(tmp_path / "restage" / "__init__.py"))
    for arguments in (["train", "clip"], ["--help"]):
        assert run(["miniature", *arguments]) == 2
        assert "clone the repository" in capsys.readouterr().err
