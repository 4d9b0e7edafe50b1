"""WebDataset: writes the shards' tars as they are, with an index; reads any tars of pairs."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from restage.pairs.encoding import EncodedPair, write_tar
from restage.pairs.exchange.exported import PairSet
from restage.pairs.exchange.foreign_pair import ALIASES, ForeignPair, find_names, texts_of
from restage.pairs.exchange.format import PairFormat
from restage.pairs.store import shard_name
from restage.records import InputError, Progress, write_atomically, write_json

__all__ = ["WEBDATASET"]

PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "webp")


def _tar_of(pair_set: PairSet, index: int) -> tuple[bytes, int]:
    """Return the tar of a shard and its number of pairs; unchanged, unless some of its pairs are left out."""
    pairs = list(pair_set.pairs(index))
    if len(pairs) == pair_set.marks[index]["num_accepted"]:
        return pair_set.reader.files.read(shard_name(index, "tar")), len(pairs)
    members = [tuple(pair.parts.items()) for pair in pairs]
    encoded = [
        EncodedPair(id=pair.id, members=parts, pixel_sha256="", bytes_sha256="")
        for pair, parts in zip(pairs, members, strict=True)
    ]
    return write_tar(encoded), len(pairs)


def _export(pair_set: PairSet, folder: Path) -> Iterator[Progress]:
    """Write `shard-<n>.tar`, then `index.json` (the form of WebDataset's `wids`: url, nsamples, and our SHA-256)."""
    shards = []
    for number, index in enumerate(pair_set.marks, start=1):
        name = shard_name(index, "tar")
        content, num_pairs = _tar_of(pair_set, index)
        if not (folder / name).exists():
            with write_atomically(folder / name) as temporary:
                temporary.write_bytes(content)
        facts = {"url": name, "nsamples": num_pairs, "filesize": len(content)}
        shards.append({**facts, "sha256": hashlib.sha256(content).hexdigest()})
        yield Progress(stage="export", done=number, total=len(pair_set.marks), note=name)
    index_record = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "restage", "shardlist": shards}
    write_json(folder / "index.json", index_record)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the key of each sample of a tar, and its files by extension; the tar is read as a stream."""
    key, parts = None, {}
    with tarfile.open(path, "r|*") as tar:
        for member in tar:
            if not member.isfile():
                continue
            place, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            next_key = f"{place}/{stem}".lstrip("/")
            if key is not None and next_key != key:
                yield key, parts
                parts = {}
            content = tar.extractfile(member)
            key, parts[extension.lower()] = next_key, content.read() if content else b""
    if key is not None:
        yield key, parts


def _read(folder: Path) -> Iterator[ForeignPair]:
    """Read the pairs of all tars of a folder, in order of their names.

    A sample holds pictures such as `source.png` and `edited.jpg` (see `foreign_pair.ALIASES`), and `json` with captions
    and instruction, alone or under `prompt`.

    Raises:
        InputError: there is no tar, one cannot be read, or the first sample has no captions or instruction.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise InputError(f"{folder} holds no tar; expected shards of WebDataset")
    is_first = True
    for path in paths:
        try:
            for key, parts in _samples(path):
                yield _foreign(key, parts, path, is_first=is_first)
                is_first = False
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{path} is not readable as a tar: {error}") from None


def _picture(parts: Mapping[str, bytes], part: str) -> bytes | None:
    names = [f"{alias}.{suffix}" for alias in ALIASES[part] for suffix in PICTURE_SUFFIXES]
    return next((parts[name] for name in names if name in parts), None)


def _record(parts: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        record = json.loads(parts.get("json", b"{}"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _row(parts: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what a sample says of itself; a record of ours is brought into the form of others."""
    record = _record(parts)
    prompt = record.get("prompt")
    if not isinstance(prompt, dict):
        return record
    texts = {"source_caption": prompt.get("source"), "target_caption": prompt.get("target")}
    texts |= {"instruction": prompt.get("instruction"), "kind": prompt.get("kind"), "id": record.get("id")}
    facts = record.get("facts")
    scores = facts.get("scores") if isinstance(facts, dict) else None
    return {**texts, **(scores or {}), "record": parts["json"].decode("utf-8", "replace")}


def _foreign(key: str, parts: Mapping[str, bytes], path: Path, *, is_first: bool) -> ForeignPair:
    row, where = _row(parts), f"{path.name}, {key}"
    names = find_names(row, where, ("source_caption", "target_caption", "instruction") if is_first else ())
    pictures = {part: _picture(parts, part) for part in ("source", "edited", "mask")}
    return ForeignPair(where=where, **pictures, texts=texts_of(row, names), row=row)


WEBDATASET = PairFormat(
    description="Samples: source.png, edited.png, mask.png (white: what may change), json (prompt, facts, scores).",
    read=_read,
    export=_export,
)
