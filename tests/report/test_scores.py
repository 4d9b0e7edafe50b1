"""Means, clustered standard errors, flags and the headline, against closed forms."""

import math

import numpy as np
import pytest

from restage.records import Score
from restage.report.scores import estimate, headline_of, method_rows


def score(value, *, scene="a", edit="e", method="restage", editor="edit_model", metric="progress", reason="", seed=0):
    where = {"scene": scene, "edit": edit, "kind": "recolour", "method": method, "editor": editor, "seed": seed}
    return Score(**where, metric=metric, value=value, reason=reason)


def test_one_value_per_scene_gives_the_usual_standard_error():
    values = [0.2, 0.5, 0.9, 0.4]
    found = estimate([score(value, scene=str(index)) for index, value in enumerate(values)])
    assert found.mean == pytest.approx(np.mean(values))
    assert found.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(4))


def test_repeating_each_scene_does_not_make_the_mean_look_surer():
    values = [0.2, 0.5, 0.9]
    once = estimate([score(value, scene=str(index)) for index, value in enumerate(values)])
    often = estimate([score(value, scene=str(index), seed=s) for index, value in enumerate(values) for s in range(5)])
    assert often.standard_error == pytest.approx(once.standard_error)


def test_one_scene_has_no_standard_error():
    assert math.isnan(estimate([score(0.1), score(0.2, edit="f")]).standard_error)


def test_unscored_is_left_out_of_the_mean_and_counted_with_its_reason():
    found = estimate([score(0.4), score(math.nan, reason="covers everything"), score(math.nan, reason="failed: x")])
    assert (found.mean, found.count, found.num_missing) == (0.4, 1, 2)
    assert found.reason == "covers everything; failed: x"
    assert estimate([]).reason == "not measured"


def test_rows_are_sorted_by_progress_with_anchors_last():
    scores = [
        score(0.0, method="nothing", editor="none"),
        score(0.9, editor="exact"),
        score(0.2, method="idu"),
        score(math.nan, method="sds", reason="failed"),
        score(0.5),
    ]
    rows = method_rows(scores, noop_progress=0.05)
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
    assert method_rows(scores, noop_progress=0.05)[0].flag == flag


def test_flags_of_the_comparison_itself_are_preferred():
    scores = [score(0.5), score(1.0, metric="no_op"), score(0.0, metric="wrong_way")]
    assert method_rows(scores, noop_progress=0.05)[0].flag == "no-op"


def test_doing_nothing_is_an_anchor_and_not_flagged():
    assert method_rows([score(0.0, method="nothing", editor="none")], noop_progress=0.05)[0].flag == ""


def test_headline_never_comes_from_the_exact_editor():
    scores = [score(0.99, editor="exact"), score(0.4), score(0.6, edit="f"), score(0.01, edit="f", metric="spill")]
    headline = headline_of(scores)
    assert headline is not None
    assert (headline.edit, headline.progress, headline.spill, headline.num_edits) == ("f", 0.6, 0.01, 2)
    assert headline.overall.mean == pytest.approx(0.5)
    assert headline_of([score(0.99, editor="exact")]) is None
