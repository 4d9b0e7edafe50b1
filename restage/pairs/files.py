"""Named files in one folder, on a disk or in an object store; each file is there as a whole or not at all.

`store` keeps shards in it. A file on a disk is written beside its place, synced, read back and renamed; an object
store, which has no rename, puts a whole object at once. `open_files` chooses between them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.records import (
    InputError,
    MissingExtra,
    check_is_no_pipe,
    read_json,
    temporary_beside,
    write_json,
)

__all__ = ["Files", "LocalFiles", "Place", "RemoteFiles", "UnnamedStore", "is_url", "open_files", "point_to_store"]

POINTER = "store.json"
"""Record in a run's pairs folder that names the URL where the shards lie, if that is elsewhere."""


def is_url(place: str | Path) -> bool:
    """Whether a place is named by a URL, such as `s3://bucket/run`."""
    return "://" in str(place)


@dataclass(frozen=True)
class LocalFiles:
    """Files in a folder of a disk, which several machines may share; names hold no folders but a few of the store's."""

    path: Path

    def where(self, name: str = "") -> str:
        """Return the path."""
        return str(self.path / name)

    def names(self) -> list[str]:
        """Return the names of all whole files; those that begin with a dot are not whole."""
        try:
            with os.scandir(self.path) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith("."))
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).exists()

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        check_is_no_pipe(self.path / name)
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Write beside the place, sync, read back, and rename."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            with temporary.open("wb+") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                # A disk or network that corrupts what it stores is best noticed while the content is still in memory.
                if hashlib.file_digest(file, "sha256").digest() != hashlib.sha256(content).digest():
                    raise OSError(f"{temporary} reads differently from what was written; check the disk")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        """Sync the folder itself: renaming a synced file does not yet make its new name durable."""
        if sys.platform == "win32":  # opens no folders
            return
        number = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

    def free_bytes(self) -> int | None:
        """Return the room that the disk has for this user."""
        path = self.path
        while not path.exists():
            path = path.parent
        return shutil.disk_usage(path).free


class RemoteFiles:
    """Files below any URL that fsspec knows: `s3://`, `gs://`, `memory://`, `sftp://`."""

    def __init__(self, url: str) -> None:
        import fsspec.core

        self.url = url.rstrip("/")
        try:
            self.system, self.root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise MissingExtra(f"the package that fsspec needs for {self.url} ({error})", "cluster") from None
        except ValueError as error:
            raise InputError(f"{self.url} cannot be opened: {error}; expected a URL such as s3://bucket/run") from None

    def where(self, name: str = "") -> str:
        """Return the URL."""
        return f"{self.url}/{name}".rstrip("/")

    def names(self) -> list[str]:
        """Return the names of all files; the store is asked anew each time."""
        # Other machines write too, and fsspec would answer from a listing that it made before.
        self.system.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            entries: list[Any] = self.system.ls(self.root, detail=False)
            return sorted(Path(entry).name for entry in entries)
        return []

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
        self.system.invalidate_cache()
        return bool(self.system.exists(f"{self.root}/{name}"))

    def read(self, name: str) -> bytes:
        """Read a whole object."""
        return bytes(self.system.cat_file(f"{self.root}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        """Put an object, which appears whole or not at all."""
        with contextlib.suppress(FileExistsError, NotImplementedError):
            self.system.makedirs(f"{self.root}/{name}".rsplit("/", 1)[0], exist_ok=True)
        self.system.pipe_file(f"{self.root}/{name}", content)

    def remove(self, name: str) -> None:
        """Delete an object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.system.rm_file(f"{self.root}/{name}")

    def sync(self) -> None:
        """Nothing to do: an object is durable once its put returns."""

    def free_bytes(self) -> int | None:
        """Unknown for an object store."""
        return None


Files = LocalFiles | RemoteFiles
"""What the store asks of a place; what is written survives a power cut once `write` returns, and its name `sync`."""
Place = str | Path | Files
"""Where files lie: a folder, a URL, or what `open_files` has opened."""


class UnnamedStore(InputError):
    """A run's pairs lie in a store that the caller has not named."""


@dataclass(frozen=True, kw_only=True)
class _Pointer:
    """What a `store.json` says."""

    url: str


def open_files(place: Place, *, store: str | tuple[str, ...] = "") -> Files:
    """Open a folder, a URL, or the store that a run's pairs folder points to.

    A run that somebody sent must not choose which folder is read or repaired, or which server is connected to: its
    store is opened only if the caller names its URL, among several if need be. Every reader and writer of pairs goes
    through here; opened files are returned as they are.

    Raises:
        UnnamedStore: the folder points to another store.
        InputError: a URL that fsspec cannot open.
    """
    if not isinstance(place, str | Path):
        return place
    if is_url(place):
        if str(place).startswith("file://"):
            return LocalFiles(Path(str(place).removeprefix("file://")))
        return RemoteFiles(str(place))
    path = Path(place)
    if not (path / POINTER).exists():
        return LocalFiles(path)
    url = read_json(path / POINTER, _Pointer).url
    if url not in ((store,) if isinstance(store, str) else store):
        raise UnnamedStore(f"the pairs of {path} lie at {url}; a store is used only when it is named: --store {url}")
    return open_files(url)


def point_to_store(folder: Path, url: str) -> None:
    """Record in a run's pairs folder that its shards lie at a URL."""
    if (folder / POINTER).exists():
        found = read_json(folder / POINTER, _Pointer).url
        if found != url:
            raise InputError(f"the shards of {folder} lie at {found}; got --store {url}; omit it, or move them")
        return
    if any(folder.glob("shard-*.done")):
        raise InputError(f"{folder} holds shards already; --store can only be chosen at the start")
    open_files(url)
    write_json(folder / POINTER, {"url": url})
