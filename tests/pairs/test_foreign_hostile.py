"""Data sets that are broken, or made to do harm: refused in one line, or their pairs listed as bad."""

import errno
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restage.pairs.files import LocalFiles
from restage.pairs.store import read_rows
from restage.records import InputError
from tests.pairs.test_foreign import bring_in, pair, picture, write
from tests.pairs.test_foreign_layouts import write_tar

PROMPT = {"source": "a cat", "target": "a dog", "instruction": "make it a dog", "kind": "reshape"}
DEEP = "[" * 100_000
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n{} loop\n"


def sample(record: Any, **parts: bytes) -> dict[str, bytes]:
    content = record if isinstance(record, bytes) else json.dumps(record).encode()
    return {"source.png": picture(0), "edited.png": picture(1), "json": content, **parts}


def take(tmp_path: Path, parts: dict[str, bytes]) -> list[dict[str, Any]]:
    """Import a good sample and another one; returns the rows."""
    good = {f"good.{name}": content for name, content in sample({"instruction": "do it"}).items()}
    good["good.source.png"] = picture(5)
    write_tar(tmp_path / "data.tar", {**good, **{f"other.{name}": content for name, content in parts.items()}})
    folder, _ = bring_in(tmp_path, tmp_path / "run", format="webdataset")
    return read_rows(folder)


@pytest.mark.parametrize(
    "facts",
    [
        {"sample": "abc"}, {"sample": None}, {"rule_version": "x"}, {"scores": []}, {"seed": 10**30},
        {"self_share": "x"}, {"scores": {"change": 10**400}}, {"text": "\ud800"}, {"nan": float("nan")},
        {"control": "\x1b[2J" * 99}, [], None,
    ],
)  # fmt: skip
def test_facts_of_a_record_are_checked(tmp_path, facts):
    rows = take(tmp_path, sample({"id": "pair-0123456789abcdef", "prompt": PROMPT, "facts": facts}))
    assert [row["reason"] for row in rows] == ["", ""] and rows[1]["instruction"] == "make it a dog"
    assert "\x1b" not in rows[1]["control"]


@pytest.mark.parametrize(
    "prompt", [{**PROMPT, "source": 1}, {**PROMPT, "swaps": [1]}, {"source": {}}, [], {**PROMPT, "target": "\ud800"}]
)
def test_a_record_that_is_not_ours_is_read_as_texts(tmp_path, prompt):
    rows = take(tmp_path, sample({"prompt": prompt, "facts": {}}))
    assert rows[0]["accepted"] and (rows[1]["accepted"] or rows[1]["reason"] == "the instruction is missing")


@pytest.mark.parametrize(
    "given", ["../../escape", "pair-0123456789abcde.", "pair-\x00123456789abcde", "pair-0123456789abcde\n", "x" * 9999]
)
def test_ids_from_outside_are_made_anew(tmp_path, given):
    row = take(tmp_path, sample({"id": given, "instruction": "do it"}))[1]
    assert row["accepted"] and row["id"] != given and len(row["id"]) == 21


@pytest.mark.parametrize("content", [DEEP.encode(), b"[" + b"9" * 5000 + b"]", b"\xff\xfe", b"null", b'"x"', b""])
def test_what_is_not_json_has_no_instruction(tmp_path, content):
    assert [row["reason"] for row in take(tmp_path, sample(content))] == ["", "the instruction is missing"]


def test_half_a_character_and_terminal_codes_are_no_text(tmp_path):
    row = take(tmp_path, sample(b'{"instruction": "do \\ud800\\u001b[2Jit"}'))[1]
    assert row["instruction"] == "do [2Jit"


def test_postscript_is_no_picture(tmp_path):
    rows = take(tmp_path, sample({"instruction": "do it"}, **{"source.png": EPS}))
    assert rows[1]["reason"] == "the source picture cannot be decoded"


def test_a_tar_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    files = {f"good.{name}": content for name, content in sample({"instruction": "do it"}).items()}
    write_tar(tmp_path / "data.tar.gz", {**files, **{f"{number}.txt": bytes(60_000_000) for number in range(3)}})
    with pytest.raises(InputError, match="unpacks to more than 20 times its size"):
        bring_in(tmp_path, tmp_path / "run")


def test_a_member_that_claims_to_be_huge_is_refused(tmp_path):
    member = tarfile.TarInfo("a.source.png")
    member.size = 2**40
    (tmp_path / "data.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(InputError, match="too many for a file of a pair"):
        bring_in(tmp_path, tmp_path / "run")


@pytest.mark.parametrize("name", ["data.tar", "data.parquet", "metadata.jsonl"])
def test_folders_and_pipes_are_not_opened(tmp_path, name):
    (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / f"x.{name}")
    with pytest.raises(InputError, match="holds no data set"):
        bring_in(tmp_path, tmp_path / "run")


def test_a_parquet_file_that_ends_early_is_refused(tmp_path):
    data = write(tmp_path / "data", [pair(n) for n in range(20)])
    content = (data / "train.parquet").read_bytes()
    footer = content[-int.from_bytes(content[-8:-4], "little") - 8 :]
    (data / "train.parquet").write_bytes(content[:2000] + bytes(len(content) - 2000 - len(footer)) + footer)
    with pytest.raises(InputError, match="not readable as parquet"):
        bring_in(data, tmp_path / "run")


def test_a_set_of_nothing_but_empty_rows_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("restage.pairs.exchange.bring_in.MAX_BAD", 100)
    empty = pa.nulls(1_000_000, pa.binary())
    table = pa.table({"input_image": empty, "edit": pa.nulls(1_000_000, pa.string()), "output_image": empty})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(InputError, match="the first 100 pairs: holds no good pair"):
        bring_in(tmp_path, tmp_path / "run")


@pytest.mark.parametrize("name", ["../outside", "/etc", "link", "a" * 5000, "\x00"])
def test_folders_of_pairs_lie_inside_the_data_set(tmp_path, name):
    for place in (tmp_path / "outside", tmp_path / "data" / "0000000"):
        place.mkdir(parents=True)
        (place / "prompt.json").write_text(json.dumps({"edit": "do it"}))
        for side in range(2):
            (place / f"7_{side}.jpg").write_bytes(picture(side, form="JPEG"))
    (tmp_path / "data" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "seeds.json").write_text(json.dumps([["0000000", ["7"]], [name, ["7"]]]))
    folder, _ = bring_in(tmp_path / "data", tmp_path / "run")
    assert [row["reason"] for row in read_rows(folder)] == ["", "the instruction is missing"]


@pytest.mark.parametrize("content", [DEEP, "[1]", "null", "{}", '[["a"]]', "[[1, 2]]"])
def test_a_broken_list_of_seeds_is_refused(tmp_path, content):
    (tmp_path / "seeds.json").write_text(content)
    with pytest.raises(InputError):
        bring_in(tmp_path, tmp_path / "run")


@pytest.mark.parametrize("content", [DEEP, "[]", "null", '"x"', "{"])
def test_a_broken_prompt_is_a_bad_pair(tmp_path, content):
    for name, text in (("0", '{"edit": "do it"}'), ("1", content)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prompt.json").write_text(text)
        (tmp_path / name / "metadata.jsonl").write_text(f'{content}\n[1]\n{{"seed": 7}}\n')
        for side in range(2):
            (tmp_path / name / f"7_{side}.jpg").write_bytes(picture(side, form="JPEG"))
    folder, _ = bring_in(tmp_path, tmp_path / "run", format="instruct-pix2pix")
    assert [row["reason"] for row in read_rows(folder)] == ["", "the instruction is missing"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_devices_and_pipes_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        member = tarfile.TarInfo("a.source.png")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(InputError, match=r"data\.tar: 'a\.source\.png' is no plain file"):
        bring_in(tmp_path, tmp_path / "run")


@pytest.mark.parametrize("name", ["data.tar", "train.parquet", "metadata.jsonl"])
def test_a_link_out_of_the_data_set_is_not_followed(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / name).write_bytes(b"private")
    (tmp_path / "data" / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is a link that leaves"):
        bring_in(tmp_path / "data", tmp_path / "run")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_line_of_a_megabyte_is_refused(tmp_path, name):
    (tmp_path / name).write_text("file_name,edited_file_name,edit\n" + "x" * 1_000_000)
    with pytest.raises(InputError, match=f"{name}, line 2: expected at most 100000 characters"):
        bring_in(tmp_path, tmp_path / "run")


def test_a_table_of_fields_without_end_is_refused(tmp_path):
    (tmp_path / "metadata.csv").write_text('file_name,edited_file_name,edit\n"' + "x\n" * 100_000)
    with pytest.raises(InputError, match="not readable as CSV: field larger than field limit"):
        bring_in(tmp_path, tmp_path / "run")


def test_a_parquet_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    empty = {"bytes": bytes(150_000_000), "path": None}
    table = pa.Table.from_pylist([pair(0, original_image=empty)])
    pq.write_table(table, tmp_path / "train.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(InputError, match=r"train\.parquet unpacks to more than 20 times its size"):
        bring_in(tmp_path, tmp_path / "run")


def test_a_data_set_that_is_refused_late_leaves_nothing(tmp_path):
    write(tmp_path / "data", [pair(n) for n in range(70)] + [pair(70, edit_prompt="")])
    with pytest.raises(InputError, match="the instruction is missing"):
        bring_in(tmp_path / "data", tmp_path / "run", strict=True, pairs_per_shard=8)
    assert not (tmp_path / "run" / "pairs").exists()
    bring_in(tmp_path / "data", tmp_path / "run", pairs_per_shard=8)
    assert len(read_rows(tmp_path / "run" / "pairs")) == 71


def test_a_full_disk_leaves_no_half_of_a_first_shard_and_keeps_whole_ones(tmp_path, monkeypatch):
    write(tmp_path / "data", [pair(n) for n in range(16)])
    write_file, room = LocalFiles.write, [0]

    def write_until_full(self: LocalFiles, name: str, content: bytes) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        room[0] -= 1
        write_file(self, name, content)

    monkeypatch.setattr(LocalFiles, "write", write_until_full)
    for num_files, expected in ((1, None), (4, {f"shard-00000.{suffix}" for suffix in ("tar", "parquet", "done")})):
        room[0] = num_files
        with pytest.raises(OSError, match="No space left"):
            bring_in(tmp_path / "data", tmp_path / "run", pairs_per_shard=8)
        pairs = tmp_path / "run" / "pairs"
        assert (set(os.listdir(pairs)) if pairs.exists() else None) == expected
    monkeypatch.setattr(LocalFiles, "write", write_file)
    assert len(read_rows(bring_in(tmp_path / "data", tmp_path / "run", pairs_per_shard=8)[0])) == 16


@pytest.mark.parametrize("part", ["instruction", "kind", "source", "parent"])
@pytest.mark.parametrize("text", ["do\x1b[2J it", "x" * 10_001])
def test_texts_of_a_record_are_cleaned_or_too_long(tmp_path, part, text):
    row = take(tmp_path, sample({"prompt": {**PROMPT, part: text}, "facts": {}}))[1]
    assert "\x1b" not in str(row) and len(str(row["instruction"])) <= 10_000
    if text.startswith("do"):
        assert row["accepted"] and row["prompt_id"]
    else:
        assert row["reason"] == ("" if part == "parent" else "a text is longer than 10000 characters")
