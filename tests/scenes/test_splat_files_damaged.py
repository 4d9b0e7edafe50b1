"""Files of splats that are cut off, spoiled or made to deceive: read right, or refused by name within little memory."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from restage.records import InputError
from restage.scenes.io import SPLAT_FORMATS, read_splats
from tests.scenes.some_splats import READ, some_splats, write


def damaged(content: bytes, seed: int) -> bytes:
    """The same file cut off, with flipped bits, with other bytes in its header, or with a huge number in it."""
    draw = random.Random(seed)
    changed = bytearray(content)
    if seed % 4 == 0:
        return bytes(changed[: draw.randrange(1, len(changed))])
    if seed % 4 == 1:
        for _ in range(draw.randrange(1, 9)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif seed % 4 == 2:
        for _ in range(3):
            changed[draw.randrange(min(len(changed), 400))] = draw.randrange(256)
    else:
        at = draw.randrange(min(len(changed), 400) - 4)
        changed[at : at + 4] = draw.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x10"))
    return bytes(changed)


@pytest.mark.parametrize("form", READ)
def test_damaged_files_are_read_or_refused_in_one_line_within_little_memory(tmp_path, form):
    content = write(some_splats(16, 300), form, tmp_path).read_bytes()
    path = tmp_path / f"damaged{SPLAT_FORMATS[form].suffix}"
    num_refused = 0
    tracemalloc.start()
    try:
        for seed in range(160):
            path.write_bytes(damaged(content, seed))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    found = read_splats(path)
                assert 0 < len(found) <= max(4096, path.stat().st_size)
                assert all(tensor.isfinite().all() for tensor in found.parameters().values())
            except InputError as error:
                num_refused += 1
                assert "\n" not in str(error) and path.name in str(error) and len(str(error)) < 400 + len(str(path))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert num_refused >= 35


def spz_header(count: int, version: int = 3, degree: int = 0) -> bytes:
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, 12, 0, 0)


def sog_of(tmp_path: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A SOG with other files in it; None takes one out."""
    with zipfile.ZipFile(write(some_splats(4, 300), "sog", tmp_path)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()} | change
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)
    return file.getvalue()


def sog_meta(tmp_path: Path, **change: object) -> bytes:
    with zipfile.ZipFile(write(some_splats(4, 300), "sog", tmp_path)) as archive:
        meta = json.loads(archive.read("meta.json"))
    return json.dumps(meta | change).encode()


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (width, height)).save(file, "WEBP", lossless=True)
    return file.getvalue()


BOMBS = {
    "gzip of gigabytes": (".spz", lambda _: gzip.compress(spz_header(100) + bytes(200_000_000)), "unpacks to more"),
    "gzip of a huge count": (".spz", lambda _: gzip.compress(spz_header(2**31)), "2147483648 splats"),
    "gzip of no splat": (".spz", lambda _: gzip.compress(spz_header(0)), "0 splats"),
    "gzip of nothing": (".spz", lambda _: gzip.compress(b""), "cut off"),
    "gzip of something else": (".spz", lambda _: gzip.compress(b"hello" * 10), "does not start with 'NGSP'"),
    "another version": (".spz", lambda _: gzip.compress(spz_header(1, 9) + bytes(99)), "version 2 or 3.*got 9"),
    "degree 200": (".spz", lambda _: gzip.compress(spz_header(1, 3, 200) + bytes(99)), "degree 200"),
    "streams elsewhere": (".spz", lambda _: spz_header(9, 4)[:15] + struct.pack("<BI12x", 5, 2**31), "5 streams"),
    "streams of gigabytes": (
        ".spz",
        lambda _: spz_header(9, 4)[:15] + struct.pack("<BI12x", 5, 32) + struct.pack("<QQ", 1, 2**40) * 5 + bytes(64),
        "another size",
    ),
    "zip of gigabytes": (
        ".sog",
        lambda folder: sog_of(folder, {"means_l.webp": bytes(100_000_000)}, zipfile.ZIP_DEFLATED),
        "means_l.webp unpacks to 100000000 bytes",
    ),
    "long description": (
        ".sog",
        lambda folder: sog_of(folder, {"meta.json": b" " * 10_000_000}, zipfile.ZIP_DEFLATED),
        "meta.json unpacks to 10000000 bytes",
    ),
    "picture of gigabytes": (
        ".sog",
        lambda folder: sog_of(folder, {"quats.webp": picture(16_000, 8_000)}),
        "quats.webp has 16000x8000 pixels",
    ),
    "too small a picture": (".sog", lambda folder: sog_of(folder, {"quats.webp": picture(4, 4)}), "16 pixels for 300"),
    "no picture": (".sog", lambda folder: sog_of(folder, {"quats.webp": b"GIF89a"}), "not readable as a picture"),
    "missing picture": (".sog", lambda folder: sog_of(folder, {"quats.webp": None}), "no 'quats.webp'"),
    "narrow palette": (
        ".sog",
        lambda folder: sog_of(folder, {"shN_centroids.webp": picture(64, 64)}),
        "64 pixels wide, expected 192",
    ),
    "short palette": (".sog", lambda folder: sog_of(folder, {"shN_centroids.webp": picture(192, 1)}), "names entry"),
    "huge count": (
        ".sog",
        lambda folder: sog_of(folder, {"meta.json": sog_meta(folder, count=2**40)}),
        "1099511627776 splats",
    ),
    "no count": (".sog", lambda folder: sog_of(folder, {"meta.json": sog_meta(folder, count="many")}), r"\$\.count"),
    "version 1": (".sog", lambda folder: sog_of(folder, {"meta.json": b'{"means": {}}'}), "version 2 .*got 1"),
    "no JSON": (".sog", lambda folder: sog_of(folder, {"meta.json": b"hello"}), "JSON is malformed"),
    "short codebook": (
        ".sog",
        lambda folder: sog_of(
            folder, {"meta.json": sog_meta(folder, scales={"codebook": [0.0], "files": ["scales.webp"]})}
        ),
        "its codebook 1 entries",
    ),
    "zip of nothing": (".sog", lambda _: b"PK\x03\x04" + bytes(50), "zip file"),
    "odd length": (".splat", lambda _: bytes(33), "33 in all"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_lies_are_refused_by_name_before_they_take_memory(tmp_path, name):
    suffix, make, expected = BOMBS[name]
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(make(tmp_path))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=expected) as error:
            read_splats(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("element chunk 2", "element chunk 1"), "a chunk for every 256 of 300"),
        (("property float min_x", "property float other"), "it has no min_x"),
        (("property uint packed_scale", "property float packed_scale"), "of type uint"),
        (("element sh 300", "element sh 200"), "bytes for 300 splats"),
        (("property uchar f_rest_3", "property uchar other"), "columns f_rest_"),
    ],
)
def test_wrong_tables_of_a_compressed_ply_are_named(tmp_path, change, expected):
    path = write(some_splats(4, 300), "compressed-ply", tmp_path)
    before, after = (text.encode() for text in change)
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))
    with pytest.raises(InputError, match=expected):
        read_splats(path)
