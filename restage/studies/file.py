"""Reads a study from the Python file that says what it is made of."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from restage.records import InputError
from restage.studies.study import Study

__all__ = ["load_study"]


def load_study(file: Path) -> Study:
    """Run a Python file, or the `study.py` in a folder, and take its `STUDY` or what its function `study()` gives."""
    path = file / "study.py" if file.is_dir() else file
    if not path.is_file() or path.suffix != ".py":
        raise InputError(f"{file}: expected a Python file with a STUDY, or the folder of a study that was begun")
    # A name of its own, the same in all processes, so that classes of the file can be told from those of another.
    name = f"restage_study_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        module = sys.modules[name]
    else:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    found = getattr(module, "STUDY", None)
    if found is None and callable(getattr(module, "study", None)):
        found = module.study()
    if not isinstance(found, Study):
        raise InputError(f"{path}: expected a Study named STUDY or a function study(), got {type(found).__name__}")
    return found
