"""Pairs that somebody sent: records of wrong types and harmful shards are one line that says what is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restage.pairs.config import PUBLISHED
from restage.pairs.encoding import encode_pair
from restage.pairs.exchange.export import export_pairs
from restage.pairs.files import open_files
from restage.pairs.score import current_rule, read_left_out, set_rule
from restage.pairs.store import done_indices, done_shards, read_pairs, read_rows
from restage.pairs.tasks import read_plan
from restage.records import InputError, seal
from tests.pairs.faulty import make_pair, verify_pairs, write_set
from tests.pairs.stand_in import StandIn, open_run, stand_in_config

DEEP = b"[" * 100_000
NOT_JSON = [b"", b"\xff", DEEP, b"[" + b"9" * 5000 + b"]", b"null", b"[]", b'"x"', b"{"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "run")


def put(folder: Path, index: int, **contents: bytes) -> None:
    """Replace files of a shard, and let its mark say so, as whoever made them would."""
    mark = json.loads((folder / f"shard-{index:05d}.done").read_bytes())
    for suffix, content in contents.items():
        (folder / f"shard-{index:05d}.{suffix}").write_bytes(content)
        mark["sha256"][suffix] = hashlib.sha256(content).hexdigest()
        mark["num_bytes"][suffix] = len(content)
    (folder / f"shard-{index:05d}.done").write_text(json.dumps(seal(mark), indent=1, sort_keys=True) + "\n")


def read_all(folder: Path) -> None:
    assert len(list(read_pairs(folder))) == 21 and len(read_rows(folder)) == 24
    list(export_pairs(str(folder.parent), folder.parent / "out", "hf"))


@pytest.mark.parametrize("content", NOT_JSON)
@pytest.mark.parametrize("name", ["shard-00001.done", "rule.json", "left-out-0001.json", "store.json", "plan.json"])
def test_a_record_that_is_no_record_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_all(folder)
    if name != "store.json":
        (finding, *_) = verify_pairs(folder, fast=True)
        assert finding.file == name


WRONG = {
    "mark without hashes": ("shard-00001.done", {"num_pairs": 8, "num_accepted": 7}, "missing required field sha256"),
    "mark with a text": ("shard-00001.done", {"sha256": {"tar": "", "parquet": ""}, "num_pairs": "8"}, "num_pairs"),
    "rule with a text": ("rule.json", {"id": "x", "rule": {"min_change": "0"}}, "rule.min_change: expected float"),
    "rule out of range": ("rule.json", {"id": "x", "rule": {"min_change": 2}}, r"in \[0, 1\]"),
    "list of pairs": ("left-out-0001.json", {"pairs": ["x"]}, "pairs: expected object, got array"),
    "store": ("store.json", {"url": 3}, "url: expected str, got int"),
    "plan": ("plan.json", {"id": "x", "maker": 3}, "maker: expected str | null, got int"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_field_of_a_wrong_type_is_named_with_what_was_expected(folder, case):
    name, record, message = WRONG[case]
    (folder / name).write_text(json.dumps(record))
    with pytest.raises(InputError, match=message) as error:
        read_all(folder)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_readers_of_single_records_name_the_file(folder):
    for name, reader in (("rule.json", current_rule), ("plan.json", read_plan), ("left-out-0001.json", read_left_out)):
        (folder / name).write_text("[]")
        with pytest.raises(InputError, match=rf"{name}.*expected object, got array"):
            reader(open_files(folder))


def sidecar(folder: Path, **columns: Any) -> bytes:
    table = pq.read_table(folder / "shard-00001.parquet")
    for name, values in columns.items():
        table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"accepted": ["yes"] * 8}, "accepted: expected bool, got string"),
        ({"id": [None] * 8}, "id: expected a value in every row"),
        ({"accepted": None}, "accepted: expected a value in every row"),
        ({"change": ["x"] * 8}, "change: expected double, got string"),
        ({"instruction": [["a"]] * 8}, "instruction: expected string, got list"),
        ({"kind": None}, "expected a column 'kind'"),
    ],
)  # fmt: skip
def test_a_column_of_a_wrong_type_is_named(folder, columns, message):
    put(folder, 1, parquet=sidecar(folder, **columns))
    with pytest.raises(InputError, match=message) as error:
        read_all(folder)
    assert "shard-00001.parquet" in str(error.value)
    if columns.get("kind", 0) is not None:
        assert ("mismatch", "shard-00001.parquet") in [(f.reason, f.file) for f in verify_pairs(folder, fast=True)]


@pytest.mark.parametrize("content", [b"", b"PAR1PAR1", b"no parquet"])
def test_a_sidecar_that_is_no_parquet_is_named(folder, content):
    put(folder, 1, parquet=content)
    with pytest.raises(InputError, match=r"shard-00001\.parquet is not readable as parquet"):
        read_rows(folder)


def test_a_sidecar_that_unpacks_to_far_more_than_its_size_is_not_read(folder):
    buffer = io.BytesIO()
    table = pa.table({"id": [bytes(150_000_000).decode()], "accepted": [False]})
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
    assert len(buffer.getvalue()) < 1_000_000
    put(folder, 1, parquet=buffer.getvalue())
    with pytest.raises(InputError, match="unpacks to more than 20 times its size"):
        read_rows(folder)


def tar_of(*members: tarfile.TarInfo, **files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(kind: bytes, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo("a.json")
    found.type, found.linkname = kind, target
    return found


def sparse_tar() -> bytes:
    """A tar whose only file has a hole of a terabyte."""
    info = tarfile.TarInfo("a.json")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398], block[398:410] = b"%011o\0" % 2**33, b"%011o\0" % 0
    block[483:495] = b"%011o\0" % 2**33
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 8 * 32)
    return bytes(block) + bytes(1024)


@pytest.mark.parametrize(
    ("tar", "message"),
    [
        (tar_of(member(tarfile.SYMTYPE, "/etc/passwd")), "'a.json' is no plain file"),
        (tar_of(member(tarfile.LNKTYPE, "/etc/passwd")), "is no plain file"),
        (tar_of(member(tarfile.FIFOTYPE)), "is no plain file"),
        (tar_of(member(tarfile.CHRTYPE)), "is no plain file"),
        (tar_of(member(tarfile.DIRTYPE)), "is no plain file"),
        (sparse_tar(), "is no plain file"),
        (b"no tar" * 1000, "not readable as a tar"),
        (tar_of(a__json=b"{}"), "has no source.png"),
        (tar_of(**{f"a__{name}": b"x" for name in ("source__png", "edited__png", "mask__png", "json")}), "json is not"),
    ],
)
def test_a_tar_made_to_do_harm_is_named(folder, tar, message):
    put(folder, 1, tar=tar)
    with pytest.raises(InputError, match=message) as error:
        list(read_pairs(folder))
    assert "shard-00001.tar" in str(error.value)
    assert ("mismatch", "shard-00001.tar") in [(found.reason, found.file) for found in verify_pairs(folder, fast=True)]


@pytest.mark.parametrize("record", [b"[]", DEEP, b'{"id": 1, "prompt": {}, "facts": {}}', b'{"id": "x", "facts": {}}'])
def test_a_pair_whose_record_is_wrong_is_named(folder, record):
    parts = dict(encode_pair(make_pair(8)).members) | {"json": record}
    put(
        folder, 1, tar=tar_of(**{f"{make_pair(8).id}__{name.replace('.', '__')}": part for name, part in parts.items()})
    )
    with pytest.raises(InputError, match=r"shard-00001\.tar: pair-[0-9a-f]+, json"):
        list(read_pairs(folder))
    assert "mismatch" in {found.reason for found in verify_pairs(folder, fast=True)}


def test_names_that_only_look_like_marks_are_no_shards(folder):
    for name in ("shard-1.done", "shard-x.done", "shard-٠٠٠٠٩.done", "shard-0000000000000000000009.done"):
        (folder / name).write_bytes(b"{}")
    assert done_indices(folder) == [0, 1, 2] == list(done_shards(folder))


@pytest.mark.parametrize("name", ["plan.json", "rule.json"])
def test_a_deleted_record_of_a_campaign_is_named(tmp_path, name):
    from restage.pairs.config import CampaignConfig
    from restage.pairs.stage import run_campaign

    list(run_campaign(open_run(tmp_path), stand_in_config(), StandIn(), CampaignConfig()))
    assert verify_pairs(tmp_path / "pairs", fast=True) == ()
    (tmp_path / "pairs" / name).unlink()
    found = verify_pairs(tmp_path / "pairs", fast=True)
    assert ("missing", name) in [(finding.reason, finding.file) for finding in found]
    (tmp_path / "pairs" / "stage.json").unlink()
    list(run_campaign(open_run(tmp_path), stand_in_config(), StandIn(), CampaignConfig()))
    assert verify_pairs(tmp_path / "pairs", fast=True) == ()


def test_a_rule_is_read_as_it_was_set(tmp_path):
    set_rule(open_files(tmp_path), PUBLISHED)
    assert current_rule(open_files(tmp_path)) == PUBLISHED
