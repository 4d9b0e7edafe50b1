"""Means, clustered standard errors, flags and the headline, against closed forms."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from restage.records import Score
from restage.scores.definitions import METRICS, metrics_shown_in
from restage.scores.statistics import estimate_scores
from restage.scores.tables import further_metrics, headline_of, markdown_table, method_table


def score(value, *, scene="a", edit="e", method="restage", editor="edit_model", metric="progress", reason="", seed=0):
    where = {"scene": scene, "edit": edit, "kind": "recolour", "method": method, "editor": editor, "seed": seed}
    return Score(**where, metric=metric, value=value, reason=reason)


def test_one_scene_has_no_standard_error():
    assert math.isnan(estimate_scores([score(0.1), score(0.2, edit="f")]).standard_error)


def test_unscored_is_left_out_of_the_mean_and_counted_with_its_reason():
    found = estimate_scores(
        [score(0.4), score(math.nan, reason="covers everything"), score(math.nan, reason="failed: x")]
    )
    assert (found.mean, found.num_scored, found.num_missing) == (0.4, 1, 2)
    assert found.reason == "covers everything; failed: x"
    assert estimate_scores([]).reason == "not measured"


def test_rows_are_sorted_by_progress_with_anchors_last():
    scores = [
        score(0.0, method="nothing", editor="none"),
        score(0.9, editor="exact"),
        score(0.2, method="idu"),
        score(math.nan, method="sds", reason="failed"),
        score(0.5),
    ]
    rows = method_table(scores, noop_progress=0.05)
    contenders = [("restage", "edit_model"), ("idu", "edit_model"), ("sds", "edit_model")]
    assert [(row.method, row.editor) for row in rows] == [*contenders, ("restage", "exact"), ("nothing", "none")]
    assert [row.is_anchor for row in rows] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ((0.5, 0.4), ""),
        ((0.01, -0.02), "no-op"),
        ((-0.5, -0.4), "wrong way"),
        ((-0.4, 0.5), "wrong way 1 of 2"),
        ((-0.4, 0.01, 0.5), "wrong way 1 of 3, no-op 1 of 3"),
    ],
)
def test_rows_that_did_nothing_or_harm_are_flagged(values, flag):
    scores = [score(value, scene=str(index)) for index, value in enumerate(values)]
    assert method_table(scores, noop_progress=0.05)[0].flag == flag


def test_flags_of_the_comparison_itself_are_preferred():
    scores = [score(0.5), score(1.0, metric="no_op"), score(0.0, metric="wrong_way")]
    assert method_table(scores, noop_progress=0.05)[0].flag == "no-op"


def test_doing_nothing_is_an_anchor_and_not_flagged():
    assert method_table([score(0.0, method="nothing", editor="none")], noop_progress=0.05)[0].flag == ""


def test_headline_never_comes_from_the_exact_editor():
    scores = [score(0.99, editor="exact"), score(0.4), score(0.6, edit="f"), score(0.01, edit="f", metric="spill")]
    headline = headline_of(scores)
    assert headline is not None
    assert (headline.edit, headline.progress, headline.spill, headline.num_edits) == ("f", 0.6, 0.01, 2)
    assert headline.overall.mean == pytest.approx(0.5)
    assert headline_of([score(0.99, editor="exact")]) is None


def test_views_edited_one_by_one_are_an_anchor_wherever_rows_are_shown():
    rows = method_table([score(0.9, method="per_view"), score(0.4), score(0.3, method="idu")])
    assert [row.method for row in rows] == ["restage", "idu", "per_view"]
    assert rows[-1].is_anchor


def test_a_metric_gets_its_columns_by_its_definition_alone(monkeypatch):
    shown = metrics_shown_in("diff")
    monkeypatch.setitem(METRICS, "ssim", replace(METRICS["ssim"], shown_in=("show", "diff", "page", "paper")))
    assert set(metrics_shown_in("diff")) - set(shown) == {"ssim"}
    table = markdown_table(method_table([score(0.5), score(0.75, metric="ssim")]))
    assert "SSIM" in table and "0.750" in table
    assert "ssim" not in further_metrics(method_table([score(0.75, metric="ssim")]))


def test_scores_are_light_to_import():
    code = "import sys, restage.scores.rows, restage.scores.tables; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pyarrow", "scipy", "pandas"} & set(loaded)
