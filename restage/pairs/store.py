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

from restage.records import InputError, PromptPair, canonical_json, file_sha256, read_json, write_atomically, write_json

__all__ = ["ImagePair", "done_shards", "read_pairs", "read_rows", "rebuild_manifest", "write_shard"]

PREVIEW = "preview"
"""Column of the sidecar with a small picture of the pair as PNG; not in the manifest."""


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
    write_json(folder / f"{stem}.done", {**facts, "sha256": hashes, "num_accepted": len(pairs), "num_pairs": len(rows)})


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


def read_pairs(folder: Path) -> Iterator[ImagePair]:
    """Read the accepted pairs of all finished shards, in order.

    Raises:
        InputError: there is no finished shard, or one was changed since.
    """
    marks = done_shards(folder)
    if not marks:
        raise InputError(f"{folder} holds no finished shard of image pairs; run the pairs stage first")
    for index, mark in marks.items():
        with tarfile.open(_checked(folder, index, "tar", mark)) as tar:
            parts: dict[str, dict[str, bytes]] = {}
            for member in tar:
                key, _, name = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                parts.setdefault(key, {})[name] = content.read()
        for pair_parts in parts.values():
            yield _read_pair(pair_parts)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of accepted and rejected pairs of all finished shards, previews included, in order.

    Raises:
        InputError: a sidecar was changed since its shard was finished.
    """
    rows = []
    for index, mark in done_shards(folder).items():
        rows += pq.ParquetFile(_checked(folder, index, "parquet", mark)).read().to_pylist()
    return rows


def rebuild_manifest(folder: Path) -> int:
    """Write `manifest.parquet` from the sidecars of all finished shards; returns its number of rows."""
    marks = done_shards(folder)
    paths = [_checked(folder, index, "parquet", mark) for index, mark in marks.items()]
    tables = [pq.ParquetFile(path).read().drop_columns([PREVIEW]) for path in paths]
    with write_atomically(folder / "manifest.parquet") as temporary:
        table = pa.concat_tables(tables)
        pq.write_table(table, temporary)
    return table.num_rows
