"""WebDataset: writes the shards' tars as they are, with an index; reads any tars of pairs."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from restage.pairs.encoding import MAX_FILE_BYTES, EncodedPair, check_member, write_tar
from restage.pairs.exchange import foreign
from restage.pairs.store import MAX_RATIO, shard_name
from restage.records import InputError, Progress, write_atomically, write_json

__all__ = ["WEBDATASET"]

PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "avif")
ENDINGS = (
    *(f"{name}.{suffix}" for part in foreign.PICTURES for name in foreign.ALIASES[part] for suffix in PICTURE_SUFFIXES),
    *(f"{name}.txt" for part in foreign.TEXTS for name in foreign.ALIASES[part]),
    *("json", "txt"),
)
"""Known endings of a sample's files; what stands before one is the key, dots and all."""
TAR = re.compile(r"\.(tar|tar\.gz|tgz|tar\.bz2|tar\.xz)$")


def _export(pair_set: foreign.PairSet, folder: Path) -> Iterator[Progress]:
    """Write `shard-<n>.tar`, then `index.json` (the form of WebDataset's `wids`: url, nsamples, and our SHA-256)."""
    shards = []
    for number, index in enumerate(pair_set.marks, start=1):
        name = shard_name(index, "tar")
        pairs = list(pair_set.pairs(index))
        if len(pairs) == pair_set.marks[index]["num_accepted"]:
            content = pair_set.reader.files.read(name)
        else:  # some are left out
            content = write_tar([EncodedPair(id=pair.id, members=tuple(pair.parts.items())) for pair in pairs])
        if not (folder / name).exists():
            with write_atomically(folder / name) as temporary:
                temporary.write_bytes(content)
        facts = {"url": name, "nsamples": len(pairs), "filesize": len(content)}
        shards.append({**facts, "sha256": hashlib.sha256(content).hexdigest()})
        yield Progress(stage="export", done=number, total=len(pair_set.marks), note=name)
    index_record = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "restage", "shardlist": shards}
    write_json(folder / "index.json", index_record)


class _Bounded(io.RawIOBase):
    """A tar as a stream of bytes, unpacked if it is compressed; refuses one that unpacks to far more than its size."""

    def __init__(self, path: Path) -> None:
        openers = {b"\x1f\x8b": gzip.GzipFile, b"BZ": bz2.BZ2File, b"\xfd7": lzma.LZMAFile}
        with path.open("rb") as file:
            opener = openers.get(file.read(2), io.FileIO)
        self._file, self._path = opener(path), path
        self._left = path.stat().st_size * MAX_RATIO + MAX_FILE_BYTES

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size) or b""
        self._left -= len(content)
        if self._left < 0:
            raise InputError(f"{self._path} unpacks to more than {MAX_RATIO} times its size; it was not read")
        return content

    def close(self) -> None:
        self._file.close()
        super().close()


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the key of each sample of a tar, and its files by ending; the tar is read as a stream."""
    key, parts, size = None, {}, 0
    with contextlib.closing(_Bounded(path)) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if member.isdir():
                continue
            try:
                check_member(member)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
            next_key, ending = _split(member.name)
            if key is not None and next_key != key:
                yield key, parts
                parts, size = {}, 0
            content = tar.extractfile(member)
            key, size = next_key, size + member.size
            if size > MAX_FILE_BYTES:
                raise InputError(f"{path}, {key[:100]!r}: its files are too large for a pair")
            parts[ending] = content.read() if content else b""
    if key is not None:
        yield key, parts


def _split(name: str) -> tuple[str, str]:
    """Split a member's name into the key of its sample and the ending that says what it is.

    WebDataset ends the key at the first dot. Where names have dots of their own, a known ending is what counts.
    """
    place, _, file = name.rpartition("/")
    lower = file.lower()
    ending = next((known for known in ENDINGS if lower.endswith(f".{known}")), "")
    if ending:
        stem = file[: -len(ending) - 1]
    else:
        stem, _, ending = file.partition(".")
    return f"{place}/{stem}".lstrip("/"), ending.lower()


def _read(folder: Path) -> Iterator[foreign.ForeignPair]:
    """Read the pairs of all tars of a folder, in order of their names.

    A sample holds pictures such as `source.png` and `edited.jpg` (see `foreign.ALIASES`), and its texts in `json`,
    alone or under `prompt`, or in files such as `edit.txt`.
    """
    paths = _tars(folder)
    if not paths:
        raise InputError(f"{folder} holds no tar; expected shards of WebDataset")
    needed = foreign.NEEDED
    for path in paths:
        try:
            for key, parts in _samples(path):
                where, row = f"{path.name}, {key}", _row(parts)
                pictures = {n.rpartition(".")[0]: n for n in parts if n.rpartition(".")[2] in PICTURE_SUFFIXES}
                texts = [name for name, value in row.items() if isinstance(value, str)]
                names, needed = foreign.find_names(pictures, texts, where, needed=needed), ()
                found = (parts.get(pictures.get(names.by_part.get(part, ""), "")) for part in foreign.PICTURES)
                yield foreign.pair_of_row(where, row, names, found)
        except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, MemoryError, OverflowError) as error:
            raise InputError(f"{path} is not readable as a tar: {error}") from None


def _tars(folder: Path) -> list[Path]:
    return [path for path in foreign.files_in(folder, "*") if TAR.search(path.name.lower())]


def _row(parts: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what a sample says of itself; a record of ours is brought into the form of others."""
    record = foreign.json_or_none(parts.get("json"))
    record = record if isinstance(record, dict) else {}
    texts = {ending.removesuffix(".txt"): content for ending, content in parts.items() if ending.endswith("txt")}
    record |= {name: content.decode("utf-8-sig", "replace") for name, content in texts.items() if name not in record}
    prompt = record.get("prompt")
    if not isinstance(prompt, dict):
        return record
    texts = {"source_caption": prompt.get("source"), "target_caption": prompt.get("target")}
    texts |= {"instruction": prompt.get("instruction"), "kind": prompt.get("kind"), "id": record.get("id")}
    facts = record.get("facts")
    scores = facts.get("scores") if isinstance(facts, dict) else None
    found = {**(scores if isinstance(scores, dict) else {}), **texts}
    return {**found, "record": parts["json"].decode("utf-8", "replace")}


WEBDATASET = foreign.PairFormat(
    description="Samples: source.png, edited.png, mask.png (white: what may change), json (prompt, facts, scores).",
    read=_read,
    is_in=lambda folder: bool(_tars(folder)),
    export=_export,
)
