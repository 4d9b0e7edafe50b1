"""An image pair, and what it is stored and shown as: lossless PNG files, a JSON record, hashes, a cell of a sheet.

Pictures are opened here in one way, whoever has made the file. `store` puts pairs into shards.
"""

from __future__ import annotations

import hashlib
import io
import math
import tarfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from restage.records import InputError, PromptPair, canonical_json, check_is_no_pipe, parse_json, write_atomically
from restage.scenes.io.images import UNREADABLE, open_picture, to_uint8
from restage.scenes.references import ShownPicture

__all__ = ["EncodedPair", "ImagePair", "PairRecord", "decode_pair", "decode_reference", "encode_pair", "make_preview"]
__all__ += ["read_tar"]


def read_picture(folder: Path, name: str) -> bytes:
    """Read the file of a picture as it is."""
    check_is_no_pipe(folder / name)
    try:
        return (folder / name).read_bytes()
    except (OSError, ValueError) as error:  # or a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{folder / name}, which a prompt pair names, cannot be read: {reason}") from None


def load_picture(content: bytes, name: str, mode: str = "RGB") -> Image.Image:
    """Decode a picture as it is stored."""
    return _decoded(content, name, lambda image: image.convert(mode))


def upright_picture(content: bytes, name: str, mode: str = "RGB") -> Image.Image:
    """Decode a picture and turn it upright; of one with transparency, what cannot be seen is black, except in RGBA."""

    def turn(image: Image.Image) -> Image.Image:
        turned = ImageOps.exif_transpose(image)
        if mode != "RGBA" and ("A" in turned.getbands() or "transparency" in turned.info):
            turned = Image.alpha_composite(Image.new("RGBA", turned.size, "black"), turned.convert("RGBA"))
        if turned.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling them
            turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
        return turned.convert(mode)

    return _decoded(content, name, turn)


def _decoded(content: bytes, name: str, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    with open_picture(content, name) as image:
        try:
            return change(image)
        except UNREADABLE as error:
            raise InputError(f"{name} cannot be decoded: {error}") from None


def decode_picture(content: bytes, size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
    """Decode a picture to [0, 1], turn it upright, and crop its middle to the given height and width."""
    height, width = size
    upright = upright_picture(content, "the picture of a prompt pair")
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


PREVIEW = "preview"
"""Column of the sidecar with a small picture of the pair as JPEG; the manifest has no such column."""
MEMBERS = ("source.png", "edited.png", "mask.png", "json")
"""Names of a pair's files in the tar, after its id."""
REFERENCE_MEMBERS = ("reference.png", "reference_mask.png")
"""Names of the files of a pair's reference, before the record, where there is one."""
MAX_FILE_BYTES = 100_000_000
"""Size of a file up to which it can be a picture or a record of one pair."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePair:
    """A picture before and after an edit, and where it may differ."""

    id: str
    source: Float[Tensor, "3 height width"]
    edited: Float[Tensor, "3 height width"]
    mask: Float[Tensor, "height width"]  # 1 where the pictures may differ, 0 elsewhere
    prompt: PromptPair
    facts: Mapping[str, Any]  # how the pair was made and scored, as JSON values
    reference: ShownPicture | None = None
    """Picture that the instruction refers to, of any size."""


@dataclass(frozen=True, kw_only=True)
class PairRecord:
    """What the `json` of a stored pair says."""

    id: str
    prompt: PromptPair
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EncodedPair:
    """The files of a pair, as they lie in the tar."""

    id: str
    members: tuple[tuple[str, bytes], ...]
    pixel_sha256: str = ""
    bytes_sha256: str = ""


def _png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    # Dithering would turn a gray level into a pattern of dots, which a mask must not have.
    (image.convert(mode, dither=Image.Dither.NONE) if mode else image).save(buffer, format="PNG")
    return buffer.getvalue()


def _png_mask(mask: Float[Tensor, "height width"]) -> bytes:
    return _png((mask > 0.5).numpy() * np.uint8(255), "1")


def _encode_reference(shown: ShownPicture) -> list[tuple[str, bytes]]:
    picture, mask = REFERENCE_MEMBERS
    return [(picture, _png(to_uint8(shown.picture))), *([] if shown.mask is None else [(mask, _png_mask(shown.mask))])]


def decode_reference(picture: bytes, mask: bytes | None) -> ShownPicture:
    """Decode a picture that an instruction refers to, upright, and the mask of its subject, white inside."""
    shown = torch.from_numpy(np.array(upright_picture(picture, "the reference"))).permute(2, 0, 1).float() / 255
    if not mask:
        with open_picture(picture, "the reference") as opened:
            is_cut_out = "A" in opened.getbands() or "transparency" in opened.info
        if not is_cut_out:
            return ShownPicture(shown)
        opacity = torch.from_numpy(np.array(upright_picture(picture, "the reference", "RGBA")))[..., 3]
        subject = (opacity > 127).float()
        return ShownPicture(shown, subject if 0 < float(subject.mean()) < 1 else None)
    subject = torch.from_numpy(np.array(upright_picture(mask, "the mask of the reference", "L")) > 127).float()
    if subject.shape != shown.shape[1:] or not subject.any():
        raise InputError("the mask of the reference is empty, or of another size than the reference")
    return ShownPicture(shown, subject)


def pixel_sha256(
    source: Float[Tensor, "3 height width"],
    edited: Float[Tensor, "3 height width"],
    mask: Float[Tensor, "height width"],
) -> str:
    """Hash a pair's pixels as they are stored: sizes and bytes of source, edited picture and 0 / 1 mask."""
    return array_sha256(to_uint8(source), to_uint8(edited), (mask > 0.5).numpy().astype(np.uint8))


def array_sha256(*arrays: np.ndarray) -> str:
    """Hash arrays of bytes together with their sizes."""
    digest = hashlib.sha256()
    for array in arrays:
        # With the size, since pictures of 2 x 8 and of 4 x 4 pixels may have the same bytes.
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def bytes_sha256(members: Sequence[tuple[str, bytes]]) -> str:
    """Hash a pair's files in the tar: their names, sizes and bytes, in order."""
    digest = hashlib.sha256()
    for name, content in members:
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def encode_pair(pair: ImagePair) -> EncodedPair:
    """Turn a pair into its files without loss; the mask takes one bit a pixel."""
    members = (
        ("source.png", _png(to_uint8(pair.source))),
        ("edited.png", _png(to_uint8(pair.edited))),
        ("mask.png", _png_mask(pair.mask)),
        *([] if pair.reference is None else _encode_reference(pair.reference)),
        ("json", canonical_json({"id": pair.id, "prompt": pair.prompt, "facts": dict(pair.facts)}).encode()),
    )
    return EncodedPair(
        id=pair.id,
        members=members,
        pixel_sha256=pixel_sha256(pair.source, pair.edited, pair.mask),
        bytes_sha256=bytes_sha256(members),
    )


def write_tar(pairs: Sequence[EncodedPair]) -> bytes:
    """Pack the pairs' files into a tar that WebDataset reads; equal pairs give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            for name, content in pair.members:
                # Time and owner of a TarInfo are 0: equal pairs give equal bytes on any machine at any time.
                member = tarfile.TarInfo(f"{pair.id}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def decode_pair(parts: Mapping[str, bytes], where: str = "a stored pair") -> ImagePair:
    """Turn the files of a pair back into the pair."""
    if missing := [name for name in MEMBERS if name not in parts]:
        raise InputError(f"{where} has no {missing[0]}")
    record: PairRecord = parse_json(parts["json"], PairRecord, where=f"{where}, json")
    arrays = (np.array(load_picture(parts[name], f"{where}, {name}"), dtype=np.float32) / 255 for name in MEMBERS[:3])
    source, edited, mask = (torch.from_numpy(array).permute(2, 0, 1).contiguous() for array in arrays)
    reference = None
    if (picture := parts.get(REFERENCE_MEMBERS[0])) is not None:
        reference = decode_reference(picture, parts.get(REFERENCE_MEMBERS[1]))
    return ImagePair(
        id=record.id,
        source=source,
        edited=edited,
        mask=mask[0],
        prompt=record.prompt,
        facts=record.facts,
        reference=reference,
    )


def check_member(member: tarfile.TarInfo) -> None:
    """Refuse a member of a tar that is no file of a pair: a link, a device, a pipe, one with holes, or a huge one."""
    name = member.name[:100]
    if not member.isreg() or member.issparse():
        raise InputError(f"{name!r} is no plain file")
    if member.size > MAX_FILE_BYTES:
        raise InputError(f"{name!r}: {member.size} bytes are too many for a file of a pair")


def read_tar(content: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the files of each pair in a tar: the id, and bytes by name."""
    parts: dict[str, bytes] = {}
    key = ""
    try:
        # Without compression and holes, nothing in it can be larger than the tar.
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                check_member(member)
                next_key, _, name = member.name.partition(".")
                if parts and next_key != key:
                    yield key, parts
                    parts = {}
                key, file = next_key, tar.extractfile(member)
                parts[name] = file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
        raise InputError(f"it is not readable as a tar: {error}") from None
    if parts:
        yield key, parts


THUMBNAIL_PX = 112
CELL_PX = (3 * THUMBNAIL_PX + 12, THUMBNAIL_PX + 64)
NUM_COLUMNS = 3
MAX_CELLS = 18
"""Number of cells for accepted pairs, and for rejected ones."""
INK, FAINT, ACCEPTED, REJECTED, PAPER = "#1d1d1f", "#6b6b70", "#1a7f45", "#b3261e", "#ffffff"


def make_preview(
    source: Float[Tensor, "3 height width"],
    edited: Float[Tensor, "3 height width"],
    mask: Float[Tensor, "height width"],
) -> bytes:
    """Draw source, edited picture and mask small in a row, as JPEG (a sixth of the size of PNG)."""
    row = Image.new("RGB", (3 * THUMBNAIL_PX, THUMBNAIL_PX))
    for column, image in enumerate((source, edited, mask.expand(3, -1, -1))):
        thumbnail = Image.fromarray(to_uint8(image)).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC)
        row.paste(thumbnail, (column * THUMBNAIL_PX, 0))
    buffer = io.BytesIO()
    row.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _draw_cell(sheet: Image.Image, row: Mapping[str, Any], at: tuple[int, int]) -> None:
    draw, (left, top) = ImageDraw.Draw(sheet), at
    sheet.paste(load_picture(row[PREVIEW], "a preview"), at)
    found = (row.get(f"{name}_similarity") for name in ("direction", "image"))
    scores = "direction {:.2f}, pictures {:.2f}".format(*(math.nan if value is None else value for value in found))
    reason = row["reason"]
    lines = (
        (row["instruction"], INK, 13),
        (f"{row['source_caption']}  >  {row['target_caption']}", FAINT, 10),
        (f"{reason}: {scores}", REJECTED, 11) if reason else (scores, ACCEPTED, 11),
    )
    y = top + THUMBNAIL_PX + 4
    for text, color, size in lines:
        shown = textwrap.shorten(text, round((CELL_PX[0] - 12) / (0.52 * size)), placeholder="...")
        draw.text((left, y), shown, fill=color, font=ImageFont.load_default(size))
        y += size + 5


def write_sheet(path: Path, groups: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
    """Write pairs as one PNG, group below group; a group is a title, and sidecar rows with their previews."""
    num_rows = [-(-len(cells) // NUM_COLUMNS) for _, cells in groups]
    height = sum(34 + count * CELL_PX[1] for count in num_rows) + 12
    sheet = Image.new("RGB", (NUM_COLUMNS * CELL_PX[0] + 12, height), PAPER)
    top = 8
    for (title, cells), count in zip(groups, num_rows, strict=True):
        ImageDraw.Draw(sheet).text((12, top), title, fill=INK, font=ImageFont.load_default(18))
        top += 30
        for index, row in enumerate(cells):
            row_index, column = divmod(index, NUM_COLUMNS)
            _draw_cell(sheet, row, (12 + column * CELL_PX[0], top + row_index * CELL_PX[1]))
        top += count * CELL_PX[1] + 4
    with write_atomically(path) as temporary:
        sheet.save(temporary, format="PNG")
