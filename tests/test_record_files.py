"""Records as files: written whole or not at all, sealed, and read with errors that name the file."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from restage.records import (
    InputError,
    file_sha256,
    has_right_seal,
    hash_files,
    is_disk_full,
    parse_json,
    read_json,
    seal,
    system_error,
    write_atomically,
    write_json,
    write_record,
)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), write_atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    program = (
        "import os, sys, pathlib; from restage.records import write_atomically\n"
        "with write_atomically(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -9
    assert read_json(path) == {"a": 1}


def test_a_write_is_synced_beside_its_target_before_it_takes_the_name(tmp_path: Path, monkeypatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    path, names = tmp_path / "new" / "deep" / "value.json", []
    for _ in range(2):
        with write_atomically(path) as temporary:
            temporary.write_text("whole")
            names.append(temporary.name)
            assert temporary.parent == path.parent
        assert path.read_text() == "whole" and path.stat().st_ino in synced
    assert len(set(names)) == 2 and all(
        re.fullmatch(rf"\.value\.{re.escape(socket.gethostname())}-{os.getpid()}-\w+\.tmp\.json", n) for n in names
    )
    assert os.listdir(path.parent) == ["value.json"]


def test_json_is_written_for_people(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"b": "é", "a": (1, Path("x/y"))})
    assert (tmp_path / "value.json").read_text() == '{\n "a": [\n  1,\n  "x/y"\n ],\n "b": "é"\n}\n'


def test_a_seal_is_that_of_the_record_without_it_whatever_its_order():
    record = seal({"b": (1, 2), "a": math.nan})
    # printf '{"a":NaN,"b":[1,2]}' | sha256sum
    assert record["seal"] == "077dcac3dd5c6280843c825acc2b06bdadf628ae07db89578727dca9f6477984"
    assert seal(record) == record == seal({"seal": "of an earlier version", "a": math.nan, "b": [1, 2]})
    assert seal({"a": "é"})["seal"] == hashlib.sha256('{"a":"é"}'.encode()).hexdigest()


@pytest.mark.parametrize("is_required", [True, False])
def test_a_changed_record_has_a_wrong_seal_and_one_without_a_seal_only_where_none_is_required(is_required):
    record = seal({"a": 1})
    assert has_right_seal(record, is_required=is_required)
    assert not has_right_seal({**record, "a": 2}, is_required=is_required)
    assert not has_right_seal({**record, "seal": ""}, is_required=is_required)
    assert has_right_seal({"a": 1}, is_required=is_required) is not is_required


def test_the_record_of_a_folder_holds_the_hashes_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b", "in/a", "not named"):
        (tmp_path / name).write_text(name)
    files = [tmp_path / "in" / "a", tmp_path / "b"]
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("b", "in/a")}
    assert list(hash_files(tmp_path, files).items()) == list(hashes.items())
    write_record(tmp_path / "stage.json", {"facts": {"n": 3}}, files=files)
    record = read_json(tmp_path / "stage.json")
    assert record == seal({"facts": {"n": 3}, "files": hashes})
    write_record(tmp_path / "bare.json", {})
    assert read_json(tmp_path / "bare.json") == seal({"files": {}})


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("text", ["{", "\xff"])
def test_unreadable_json_is_bad_input_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "value.json")
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    for name in ("value.json", "endless.json"):
        for read in (read_json, file_sha256):
            with pytest.raises(InputError, match=f"{name} is not a file"):
                read(tmp_path / name)


def test_missing_json_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "none.json")


def test_the_system_error_behind_what_libraries_raise_is_found() -> None:
    full = OSError(errno.ENOSPC, "full")
    for error, number in (
        (full, errno.ENOSPC),
        (RuntimeError("write failed: (os error 122)"), errno.EDQUOT),
        (RuntimeError("inline_container.cc:1 unexpected pos 64 vs 0"), errno.ENOSPC),
    ):
        found = system_error(error)
        assert found is not None and found.errno == number and is_disk_full(error)
        assert found.strerror in ("full", os.strerror(number))
    assert not is_disk_full(RuntimeError("(os error 13)"))
    assert not is_disk_full(ValueError("something else"))


def test_an_error_of_another_file_is_told_as_it_is_and_one_without_a_name_of_the_target(tmp_path: Path) -> None:
    other = OSError(errno.EIO, "broken", str(tmp_path / "other"))
    for error, named in ((other, "other"), (OSError(errno.ENOSPC, "full"), "mine")):
        with pytest.raises(OSError, match=named) as caught, write_atomically(tmp_path / "mine"):
            raise error
        assert str(caught.value.filename).endswith(named)


def test_json_that_cannot_be_opened_or_written_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_json(tmp_path)
    with pytest.raises(InputError, match="not readable as JSON"):
        parse_json(b'"\\ud800"', where="here")
