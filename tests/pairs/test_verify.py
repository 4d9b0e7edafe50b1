import dataclasses
import shutil

import numpy as np
import pytest
import torch

from restage.pairs.config import PUBLISHED
from restage.pairs.files import open_files
from restage.pairs.score import read_left_out, set_rule
from restage.pairs.store import drop_shard, read_pairs, read_rows, write_manifest, write_shard
from restage.pairs.verify.check import check_pairs
from restage.pairs.verify.shards import REASONS, BadFile, Finding, read_shard
from restage.records import InputError, canonical_json, seal
from tests.pairs.faulty import (
    NUM_SHARDS,
    PAIRS_PER_SHARD,
    SIZE,
    PatternClip,
    make_pair,
    picture_of,
    row_of,
    scores_of,
    verify_pairs,
    write_faulty,
    write_set,
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def copy(clean, tmp_path):
    shutil.copytree(clean, tmp_path / "pairs")
    return tmp_path / "pairs"


def found(folder, **options) -> list[tuple[str, str]]:
    return [(finding.reason, finding.pair or finding.file) for finding in verify_pairs(folder, **options)]


def flip(path, place, bits=1):
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("fast", [True, False])
def test_nothing_is_found_in_a_set_that_is_right(clean, fast):
    assert found(clean, fast=fast, clip=PatternClip()) == []


@pytest.mark.parametrize("name", ["shard-00001.tar", "shard-00001.parquet", "shard-00001.done", "manifest.parquet"])
def test_a_byte_changed_anywhere_is_found(copy, name):
    path = copy / name
    places = np.linspace(0, path.stat().st_size - 1, 15).round().astype(int)
    for place in places:
        flip(path, place)
        ((reason, file),) = found(copy, fast=True)
        assert file.split(".")[0] == name.split(".")[0] and reason in ("flipped", "torn", "stale"), (name, place)
        flip(path, place)
    assert found(copy, fast=True) == []


def test_every_byte_of_a_mark_counts(copy):
    path = copy / "shard-00000.done"
    for place in range(path.stat().st_size):
        flip(path, place)
        with pytest.raises(BadFile):
            read_shard(open_files(copy), 0)
        flip(path, place)
    assert len(read_shard(open_files(copy), 0).pairs) == PAIRS_PER_SHARD - 1


@pytest.mark.parametrize("suffix", ["tar", "parquet", "done"])
@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_file_that_ends_too_early_is_torn(copy, suffix, kept):
    path = copy / f"shard-00002.{suffix}"
    path.write_bytes(path.read_bytes()[:kept])
    ((reason, file),) = found(copy, fast=True)
    expected = "flipped" if suffix == "done" and kept == -1 else "torn"  # without its last line feed it is still JSON
    assert (reason, file) == (expected, path.name)


@pytest.mark.parametrize("suffix", ["tar", "parquet", "done"])
def test_a_missing_file_is_missed(copy, suffix):
    (copy / f"shard-00001.{suffix}").unlink()
    assert found(copy, fast=True) == [("missing", f"shard-00001.{suffix}")]


def test_a_shard_that_is_gone_as_a_whole_is_missed(copy):
    drop_shard(copy, 1)
    reasons = {reason for reason, _ in found(copy, fast=True)}
    assert "missing" in reasons and "stale" in reasons


def test_a_shard_without_a_mark_is_no_fault_while_the_stage_runs(copy):
    (copy / "stage.json").unlink()
    (copy / "shard-00001.done").unlink()
    (copy / "manifest.parquet").unlink()
    assert found(copy, fast=True) == []


def test_a_shard_that_was_copied_is_repeated(copy):
    for suffix in ("tar", "parquet", "done"):
        shutil.copy(copy / f"shard-00000.{suffix}", copy / f"shard-00003.{suffix}")
    write_manifest(copy, copy / "manifest.parquet")
    assert ("repeated", "shard-00003.tar") in found(copy, fast=True)


@pytest.mark.parametrize("name", ["notes.txt", "shard-1.tar", "shard-00001.tar.bak", "copy"])
def test_a_file_that_does_not_belong_is_foreign(copy, name):
    (copy / name).mkdir() if name == "copy" else (copy / name).write_text("x")
    assert found(copy, fast=True) == [("foreign", name)]


def test_a_manifest_of_other_rows_is_stale(copy):
    write_faulty(copy, 1, {9: lambda pair: dataclasses.replace(pair, prompt=make_pair(99).prompt)})
    assert found(copy, fast=True) == [("stale", "manifest.parquet")]


def test_tar_and_sidecar_that_contradict_each_other_are_found(copy):
    pairs = [make_pair(number) for number in (8, 9)]
    rows = [row_of(pair, scores_of(pair)) for pair in pairs]
    rows[1]["source_caption"] = "another scene"
    write_shard(copy, 1, pairs=pairs, rows=rows, facts={})
    ((reason, file),) = [item for item in found(copy, fast=True) if item[0] != "mismatch" or "shard" in item[1]]
    assert (reason, file) == ("mismatch", "shard-00001.tar")


def test_damage_to_the_records_beside_the_shards_is_found(copy):
    files = open_files(copy)
    set_rule(files, PUBLISHED)
    assert found(copy, fast=True) == []
    for name, content in (("rule.json", b'{"id":1}\n'), ("plan.json", b"["), ("left-out-0001.json", b"{}\n")):
        before = files.read(name) if files.exists(name) else None
        files.write(name, content)
        assert name in {file for _, file in found(copy, fast=True)}
        files.remove(name)
        if before is not None:
            files.write(name, before)
    assert found(copy, fast=True) == []


def test_a_shard_of_another_plan_is_found(copy):
    run_files = open_files(copy)
    record = seal({"id": "plan-x", "maker": "models-x", "num_tasks": NUM_SHARDS, "num_pairs": 24, "generate": {}})
    run_files.write("plan.json", (canonical_json(record) + "\n").encode())
    assert found(copy, fast=True) == [("mismatch", f"shard-0000{index}.done") for index in range(NUM_SHARDS)]


def test_a_set_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        verify_pairs(tmp_path / "nothing")


def black(pair):
    return dataclasses.replace(pair, edited=torch.zeros(3, SIZE, SIZE))


def constant(pair):
    return dataclasses.replace(pair, source=torch.full((3, SIZE, SIZE), 0.4))


def identical(pair):
    return dataclasses.replace(pair, edited=pair.source)


def swapped(pair):
    return dataclasses.replace(pair, source=pair.edited, edited=pair.source)


def with_other_pictures(pair):
    return dataclasses.replace(pair, source=picture_of("a fish", 5), edited=picture_of("a bird", 6))


def with_another_source(pair):
    return dataclasses.replace(pair, source=picture_of("a fish", 5))


def with_pictures_of_an_earlier_one(pair):
    earlier = make_pair(2)
    return dataclasses.replace(pair, source=earlier.source, edited=earlier.edited)


def with_nearly_those(pair):
    earlier = make_pair(2)
    return dataclasses.replace(pair, source=earlier.source * 0.98, edited=earlier.edited * 0.98)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (black, "black"),
        (constant, "constant"),
        (identical, "identical"),
        (swapped, "swapped"),
        (with_another_source, "wrong caption"),
        (with_pictures_of_an_earlier_one, "duplicate"),
        (with_nearly_those, "near duplicate"),
    ],
)
def test_what_hashes_cannot_see_is_found_in_the_pictures(tmp_path, spoil, reason):
    folder = write_set(tmp_path / "run", {12: spoil})
    assert found(folder, fast=True) == []
    results = found(folder, clip=PatternClip())
    assert (reason, make_pair(12).id) in results
    assert {pair for _, pair in results} == {make_pair(12).id}


def test_without_a_clip_captions_are_not_judged(tmp_path):
    assert found(write_set(tmp_path / "run", {12: swapped})) == []


def test_scores_of_other_pictures_are_found(tmp_path):
    def darker(pair):
        return dataclasses.replace(pair, edited=pair.edited.flip(-1) * 0.5 + pair.edited * 0.5)

    folder = write_set(tmp_path / "run", {4: darker}, scored_before=True)
    assert ("wrong scores", make_pair(4).id) in found(folder, clip=PatternClip())


def test_scores_of_another_clip_are_no_fault(clean):
    class OtherClip(PatternClip):
        def encode_images(self, images):
            mixed = super().encode_images(images) + 0.4 * torch.nn.functional.normalize(images.flatten(1)[:, :36])
            return torch.nn.functional.normalize(mixed)

    assert not [reason for reason, _ in found(clean, clip=OtherClip()) if reason == "wrong scores"]


def test_captions_too_long_for_the_clip_are_counted_and_the_others_judged(tmp_path):
    class ShortClip(PatternClip):
        def encode_text(self, texts):
            if any("scene 4" in text for text in texts):
                raise InputError("too long")
            return super().encode_text(texts)

    steps = check_pairs(write_set(tmp_path / "run", {5: swapped}), clip=ShortClip())
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result = end.value
            break
    assert result.notes == ("captions of 1 pairs are too long for this CLIP",)
    assert [finding.pair for finding in result.findings] == [make_pair(5).id]


def test_a_score_that_is_not_finite_is_found(tmp_path):
    folder = write_set(tmp_path / "run")
    pairs = [make_pair(number) for number in range(PAIRS_PER_SHARD)]
    rows = [row_of(pair, scores_of(pair)) for pair in pairs]
    rows[3]["direction_similarity"] = float("nan")
    write_shard(folder, 0, pairs=pairs, rows=rows, facts={})
    assert ("not finite", pairs[3].id) in found(folder)


def test_a_picture_that_cannot_be_decoded_is_found(tmp_path):
    from restage.pairs.encoding import EncodedPair, encode_pair

    folder = write_set(tmp_path / "run")
    pairs = [encode_pair(make_pair(number)) for number in range(PAIRS_PER_SHARD)]
    members = tuple((name, b"no picture" if name == "edited.png" else content) for name, content in pairs[2].members)
    broken = EncodedPair(id=pairs[2].id, members=members, pixel_sha256="", bytes_sha256="")
    rows = [row_of(make_pair(number), scores_of(make_pair(number))) for number in range(PAIRS_PER_SHARD)]
    write_shard(folder, 0, pairs=[*pairs[:2], broken, *pairs[3:]], rows=rows, facts={})
    assert ("unreadable", pairs[2].id) in found(folder)


def test_results_do_not_depend_on_the_number_of_threads(tmp_path):
    folder = write_set(tmp_path / "run", {1: black, 9: swapped, 17: identical, 18: with_pictures_of_an_earlier_one})
    (folder / "notes.txt").write_text("x")
    results = [verify_pairs(folder, clip=PatternClip(), num_threads=number) for number in (1, 4)]
    assert results[0] == results[1] and len(results[0]) >= 5


def test_pairs_at_a_url_are_checked_too(clean):
    url = "memory://verified"
    files = open_files(url)
    for path in clean.glob("shard-*"):
        files.write(path.name, path.read_bytes())
    assert found(url, clip=PatternClip()) == []
    files.write("shard-00001.tar", b"x" + files.read("shard-00001.tar")[1:])
    assert found(url) == [("flipped", "shard-00001.tar")]


def test_every_reason_has_a_remedy():
    remedies = {Finding(reason=reason, file="x", detail="").remedy for reason in REASONS}
    assert remedies == {"remake", "rebuild", "leave out", "move away"}


def test_left_out_pairs_are_counted_and_not_judged_again(tmp_path):
    from restage.pairs.score import add_left_out

    folder = write_set(tmp_path / "run", {12: swapped})
    add_left_out(open_files(folder), {make_pair(12).id: "swapped"})
    write_manifest(folder, folder / "manifest.parquet")
    assert found(folder, clip=PatternClip()) == []
    assert make_pair(12).id in read_left_out(open_files(folder))
    assert make_pair(12).id not in {pair.id for pair in read_pairs(folder)}
    (row,) = [row for row in read_rows(folder) if row["id"] == make_pair(12).id]
    assert (row["accepted"], row["reason"]) == (False, "left out: swapped")
    assert sum(row["accepted"] for row in read_rows(folder)) == NUM_SHARDS * (PAIRS_PER_SHARD - 1) - 1
