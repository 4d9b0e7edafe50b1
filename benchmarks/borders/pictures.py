"""How pictures and splats are spoiled; see `faults`."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from random import Random

from PIL import Image

from benchmarks.borders.faults import (
    FILE,
    LONG_NUMBER,
    Fault,
    replace_file,
)

__all__ = ["PICTURE", "PLY"]


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
