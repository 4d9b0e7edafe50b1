from __future__ import annotations

import dataclasses
import errno
import hashlib
import math
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from restage.records import (
    GRADED,
    EditCase,
    EditRequest,
    InputError,
    MissingExtra,
    Progress,
    PromptPair,
    Score,
    added_later,
    canonical_json,
    content_id,
    derive_seed,
    did_you_mean,
    file_sha256,
    from_plain,
    has_right_seal,
    hash_files,
    is_disk_full,
    parse_json,
    read_json,
    seal,
    system_error,
    to_plain,
    write_atomically,
    write_json,
    write_record,
)
from restage.run.folder import RunFolder

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    steps: int = 3
    rate: float = 0.1
    path: Path = Path("a/b")
    parts: tuple[str, ...] = ("x", "y")


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_order_of_keys_does_not_change_an_id(value: dict) -> None:
    assert content_id("toy", value) == content_id("toy", dict(reversed(value.items())))


def test_id_is_the_kind_and_sixteen_hex_digits_of_a_known_hash() -> None:
    # printf '{"a":1}' | sha256sum
    assert content_id("toy", {"a": 1}) == "toy-015abd7f5cc57a2d"


def test_any_field_changes_the_id() -> None:
    ids = {
        content_id("toy", ToyConfig()),
        content_id("toy", ToyConfig(steps=4)),
        content_id("toy", ToyConfig(rate=0.2)),
    }
    assert len(ids) == 3


def test_dataclasses_paths_and_numpy_scalars_become_json() -> None:
    text = canonical_json({"config": ToyConfig(), "count": np.int64(3), "share": np.float32(0.5)})
    assert text == '{"config":{"parts":["x","y"],"path":"a/b","rate":0.1,"steps":3},"count":3,"share":0.5}'


def test_plain_values_are_those_of_any_depth_and_what_is_no_scalar_stays_as_it_is():
    value = {1: (ToyConfig(), [Path("c") / "d"]), "scalar": torch.tensor(2.5), "text": "é"}
    config = {"steps": 3, "rate": 0.1, "path": "a/b", "parts": ["x", "y"]}
    assert to_plain(value) == {"1": [config, ["c/d"]], "scalar": 2.5, "text": "é"}
    array = np.zeros(3)
    assert to_plain(array) is array and to_plain(ToyConfig) is ToyConfig
    assert canonical_json({"text": "é"}) == '{"text":"é"}'


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_does_not_have_is_refused(value: float) -> None:
    with pytest.raises(ValueError):
        canonical_json({"value": value})


@given(st.lists(st.integers() | st.text(), min_size=1, max_size=4))
def test_seeds_lie_in_63_bits_and_depend_on_every_part(parts: list[int | str]) -> None:
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    assert seed == derive_seed(*parts)
    assert seed != derive_seed(*parts, "more")


def test_seeds_tell_a_number_from_its_text_and_one_split_from_another() -> None:
    assert len({derive_seed(1), derive_seed("1"), derive_seed("ab", "c"), derive_seed("a", "bc")}) == 4


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


def test_prompt_pair_comes_back_from_json_with_the_same_id() -> None:
    pair = PromptPair(
        source="a red cube",
        target="a blue cube",
        instruction="make the cube blue",
        kind="recolour",
        swaps=(("red", "blue"),),
        words=("cube",),
    )
    assert PromptPair.from_plain(dataclasses.asdict(pair)) == pair
    assert PromptPair.from_plain(dataclasses.asdict(pair)).id == pair.id


PLAIN_PAIR: dict[str, Any] = {
    "source": "a red cube",
    "target": "a blue cube",
    "instruction": "make it blue",
    "kind": "recolour",
}


def test_ids_of_prompt_pairs_are_those_that_runs_on_disk_have():
    assert PromptPair(**PLAIN_PAIR).id == "prompt-92f91b711c50a203"
    words: dict[str, Any] = {
        "swaps": (("red", "blue"),),
        "words": ("cube",),
        "form": "f",
        "parent": "p",
        "writer": "llm",
    }
    assert PromptPair(**PLAIN_PAIR, **words).id == "prompt-859fd017283ebebe"
    assert PromptPair(**PLAIN_PAIR, picture="1.png").id == "prompt-bd24eb1ff7dae672"


def test_what_no_picture_depends_on_is_no_part_of_an_id():
    plain, pictured = PromptPair(**PLAIN_PAIR), PromptPair(**PLAIN_PAIR, picture="1.png")
    assert dataclasses.replace(plain, undo="make it red", behind="sand", pictured="target").id == plain.id
    assert dataclasses.replace(pictured, undo="make it red", behind="sand").id == pictured.id
    assert dataclasses.replace(pictured, pictured="target").id != pictured.id != plain.id


def test_only_a_pictured_removal_with_words_and_a_caption_is_painted_behind():
    texts: dict[str, Any] = {**PLAIN_PAIR, "kind": "remove"}
    pair = PromptPair(**texts, words=("cube",), picture="1.png", behind="sand")
    assert pair.is_painted_behind
    assert pair.id != dataclasses.replace(pair, behind="grass").id
    for changes in ({"kind": "add"}, {"words": ()}, {"behind": ""}, {"picture": ""}, {"pictured": "target"}):
        other = dataclasses.replace(pair, **changes)
        assert not other.is_painted_behind and other.id == dataclasses.replace(other, behind="").id


def test_what_is_not_said_of_a_record_has_no_effect():
    pair = PromptPair.from_plain({**PLAIN_PAIR, "swaps": [["red", "blue"]], "words": ["cube"]})
    assert (pair.swaps, pair.words) == ((("red", "blue"),), ("cube",))
    pair = PromptPair.from_plain(PLAIN_PAIR)
    assert (pair.swaps, pair.words, pair.form, pair.writer) == ((), (), "grammar", "grammar")
    assert not (pair.parent or pair.picture or pair.undo or pair.behind) and pair.pictured == "source"
    assert Progress(stage="fit", done=1, total=2).note == ""
    names: dict[str, Any] = {name: "x" for name in ("scene", "edit", "kind", "method", "editor", "metric")}
    score = Score(**names, seed=0, value=0.5)
    assert score.reason == "" and score.is_cost is False


def test_edit_case_comes_back_from_json_with_the_same_id() -> None:
    request = EditRequest(instruction="make it blue", source_caption="red", target_caption="blue")
    case = EditCase(scene="a", kind="recolour", request=request, has_truth=True)
    assert from_plain(dataclasses.asdict(case), EditCase, where="it").id == case.id


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_empty_texts_are_refused(empty: str) -> None:
    with pytest.raises(InputError, match="instruction"):
        EditRequest(instruction=empty, source_caption="", target_caption="")
    for name in ("source", "target", "instruction"):
        with pytest.raises(InputError, match=f"needs a {name}"):
            PromptPair(**{**PLAIN_PAIR, name: empty})


def test_a_picture_shows_one_of_the_two_captions() -> None:
    assert PromptPair(**PLAIN_PAIR, pictured="target").pictured == "target"
    with pytest.raises(InputError, match="'both'"):
        PromptPair(**PLAIN_PAIR, pictured="both")


def test_missing_extra_names_what_to_install() -> None:
    assert issubclass(MissingExtra, InputError) and issubclass(InputError, ValueError)
    assert str(MissingExtra("ray", "cluster")) == "ray is not installed; run: pip install 'restage[cluster]'"


def test_run_goes_on_with_the_same_config_and_refuses_another(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", ToyConfig(), seed=0)
    again = RunFolder.open(tmp_path / "run", ToyConfig(), seed=0)
    assert again.id == run.id
    with pytest.raises(InputError, match="another config"):
        RunFolder.open(tmp_path / "run", ToyConfig(steps=9), seed=0)
    with pytest.raises(InputError, match="another config"):
        RunFolder.open(tmp_path / "run", ToyConfig(), seed=1)


def test_run_goes_on_where_a_start_was_killed_while_it_wrote_its_record(tmp_path: Path) -> None:
    (tmp_path / ".run.4711-00ff00ff.tmp.json").write_text('{"id": "ru')
    run = RunFolder.open(tmp_path, {}, seed=0)
    assert read_json(tmp_path / "run.json")["id"] == run.id


def test_run_refuses_a_folder_with_something_else_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder.open(tmp_path, ToyConfig(), seed=0)
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder.open(tmp_path / "thesis.txt", ToyConfig(), seed=0)


def test_run_record_says_where_it_comes_from_and_how_it_ended(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", ToyConfig(), seed=5)
    record = read_json(run.path / "run.json")
    assert record["status"] == "running"
    assert {"config", "seed", "command", "git_commit", "versions", "machine"} <= set(record)
    assert record["config"]["path"] == "a/b" and record["versions"]["torch"].startswith("2.13")
    run.close("stopped")
    run.close("done")
    record = read_json(run.path / "run.json")
    assert record["status"] == "done"
    assert [session["status"] for session in record["sessions"]] == ["stopped", "done"]


def test_finished_stage_is_known_by_its_config(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", ToyConfig(), seed=0)
    assert not run.is_done("pairs", ToyConfig())
    run.mark_done("pairs", ToyConfig(), num_pairs=4)
    assert run.is_done("pairs", ToyConfig())
    assert read_json(run.path / "pairs" / "stage.json")["facts"] == {"num_pairs": 4}
    with pytest.raises(InputError, match="another config"):
        run.is_done("pairs", ToyConfig(rate=0.2))


@dataclass(frozen=True, kw_only=True)
class GrownConfig(ToyConfig):
    mode: str = added_later("old")


def test_a_field_that_was_added_later_is_part_of_an_id_only_where_it_is_set():
    assert content_id("toy", GrownConfig()) == content_id("toy", ToyConfig())
    assert to_plain({"inner": GrownConfig(mode="new")})["inner"]["mode"] == "new"
    assert content_id("toy", GrownConfig(mode="new")) != content_id("toy", ToyConfig())


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


@dataclass(frozen=True, kw_only=True)
class Kept:
    folder: Path
    number: complex = 0


def test_paths_come_back_and_what_json_cannot_hold_is_refused_by_its_name() -> None:
    assert from_plain({"folder": "a/b"}, Kept, where="here") == Kept(folder=Path("a/b"))
    with pytest.raises(InputError, match="here: folder: expected .*Path, got int"):
        from_plain({"folder": 3}, Kept, where="here")
    with pytest.raises(InputError, match="here: number: expected complex, got str"):
        from_plain({"folder": "a", "number": "3"}, Kept, where="here")
    with pytest.raises(InputError, match="^here: expected"):
        from_plain(3, Kept, where="here")


def test_only_pairs_of_foreign_data_sets_may_lack_captions() -> None:
    assert PromptPair(source="", target="", instruction="make it blue", kind="edit", writer="foreign").source == ""
    with pytest.raises(InputError, match="needs a source"):
        PromptPair(source="", target="", instruction="make it blue", kind="edit")


def test_only_an_edit_by_grading_is_graded() -> None:
    request = EditRequest(instruction="make it warm", source_caption="", target_caption="")
    cases = {kind: EditCase(scene="s", kind=kind, request=request, has_truth=True) for kind in (GRADED, "recolour")}
    assert cases[GRADED].is_graded and not cases["recolour"].is_graded


def test_a_name_that_is_near_is_suggested() -> None:
    assert did_you_mean("grde", ["exact", "grade"]) == "did you mean grade? "
    assert did_you_mean("panda", ["exact", "grade"]) == ""
