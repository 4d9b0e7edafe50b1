"""What the workers of one run of the tests share."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from filelock import FileLock

SHARED_FOLDER = "RESTAGE_TESTS_FOLDER"
"""Environment variable with the folder that all workers see; it is removed after the run."""


def shared_folder() -> Path:
    return Path(os.environ[SHARED_FOLDER])


@functools.cache
def only_worker(name: str) -> FileLock:
    """A lock that one worker at a time holds; it may take it again while it does."""
    return FileLock(shared_folder() / f"{name}.lock")
