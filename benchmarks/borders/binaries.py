"""How pictures, splats, arrays, archives, weights and programs are spoiled; see `faults`."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.borders.faults import (
    FILE,
    LONG_NUMBER,
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

__all__ = ["ARRAY", "BUNDLE", "CODE", "PARQUET", "PICTURE", "PLY", "TAR", "WEIGHTS"]


# Pictures.


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, and whose data is short."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    # The checksum of the header, or readers stop before they look at the size.
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def huge_picture(path: Path, rng: Random) -> bool:
    side = rng.choice((20_000, 65_535, 2**31 - 1))
    replace_file(path, png_of_size(side, side))
    return True


def bomb_picture(path: Path, rng: Random) -> bool:
    """Small as a file, 169 million pixels when it is opened."""
    buffer = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(buffer, "PNG")
    replace_file(path, buffer.getvalue())
    return True


def postscript(path: Path, rng: Random) -> bool:
    replace_file(path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n{} loop\n")
    return True


def vector_picture(path: Path, rng: Random) -> bool:
    replace_file(path, b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>1</script></svg>')
    return True


def other_picture(path: Path, rng: Random) -> bool:
    """A picture of another mode, size or format under the same name."""
    mode = rng.choice(("1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "F", "YCbCr"))
    image = Image.new(mode, rng.choice(((1, 1), (16, 16), (2000, 1), (20, 16))))
    form = {"CMYK": "JPEG", "F": "TIFF", "YCbCr": "JPEG"}.get(mode, rng.choice(("PNG", "TIFF")))
    buffer = io.BytesIO()
    image.save(buffer, form)
    replace_file(path, buffer.getvalue())
    return False


def odd_exif(path: Path, rng: Random) -> bool:
    image = Image.open(path).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = rng.choice((0, 2, 3, 6, 9, 255))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    replace_file(path, buffer.getvalue())
    return False


PICTURE: tuple[Fault, ...] = (
    *FILE, huge_picture, bomb_picture, postscript, postscript, vector_picture, other_picture, other_picture, odd_exif,
)  # fmt: skip


# Splats and points.


def ply_counts(path: Path, rng: Random) -> bool:
    count = rng.choice((b"-1", b"0", b"999999999999", LONG_NUMBER.encode(), b"x", b"1e9", b""))
    head, separator, rest = path.read_bytes().partition(b"element vertex ")
    replace_file(path, head + separator + count + b"\n" + rest.partition(b"\n")[2])
    return True


def ply_type(path: Path, rng: Random) -> bool:
    kind = rng.choice((b"list uchar int", b"string", b"float128", b"list list float", b"\xff"))
    replace_file(path, path.read_bytes().replace(b"property float ", b"property " + kind + b" ", 1))
    return True


def ply_not_finite(path: Path, rng: Random) -> bool:
    content = bytearray(path.read_bytes())
    start = content.find(b"end_header\n") + len(b"end_header\n")
    at = rng.randrange(start, len(content) - 4)
    content[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), -float("inf"), 3e38)))
    replace_file(path, bytes(content))
    return False


def ply_endless_header(path: Path, rng: Random) -> bool:
    line = rng.choice((b"comment x\n", b"property float x\n", b"element vertex 1\n"))
    replace_file(path, b"ply\nformat ascii 1.0\n" + line * 500_000)
    return True


def ply_other_format(path: Path, rng: Random) -> bool:
    content = path.read_bytes()
    for form in (b"ascii 1.0", b"binary_little_endian 1.0"):
        other = rng.choice((b"binary_big_endian 1.0", b"ascii 9.9", b"zip", b""))
        content = content.replace(b"format " + form, b"format " + other, 1)
    replace_file(path, content)
    return False


PLY: tuple[Fault, ...] = (
    *FILE, ply_counts, ply_counts, ply_counts, ply_type, ply_type, ply_not_finite, ply_not_finite, ply_endless_header,
    ply_other_format,
)  # fmt: skip


# Arrays and tables.


class Evil:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("outside/pickle-was-run",)


def pickled_array(path: Path, rng: Random) -> bool:
    remove(path)
    with path.open("wb") as file:
        np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
    return True


def other_array(path: Path, rng: Random) -> bool:
    arrays = (np.zeros((0, 17)), np.full((6, 17), np.nan), np.zeros(5), np.array("x"), np.full((6, 17), 1e300))
    remove(path)
    with path.open("wb") as file:
        np.save(file, rng.choice(arrays))
    return True


def promised_array(path: Path, rng: Random) -> bool:
    """A header that promises a million million rows."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 17), }"
    header += b" " * (63 - (len(header) + 10) % 64 + 1 - 1) + b"\n"
    replace_file(path, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    return True


ARRAY: tuple[Fault, ...] = (*FILE, pickled_array, pickled_array, other_array, other_array, other_array, promised_array)


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    # Without threads, which forks of this process would miss.
    table = change(pq.ParquetFile(io.BytesIO(path.read_bytes())).read(use_threads=False))
    remove(path)
    pq.write_table(table, path)


def dropped_column(path: Path, rng: Random) -> bool:
    change_table(path, lambda table: table.drop_columns([rng.choice(table.column_names)]))
    return False


def other_column(path: Path, rng: Random) -> bool:
    def change(table: pa.Table) -> pa.Table:
        at = rng.randrange(table.num_columns)
        kinds: tuple[list[Any], ...] = ([None], ["x"], [-1], [float("nan")], [[1]], [b"\xff"], [{"a": 1}], ["\x1b[2J"])
        values = rng.choice(kinds) * table.num_rows
        return table.set_column(at, table.column_names[at], pa.array(values))

    change_table(path, change)
    return False


def no_rows(path: Path, rng: Random) -> bool:
    change_table(path, lambda table: table.slice(0, 0))
    return False


def double_rows(path: Path, rng: Random) -> bool:
    change_table(path, lambda table: pa.concat_tables([table, table]))
    return False


PARQUET: tuple[Fault, ...] = (*FILE, *(dropped_column,) * 3, *(other_column,) * 6, no_rows, double_rows)


# Archives.


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


# Weights.


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write_weights(path: Path, header: bytes, data: bytes, *, size: int | None = None) -> None:
    replace_file(path, struct.pack("<Q", len(header) if size is None else size) + header + data)


def odd_header(path: Path, rng: Random) -> bool:
    header, data = read_header(path)
    size = rng.choice((2**63, 2**40, 0))
    write_weights(path, json.dumps(header).encode(), data, size=size)
    return True


def missing_weight(path: Path, rng: Random) -> bool:
    tensors = load_file(path)
    tensors.pop(rng.choice(sorted(tensors)))
    remove(path)
    save_file(tensors, path, {"format": "pt"})
    return True


def other_shape(path: Path, rng: Random) -> bool:
    tensors = load_file(path)
    name = rng.choice(sorted(name for name, tensor in tensors.items() if tensor.ndim > 1))
    tensors[name] = tensors[name].new_zeros(3, *tensors[name].shape[1:], 2)
    remove(path)
    save_file(tensors, path, {"format": "pt"})
    return True


def weights_not_finite(path: Path, rng: Random) -> bool:
    tensors = load_file(path)
    name = rng.choice(sorted(name for name, tensor in tensors.items() if tensor.is_floating_point()))
    tensors[name] = tensors[name] * float("nan")
    remove(path)
    save_file(tensors, path, {"format": "pt"})
    return False


def pickle_instead(path: Path, rng: Random) -> bool:
    """Weights as a pickle under the old name, which runs code when it is opened."""
    remove(path)
    name = {"model.safetensors": "pytorch_model.bin"}.get(path.name, path.name.replace(".safetensors", ".bin"))
    path.with_name(name).write_bytes(pickle.dumps(Evil()))
    return True


WEIGHTS: tuple[Fault, ...] = (
    *FILE, *(odd_header,) * 3, missing_weight, missing_weight, other_shape, other_shape, weights_not_finite,
    pickle_instead, pickle_instead,
)  # fmt: skip


# Python files, which are run as the user's own programs.

CODE_TEXTS = (
    "STUDY = 3\n", "x = (\n", "raise ValueError('mine')\n", "import no_such_package\n", "STUDY = undefined\n",
    "def study():\n    return None\n", "def study(x):\n    return x\n", "\0", "raise SystemExit(0)\n",
    "def study():\n    return study()\nSTUDY = study()\n", "1 / 0\n", "open('nowhere')\n",
    "from restage.records import InputError\nraise InputError('mine')\n", "raise SystemExit('mine')\n",
)  # fmt: skip


SETTINGS = (
    ("num_views=6", "num_views=0"), ("size=32", "size=-1"), ("steps=3", "steps=0"), ("seeds=(0,)", "seeds=()"),
    ("recolour", "no_such_kind"), ('"nothing"', '"../../x"'), ('"exact")', '"no_such")'),
)  # fmt: skip


def broken_code(path: Path, rng: Random) -> bool:
    replace_file(path, rng.choice(CODE_TEXTS).encode())
    return True


def other_setting(path: Path, rng: Random) -> bool:
    """Another value for one of the numbers of the study."""
    text = path.read_text()
    text = text.replace(*rng.choice(SETTINGS))
    replace_file(path, text.encode())
    return True


CODE: tuple[Fault, ...] = (*(broken_code,) * 8, *(other_setting,) * 4)
