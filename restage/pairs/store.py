"""Image pairs on disk: tar shards that WebDataset reads, a parquet sidecar each, and a mark that is written last.

A shard counts when its `.done` is there and its hashes are right. Equal pairs give equal bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from restage.pairs.left_out import mark_left_out, read_left_out
from restage.pairs.seals import seal
from restage.records import InputError, PromptPair, canonical_json, file_sha256, read_json, write_atomically, write_json

__all__ = [
    "ImagePair",
    "done_shards",
    "read_members",
    "read_pairs",
    "read_rows",
    "rebuild_manifest",
    "write_manifest",
    "write_shard",
]

PREVIEW = "preview"
"""Column of the sidecar with a small picture of the pair as PNG; not in the manifest."""

MANIFEST_GROUP_SIZE = 65_536
"""Rows of the manifest that are held in memory at once, and stand in one row group."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePair:
    """A picture before and after an edit, and where it may differ."""

    id: str
    source: Float[Tensor, "3 height width"]
    edited: Float[Tensor, "3 height width"]
    mask: Float[Tensor, "height width"]
    """1 where the pictures may differ, else 0."""
    prompt: PromptPair
    facts: Mapping[str, Any]
    """How it was made and scored, as JSON values."""


def _png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode, dither=Image.Dither.NONE) if mode else image).save(buffer, format="PNG")
    return buffer.getvalue()


def to_uint8(image: Float[Tensor, "3 height width"]) -> np.ndarray:
    """A picture in [0, 1] as rounded bytes, (height, width, 3)."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _members(pair: ImagePair) -> Iterator[tuple[str, bytes]]:
    yield "source.png", _png(to_uint8(pair.source))
    yield "edited.png", _png(to_uint8(pair.edited))
    yield "mask.png", _png(((pair.mask > 0.5).numpy() * np.uint8(255)), "1")
    yield "json", canonical_json({"id": pair.id, "prompt": pair.prompt, "facts": dict(pair.facts)}).encode()


def _write_tar(path: Path, pairs: Sequence[ImagePair]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            for name, content in _members(pair):
                member = tarfile.TarInfo(f"{pair.id}.{name}")  # its time and owner are 0 by default
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_shard(
    folder: Path, index: int, *, pairs: Sequence[ImagePair], rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    """Write a shard: the tar of accepted pairs, the sidecar with a row for every pair, then the mark.

    Args:
        folder: `<run>/pairs`.
        index: number of the shard.
        pairs: the accepted pairs.
        rows: columns of accepted and rejected pairs, the same in all shards.
        facts: what else the mark holds, such as what the shard was made from.
    """
    stem = f"shard-{index:05d}"
    with write_atomically(folder / f"{stem}.tar") as temporary:
        _write_tar(temporary, pairs)
    with write_atomically(folder / f"{stem}.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), temporary)
    hashes = {suffix: file_sha256(folder / f"{stem}.{suffix}") for suffix in ("tar", "parquet")}
    mark = {**facts, "sha256": hashes, "num_accepted": len(pairs), "num_pairs": len(rows)}
    write_json(folder / f"{stem}.done", seal(mark))


def done_shards(folder: Path) -> dict[int, Mapping[str, Any]]:
    """Marks of the finished shards by number, in order."""
    return {int(path.stem.split("-")[1]): read_json(path) for path in sorted(folder.glob("shard-*.done"))}


def _checked(folder: Path, index: int, suffix: str, mark: Mapping[str, Any]) -> Path:
    path = folder / f"shard-{index:05d}.{suffix}"
    if not path.exists() or file_sha256(path) != mark["sha256"][suffix]:
        raise InputError(
            f"{path} is missing or was changed; delete {path.with_suffix('.done').name} and run pairs again"
        )
    return path


def _read_image(content: bytes) -> Tensor:
    array = np.array(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _read_pair(parts: Mapping[str, bytes]) -> ImagePair:
    record = json.loads(parts["json"])
    return ImagePair(
        id=record["id"],
        source=_read_image(parts["source.png"]),
        edited=_read_image(parts["edited.png"]),
        mask=_read_image(parts["mask.png"])[0],
        prompt=PromptPair.from_plain(record["prompt"]),
        facts=record["facts"],
    )


def _read_tar(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    parts: dict[str, bytes] = {}
    key = ""
    with tarfile.open(path) as tar:
        for member in tar:
            next_key, _, name = member.name.partition(".")
            if parts and next_key != key:
                yield key, parts
                parts = {}
            key, content = next_key, tar.extractfile(member)
            assert content is not None
            parts[name] = content.read()
    if parts:
        yield key, parts


def read_members(folder: Path, index: int, mark: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Read the files of a shard's accepted pairs as they are: id, and bytes by name such as `source.png`.

    Args:
        folder: `<run>/pairs`.
        index: number of the shard.
        mark: its mark, of `done_shards`.

    Raises:
        InputError: the shard was changed since.
    """
    left_out = read_left_out(folder)
    for key, parts in _read_tar(_checked(folder, index, "tar", mark)):
        if key not in left_out:
            yield key, parts


def read_pairs(folder: Path) -> Iterator[ImagePair]:
    """Read the accepted pairs of all finished shards, in order; those of the list of `left_out` are passed over.

    Raises:
        InputError: there is no finished shard, or one was changed since.
    """
    marks = done_shards(folder)
    if not marks:
        raise InputError(f"{folder} holds no finished shard of image pairs; run the pairs stage first")
    for index, mark in marks.items():
        for _, parts in read_members(folder, index, mark):
            yield _read_pair(parts)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of accepted and rejected pairs of all finished shards, previews included, in order.

    Raises:
        InputError: a sidecar was changed since its shard was finished.
    """
    left_out = read_left_out(folder)
    rows = []
    for index, mark in done_shards(folder).items():
        found = pq.ParquetFile(_checked(folder, index, "parquet", mark)).read().to_pylist()
        rows += [mark_left_out(row, left_out) for row in found]
    return rows


def _manifest_tables(folder: Path) -> Iterator[pa.Table]:
    """Rows of all finished shards without previews, as readers see them; a table is a row group of the manifest."""
    left_out = read_left_out(folder)
    waiting: list[pa.Table] = []
    for index, mark in done_shards(folder).items():
        table = pq.ParquetFile(_checked(folder, index, "parquet", mark)).read().drop_columns([PREVIEW])
        if left_out:
            rows = [mark_left_out(row, left_out) for row in table.to_pylist()]
            table = pa.Table.from_pylist(rows, schema=table.schema)
        waiting.append(table)
        if sum(table.num_rows for table in waiting) >= MANIFEST_GROUP_SIZE:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def write_manifest(folder: Path, path: Path) -> int:
    """Write the rows of all finished shards, without previews, as one parquet file; returns how many.

    Equal shards give equal bytes, with one version of pyarrow.

    Args:
        folder: `<run>/pairs`.
        path: where to.

    Raises:
        InputError: there is no finished shard, or a sidecar was changed since its shard was finished.
    """
    num_rows, writer = 0, None
    with write_atomically(path) as temporary:
        for table in _manifest_tables(folder):
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
            num_rows += table.num_rows
        if writer is None:
            raise InputError(f"{folder} holds no finished shard of image pairs; run the pairs stage first")
        writer.close()
    return num_rows


def rebuild_manifest(folder: Path) -> int:
    """Write `manifest.parquet` from the sidecars of all finished shards; returns its number of rows."""
    return write_manifest(folder, folder / "manifest.parquet")
