"""Settings of `restage serve`, apart from the server so that the command needs no torch to explain them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from restage.records import InputError

__all__ = ["ServeConfig"]


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, to whom, and how much of it at a time."""

    editor: str = ""
    """An editor of the menu that needs no more than a picture and an instruction; default: what --model is for."""
    model: Path | None = None
    """Folder of its model; default: the one that comes with the package."""
    model_options: tuple[str, ...] = ()
    """Options of the editor, as key=value."""
    device: str = "cpu"
    """Where the model computes, such as `cuda`."""
    host: str = "127.0.0.1"
    """Address to listen on; other machines reach any but this machine's own, and then need the token."""
    port: int = 8000
    """Port to listen on; the next free one if it is taken."""
    max_batch: int = 16
    """Pictures that are edited together at most."""
    max_waiting: int = 64
    """Pictures that may wait; who asks for more is told to come again."""
    window: float = 0.05
    """Seconds that a picture waits for others to be edited with it."""
    max_side: int = 2048
    """Pixels of a picture's longer side at most."""
    max_megabytes: float = 64.0
    """Size of a request at most."""

    def __post_init__(self) -> None:
        if min(self.max_batch, self.max_side) < 1 or self.max_waiting < self.max_batch or self.max_megabytes <= 0:
            raise InputError("expected max_batch, max_side and max_megabytes above 0, and max_waiting >= max_batch")
        if not 0 <= self.window <= 10:
            raise InputError(f"expected a window of 0 to 10 s, got {self.window}")
