"""What can be wrong with a run's image pairs (`REASONS` is the menu), and the shard that is read to find out.

Reading checks the mark, the hashes of the shard's files, and whether mark, tar and sidecar agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from restage.pairs.encoding import MEMBERS, PREVIEW, REFERENCE_MEMBERS, PairRecord, bytes_sha256, read_tar
from restage.pairs.files import Files
from restage.pairs.score import is_left_out_list
from restage.pairs.store import Mark, read_table, shard_name
from restage.pairs.tasks import PLAN_FILE
from restage.records import InputError, canonical_json, content_id, from_plain, has_right_seal, parse_json
from restage.run.findings import FileFinding

__all__ = ["REASONS", "BadFile", "Finding", "StoredPair", "StoredShard", "read_canonical_json", "read_shard"]


class Reason(NamedTuple):
    """A way of being wrong."""

    meaning: str  # what is wrong, in a sentence for people
    remedy: Literal["remake", "leave out", "rebuild", "move away"]
    """What a repair does: have the shard made again, hide the pair from readers, write the file anew, or move it
    out of the way."""


REASONS: Mapping[str, Reason] = {
    "missing": Reason("a file that must be there is not", "remake"),
    "torn": Reason("a file ends too early or cannot be read to its end", "remake"),
    "flipped": Reason("a file is whole in form, but not the one that was written", "remake"),
    "mismatch": Reason("mark, tar and sidecar of a shard contradict each other", "remake"),
    "repeated": Reason("a pair's id stands in the set more than once", "remake"),
    "stale": Reason("the manifest is not what the shards say", "rebuild"),
    "foreign": Reason("a file that Restage has not written", "move away"),
    "unreadable": Reason("a picture cannot be decoded, or the sizes of a pair differ", "leave out"),
    "not finite": Reason("a score is NaN or infinite in a pair that was accepted", "leave out"),
    "black": Reason("a picture is black, as decoders leave one that came out NaN", "leave out"),
    "constant": Reason("a picture shows one colour", "leave out"),
    "identical": Reason("source and edited picture are the same", "leave out"),
    "swapped": Reason("the pictures fit the captions better the other way round", "leave out"),
    "wrong caption": Reason("a picture fits its caption no better than captions of other pairs", "leave out"),
    "wrong scores": Reason("the stored scores are not those of the pictures", "leave out"),
    "duplicate": Reason("both pictures are those of an earlier pair, pixel by pixel", "leave out"),
    "near duplicate": Reason("both pictures look like those of an earlier pair", "leave out"),
}
"""Ways of being wrong by name; those of files come first, then those of pairs."""


@dataclass(frozen=True, kw_only=True)
class Finding(FileFinding):
    """One thing that is wrong with image pairs, by a reason of `REASONS`."""

    shard: int | None = None  # number of the shard, if the finding belongs to one
    pair: str = ""  # id of the pair, if the finding is about one

    @property
    def remedy(self) -> str:
        """What a repair does about it."""
        return REASONS[self.reason].remedy


def about_pair(index: int, pair: str, reason: str, detail: str) -> Finding:
    """Return a finding about a pair of a shard."""
    return Finding(reason=reason, file=shard_name(index, "tar"), detail=detail, shard=index, pair=pair)


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
    parts: Mapping[str, bytes]  # the pair's files in the tar by name, such as `source.png`
    row: Mapping[str, Any]  # the pair's row in the sidecar, without preview


class StoredShard(NamedTuple):
    """A shard whose hashes are right."""

    mark: Mark
    rows: list[dict[str, Any]]  # rows of the sidecar, without previews
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
    """
    content = _read(files, name)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        reason = "flipped" if content.endswith(b"}\n") else "torn"
        raise BadFile(reason, name, f"{len(content)} bytes that are not readable as JSON") from None
    is_sealed = isinstance(record, dict) and (name == PLAN_FILE or is_left_out_list(name) or "num_bytes" in record)
    # Indented for people, with or without escapes, or on one line.
    forms: Any = (
        {"indent": 1},
        {"indent": 1, "ensure_ascii": False},
        {"separators": (",", ":"), "ensure_ascii": False},
    )
    texts = (json.dumps(record, sort_keys=True, **form) for form in forms)
    written = [f"{text}\n".encode("utf-8", "surrogatepass") for text in texts]
    is_right = isinstance(record, dict) and content in written
    if not is_right or not has_right_seal(record, is_required=is_sealed):
        raise BadFile("flipped", name, "it is not as it was written: its seal or its form is broken")
    try:
        canonical_json(record)  # which ids are made of, and which has no NaN
        return from_plain(record, kind or dict[str, Any], where=name)
    except ValueError as error:
        raise BadFile("flipped", name, str(error)) from None


def _read_hashed(files: Files, index: int, suffix: str, mark: Mark) -> bytes:
    """A file of a shard, if it is the one that the mark names."""
    name = shard_name(index, suffix)
    content = _read(files, name)
    if hashlib.sha256(content).hexdigest() == getattr(mark.sha256, suffix):
        return content
    expected = mark.num_bytes.get(suffix)
    has_end = content.endswith(bytes(1024) if suffix == "tar" else b"PAR1")
    is_whole = has_end if expected is None else len(content) == expected
    size = f"{len(content)} bytes" + ("" if is_whole or expected is None else f" instead of {expected}")
    raise BadFile("flipped" if is_whole else "torn", name, f"{size}, not those that the mark names")


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

    `maker` is the id, in the folder's plan, of what makes the pairs; the content id in the mark is derived from it.
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
    except InputError as error:
        raise BadFile("mismatch", shard_name(index, "tar"), str(error)) from None
    return StoredShard(mark, rows, pairs, len(sidecar) + len(tar))


def _match(tar: bytes, rows: list[dict[str, Any]]) -> Iterator[StoredPair]:
    """Yield the pairs of a tar with their rows; refuse what contradicts the sidecar."""
    accepted = iter([row for row in rows if row.get("accepted")])
    for key, parts in read_tar(tar):
        row = next(accepted, None)
        if row is None or row["id"] != key:
            raise InputError(f"it holds {key} where the sidecar has {'no more pair' if row is None else row['id']}")
        _compare(key, parts, row)
        yield StoredPair(key, parts, row)
    if row := next(accepted, None):
        raise InputError(f"{row['id']} is accepted, and its pictures are not there")


def _compare(key: str, parts: Mapping[str, bytes], row: Mapping[str, Any]) -> None:
    if tuple(name for name in parts if name not in REFERENCE_MEMBERS) != MEMBERS:
        raise InputError(f"{key} has the files {', '.join(parts)}; expected {', '.join(MEMBERS)}")
    record: PairRecord = parse_json(parts["json"], PairRecord, where=f"{key}.json")
    texts = (record.id, record.prompt.source, record.prompt.target, record.prompt.instruction)
    stored = (row["id"], row.get("source_caption"), row.get("target_caption"), row.get("instruction"))
    if texts != stored:
        raise InputError(f"{key}: id, captions and instruction are {texts} in the tar, {stored} in the sidecar")
    if row.get("bytes_sha256", "") not in ("", bytes_sha256(list(parts.items()))):
        raise InputError(f"{key}: its files are not those that the sidecar names")
