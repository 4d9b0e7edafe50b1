"""Image pairs on disk: tar shards that WebDataset reads, each with a parquet sidecar and a mark that is written last.

A shard counts if its `.done` is there and its hashes are right. Equal pairs give equal bytes. A `place` is the pairs
folder of a run, the URL of an object store, or opened files (see `files`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from restage.pairs.config import PairRule
from restage.pairs.encoding import (
    MAX_FILE_BYTES,
    PREVIEW,
    REFERENCE_MEMBERS,
    EncodedPair,
    ImagePair,
    decode_pair,
    encode_pair,
    read_tar,
    write_tar,
)
from restage.pairs.files import Files, LocalFiles, Place, open_files
from restage.pairs.score import PairScores, current_rule, mark_left_out, read_left_out, rule_id, verdict_of
from restage.records import InputError, from_plain, parse_json, seal, write_atomically

__all__ = ["Mark", "PairReader", "done_shards", "iter_rows", "read_pairs", "read_rows", "write_manifest", "write_shard"]

MANIFEST_GROUP_SIZE = 65_536
"""Number of the manifest's rows that are held in memory at once and form a row group."""
NUM_READERS = 16
"""Number of marks that are read from an object store at the same time."""
NO_SHARD = "holds no finished shard of image pairs; run: restage pairs RUN"
WRITE_ATTEMPTS = 5
"""Number of times that a shard is written because another machine has meanwhile written it differently."""
SHARD_FILE = re.compile(r"shard-([0-9]{5,12})\.(tar|parquet|done)")
MAX_RATIO = 20
"""Number of times its size that a compressed file may unpack to; pictures are compressed already."""
TEXT_COLUMNS = ("id", "kind", "instruction", "source_caption", "target_caption", "reason", "prompt_id")
"""Columns with texts that whoever looks at single pairs needs."""
COLUMNS = {
    **dict.fromkeys((*TEXT_COLUMNS, "form", "control", "pixel_sha256", "bytes_sha256", "unscored"), pa.string()),
    **dict.fromkeys(("sample", "seed", "steps", "rule_version"), pa.int64()),
    **dict.fromkeys((*PairScores._fields, "self_share"), pa.float64()),
    "accepted": pa.bool_(),
    PREVIEW: pa.binary(),
}
"""Types of a sidecar's columns; one without any value may have none."""


@dataclass(frozen=True, kw_only=True)
class ShardHashes:
    """SHA-256 of a shard's files."""

    tar: str
    parquet: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a mark has to say."""

    sha256: ShardHashes
    num_pairs: int
    num_accepted: int
    num_bytes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the shard's files; none in versions that did not keep them."""
    content: str = ""  # content id of what the shard was made from
    num_references: int = 0  # accepted pairs that refer to a picture
    rule: str = ""  # id of the rule that chose what is stored; empty for imported pairs


def _sidecar(pairs: Sequence[EncodedPair], rows: Sequence[Mapping[str, Any]]) -> bytes:
    stored = {pair.id: pair for pair in pairs}
    full = []
    for row in rows:
        pair = stored.get(row["id"])
        pixels = pair.pixel_sha256 if pair else row.get("pixel_sha256", "")
        full.append({**row, "pixel_sha256": pixels, "bytes_sha256": pair.bytes_sha256 if pair else ""})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(full), buffer)
    return buffer.getvalue()


def prompt_columns(pair: ImagePair) -> dict[str, Any]:
    """Return the columns of the sidecar that say what a pair is to show."""
    prompt = pair.prompt
    names = {"prompt_id": prompt.id, "kind": prompt.kind, "instruction": prompt.instruction}
    captions = {"source_caption": prompt.source, "target_caption": prompt.target, "form": prompt.form}
    return {"id": pair.id, **names, **captions}


def shard_name(index: int, suffix: str) -> str:
    """Return the name of a shard's file."""
    return f"shard-{index:05d}.{suffix}"


def shard_number(name: str) -> int | None:
    """Return the number of the shard that a file belongs to; None for a file of another kind."""
    match = SHARD_FILE.fullmatch(name)
    return int(match[1]) if match and shard_name(int(match[1]), match[2]) == name else None


def open_parquet(source: Path | bytes, where: str) -> pq.ParquetFile:
    """Open a parquet file, but refuse one that says that it unpacks to far more than its size; no rows are read."""
    try:
        file = pq.ParquetFile(source if isinstance(source, Path) else io.BytesIO(source))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where} is not readable as parquet: {error}") from None
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    if sum(group.total_byte_size for group in groups) > size * MAX_RATIO + MAX_FILE_BYTES:
        raise InputError(f"{where} unpacks to more than {MAX_RATIO} times its size; it was not read")
    return file


def read_table(content: bytes, where: str) -> pa.Table:
    """Read a sidecar whose columns have the types that they should have."""
    try:
        table = open_parquet(content, where).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where} is not readable as parquet: {error}") from None
    for name in ("id", "accepted"):
        if name not in table.column_names or table[name].null_count:
            raise InputError(f"{where}: {name}: expected a value in every row, got rows without")
    for name, kind in COLUMNS.items():
        if name in table.column_names and table[name].type not in (kind, pa.null()):
            raise InputError(f"{where}: {name}: expected {kind}, got {table[name].type}")
    return table


def write_shard(
    place: Place,
    index: int,
    *,
    pairs: Sequence[ImagePair | EncodedPair],
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a shard: the tar of accepted pairs, the sidecar with a row for every pair, then the mark.

    Two machines may write the same shard at once, so each finally reads back whether mark, tar and sidecar belong
    together. If both make equal bytes, nothing of this can be seen.

    The rows are those of accepted and rejected pairs, with the same columns in all shards; the hashes of pixels and of
    bytes are added here (a rejected pair may bring its own `pixel_sha256`). `facts` is what else the mark holds.
    Returns the mark.
    """
    files = open_files(place)
    encoded = [encode_pair(pair) if isinstance(pair, ImagePair) else pair for pair in pairs]
    contents = {"tar": write_tar(encoded), "parquet": _sidecar(encoded, rows)}
    hashes = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in contents.items()}
    sizes = {suffix: len(content) for suffix, content in contents.items()}
    num_references = sum(dict(pair.members).keys() >= {REFERENCE_MEMBERS[0]} for pair in encoded)
    if num_references:
        facts = {**facts, "num_references": num_references}
    mark = seal({**facts, "sha256": hashes, "num_bytes": sizes, "num_accepted": len(encoded), "num_pairs": len(rows)})
    if has_shard(place, index, mark):
        return mark  # another driver was quicker, and its mark must not vanish even for a moment
    try:
        for _ in range(WRITE_ATTEMPTS):
            # Without the old mark first, a reader could pair it with the new tar.
            files.remove(shard_name(index, "done"))
            for suffix, content in contents.items():
                files.write(shard_name(index, suffix), content)
            files.sync()  # otherwise a power cut could leave a mark without its shard
            files.write(shard_name(index, "done"), (json.dumps(mark, indent=1, sort_keys=True) + "\n").encode())
            if has_shard(place, index, mark):
                return mark
    except OSError:
        drop_shard(files, index)  # on a full disk, half a shard is only in the way
        raise
    raise OSError(f"{files.where(shard_name(index, 'tar'))} is written differently by someone else at the same time")


def has_shard(place: Place, index: int, mark: Mapping[str, Any]) -> bool:
    """Whether a shard lies there as a whole, with this mark."""
    files = open_files(place)
    with contextlib.suppress(FileNotFoundError, InputError):
        return read_mark(files, index) == mark and all(
            hashlib.sha256(files.read(shard_name(index, suffix))).hexdigest() == mark["sha256"][suffix]
            for suffix in ("tar", "parquet")
        )
    return False


def drop_shard(place: Place, index: int) -> None:
    """Delete a shard, its mark first, so that the next run of the stage makes it again."""
    files = open_files(place)
    for suffix in ("done", "tar", "parquet"):
        files.remove(shard_name(index, suffix))


def read_mark(files: Files, index: int) -> dict[str, Any]:
    """Read the mark of a shard; a FileNotFoundError says that it is not finished."""
    name = shard_name(index, "done")
    mark: dict[str, Any] = parse_json(files.read(name), dict[str, Any], where=files.where(name))
    from_plain(mark, Mark, where=files.where(name))
    return mark


def done_indices(place: Place) -> list[int]:
    """Return the numbers of the finished shards, in order, by one listing and without opening a file."""
    numbers = (shard_number(name) for name in open_files(place).names() if name.endswith(".done"))
    return sorted(number for number in numbers if number is not None)


def done_shards(place: Place) -> dict[int, Mapping[str, Any]]:
    """Return the marks of the finished shards by number, in order."""
    files, indices = open_files(place), done_indices(place)
    if isinstance(files, LocalFiles):
        return {index: read_mark(files, index) for index in indices}
    with ThreadPoolExecutor(NUM_READERS) as readers:
        return dict(zip(indices, readers.map(lambda index: read_mark(files, index), indices), strict=True))


def _checked(files: Files, index: int, suffix: str, mark: Mapping[str, Any]) -> bytes:
    name = shard_name(index, suffix)
    with contextlib.suppress(FileNotFoundError):
        content = files.read(name)
        if hashlib.sha256(content).hexdigest() == mark["sha256"][suffix]:
            return content
    raise InputError(
        f"{files.where(name)} is missing or was changed; delete {shard_name(index, 'done')} and run pairs again"
    )


@dataclass(frozen=True)
class PairReader:
    """A folder as readers see it: judged by the rule that holds now, and without what is left out."""

    files: Files
    rule: PairRule | None
    left_out: Mapping[str, str]

    @classmethod
    def open(cls, place: Place) -> PairReader:
        """Read what holds for all shards."""
        files = open_files(place)
        return cls(files, current_rule(files), read_left_out(files))

    def is_judged_anew(self, mark: Mapping[str, Any]) -> bool:
        """Whether the verdicts in the shard are those of another rule."""
        return self.rule is not None and "rule" in mark and mark["rule"] != rule_id(self.rule)

    def rows(self, index: int, mark: Mapping[str, Any], *, has_previews: bool) -> pa.Table:
        """Return the rows of a shard, as readers see them."""
        content = _checked(self.files, index, "parquet", mark)
        table = read_table(content, self.files.where(shard_name(index, "parquet")))
        if not has_previews and PREVIEW in table.column_names:
            table = table.drop_columns([PREVIEW])
        if not (self.is_judged_anew(mark) or self.left_out):
            return table
        rows = table.to_pylist()
        if self.rule is not None and self.is_judged_anew(mark):
            rows = [verdict_of(row, self.rule) for row in rows]
        return pa.Table.from_pylist([mark_left_out(row, self.left_out) for row in rows], schema=table.schema)

    def members(self, index: int, mark: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield the files of a shard's accepted pairs: the id, and bytes by name such as `source.png`."""
        # A tar is never rewritten when the rule changes: what is rejected now is hidden from readers instead.
        hidden: set[str] = set(self.left_out)
        if self.is_judged_anew(mark):
            rows = self.rows(index, mark, has_previews=False)
            hidden |= {row["id"] for row in rows.to_pylist() if not row["accepted"]}
        content = _checked(self.files, index, "tar", mark)
        try:
            for key, parts in read_tar(content):
                if key not in hidden:
                    yield key, parts
        except InputError as error:
            raise InputError(f"{self.files.where(shard_name(index, 'tar'))}: {error}") from None


def read_pairs(place: Place) -> Iterator[ImagePair]:
    """Read the accepted pairs of all finished shards, in order.

    Accepted are the pairs that the rule in `rule.json` accepts now, except those on the list of `left_out`.
    """
    reader, marks = PairReader.open(place), done_shards(place)
    if not marks:
        raise InputError(f"{reader.files.where()} {NO_SHARD}")
    for index, mark in marks.items():
        for key, parts in reader.members(index, mark):
            yield decode_pair(parts, f"{reader.files.where(shard_name(index, 'tar'))}: {key[:100]}")


def iter_rows(place: Place) -> Iterator[dict[str, Any]]:
    """Yield the rows of all finished shards in order, previews included, with one shard in memory at a time."""
    reader = PairReader.open(place)
    for index, mark in done_shards(place).items():
        yield from reader.rows(index, mark, has_previews=True).to_pylist()


def read_rows_at(place: Place, positions: Iterable[int]) -> list[dict[str, Any]]:
    """Read rows by their places in the manifest, previews included; only their shards are opened."""
    reader, wanted = PairReader.open(place), sorted(positions)
    rows: list[dict[str, Any]] = []
    start = 0
    for index, mark in done_shards(place).items():
        stop = start + mark["num_pairs"]
        here = [place - start for place in wanted if start <= place < stop]
        if here:
            found = reader.rows(index, mark, has_previews=True).to_pylist()
            rows += [found[place] for place in here]
        start = stop
    return rows


def read_rows(place: Place) -> list[dict[str, Any]]:
    """Read all rows of `iter_rows`, for small sets: previews take some 10 KB a pair."""
    return list(iter_rows(place))


def _manifest_tables(place: Place) -> Iterator[pa.Table]:
    """Yield the rows of all finished shards without previews; each table is a row group of the manifest."""
    reader = PairReader.open(place)
    waiting: list[pa.Table] = []
    marks = done_shards(place)
    for index, mark in marks.items():
        waiting.append(reader.rows(index, mark, has_previews=False))
        if sum(table.num_rows for table in waiting) >= MANIFEST_GROUP_SIZE or index == max(marks):
            # A column that has no value in one shard takes its type from the others.
            try:
                yield pa.concat_tables(waiting, promote_options="default").combine_chunks()
            except pa.ArrowException as error:
                raise InputError(f"{reader.files.where()} holds shards of different columns: {error}") from None
            waiting = []


def write_manifest(place: Place, path: Path) -> int:
    """Write the rows of all finished shards, without previews, as one parquet file; returns how many.

    Equal shards give equal bytes with the same version of pyarrow.
    """
    num_rows, writer = 0, None
    with write_atomically(path) as temporary:
        for table in _manifest_tables(place):
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            if table.schema != writer.schema:
                raise InputError(f"{open_files(place).where()} holds shards with other columns than its first ones")
            writer.write_table(table)
            num_rows += table.num_rows
        if writer is None:
            raise InputError(f"{open_files(place).where()} {NO_SHARD}")
        writer.close()
    return num_rows
