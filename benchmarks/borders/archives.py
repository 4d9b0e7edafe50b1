"""How archives and bundles are spoiled; see `faults`."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.borders.faults import (
    FILE,
    Fault,
    deep,
    dropped,
    hostile_text,
    long_number,
    other_top,
    remove,
    replace_file,
    wrong_value,
)

__all__ = ["BUNDLE", "TAR"]


def tar_member(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
    return member


def odd_member(path: Path, rng: Random) -> bool:
    """A member that lies elsewhere, or is no file."""
    choices = (
        tar_member("../../outside/escaped.png"), tar_member("/tmp/escaped.png"), tar_member("a/" * 2000 + "x"),
        tar_member("000.source.png", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        tar_member("000.source.png", kind=tarfile.LNKTYPE, link="../outside/secret"),
        tar_member("000.json", kind=tarfile.FIFOTYPE), tar_member("000.json", kind=tarfile.CHRTYPE),
        tar_member("000.json", kind=tarfile.DIRTYPE), tar_member("a\x1b[2J.json"), tar_member("\udcff.json"),
    )  # fmt: skip
    member = rng.choice(choices)
    with tarfile.open(path, "a") as archive:
        archive.addfile(member, io.BytesIO(b"x" * member.size))
    return False


def promised_member(path: Path, rng: Random) -> bool:
    """A header that promises more than there is."""
    member = tar_member("huge.json")
    member.size = rng.choice((10**9, 10**12, 8**11 - 1))
    content = path.read_bytes().rstrip(b"\0")
    content += b"\0" * (-len(content) % 512)
    replace_file(path, content + member.tobuf(tarfile.GNU_FORMAT) + b"{}")
    return False


def bomb_tar(path: Path, rng: Random) -> bool:
    """Gzip of 2 GB of zeros under one member's name; one MB as a file."""
    member = tar_member("000000.source.png")
    member.size = 2_000_000_000
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9) as file:
        file.write(member.tobuf())
    # Members of gzip files may follow each other, so one compressed block serves for all of them.
    block = gzip.compress(bytes(20_000_000), 9)
    replace_file(path, buffer.getvalue() + block * 100)
    return True


TAR: tuple[Fault, ...] = (*FILE, *(odd_member,) * 5, promised_member, promised_member, bomb_tar)


def rewrite_zip(path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    remove(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in change(entries).items():
            archive.writestr(name, content)


def odd_entry(path: Path, rng: Random) -> bool:
    name = rng.choice(
        ("../../outside/escaped", "/tmp/escaped", "run/\x1b[2J", "run/" + "a/" * 2000 + "x", "run/..", "run/a\0b")
    )
    rewrite_zip(path, lambda entries: {**entries, name: b"x"})
    return True


def listed_entry(path: Path, rng: Random) -> bool:
    """A file that the bundle's own list has, too, so that only its name says what is wrong."""
    name = rng.choice(("../../outside/escaped", "/tmp/escaped", "a\0b", "a" * 300, "\ud800", "run.json/x", "", "."))

    def change(entries: dict[str, bytes]) -> dict[str, bytes]:
        manifest = json.loads(entries["bundle.json"])
        manifest["files"][name] = {"sha256": "x", "num_bytes": rng.choice((1, -1, 10**15, "x", None, 1e400))}
        entries["bundle.json"] = json.dumps(manifest).encode()
        if "\ud800" not in name:
            entries[f"run/{name}"] = b"x"
        return entries

    rewrite_zip(path, change)
    return True


def bomb_entry(path: Path, rng: Random) -> bool:
    name = rng.choice(("bundle.json", "run/run.json"))

    def change(entries: dict[str, bytes]) -> dict[str, bytes]:
        return {**entries, name: bytes(100_000_000)}

    rewrite_zip(path, change)
    return True


def spoiled_entry(fault: Fault, pattern: str = "bundle.json") -> Fault:
    """A fault of JSON in one file of a bundle."""

    def spoil(path: Path, rng: Random) -> bool:
        is_refused = False

        def change(entries: dict[str, bytes]) -> dict[str, bytes]:
            nonlocal is_refused
            part = path.with_name("part.json")
            part.write_bytes(entries[pattern])
            is_refused = fault(part, rng)
            entries[pattern] = part.read_bytes()
            part.unlink()
            return entries

        rewrite_zip(path, change)
        return is_refused

    spoil.__name__ = f"{fault.__name__}_of_{pattern.replace('/', '_')}"
    return spoil


def flagged_entry(path: Path, rng: Random) -> bool:
    """All entries are marked as encrypted, or as packed by a method that nobody has."""
    content = bytearray(path.read_bytes())
    at, value = rng.choice(((6, 1), (8, 97)))
    for signature, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        start = content.find(signature)
        while start >= 0:
            struct.pack_into("<H", content, start + at + shift, value)
            start = content.find(signature, start + 4)
    replace_file(path, bytes(content))
    return True


BUNDLE: tuple[Fault, ...] = (
    *FILE, *(odd_entry,) * 3, *(listed_entry,) * 4, bomb_entry, flagged_entry,
    *map(spoiled_entry, (other_top, deep, long_number, wrong_value, hostile_text, dropped, wrong_value)),
)  # fmt: skip
