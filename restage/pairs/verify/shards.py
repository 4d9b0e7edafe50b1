"""Reads a shard, and checks its mark, the hashes of its files, and whether mark, tar and sidecar agree.

It holds one shard in memory, as `store` does when it writes one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from restage.pairs.encoding import MEMBERS, PairRecord, bytes_sha256, read_tar
from restage.pairs.files import Files
from restage.pairs.left_out import is_left_out_list
from restage.pairs.store import PREVIEW, Mark, read_table, shard_name
from restage.pairs.verify.findings import Finding
from restage.records import InputError, canonical_json, content_id, from_plain, has_right_seal, parse_json

__all__ = ["BadFile", "StoredPair", "StoredShard", "read_canonical_json", "read_shard"]


class BadFile(Exception):
    """A file is not what it must be; this becomes a finding."""

    def __init__(self, reason: str, file: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.file, self.detail = reason, file, detail

    def finding(self, shard: int | None = None) -> Finding:
        """Turn it into a finding, about a shard if one is named."""
        return Finding(reason=self.reason, file=self.file, detail=self.detail, shard=shard)


class StoredPair(NamedTuple):
    """An accepted pair as it lies in the shard."""

    id: str
    parts: Mapping[str, bytes]
    """The pair's files in the tar by name, such as `source.png`."""
    row: Mapping[str, Any]
    """The pair's row in the sidecar, without preview."""


class StoredShard(NamedTuple):
    """A shard whose hashes are right."""

    mark: Mark
    rows: list[dict[str, Any]]
    """Rows of the sidecar, without previews."""
    pairs: list[StoredPair]
    num_bytes: int


def _read(files: Files, name: str) -> bytes:
    try:
        return files.read(name)
    except FileNotFoundError:
        raise BadFile("missing", name, "the file is not there") from None


def read_canonical_json(files: Files, name: str, kind: Any = None) -> Any:
    """Read a JSON record of ours, every byte of which must be as Restage writes it, as a record of a type.

    Plans, lists of pairs to leave out, and marks (of the version that names sizes) must have a seal.

    Raises:
        BadFile: it is missing, torn, or not as it was written.
    """
    content = _read(files, name)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        reason = "flipped" if content.endswith(b"}\n") else "torn"
        raise BadFile(reason, name, f"{len(content)} bytes that are not readable as JSON") from None
    is_required = name == "plan.json" or is_left_out_list(name)
    if isinstance(record, dict):
        is_right = content in _as_written(record)
        is_right = is_right and has_right_seal(record, is_required=is_required or "num_bytes" in record)
    else:
        is_right = False
    if not is_right:
        raise BadFile("flipped", name, "it is not as it was written: its seal or its form is broken")
    try:
        canonical_json(record)  # which ids are made of, and which has no NaN
        return from_plain(record, kind or dict[str, Any], where=name)
    except ValueError as error:
        raise BadFile("flipped", name, str(error)) from None


def _as_written(record: Mapping[str, Any]) -> tuple[bytes, ...]:
    """Return the bytes that a record may be written as: indented for people, or on one line."""
    readable = [json.dumps(record, indent=1, sort_keys=True, ensure_ascii=is_ascii) for is_ascii in (True, False)]
    line = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return tuple(f"{text}\n".encode("utf-8", "surrogatepass") for text in (*readable, line))


def _read_hashed(files: Files, index: int, suffix: str, mark: Mark) -> bytes:
    """A file of a shard, if it is the one that the mark names."""
    name = shard_name(index, suffix)
    content = _read(files, name)
    if hashlib.sha256(content).hexdigest() == getattr(mark.sha256, suffix):
        return content
    expected = mark.num_bytes.get(suffix)
    is_whole = len(content) == expected if expected is not None else _has_end(content, suffix)
    size = f"{len(content)} bytes" + ("" if is_whole or expected is None else f" instead of {expected}")
    raise BadFile("flipped" if is_whole else "torn", name, f"{size}, not those that the mark names")


def _has_end(content: bytes, suffix: str) -> bool:
    return content.endswith(bytes(1024)) if suffix == "tar" else content.endswith(b"PAR1")


def _read_rows(content: bytes, name: str, mark: Mark) -> list[dict[str, Any]]:
    try:
        table = read_table(content, name)
    except InputError as error:
        raise BadFile("mismatch", name, f"it is as it was written, but not readable: {error}") from None
    rows = table.select([column for column in table.column_names if column != PREVIEW]).to_pylist()
    num_accepted = sum(row["accepted"] for row in rows)
    if (len(rows), num_accepted) != (mark.num_pairs, mark.num_accepted):
        stated = f"{mark.num_pairs} pairs, {mark.num_accepted} accepted"
        raise BadFile("mismatch", name, f"{len(rows)} rows, {num_accepted} accepted; the mark says {stated}")
    return rows


def read_shard(files: Files, index: int, *, maker: str | None = None) -> StoredShard:
    """Read a shard, and compare everything that is stored twice.

    Args:
        files: the place of the shard.
        index: number of the shard.
        maker: id, in the folder's plan, of what makes the pairs; the content id in the mark is derived from it.

    Raises:
        BadFile: a file is missing, torn or changed, or the files contradict each other.
    """
    mark: Mark = read_canonical_json(files, shard_name(index, "done"), Mark)
    sidecar = _read_hashed(files, index, "parquet", mark)
    tar = _read_hashed(files, index, "tar", mark)
    rows = _read_rows(sidecar, shard_name(index, "parquet"), mark)
    content = content_id("shard", {"pairs": [row["id"] for row in rows], "maker": maker})
    if maker is not None and mark.content not in ("", content):
        raise BadFile("mismatch", shard_name(index, "done"), "its pairs are not those of a task of this folder's plan")
    try:
        pairs = list(_match(tar, rows))
    except (InputError, _Contradiction) as error:
        raise BadFile("mismatch", shard_name(index, "tar"), str(error)) from None
    return StoredShard(mark, rows, pairs, len(sidecar) + len(tar))


class _Contradiction(Exception):
    """Tar and sidecar contradict each other."""


def _match(tar: bytes, rows: list[dict[str, Any]]) -> Iterator[StoredPair]:
    """Yield the pairs of a tar with their rows."""
    accepted = iter([row for row in rows if row.get("accepted")])
    for key, parts in read_tar(tar):
        row = next(accepted, None)
        if row is None or row["id"] != key:
            raise _Contradiction(f"it holds {key} where the sidecar has {'no more pair' if row is None else row['id']}")
        _compare(key, parts, row)
        yield StoredPair(key, parts, row)
    if row := next(accepted, None):
        raise _Contradiction(f"{row['id']} is accepted, and its pictures are not there")


def _compare(key: str, parts: Mapping[str, bytes], row: Mapping[str, Any]) -> None:
    if tuple(parts) != MEMBERS:
        raise _Contradiction(f"{key} has the files {', '.join(parts)}; expected {', '.join(MEMBERS)}")
    try:
        record: PairRecord = parse_json(parts["json"], PairRecord, where="json")
    except InputError as error:
        raise _Contradiction(f"{key}.json is not a record of a pair: {error}") from None
    texts = (record.id, record.prompt.source, record.prompt.target, record.prompt.instruction)
    stored = (row["id"], row.get("source_caption"), row.get("target_caption"), row.get("instruction"))
    if texts != stored:
        raise _Contradiction(f"{key}: id, captions and instruction are {texts} in the tar, {stored} in the sidecar")
    if row.get("bytes_sha256", "") not in ("", bytes_sha256(list(parts.items()))):
        raise _Contradiction(f"{key}: its files are not those that the sidecar names")
