from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restage.records import (
    EditCase,
    EditRequest,
    InputError,
    MissingExtra,
    PromptPair,
    canonical_json,
    content_id,
    derive_seed,
    file_sha256,
    read_json,
    write_atomically,
    write_json,
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


def test_edit_case_comes_back_from_json_with_the_same_id() -> None:
    request = EditRequest(instruction="make it blue", source_caption="red", target_caption="blue")
    case = EditCase(scene="a", kind="recolour", request=request, has_truth=True)
    assert EditCase.from_plain(dataclasses.asdict(case)).id == case.id


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_empty_texts_are_refused(empty: str) -> None:
    with pytest.raises(InputError, match="instruction"):
        EditRequest(instruction=empty, source_caption="", target_caption="")
    with pytest.raises(InputError, match="source"):
        PromptPair(source=empty, target="b", instruction="c", kind="recolour")


def test_missing_extra_names_what_to_install() -> None:
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
