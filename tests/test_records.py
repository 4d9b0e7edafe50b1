"""Records in memory: their ids and seeds, what becomes JSON and comes back, and what they refuse."""

from __future__ import annotations

import dataclasses
import math
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
    from_plain,
    to_plain,
)

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


@dataclass(frozen=True, kw_only=True)
class GrownConfig(ToyConfig):
    mode: str = added_later("old")


def test_a_field_that_was_added_later_is_part_of_an_id_only_where_it_is_set():
    assert content_id("toy", GrownConfig()) == content_id("toy", ToyConfig())
    assert to_plain({"inner": GrownConfig(mode="new")})["inner"]["mode"] == "new"
    assert content_id("toy", GrownConfig(mode="new")) != content_id("toy", ToyConfig())


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
