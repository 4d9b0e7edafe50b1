"""Lets `import torchvision` succeed where its compiled operators cannot be loaded: a CUDA build beside a CPU torch.

`make nerfstudio` calls `leave_startup_file`. Where torchvision is whole it does nothing; else it leaves a start-up
file in the environment that declares the two operators whose absence stops the import
(https://github.com/pytorch/vision/issues/9085). They stay without code: who calls them gets an error. nerfstudio
never does.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["declare_operators", "leave_startup_file", "watch_imports"]

STARTUP_NAME = "torchvision_without_operators"
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []
"""Declarations live as long as the object that made them."""
_has_declared = False


def declare_operators() -> None:
    """Declare torchvision's operators, unless its own library brings them; a second call does nothing."""
    global _has_declared
    if _has_declared:
        return
    _has_declared = True  # before anything else, since to look for torchvision comes back here
    import torch

    spec = importlib.util.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    for library in folder.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(operator)
    _libraries.append(library)


class _Watcher:
    """Comes before all finders of modules, finds none, and declares the operators right before torchvision's turn."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "torchvision":
            declare_operators()


def watch_imports() -> None:
    """Declare the operators at the first import of torchvision; costs nothing where it is not imported."""
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def leave_startup_file() -> bool:
    """Write the start-up file if torchvision cannot be imported without it; returns whether this environment needs it.

    Raises:
        RuntimeError: torchvision cannot be imported with it either.
    """
    folder = Path(sysconfig.get_path("purelib"))
    module, startup = folder / f"{STARTUP_NAME}.py", folder / f"{STARTUP_NAME}.pth"
    startup.unlink(missing_ok=True)
    command = [sys.executable, "-c", "import torchvision"]
    if subprocess.run(command, capture_output=True).returncode == 0:
        return False
    # A copy under a name of its own: Restage itself is not to be imported at each start of Python.
    shutil.copyfile(__file__, module)
    startup.write_text(f"import {STARTUP_NAME}; {STARTUP_NAME}.watch_imports()\n")
    after = subprocess.run(command, capture_output=True, text=True)
    if after.returncode:
        raise RuntimeError(f"torchvision cannot be imported: {after.stderr.strip().splitlines()[-1]}")
    return True
