"""SOG of PlayCanvas (Spatially Ordered Gaussians): WebP pictures, a pixel a splat, and codebooks; a zip or a folder.

The format, version 2: https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restage.records import content_id, hash_files
from restage.scenes.io.packing import (
    alphas_of,
    check_count,
    fit_range,
    logits_of,
    morton_order,
    smallest_three,
    splats_of,
    unit_rotations,
    whole_rotations,
)
from restage.scenes.splats import Splats

__all__ = ["find_unpacked", "hash_unpacked", "read_sog", "write_sog"]

META = "meta.json"
MAX_META = 2**22
MAX_SPARE_PIXELS = 2**20
"""Pixels of a picture beyond four a splat; writers round sides up."""
MAX_ENTRIES = 1000
NUM_REST = (0, 3, 8, 15)
PALETTE_COLUMNS = 64
MAX_PALETTE = 2**16
FIRST_TAG = 252
"""Alpha of a rotation's pixel: this, plus the index of the largest component in wxyz."""
CODES = 256
CODEBOOK_SAMPLE = 200_000
CODEBOOK_STEPS = 20

Three = Annotated[tuple[float, ...], msgspec.Meta(min_length=3, max_length=3)]
Codebook = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=CODES)]
One = Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=1)]
Two = Annotated[tuple[str, ...], msgspec.Meta(min_length=2, max_length=2)]


class _Means(msgspec.Struct):
    mins: Three
    maxs: Three
    files: Two


class _Coded(msgspec.Struct):
    codebook: Codebook
    files: One


class _Plain(msgspec.Struct):
    files: One


class _Palette(msgspec.Struct):
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_PALETTE)]
    bands: Annotated[int, msgspec.Meta(ge=0, le=3)]
    codebook: Codebook
    files: Two


class _Meta(msgspec.Struct):
    """What `meta.json` says."""

    count: int
    means: _Means
    scales: _Coded
    quats: _Plain
    sh0: _Coded
    shN: _Palette | None = None  # noqa: N815 - the format's own name


@runtime_checkable
class _Files(Protocol):
    """What a SOG consists of, wherever it lies."""

    num_bytes: int  # of all of it as it lies there

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a file of at most so many bytes; a ValueError says what is wrong with it."""
        ...


class _Zip:
    """A SOG in one file."""

    def __init__(self, archive: zipfile.ZipFile, num_bytes: int) -> None:
        if len(archive.infolist()) > MAX_ENTRIES:
            raise ValueError(f"it has more than {MAX_ENTRIES} files")
        self.archive, self.num_bytes = archive, num_bytes

    def read(self, name: str, most: int) -> bytes:
        try:
            entry = self.archive.getinfo(name)
        except KeyError:
            raise ValueError(f"it has no {name[:80]!r}") from None
        if entry.file_size > most:
            raise ValueError(f"its {name[:80]} unpacks to {entry.file_size} bytes, expected at most {most}")
        with self.archive.open(entry) as file:
            return file.read(most + 1)  # beyond its end, so that its checksum is compared


class _Folder:
    """A SOG whose files lie beside each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())

    def read(self, name: str, most: int) -> bytes:
        if Path(name.replace("\\", "/")).name != name:  # nothing outside of the folder is read
            raise ValueError(f"expected the name of a file beside {META}, got {name[:80]!r}")
        path = self.folder / name
        if not path.is_file():
            raise ValueError(f"it has no {name[:80]!r}")
        if path.stat().st_size > most:
            raise ValueError(f"its {name[:80]} has {path.stat().st_size} bytes, expected at most {most}")
        return path.read_bytes()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Files]:
    if path.name == META:
        yield _Folder(path.parent)
        return
    with zipfile.ZipFile(path) as archive:
        yield _Zip(archive, path.stat().st_size)


def find_unpacked(path: Path) -> Path | None:
    """Return the `meta.json` of a SOG that is not packed into one file, given that or its folder; else None."""
    meta = path / META if path.is_dir() else path
    if meta.name != META or not meta.is_file() or meta.stat().st_size > MAX_META:
        return None
    try:
        said = msgspec.json.decode(meta.read_bytes(), type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return None
    return meta if {"means", "scales", "quats", "sh0"} <= said.keys() else None


def hash_unpacked(meta: Path) -> str:
    """Hash of the names and contents of all files of an unpacked SOG."""
    files = [meta, *(path for path in meta.parent.iterdir() if path.suffix.lower() in (".webp", ".png"))]
    return content_id("sog", hash_files(meta.parent, files))


def read_sog(path: Path) -> Splats:
    """Read a SOG of version 2: one file, or the `meta.json` of one that is not packed.

    Raises:
        ValueError: what is wrong with the file.
    """
    try:
        with _opened(path) as archive:
            meta = _read_meta(archive)
            count = meta.count
            low, high = (_pixels(archive, name, count) for name in meta.means.files)
            quats = _pixels(archive, meta.quats.files[0], count)
            scales = _pixels(archive, meta.scales.files[0], count)[:, :3]
            sh0 = _pixels(archive, meta.sh0.files[0], count)
            rest = _read_rest(archive, meta)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, msgspec.DecodeError) as error:
        raise ValueError(str(error)) from None
    least, most = np.array(meta.means.mins), np.array(meta.means.maxs)
    steps = (low[:, :3] | high[:, :3].astype(np.uint16) << 8) / 65535.0
    logs = least + (most - least) * steps
    with np.errstate(over="ignore"):  # absurd bounds give infinity, and such splats are left out by the caller
        means = np.sign(logs) * np.expm1(np.abs(logs))
        means = np.where(np.abs(means) < np.finfo(np.float32).max, means, np.inf)
    tags = quats[:, 3].astype(np.int64) - FIRST_TAG
    rotations = whole_rotations(np.maximum(tags, 0), (quats[:, :3] / 127.5 - 1.0) * math.sqrt(0.5))
    rotations[tags < 0] = (1, 0, 0, 0)
    colors = _decode(meta.sh0.codebook, sh0[:, :3]).astype(np.float32)
    return splats_of(
        means,
        _decode(meta.scales.codebook, scales),
        rotations,
        logits_of(sh0[:, 3] / 255.0),
        np.concatenate([colors[:, None], rest], axis=1),
    )


def _read_meta(archive: _Files) -> _Meta:
    text = archive.read(META, MAX_META)
    version = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("version")
    if version is None or bytes(version) != b"2":
        said = "1" if version is None else bytes(version).decode(errors="replace")[:20]
        raise ValueError(f"expected version 2 of the format, got {said}")
    meta = msgspec.json.decode(text, type=_Meta)
    check_count(meta.count, archive.num_bytes)
    return meta


def _picture(archive: _Files, name: str, most: int) -> np.ndarray:
    """RGBA "h w 4"; refuses one of more pixels before it is decoded."""
    # Pictures are compressed already: one that is larger than the whole archive is a bomb.
    content = archive.read(name, 2 * archive.num_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            image = Image.open(io.BytesIO(content), formats=("WEBP", "PNG"))
        with image:
            if image.width * image.height > most:
                raise ValueError(f"its {name[:80]} has {image.width}x{image.height} pixels, expected at most {most}")
            return np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"its {name[:80]} is not readable as a picture: {error}") from None


def _pixels(archive: _Files, name: str, count: int) -> np.ndarray:
    """The first pixels in rows, RGBA "n 4"."""
    pixels = _picture(archive, name, 4 * count + MAX_SPARE_PIXELS).reshape(-1, 4)
    if len(pixels) < count:
        raise ValueError(f"its {name[:80]} has {len(pixels)} pixels for {count} splats")
    return pixels[:count]


def _read_rest(archive: _Files, meta: _Meta) -> np.ndarray:
    """Spherical harmonics from degree 1 on, "n k 3"."""
    palette = meta.shN
    if palette is None or not palette.bands:
        return np.empty((meta.count, 0, 3))
    width = NUM_REST[palette.bands]
    # The height says how many entries there are; some writers round `count` up.
    picture = _picture(archive, palette.files[0], PALETTE_COLUMNS * width * (MAX_PALETTE // PALETTE_COLUMNS))
    if picture.shape[1] != PALETTE_COLUMNS * width:
        raise ValueError(f"its {palette.files[0][:80]} is {picture.shape[1]} pixels wide, expected {64 * width}")
    entries = picture[..., :3].reshape(-1, width, 3)
    labels = _pixels(archive, palette.files[1], meta.count)
    labels = labels[:, 0] | labels[:, 1].astype(np.uint16) << 8
    if labels.max() >= len(entries):
        raise ValueError(f"its {palette.files[1][:80]} names entry {labels.max()} of {len(entries)}")
    return _decode(palette.codebook, entries).astype(np.float32)[labels]


def _decode(codebook: tuple[float, ...], codes: np.ndarray) -> np.ndarray:
    if codes.max() >= len(codebook):
        raise ValueError(f"a picture has code {codes.max()}, but its codebook {len(codebook)} entries")
    return np.array(codebook)[codes]


def write_sog(splats: Splats, path: Path) -> None:
    """Write a SOG of version 2; harmonics of more than 65,536 splats share that many sets."""
    splats = splats[morton_order(splats.means)]
    count = len(splats)
    width = 4 * math.ceil(math.sqrt(count) / 4)
    height = 4 * math.ceil(count / width / 4)
    means = splats.means.double().numpy()
    logs = np.sign(means) * np.log1p(np.abs(means))
    least, most = logs.min(axis=0), logs.max(axis=0)
    steps = np.rint(fit_range(logs - least, most - least) * 65535).astype(np.uint16)
    largest, others = smallest_three(unit_rotations(splats))
    scales, colors = _Coding.of(splats.log_scales.numpy()), _Coding.of(splats.sh[:, 0].numpy())
    rotations = np.rint((others * math.sqrt(2) + 1) * 127.5).clip(0, 255)
    pictures = {
        "means_l.webp": steps & 0xFF,
        "means_u.webp": steps >> 8,
        "scales.webp": scales.codes,
        "quats.webp": np.concatenate([rotations, (largest + FIRST_TAG)[:, None]], axis=1),
        "sh0.webp": np.concatenate([colors.codes, np.rint(alphas_of(splats) * 255)[:, None]], axis=1),
    }
    meta = {
        "version": 2,
        "asset": {"generator": "Restage"},
        "count": count,
        "means": {"mins": least.tolist(), "maxs": most.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": scales.codebook, "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": colors.codebook, "files": ["sh0.webp"]},
    }
    contents = {name: _webp(pixels, width, height) for name, pixels in pictures.items()}
    if splats.degree:
        labels, entries = _palette(splats.sh[:, 1:])
        coding = _Coding.of(entries.numpy())
        rows = math.ceil(len(entries) / PALETTE_COLUMNS)
        names = ["shN_centroids.webp", "shN_labels.webp"]
        num_rest = splats.sh.shape[1] - 1
        contents[names[0]] = _webp(coding.codes.reshape(-1, 3), PALETTE_COLUMNS * num_rest, rows)
        contents[names[1]] = _webp(np.stack([labels & 0xFF, labels >> 8], axis=1), width, height)
        meta["shN"] = {"count": len(entries), "bands": splats.degree, "codebook": coding.codebook, "files": names}
    with zipfile.ZipFile(path, "w") as archive:
        # Entries without the time, so that the same splats give the same bytes.
        for name, content in ({META: msgspec.json.encode(meta)} | contents).items():
            archive.writestr(zipfile.ZipInfo(name), content)


def _webp(columns: np.ndarray, width: int, height: int) -> bytes:
    pixels = np.zeros((height * width, 4), np.uint8)
    pixels[:, 3] = 255
    pixels[: len(columns), : columns.shape[1]] = columns
    file = io.BytesIO()
    # `exact` keeps the colors of pixels without opacity, which say where a rotation's or color's numbers are.
    Image.fromarray(pixels.reshape(height, width, 4)).save(file, "WEBP", lossless=True, exact=True)
    return file.getvalue()


class _Coding(NamedTuple):
    """Numbers as indices of a codebook."""

    codes: np.ndarray
    codebook: list[float]

    @classmethod
    def of(cls, values: np.ndarray) -> _Coding:
        """Code values by 256 levels, found by k-means from a mixture of even and quantile levels."""
        sample = np.sort(values.reshape(-1).astype(np.float64))
        sample = sample[np.linspace(0, len(sample) - 1, min(len(sample), CODEBOOK_SAMPLE)).astype(np.int64)]
        levels = np.unique(sample)
        if len(levels) > CODES:
            even = np.linspace(sample[0], sample[-1], CODES // 2)
            shares = (np.arange(CODES - CODES // 2) + 0.5) / (CODES - CODES // 2)
            levels = np.sort(np.concatenate([even, np.quantile(sample, shares)]))
            for _ in range(CODEBOOK_STEPS):
                nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, sample)
                counts = np.bincount(nearest, minlength=CODES)
                sums = np.bincount(nearest, sample, minlength=CODES)
                # The outermost levels stay, so that no number is off by more than half a step of the even ones.
                inner = (counts > 0) & (np.arange(CODES) % (CODES - 1) > 0)
                levels[inner] = sums[inner] / counts[inner]
        codebook = levels.astype(np.float32)
        codes = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, values)
        return cls(codes, codebook.tolist())


def _palette(rest: Tensor) -> tuple[np.ndarray, Tensor]:
    """Sets of harmonics "m k 3" and which of them each splat has; each its own, if there are few.

    Many are cut in halves at the median of the number that varies most, again and again, and each part shares its mean
    (Heckbert's median cut): a sort for each of 16 levels, where k-means would compare every splat with every set.
    """
    count = len(rest)
    if count <= MAX_PALETTE:
        return np.arange(count), rest
    flat = rest.reshape(count, -1)
    parts = torch.zeros(count, dtype=torch.int64)
    for level in range(MAX_PALETTE.bit_length() - 1):
        sizes = torch.bincount(parts, minlength=2**level).clamp_min(1)
        sums, squares = (
            torch.zeros(2**level, flat.shape[1]).index_add_(0, parts, values) for values in (flat, flat**2)
        )
        axes = (squares / sizes[:, None] - (sums / sizes[:, None]) ** 2).argmax(dim=1)
        values = flat.gather(1, axes[parts][:, None])[:, 0]
        order = torch.from_numpy(np.lexsort((values.numpy(), parts.numpy())))
        starts = torch.cumsum(sizes, dim=0) - sizes
        within = torch.arange(count) - starts[parts[order]]
        parts[order] = 2 * parts[order] + (within >= (sizes[parts[order]] + 1) // 2)
    sums = torch.zeros(MAX_PALETTE, flat.shape[1]).index_add_(0, parts, flat)
    entries = sums / torch.bincount(parts, minlength=MAX_PALETTE).clamp_min(1)[:, None]
    return parts.numpy(), entries.reshape(MAX_PALETTE, *rest.shape[1:])
