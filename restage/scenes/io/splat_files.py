"""Files of splats in all the formats that people keep them in, recognized by their content.

A splat format is a `SplatFormat` and its line of `SPLAT_FORMATS`; `read_splats` and `write_splats` choose among them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from restage.records import InputError, file_sha256, write_atomically
from restage.scenes.io.compressed_ply import is_compressed, read_compressed_ply, write_compressed_ply
from restage.scenes.io.dot_splat import read_dot_splat, write_dot_splat
from restage.scenes.io.gltf import write_gltf
from restage.scenes.io.ply import columns_in, read_ply, write_ply
from restage.scenes.io.sog import find_unpacked, hash_unpacked, read_sog, write_sog
from restage.scenes.io.spz import read_spz, write_spz
from restage.scenes.splats import Splats

__all__ = ["SPLAT_FORMATS", "SplatFormat", "is_splat_format", "read_splats", "splat_format_of", "splats_in"]
__all__ += ["splats_sha256", "write_splats"]


class SplatFormat(NamedTuple):
    """One way in which people keep splats."""

    title: str
    suffix: str
    read: Callable[[Path], Splats] | None
    """Reads a file, whose numbers may be anything; a ValueError says what is wrong with it. None: written only."""
    write: Callable[[Splats, Path], None]
    """Writes splats that are finite and at least one, in float32 unless `keeps_doubles`."""
    keeps_doubles: bool = False
    keeps_harmonics: bool = True


SPLAT_FORMATS: dict[str, SplatFormat] = {
    "compressed-ply": SplatFormat(
        "compressed PLY (PlayCanvas)", ".compressed.ply", read_compressed_ply, write_compressed_ply
    ),
    "ply": SplatFormat("PLY", ".ply", read_ply, write_ply, keeps_doubles=True),
    "spz": SplatFormat("SPZ (Niantic)", ".spz", read_spz, write_spz),
    "splat": SplatFormat(
        ".splat (antimatter15's viewer)", ".splat", read_dot_splat, write_dot_splat, keeps_harmonics=False
    ),
    "sog": SplatFormat("SOG (PlayCanvas)", ".sog", read_sog, write_sog),
    "gltf": SplatFormat("glTF", ".glb", None, write_gltf),
}
"""In an order in which the first ending that fits is the right one."""

MAGIC = ((b"NGSP", "spz"), (b"\x1f\x8b", "spz"), (b"PK\x03\x04", "sog"), (b"glTF", "gltf"))
"""First bytes of formats."""
OTHER_SUFFIXES = {
    ".ksplat": "the .ksplat format of mkkellogg's viewer; convert it with: npx @playcanvas/splat-transform IN OUT.ply",
    ".ckpt": "a checkpoint of nerfstudio; write a PLY with: ns-export gaussian-splat",
    ".pth": "a checkpoint of 3D Gaussian splatting; its point_cloud/iteration_*/point_cloud.ply is read",
}


def splat_format_of(path: Path) -> str:
    """Return the format that a file's name ends with, a key of `SPLAT_FORMATS`."""
    for name, form in SPLAT_FORMATS.items():
        if path.name.lower().endswith(form.suffix):
            return name
    endings = ", ".join(form.suffix for form in SPLAT_FORMATS.values())
    raise InputError(f"expected a file name that ends with one of {endings}, got {path}")


def is_splat_format(name: str, path: Path) -> bool:
    """Whether a name is one of `SPLAT_FORMATS`; refuses a file name that ends with another one's ending."""
    if name in SPLAT_FORMATS and splat_format_of(path) != name:
        raise InputError(
            f"{path}: expected a file name that ends with {SPLAT_FORMATS[name].suffix} for --format {name}"
        )
    return name in SPLAT_FORMATS


def splats_in(path: Path) -> str:
    """Return the name of the format of the splats that a path holds, by its first bytes or its name, or an empty text.

    A path is a file, or the folder of a SOG that is not packed.

    Raises:
        InputError: the file is empty, or a PLY without any splat.
    """
    if find_unpacked(path) is not None:
        return SPLAT_FORMATS["sog"].title
    if not path.is_file():
        return ""
    form = _recognize(path)
    return SPLAT_FORMATS[form].title if form else OTHER_SUFFIXES.get(path.suffix.lower(), "").partition(";")[0]


def _recognize(path: Path) -> str:
    """Return a key of `SPLAT_FORMATS`, or an empty text."""
    if find_unpacked(path) is not None:
        return "sog"
    with path.open("rb") as file:
        first = file.read(4)
    if not first:
        raise InputError(f"{path} is an empty file")
    if first[:3] == b"ply":
        return "compressed-ply" if is_compressed(columns_in(path).get("vertex", ())) else "ply"
    named = next((name for name, form in SPLAT_FORMATS.items() if form.suffix == path.suffix.lower()), "")
    return next((name for magic, name in MAGIC if first.startswith(magic)), named)


def splats_sha256(path: Path) -> str:
    """Return a hash of the content of a file of splats, or of all files of a SOG that is not packed."""
    meta = find_unpacked(path)
    return file_sha256(path) if meta is None else hash_unpacked(meta)


def read_splats(path: Path) -> Splats:
    """Read splats of any format of `SPLAT_FORMATS` that is read, in the axes and units of a PLY.

    A SOG may be one file, or a folder with `meta.json` and its pictures.

    Splats with NaN or infinity are left out, with a warning that counts them; an infinite opacity is opaque. Refused
    are other formats, by name, files that are broken or cut off, and files without any splat.
    """
    path = find_unpacked(path) or path
    if not path.is_file():  # to open a pipe would wait for whoever writes into it
        raise InputError(f"{path} does not exist or is not a file")
    form = _recognize(path)
    if not form and path.suffix.lower() in OTHER_SUFFIXES:
        raise InputError(f"{path}: expected splats, got {OTHER_SUFFIXES[path.suffix.lower()]}")
    chosen = SPLAT_FORMATS[form or "ply"]  # a file of no known format is no PLY: its reader says so
    if chosen.read is None:
        raise InputError(f"{path}: {chosen.title} is written only; give the splats in another format")
    try:
        splats = chosen.read(path)
    except (ValueError, OSError, MemoryError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not readable as {chosen.title}: {reason[:200]}") from None
    flat = [tensor.isfinite().reshape(len(splats), -1).all(dim=1) for tensor in splats.parameters().values()]
    is_finite = torch.stack(flat).all(dim=0)
    num_broken = int((~is_finite).sum())
    if not num_broken:
        return splats
    if num_broken == len(splats):
        raise InputError(f"{path} holds no usable splat: all {num_broken} have NaN or infinity")
    warnings.warn(f"{path}: {num_broken} of {len(splats)} splats have NaN or infinity and are left out", stacklevel=2)
    return splats[is_finite]


def write_splats(splats: Splats, path: Path) -> None:
    """Write splats in the format that the file's name ends with, atomically.

    Refused are NaN, infinity, no splats at all, and centers in float64, which only PLY keeps. `.splat` loses
    view-dependent colors, with a warning.
    """
    form = SPLAT_FORMATS[splat_format_of(path)]
    if not len(splats):
        raise InputError(f"{path}: expected at least one splat to write, got none")
    for name, tensor in splats.parameters().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: expected finite values, got NaN or infinity in {name}")
    if splats.means.dtype == torch.float64 and not form.keeps_doubles:
        raise InputError(
            f"{path}: so far from the origin {form.title} loses their positions; write PLY, or with --frame upright"
        )
    if splats.degree and not form.keeps_harmonics:
        warnings.warn(f"{path}: {form.title} has one color a splat; view-dependent color is lost", stacklevel=2)
    plain = splats.detach().to("cpu")
    with write_atomically(path) as temporary:
        form.write(plain, temporary)
