"""Exclusive locks of open files, which end with the process that holds them: flock, and on Windows a locked byte."""

from __future__ import annotations

import os
import sys

__all__ = ["lock_file"]

FAR = 1 << 30
"""The byte that is locked on Windows, beyond all content: there a locked byte cannot be read by others."""

if sys.platform == "win32":
    import msvcrt

    def lock_file(number: int, *, waits: bool) -> None:
        """Lock an open file; raises BlockingIOError if somebody else holds it and nobody wants to wait."""
        while True:
            os.lseek(number, FAR, os.SEEK_SET)
            try:
                msvcrt.locking(number, msvcrt.LK_LOCK if waits else msvcrt.LK_NBLCK, 1)
                return
            except OSError as error:  # LK_LOCK gives up after ten seconds
                if not waits:
                    raise BlockingIOError(error.errno, error.strerror) from None
else:
    import fcntl

    def lock_file(number: int, *, waits: bool) -> None:
        """Lock an open file; raises BlockingIOError if somebody else holds it and nobody wants to wait."""
        fcntl.flock(number, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
