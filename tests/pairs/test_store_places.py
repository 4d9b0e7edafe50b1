import json
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from restage.cli import run
from restage.pairs.config import PUBLISHED, CampaignConfig, PairRule
from restage.pairs.encoding import encode_pair, pixel_sha256
from restage.pairs.exchange.export import export_pairs
from restage.pairs.files import LocalFiles, RemoteFiles, UnnamedStore, open_files, point_to_store
from restage.pairs.stage import rejudge_pairs, run_campaign
from restage.pairs.store import done_indices, done_shards, has_shard, read_pairs, read_rows, write_shard
from restage.pairs.verify.repair import repair_pairs
from restage.records import InputError
from restage.run.models import models_in
from tests.pairs.faulty import verify_pairs
from tests.pairs.stand_in import RULE, StandIn, open_run, stand_in_config
from tests.pairs.test_store import make_pair

INLINE = CampaignConfig()


class WithoutRename(MemoryFileSystem):
    """An object store: whole objects, no rename, no folders to speak of."""

    protocol = "restage-objects"
    store: dict = {}
    pseudo_dirs = [""]

    def mv(self, *arguments, **options):
        raise AssertionError("an object store has no rename")

    def mv_file(self, *arguments, **options):
        raise AssertionError("an object store has no rename")


@pytest.fixture
def url():
    fsspec.register_implementation("restage-objects", WithoutRename, clobber=True)
    WithoutRename.store.clear()
    return "restage-objects://bucket/run"


def make(path, store="", rule=RULE):
    list(run_campaign(open_run(path), stand_in_config(rule=rule), StandIn(), INLINE, store=store))
    return path / "pairs"


def accepted_ids(folder):
    return [row["id"] for row in read_rows(folder) if row["accepted"]]


def test_an_object_store_without_rename_holds_the_bytes_that_a_disk_holds(tmp_path, url):
    on_disk, pointed = make(tmp_path / "disk"), make(tmp_path / "remote", store=url)
    remote = open_files(pointed, store=url)
    assert isinstance(remote, RemoteFiles) and not list(pointed.glob("shard-*"))
    shards = [name for name in remote.names() if name.startswith("shard-")]
    assert len(shards) == 30 and all(remote.read(name) == (on_disk / name).read_bytes() for name in shards)
    assert [pair.id for pair in read_pairs(url)] == [pair.id for pair in read_pairs(remote)] == accepted_ids(on_disk)
    assert remote.read("manifest.parquet") == (pointed / "manifest.parquet").read_bytes()


def test_a_run_goes_on_in_the_store_that_it_began_in(tmp_path, url):
    pointed = make(tmp_path / "remote", store=url)
    open_files(pointed, store=url).remove("shard-00003.done")
    (pointed / "stage.json").unlink()
    make(tmp_path / "remote", store=url)
    assert done_indices(url) == list(range(10))
    (pointed / "stage.json").unlink()
    for other in ("", "memory://elsewhere"):
        with pytest.raises(UnnamedStore, match=f"lie at {url}; a store is used only when it is named: --store {url}"):
            make(tmp_path / "remote", store=other)
    with pytest.raises(InputError, match="only be chosen at the start"):
        point_to_store(make(tmp_path / "disk"), url)


READERS = {
    "read_pairs": lambda folder, store: next(read_pairs(open_files(folder, store=store))),
    "read_rows": lambda folder, store: read_rows(open_files(folder, store=store))[0],
    "export": lambda folder, store: list(
        export_pairs(str(folder.parent), folder.parent / f"out{len(store)}", "hf", store=store)
    ),
    "train": lambda folder, store: run(
        ["train", str(folder.parent), "--training.num-steps", "1", *(["--store", store] if store else [])]
    ),
    "calibrate": lambda folder, store: run(
        ["calibrate", str(models_in().clip), "--run", str(folder.parent), *(["--store", store] if store else [])]
    ),
    "rejudge": lambda folder, store: list(
        rejudge_pairs(open_run(folder.parent), stand_in_config(), StandIn(), INLINE, store=store)
    ),
    "verify": lambda folder, store: verify_pairs(folder, fast=True, store=store),
    "repair": lambda folder, store: repair_pairs(folder, [], store=store),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_received_run_opens_no_store_that_the_caller_has_not_named(tmp_path, url, reader, capsys, monkeypatch):
    pointed = make(tmp_path / "remote", store=url)
    opened: list[str] = []
    opener = RemoteFiles.__init__
    monkeypatch.setattr(RemoteFiles, "__init__", lambda self, place: (opened.append(place), opener(self, place))[1])
    try:
        refused = READERS[reader](pointed, "")
    except UnnamedStore as error:
        refused, message = 2, str(error)
    else:
        message = capsys.readouterr().err
    assert refused == 2 and f"named: --store {url}" in message and opened == []
    if reader not in ("train", "calibrate"):  # they need models
        READERS[reader](pointed, url)
        assert set(opened) == {url}


def test_a_place_holds_whole_files_only(tmp_path, url):
    for files in (LocalFiles(tmp_path / "new"), RemoteFiles(url)):
        assert files.names() == [] and not files.exists("a")
        files.write("a", b"first")
        files.write("a", b"second")
        assert (files.names(), files.read("a")) == (["a"], b"second")
        files.remove("a")
        files.remove("a")
        with pytest.raises(FileNotFoundError):
            files.read("a")
    assert list((tmp_path / "new").iterdir()) == [] and LocalFiles(tmp_path / "no" / "yet").free_bytes()


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(InputError, match="nowhere://bucket"):
        open_files("nowhere://bucket/run")


def test_every_pair_has_the_hash_of_its_pixels_and_stored_ones_that_of_their_bytes(tmp_path):
    folder = make(tmp_path)
    rows = {row["id"]: row for row in read_rows(folder)}
    assert (
        all(len(row["pixel_sha256"]) == 64 for row in rows.values())
        and len({r["pixel_sha256"] for r in rows.values()}) == 40
    )
    for pair in read_pairs(folder):
        assert rows[pair.id]["pixel_sha256"] == pixel_sha256(pair.source, pair.edited, pair.mask)
        assert rows.pop(pair.id)["bytes_sha256"] == encode_pair(pair).bytes_sha256
    assert {row["bytes_sha256"] for row in rows.values()} == {""}


def test_one_changed_pixel_changes_the_hash():
    pair = make_pair()
    other = pair.source.clone()
    other[0, 0, 0] = 1 - other[0, 0, 0]
    assert pixel_sha256(pair.source, pair.edited, pair.mask) != pixel_sha256(other, pair.edited, pair.mask)


def test_a_shard_that_another_machine_writes_differently_is_whole_in_the_end(tmp_path, monkeypatch):
    written: list[str] = []
    write = LocalFiles.write

    def interrupted(self, name: str, content: bytes) -> None:
        write(self, name, content)
        written.append(name)
        if written.count("shard-00000.parquet") == 1 and name.endswith(".parquet"):
            write(self, "shard-00000.tar", b"of someone else")

    monkeypatch.setattr(LocalFiles, "write", interrupted)
    mark = write_shard(tmp_path, 0, pairs=[make_pair()], rows=[{"id": make_pair().id, "accepted": True}], facts={})
    assert written.count("shard-00000.tar") == 2 and has_shard(tmp_path, 0, mark)


def test_a_stricter_rule_needs_no_pictures(tmp_path):
    folder = make(tmp_path)
    before = accepted_ids(folder)
    shards = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    strict = stand_in_config(rule=PairRule(**{**vars(RULE), "min_image_similarity": 0.6}))
    steps = list(rejudge_pairs(open_run(tmp_path), strict, StandIn(is_missing=True), INLINE))
    kept = [row["id"] for row in read_rows(folder) if row["accepted"]]
    assert set(kept) < set(before) and all(
        row["image_similarity"] >= 0.6 for row in read_rows(folder) if row["accepted"]
    )
    assert [pair.id for pair in read_pairs(folder)] == kept and steps[0].note.startswith(f"{len(kept)} of 40")
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == shards
    assert len(list(folder.glob("manifest-rule-*.parquet"))) == 1
    verdicts = pq.ParquetFile(folder / "manifest.parquet").read(columns=["accepted"])["accepted"].to_pylist()
    assert sum(verdicts) == len(kept)


def test_a_laxer_rule_makes_exactly_the_shards_again_that_it_needs(tmp_path):
    folder = make(tmp_path / "run")
    lax_rule = PairRule(**{**vars(RULE), "min_image_similarity": 0.0})
    changed = make(tmp_path / "lax", rule=lax_rule)
    before, expected = read_rows(folder), accepted_ids(changed)
    added = set(expected) - {row["id"] for row in before if row["accepted"]}
    shards_of_added = {number // 4 for number, row in enumerate(before) if row["id"] in added}
    untouched = {index: mark for index, mark in done_shards(folder).items() if index not in shards_of_added}
    assert added and 0 < len(shards_of_added) < 10
    list(rejudge_pairs(open_run(tmp_path / "run"), stand_in_config(rule=lax_rule), StandIn(), INLINE))
    assert accepted_ids(folder) == expected == [pair.id for pair in read_pairs(folder)]
    marks = done_shards(folder)
    assert all(marks[index] == mark for index, mark in untouched.items())
    assert all(marks[index]["rule"] != mark["rule"] for index in shards_of_added for mark in untouched.values())
    assert {row["id"]: row["pixel_sha256"] for row in before} == {
        row["id"]: row["pixel_sha256"] for row in read_rows(folder)
    }


def test_another_rule_is_refused_without_rejudge_and_another_plan_with_it(tmp_path):
    make(tmp_path)
    (tmp_path / "pairs" / "stage.json").unlink()
    other = stand_in_config(rule=PUBLISHED)
    with pytest.raises(InputError, match="--rejudge"):
        list(run_campaign(open_run(tmp_path), other, StandIn(), INLINE))
    with pytest.raises(InputError, match="only the rule"):
        list(rejudge_pairs(open_run(tmp_path), stand_in_config(pairs_per_shard=5), StandIn(), INLINE))
    with pytest.raises(InputError, match="other prompts, models"):
        list(run_campaign(open_run(tmp_path), stand_in_config(), StandIn(id="other models"), INLINE))


def test_a_rule_that_was_changed_half_way_is_gone_on_with(tmp_path):
    folder = make(tmp_path / "run")
    lax = stand_in_config(rule=PairRule(**{**vars(RULE), "min_image_similarity": 0.0}))
    steps = rejudge_pairs(open_run(tmp_path / "run"), lax, StandIn(), INLINE)
    next(steps)
    del steps  # stopped after the shards lost their marks
    assert len(done_indices(folder)) < 10 and not (folder / "stage.json").exists()
    list(rejudge_pairs(open_run(tmp_path / "run"), lax, StandIn(), INLINE))
    assert json.loads((folder / "stage.json").read_text())["facts"]["num_accepted"] == len(accepted_ids(folder))
    assert Path(folder / "manifest.parquet").exists()
