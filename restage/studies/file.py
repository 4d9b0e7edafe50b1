"""Reads a study from the Python file that says what it is made of."""

from __future__ import annotations

import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

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
    is_new = name not in sys.modules
    try:
        if is_new:
            module = sys.modules[name] = ModuleType(name)
            module.__file__ = str(path)
            exec(compile(path.read_bytes(), path, "exec"), vars(module))
        module = sys.modules[name]
        found = getattr(module, "STUDY", None)
        if found is None and callable(getattr(module, "study", None)):
            found = module.study()
    except BaseException as error:
        if is_new:
            del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        raise InputError(f"{_place(path, error)}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Study):
        raise InputError(f"{path}: expected a Study named STUDY or a function study(), got {type(found).__name__}")
    return found


def _place(path: Path, error: BaseException) -> str:
    """The file, with the line of it that an error comes from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{path}, line {line}" if line else str(path)
