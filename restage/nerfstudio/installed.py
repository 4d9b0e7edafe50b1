"""Says what to do where nerfstudio is not installed; imported first by every module that needs it."""

from __future__ import annotations

import importlib.util

from restage.records import InputError

__all__ = ["require_nerfstudio"]


def require_nerfstudio() -> None:
    """Check that nerfstudio can be imported here.

    Raises:
        InputError: it cannot; one line that says how to make its environment.
    """
    if importlib.util.find_spec("nerfstudio") is None:
        raise InputError(
            "nerfstudio is not installed here, it has an environment of its own; "
            "run: make nerfstudio, then .venv-nerfstudio/bin/ns-train restage"
        )
