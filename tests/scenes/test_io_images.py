"""Pictures from outside: only raster formats are opened, sizes are bounded, and what a header says is read."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restage.records import InputError
from restage.scenes.io.images import list_images, open_picture, read_head, read_image, read_mask

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n0 0 32 32 rectfill\nshowpage\n"


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes whose header names a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["page.eps", "page.png"])
def test_an_eps_never_reaches_ghostscript_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(InputError, match="not readable as an image"):
        read_image(tmp_path / name)
    with pytest.raises(InputError, match="row 7 is not readable"):
        open_picture(EPS, "row 7")


@pytest.mark.parametrize("size", [(13_000, 13_000), (30_000, 10), (2**31 - 1, 2**31 - 1)])
def test_a_small_file_that_claims_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(*size))
    with pytest.raises(InputError, match=r"bomb\.png"):
        read_head(tmp_path / "bomb.png")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM", "GIF", "AVIF"])
def test_raster_formats_open_from_files_and_from_bytes(tmp_path, form):
    content = encoded(Image.new("RGB", (12, 9), (200, 30, 60)), form)
    (tmp_path / "picture").write_bytes(content)
    assert open_picture(content).size == open_picture(tmp_path / "picture").size == (12, 9)
    assert np.abs(read_image(tmp_path / "picture")[4, 6] * 255 - (200, 30, 60)).max() < 12


def test_heic_opens_with_the_extra_and_without_it_the_extra_is_named(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif (the extra heif) is not installed")
    path = tmp_path / "IMG_0001.HEIC"
    pillow_heif.from_pillow(Image.new("RGB", (32, 24), (200, 30, 60))).save(path, quality=95)
    assert read_head(path) == (32, 24, 1)
    assert np.abs(read_image(path)[12, 16] * 255 - (200, 30, 60)).max() < 6
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"IMG_0001\.HEIC is a HEIC picture.*restage\[heif\]"):
        read_head(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_head_tells_the_stored_size_and_the_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (12, 9)).save(tmp_path / "a.jpg", exif=exif)
    assert read_head(tmp_path / "a.jpg") == (12, 9, orientation)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_out_of_range_counts_as_none(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (12, 9)).save(tmp_path / "a.jpg", exif=exif)
    assert read_head(tmp_path / "a.jpg").orientation == 1


@pytest.mark.parametrize("keep", [3, 20, 60, 150])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_a_file_that_is_cut_off_is_one_clear_line(tmp_path: Path, form: str, keep: int):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    path = tmp_path / "cut.bin"
    path.write_bytes(encoded(Image.fromarray(noise), form)[:keep])
    for read in (read_image, read_mask):
        with pytest.raises(InputError, match=r"cut\.bin"):
            read(path)


def test_masks_are_read_whatever_they_are_painted_with(tmp_path):
    inside = np.zeros((4, 6), bool)
    inside[:, :3] = True
    red = np.where(inside[..., None], np.array([255, 0, 0]), 0).astype(np.uint8)
    cut_out = np.dstack([np.full((4, 6, 3), 255, np.uint8), inside * np.uint8(255)])
    labels = Image.fromarray(inside.astype(np.uint8), "P")
    labels.putpalette([0, 0, 0, 128, 0, 0, *[0] * 762])  # as in data sets of segmentation
    forms = {
        "gray": Image.fromarray(inside * np.uint8(255)),
        "labels 0 and 1": Image.fromarray(inside.astype(np.uint8)),
        "bits": Image.fromarray(inside),
        "deep": Image.fromarray(inside * np.uint16(65535)),
        "red": Image.fromarray(red),
        "cut out": Image.fromarray(cut_out),
        "palette": labels,
    }
    for name, image in forms.items():
        image.save(tmp_path / "mask.png")
        assert np.array_equal(read_mask(tmp_path / "mask.png"), inside.astype(np.float32)), name


def test_pictures_are_listed_by_their_numbers(tmp_path):
    names = ["1.png", "2.png", "10.png", "a1b2.png", "a01b3.png", "a1b10.png", "frame_999.png", "frame_1000.png"]
    for name in reversed(names):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    assert [path.name for path in list_images(tmp_path)] == names
