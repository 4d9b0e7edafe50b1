"""Named files in one place: whole or not at all, on a disk and in an object store."""

import errno
import os
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from restage.pairs.files import Files, LocalFiles, RemoteFiles, UnnamedStore, is_url, open_files, point_to_store
from restage.records import InputError, MissingExtra, read_json, write_json


class Objects(MemoryFileSystem):
    """An object store whose listings are kept until they are asked for anew."""

    protocol = "restage-listed"
    store: dict = {}
    pseudo_dirs = [""]
    listings: dict = {}

    def ls(self, path, detail=True, **options):
        key = (path, detail)
        if key not in self.listings:
            self.listings[key] = super().ls(path, detail=detail, **options)
        return self.listings[key]

    def exists(self, path, **options):
        self.listings.setdefault(("exists", path), super().exists(path, **options))
        return self.listings["exists", path]

    def invalidate_cache(self, path=None):
        self.listings.clear()


@pytest.fixture
def url():
    fsspec.register_implementation("restage-listed", Objects, clobber=True)
    Objects.store.clear()
    Objects.pseudo_dirs[:] = [""]
    Objects.listings.clear()
    return "restage-listed://bucket/run"


@pytest.fixture(params=["disk", "objects"])
def place(request, tmp_path, url) -> Files:
    return open_files(tmp_path / "new" / "run" if request.param == "disk" else f"{url}/")


def test_a_place_lists_reads_replaces_and_removes_whole_files(place):
    assert isinstance(place, Files) and place.names() == [] and not place.exists("b.json")
    for name, content in (("b.json", b"first"), ("a.tar", b"\x00" * 10), ("b.json", b"second")):
        place.write(name, content)
        assert place.exists(name)
    place.write("failures/7.json", b"deep")
    place.sync()
    assert [name for name in place.names() if name != "failures"] == ["a.tar", "b.json"]
    assert (place.read("b.json"), place.read("a.tar"), place.read("failures/7.json")) == (
        b"second",
        b"\0" * 10,
        b"deep",
    )
    assert place.where("b.json").endswith("run/b.json") and place.where().endswith("run")
    place.remove("b.json")
    place.remove("b.json")
    assert not place.exists("b.json") and "b.json" not in place.names()
    with pytest.raises(FileNotFoundError):
        place.read("b.json")


def test_what_others_wrote_to_an_object_store_is_seen_at_once(url):
    ours, theirs = open_files(url), open_files(url)
    assert ours.names() == [] and not ours.exists("a")
    theirs.write("a", b"x")
    assert ours.exists("a") and ours.names() == ["a"]
    assert ours.free_bytes() is None and isinstance(ours, RemoteFiles)


def test_hidden_files_of_a_write_under_way_are_no_names(tmp_path):
    (tmp_path / ".shard-0.here-1-ab.tmp.tar").write_bytes(b"half")
    assert LocalFiles(tmp_path).names() == []


def watch_renames(monkeypatch, found: list[tuple[str, bytes, bool]], synced: list[int]):
    replace, fsync = os.replace, os.fsync

    def watched(source, target):
        is_synced = os.stat(source).st_ino in synced
        found.append((Path(source).name, Path(source).read_bytes(), is_synced))
        replace(source, target)

    def watched_sync(number):
        synced.append(os.fstat(number).st_ino)
        fsync(number)

    monkeypatch.setattr(os, "replace", watched)
    monkeypatch.setattr(os, "fsync", watched_sync)


def test_a_write_is_whole_and_synced_before_it_takes_the_name(tmp_path, monkeypatch):
    renamed, synced = [], []
    watch_renames(monkeypatch, renamed, synced)
    files = LocalFiles(tmp_path)
    for _ in range(2):
        files.write("shard-00001.tar", b"content" * 999)
    names = [name for name, _, _ in renamed]
    assert all(content == b"content" * 999 and is_synced for _, content, is_synced in renamed)
    assert len(set(names)) == 2 and all(
        name.startswith(".shard-00001.") and name.endswith(".tmp.tar") for name in names
    )
    assert all(str(os.getpid()) in name and os.uname().nodename in name for name in names)
    files.sync()
    assert os.stat(tmp_path).st_ino in synced


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_syncing_a_folder_leaves_no_file_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        LocalFiles(tmp_path).sync()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_that_gives_back_something_else_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    fsync = os.fsync

    def spoil(number):
        fsync(number)
        os.pwrite(number, b"Y", 0)

    monkeypatch.setattr(os, "fsync", spoil)
    files = LocalFiles(tmp_path)
    with pytest.raises(OSError, match="check the disk"):
        files.write("a.tar", b"XXXX")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    files = LocalFiles(tmp_path)
    files.write("a", b"old")

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write("a", b"new")
    assert files.read("a") == b"old" and os.listdir(tmp_path) == ["a"]


def test_room_is_that_of_the_disk_a_folder_will_be_on(tmp_path):
    free = LocalFiles(tmp_path / "not" / "there" / "yet").free_bytes()
    assert free is not None and abs(free - os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize) < 1e9


def test_places_are_told_apart_by_how_they_are_written(tmp_path, url):
    assert is_url("s3://bucket/run") and not is_url("/data/run") and not is_url(Path("C:/run"))
    assert open_files(f"file://{tmp_path}/run") == LocalFiles(tmp_path / "run")
    assert open_files(str(tmp_path)) == LocalFiles(tmp_path) == open_files(tmp_path)
    assert open_files(f"{url}/").where("a") == f"{url}/a" and open_files(url).where() == url


def test_a_folder_that_points_to_a_store_opens_it(tmp_path, url):
    point_to_store(tmp_path, url)
    point_to_store(tmp_path, url)  # said twice
    with pytest.raises(UnnamedStore, match=f"--store {url}$"):
        open_files(tmp_path)
    opened = open_files(tmp_path, store=url)
    assert open_files(opened) is opened
    assert isinstance(opened, RemoteFiles) and opened.url == url
    assert read_json(tmp_path / "store.json") == {"url": url}


def test_a_store_is_not_changed_later_and_only_taken_where_no_shard_lies(tmp_path, url):
    point_to_store(tmp_path / "pointed", url)
    with pytest.raises(InputError, match=f"lie at {url}; got --store memory://else"):
        point_to_store(tmp_path / "pointed", "memory://else")
    LocalFiles(tmp_path / "held").write("shard-00000.done", b"")
    with pytest.raises(InputError, match="at the start"):
        point_to_store(tmp_path / "held", url)
    assert not (tmp_path / "held" / "store.json").exists()
    with pytest.raises(InputError, match="nowhere://bucket"):
        point_to_store(tmp_path / "wrong", "nowhere://bucket")
    assert not (tmp_path / "wrong").exists()
    write_json(tmp_path / "begun" / "plan.json", {})
    point_to_store(tmp_path / "begun", url)


def test_a_store_whose_package_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"s3://bucket.*restage\[cluster\]"):
        RemoteFiles("s3://bucket/run")
