"""Packs a run into one file that someone else can check (`restage bundle`), and opens it again (`restage verify`).

A bundle is a zip with the run's files and, first, `bundle.json`: their hashes, and those of files that were left out.
The same run gives the same bytes; the bundle's own hash, told elsewhere, is what makes it proof against a forger.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from restage import __version__
from restage.audit.records import RecordFinding
from restage.records import (
    InputError,
    Progress,
    file_sha256,
    has_right_seal,
    seal,
    write_atomically,
)
from restage.run.reading import read_run_record

__all__ = ["BundleConfig", "OpenedBundle", "add_entry", "is_bundle", "open_bundle", "pack_bundle"]

MANIFEST = "bundle.json"
DROPPED = ("*/.*", ".*", "train/cache/*", "train/state.pt", "scenes/*/fit_state.pt", "verify/*", "*/verify/*")
"""Not in a bundle and not named by it: states that work goes on from, and what checks have written."""
PARTS = {"weights": ("*.safetensors", "*.pt", "*.bin"), "pairs": ("pairs/*.tar", "*/pairs/*.tar")}
PACKED = {".png", ".jpg", ".jpeg", ".webp", ".mp4", ".tar", ".parquet", ".safetensors", ".pt", ".gz", ".zip", ".pptx"}
"""Suffixes of files that would not get smaller."""
LONG_AGO = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """What goes into a bundle."""

    leave_out: tuple[Literal["weights", "pairs"], ...] = ("weights",)
    """Large parts whose hashes are enough: the weights of models that the run trained, the pictures of pairs."""


def pack_bundle(run: Path, target: Path, config: BundleConfig) -> Iterator[Progress]:
    """Write the bundle of a run; the last note says its hash.

    Args:
        run: folder of the run.
        target: zip to write.
        config: what goes into it.

    Raises:
        InputError: there is no run, the target is no zip, or it exists already.
    """
    record = read_run_record(run)
    if target.suffix != ".zip":
        raise InputError(f"a bundle is a zip: expected a name that ends in .zip, got {target}")
    if target.exists():
        raise InputError(f"{target} exists; choose another name with --out")
    paths = [path for path in sorted(run.rglob("*")) if path.is_file() and not path.is_symlink()]
    names = {path.relative_to(run).as_posix(): path for path in paths if path.resolve() != target.resolve()}
    names = {name: path for name, path in names.items() if not any(fnmatch(name, pattern) for pattern in DROPPED)}
    files: dict[str, Any] = {}
    left_out: dict[str, Any] = {}
    for done, (name, path) in enumerate(names.items(), start=1):
        facts = {"sha256": file_sha256(path), "num_bytes": path.stat().st_size}
        part = next((part for part in config.leave_out if any(fnmatch(name, p) for p in PARTS[part])), None)
        if part is None:
            files[name] = facts
        else:
            left_out[name] = {**facts, "part": part}
        yield Progress(stage="bundle", done=done, total=2 * len(names), note=name)
    manifest = {"run": record.id, "restage": __version__, "files": files}
    with write_atomically(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        add_entry(archive, MANIFEST, json_bytes(seal({**manifest, "left_out": left_out})))
        for done, name in enumerate(files, start=1):
            add_entry(archive, f"run/{name}", names[name].read_bytes())
            yield Progress(stage="bundle", done=len(names) + done, total=2 * len(names), note=name)
    note = f"{len(files)} files, {target.stat().st_size / 1e6:.1f} MB, sha256 {file_sha256(target)}"
    yield Progress(stage="bundle", done=2 * len(names), total=2 * len(names), note=note)


def json_bytes(value: Any) -> bytes:
    """Readable JSON, the same for the same value."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def add_entry(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to a zip so that the same content gives the same bytes: no time, no owner."""
    entry = zipfile.ZipInfo(name, LONG_AGO)
    entry.external_attr = 0o644 << 16
    is_packed = PurePosixPath(name).suffix in PACKED
    entry.compress_type = zipfile.ZIP_STORED if is_packed else zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def is_bundle(path: str) -> bool:
    """Whether a path is that of a bundle, there or not."""
    return path.endswith(".zip")


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle that was unpacked into a folder."""

    run: Path
    left_out: dict[str, str]
    """Hash of each file that the bundle names and does not hold."""
    sha256: str
    """Of the bundle itself."""
    findings: list[RecordFinding] = field(default_factory=list)
    """What in it is not what its list of files says."""


@contextlib.contextmanager
def open_bundle(path: Path) -> Iterator[OpenedBundle]:
    """Unpack a bundle into a folder of its own, which is removed at the end; only what it lists is unpacked.

    Raises:
        InputError: it is not a bundle, or too large for the disk.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a bundle that `restage bundle` has written")
    with tempfile.TemporaryDirectory(prefix="restage-bundle-") as folder, _opened_zip(path) as archive:
        manifest = _read_manifest(archive, path)
        files: dict[str, Any] = manifest["files"]
        num_bytes = sum(facts["num_bytes"] for facts in files.values())
        if num_bytes > shutil.disk_usage(folder).free * 0.9:
            raise InputError(f"{path} holds {num_bytes / 1e9:.1f} GB, more than there is room for in {folder}")
        opened = OpenedBundle(
            run=Path(folder) / "run",
            left_out={name: facts["sha256"] for name, facts in manifest["left_out"].items()},
            sha256=file_sha256(path),
        )
        if not has_right_seal(manifest, is_required=True):
            detail = "its list of files is not what it was when it was sealed"
            opened.findings.append(RecordFinding(reason="edited record", file=MANIFEST, detail=detail))
        _unpack(archive, files, opened)
        yield opened


@contextlib.contextmanager
def _opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not readable as a zip: {error}") from None
    with archive:
        yield archive


def _read_manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(archive.read(MANIFEST))
        for facts in (*manifest["files"].values(), *manifest["left_out"].values()):
            _ = int(facts["num_bytes"]), str(facts["sha256"])
    except (KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a bundle of ours: {MANIFEST} in it: {error}") from None
    return manifest


def _unpack(archive: zipfile.ZipFile, files: dict[str, Any], opened: OpenedBundle) -> None:
    """Write the listed files, each at most as large as it is listed; say which are missing or others."""

    def find(reason: str, file: str, detail: str) -> None:
        opened.findings.append(RecordFinding(reason=reason, file=file, detail=detail))

    held = {name.removeprefix("run/") for name in archive.namelist() if name != MANIFEST}
    for name in sorted(held - set(files)):
        find("changed", name, "lies in the bundle, whose list of files does not have it; it was not unpacked")
    for name, facts in files.items():
        target = opened.run / name
        if not target.resolve().is_relative_to(opened.run.resolve()):
            find("changed", name, "would lie outside of the run; it was not unpacked")
        elif name not in held:
            find("missing", name, f"named by {MANIFEST}")
        else:
            found = _extract(archive, f"run/{name}", target, facts["num_bytes"])
            if found != facts["sha256"]:
                find("changed", name, f"SHA-256 is {found[:16]}, {MANIFEST} holds {facts['sha256'][:16]}")


def _extract(archive: zipfile.ZipFile, name: str, target: Path, num_bytes: int) -> str:
    """Write one file, up to a byte more than it should have; returns the hash of what was written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), num_bytes + 1
    try:
        with archive.open(name) as source, target.open("wb") as file:
            while left and (block := source.read(min(left, 1 << 20))):
                file.write(block)
                digest.update(block)
                left -= len(block)
    except (zipfile.BadZipFile, EOFError, OSError):
        return f"unreadable after {num_bytes + 1 - left} bytes"
    return digest.hexdigest()
