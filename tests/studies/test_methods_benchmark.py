from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.methods import (
    ANCHORS,
    KINDS,
    by_kind,
    choose_names,
    make_long_study,
    make_study,
    ranks,
    summarize,
    times,
    world,
    write_rows,
)
from restage.edit.methods.idu import Idu
from restage.records import Score
from restage.studies.study import list_units
from restage.world.config import CaptureConfig

ALL = {
    "world_seeds": [11, 12, 13],
    "methods": ("restage", "idu", "pds"),
    "repeated": ("restage", "idu"),
    "kinds": KINDS,
    "editors": ("edit_model", "exact", "noisy"),
    "size": 128,
    "time_cap": 120.0,
    "long_idu": [900, 3600],
}


def score(**changes: Any) -> Score:
    row = {
        "scene": "a",
        "edit": "recolour-1",
        "kind": "recolour",
        "editor": "edit_model",
        "seed": 0,
        "metric": "progress",
    }
    return Score(**{**row, **changes})


def scores(method: str, values: dict[str, float], **changes: Any) -> list[Score]:
    return [score(method=method, scene=scene, value=value, **changes) for scene, value in values.items()]


def test_every_method_sees_every_edit_and_only_some_run_with_several_seeds() -> None:
    units = list_units(make_study(argparse.Namespace(**ALL)))
    edits = {(unit.scene, unit.edit) for unit in units}
    assert len(edits) == len({scene for scene, _ in edits}) * len(KINDS) == 21
    counts = {
        (method, editor): sum(u.method.removesuffix("-again") == method and u.editor == editor for u in units)
        for method in ("restage", "idu", "pds")
        for editor in ("edit_model", "exact", "noisy-0.3-exact")
    }
    assert [counts["restage", e] for e in ("edit_model", "exact", "noisy-0.3-exact")] == [63, 21, 21]
    assert [counts["pds", e] for e in ("edit_model", "exact", "noisy-0.3-exact")] == [21, 21, 0]
    anchors = [(unit.method, unit.editor) for unit in units if unit.method in ANCHORS]
    assert anchors.count(("nothing", "none")) == anchors.count(("per_view", "edit_model")) == 21 == len(anchors) / 2


def test_the_text_to_image_model_is_asked_by_methods_that_edit_by_captions() -> None:
    asked = {"methods": ("restage", "controlled", "replace_once"), "editors": ("text_to_image",)}
    units = list_units(make_study(argparse.Namespace(**{**ALL, **asked})))
    assert {(u.method, u.editor) for u in units if u.editor != "none"} == {
        ("controlled", "text_to_image"),
        ("replace_once", "text_to_image"),
    }


def test_a_narrower_study_asks_for_results_of_the_wide_one_only() -> None:
    wide = list_units(make_study(argparse.Namespace(**ALL)))
    narrow = list_units(make_study(argparse.Namespace(**{**ALL, "methods": ("restage",), "editors": ("exact",)})))
    assert narrow and set(narrow) <= set(wide)


def test_which_scene_a_world_is_does_not_depend_on_the_kinds_asked_for() -> None:
    every, one = world(11, KINDS, CaptureConfig()), world(11, ("add",), CaptureConfig())
    assert every.description == one.description
    assert one.world_edits == tuple(edit for edit in every.world_edits if edit.kind == "add")


def test_the_long_runs_of_idu_have_no_cap_and_stand_beside_restage() -> None:
    study = make_long_study(argparse.Namespace(**ALL))
    assert study.time_cap_s is None and len(study.scenes) == 1
    lengths = {name: m.settings.num_steps for name, m in study.methods.items() if isinstance(m.settings, Idu)}
    assert lengths == {"idu-900": 900, "idu-3600": 3600}
    assert {unit.method for unit in list_units(study)} == {"idu-900", "idu-3600", "restage", "nothing"}


def test_the_table_joins_seeds_and_clusters_by_scene() -> None:
    rows = [
        *scores("restage", {"a": 0.8, "b": 0.6}),
        *scores("restage-again", {"a": 0.8, "b": 0.6}, seed=1),
        *scores("restage", {"a": 1.0, "b": 0.9}, editor="exact"),
        *scores("restage", {"a": 0.0, "b": 1.0}, metric="is_capped"),
    ]
    table = summarize(rows)["methods"]
    assert isinstance(table, dict)
    assert table["restage"]["results"] == 4 and table["restage"]["progress"] == pytest.approx(0.7)
    assert table["restage"]["progress_se"] == pytest.approx(0.1)  # of two scenes, whatever the number of seeds
    assert table["restage"]["capped"] == 1 and table["restage"]["failed"] == 0
    assert table["restage (exact)"]["progress"] == pytest.approx(0.95)
    assert by_kind(rows)["restage (edit_model)"] == {"recolour": pytest.approx(0.7)}
    assert by_kind(rows, "is_capped") == {"restage (edit_model)": {"recolour": pytest.approx(0.5)}}


def test_ranks_count_methods_with_the_edit_model_only() -> None:
    table: dict[str, dict[str, float | int | None]] = {
        "restage": {"progress": 0.5, "spill": 0.01, "seconds": 10.0},
        "idu": {"progress": 0.6, "spill": 0.02, "seconds": 40.0},
        "idu (exact)": {"progress": 0.9, "spill": 0.001, "seconds": 9.0},
        "nothing": {"progress": 0.0, "spill": 0.0, "seconds": 0.0},
        "per_view": {"progress": 0.7, "spill": 0.03, "seconds": 2.0},
    }
    assert ranks(table) == {"restage_rank_progress": 2, "restage_rank_spill": 1, "restage_time_over_idu": 0.25}


def test_rows_are_one_a_result_and_say_why_a_number_is_missing(tmp_path: Path) -> None:
    missing = score(method="pds", value=math.nan, reason="it failed")
    write_rows(tmp_path / "rows.csv", [missing, *scores("idu", {"a": 0.5}), *scores("idu", {"a": 0.1}, metric="spill")])
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [row["method"] for row in rows] == ["idu", "pds"]
    assert rows[0]["progress"] == "0.5" and rows[0]["spill"] == "0.1"
    assert rows[1]["progress"] == "" and rows[1]["reason"] == "it failed"


def test_unknown_names_are_refused_with_the_menu() -> None:
    with pytest.raises(SystemExit, match="unknown: rstage; choose from idu, restage"):
        choose_names(("idu", "restage"), "rstage,idu")


def test_the_time_of_restage_is_given_over_each_length_of_idu() -> None:
    seconds = {"restage": 10.0, "idu-900": 20.0, "idu-8100": 200.0, "nothing": 0.1}
    table = {name: {"seconds": value} for name, value in seconds.items()}
    assert times(table) == {"idu-900": 0.5, "idu-8100": 0.05}
