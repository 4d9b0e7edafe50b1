"""Stops an edit in the middle of its work: between the layers of whatever model is running for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

__all__ = ["EditStopped", "stop_between_layers"]


class EditStopped(KeyboardInterrupt):
    """The user stopped the edit; a run records it like Ctrl-C, and no handler of errors takes it for one."""


@contextlib.contextmanager
def stop_between_layers(stop: threading.Event) -> Iterator[None]:
    """Raise `EditStopped` in this thread before the next layer of any torch module once `stop` is set.

    An editor works for up to a minute in one call on a small machine, which is longer than a user waits.
    """
    thread = threading.get_ident()

    def check(module: torch.nn.Module, inputs: object) -> None:
        if stop.is_set() and threading.get_ident() == thread:
            raise EditStopped("stopped by the user")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()
