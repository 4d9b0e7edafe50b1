"""Packs a run into one file that someone else can check (`restage bundle`), and opens it again (`restage verify`).

A bundle is a zip with the run's files and, first, `bundle.json`: their hashes, and those of files that were left out.
The same run gives the same bytes; the bundle's own hash, told elsewhere, is what makes it proof against a forger.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec

from restage import __version__
from restage.records import (
    InputError,
    Progress,
    file_sha256,
    from_plain,
    has_right_seal,
    is_disk_full,
    parse_json,
    seal,
    write_atomically,
)
from restage.run.findings import FileFinding
from restage.run.reading import read_run_record

__all__ = ["BundleConfig", "OpenedBundle", "add_entry", "is_bundle", "open_bundle", "pack_bundle"]

MANIFEST = "bundle.json"
DROPPED = ("*/.*", ".*", "train/cache/*", "train/state.pt", "scenes/*/fit_state.pt", "verify/*", "*/verify/*")
"""Not in a bundle and not named by it: states that work goes on from, and what checks have written."""
PARTS = {"weights": ("*.safetensors", "*.pt", "*.bin"), "pairs": ("pairs/*.tar", "*/pairs/*.tar")}
PACKED = {".png", ".jpg", ".jpeg", ".webp", ".mp4", ".tar", ".parquet", ".safetensors", ".pt", ".gz", ".zip", ".pptx"}
"""Suffixes of files that would not get smaller."""
MAX_RATIO = 200
"""Number of times its size that a bundle may unpack to: records get some 20 times smaller, pictures hardly."""
MAX_MANIFEST_BYTES = 64_000_000
UNREADABLE = (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, struct.error)
"""What zipfile raises on archives that are broken, encrypted, or packed in another way."""


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """What goes into a bundle."""

    leave_out: tuple[Literal["weights", "pairs"], ...] = ("weights",)
    """Large parts whose hashes are enough: the weights of models that the run trained, the pictures of pairs."""


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the list says of a file."""

    sha256: str
    num_bytes: Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """What a `bundle.json` says."""

    files: Mapping[str, _Facts]
    left_out: Mapping[str, _Facts]


def pack_bundle(run: Path, target: Path, config: BundleConfig) -> Iterator[Progress]:
    """Write the bundle of a run; the last note says its hash."""
    run_id = read_run_record(run).id
    if target.suffix != ".zip":
        raise InputError(f"a bundle is a zip: expected a name that ends in .zip, got {target}")
    if target.exists():
        raise InputError(f"{target} exists; choose another name with --out")
    paths = [path for path in sorted(run.rglob("*")) if path.is_file() and not path.is_symlink()]
    names = {path.relative_to(run).as_posix(): path for path in paths if path.resolve() != target.resolve()}
    names = {name: path for name, path in names.items() if not any(fnmatch(name, pattern) for pattern in DROPPED)}
    files, left_out = {}, {}
    for done, (name, path) in enumerate(names.items(), start=1):
        facts = {"sha256": file_sha256(path), "num_bytes": path.stat().st_size}
        part = next((part for part in config.leave_out if any(fnmatch(name, p) for p in PARTS[part])), None)
        if part is None:
            files[name] = facts
        else:
            left_out[name] = {**facts, "part": part}
        yield Progress(stage="bundle", done=done, total=2 * len(names), note=name)
    with write_atomically(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        record = seal({"run": run_id, "restage": __version__, "files": files, "left_out": left_out})
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
        add_entry(archive, MANIFEST, f"{text}\n".encode())
        for done, name in enumerate(files, start=1):
            add_entry(archive, f"run/{name}", names[name].read_bytes())
            yield Progress(stage="bundle", done=len(names) + done, total=2 * len(names), note=name)
    note = f"{len(files)} files, {target.stat().st_size / 1e6:.1f} MB, sha256 {file_sha256(target)}"
    yield Progress(stage="bundle", done=2 * len(names), total=2 * len(names), note=note)


def add_entry(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to a zip so that the same content gives the same bytes: no time, no owner."""
    entry = zipfile.ZipInfo(name)  # of 1980
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_STORED if PurePosixPath(name).suffix in PACKED else zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def is_bundle(path: str) -> bool:
    """Whether a path is that of a bundle, there or not."""
    return path.endswith(".zip")


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle that was unpacked into a folder."""

    run: Path
    left_out: dict[str, str]  # hash of each file that the bundle names and does not hold
    sha256: str
    findings: list[FileFinding] = field(default_factory=list)

    def find(self, reason: str, file: str, detail: str) -> None:
        """Note that something is not what the list says."""
        self.findings.append(FileFinding(reason=reason, file=file, detail=detail))


@contextlib.contextmanager
def open_bundle(path: Path) -> Iterator[OpenedBundle]:
    """Unpack a bundle into a folder of its own, which is removed at the end; only what it lists is unpacked."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a bundle that `restage bundle` has written")
    try:
        archive = zipfile.ZipFile(path)
        content = archive.open(MANIFEST).read(MAX_MANIFEST_BYTES)  # a longer one is cut, and is no JSON then
        manifest: dict[str, Any] = parse_json(content, dict[str, Any], where=MANIFEST)
        listed: _Manifest = from_plain(manifest, _Manifest, where=MANIFEST)
    except (KeyError, *UNREADABLE) as error:
        raise InputError(f"{path} is not a bundle of ours: {error}") from None
    with tempfile.TemporaryDirectory(prefix="restage-bundle-") as folder, archive:
        # Before anything is written: sizes are what the list says, and no file is unpacked any further.
        num_bytes = sum(facts.num_bytes for facts in listed.files.values())
        if num_bytes > path.stat().st_size * MAX_RATIO:
            raise InputError(f"{path} would unpack to more than {MAX_RATIO} times its size; it was not unpacked")
        if num_bytes > shutil.disk_usage(folder).free * 0.9:
            raise InputError(f"{path} holds {num_bytes / 1e9:.1f} GB, more than there is room for in {folder}")
        left_out = {name: facts.sha256 for name, facts in listed.left_out.items()}
        opened = OpenedBundle(Path(folder) / "run", left_out, file_sha256(path))
        if not has_right_seal(manifest, is_required=True):
            opened.find("edited record", MANIFEST, "its list of files is not what it was when it was sealed")
        _unpack(archive, listed.files, opened)
        yield opened


def _unpack(archive: zipfile.ZipFile, files: Mapping[str, _Facts], opened: OpenedBundle) -> None:
    """Write the listed files, each at most as large as it is listed; say which are missing or others."""
    from restage.scenes.io.images import path_inside  # loads torch

    held = set(archive.namelist()) - {MANIFEST}
    for name in sorted(held - {f"run/{name}" for name in files}):
        detail = "lies in the bundle, whose list of files does not have it; it was not unpacked"
        opened.find("changed", name.removeprefix("run/"), detail)
    for name, facts in files.items():
        try:
            target = path_inside(opened.run, name, MANIFEST)
        except InputError:
            opened.find("changed", name, "would lie outside of the run; it was not unpacked")
            continue
        if f"run/{name}" not in held:
            opened.find("missing", name, f"named by {MANIFEST}")
        elif stat.S_IFMT(archive.getinfo(f"run/{name}").external_attr >> 16) not in (0, stat.S_IFREG):
            opened.find("changed", name, "is a link or a device; it was not unpacked")
        else:
            if problem := _extract(archive, f"run/{name}", target, facts):
                opened.find("changed", name, problem)


def _extract(archive: zipfile.ZipFile, name: str, target: Path, facts: _Facts) -> str:
    """Write one file, up to a byte more than it should have; returns what is wrong with it, empty if nothing is."""
    digest, left = hashlib.sha256(), facts.num_bytes + 1
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, target.open("wb") as file:
            while left and (block := source.read(min(left, 1 << 20))):
                file.write(block)
                digest.update(block)
                left -= len(block)
    except UNREADABLE as error:
        if is_disk_full(error):
            raise
        return f"unreadable after {facts.num_bytes + 1 - left} of {facts.num_bytes} bytes"
    found = digest.hexdigest()
    return "" if found == facts.sha256 else f"SHA-256 is {found[:16]}, {MANIFEST} holds {facts.sha256[:16]}"
