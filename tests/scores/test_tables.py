import math

import numpy as np
import pytest

from restage.records import Score
from restage.scores.statistics import clustered_estimate
from restage.scores.tables import markdown_table, method_table


def score(method: str = "restage", value: float = 0.5, **changes) -> Score:
    fields = {"scene": "a", "edit": "e", "kind": "recolour", "editor": "edit_model", "seed": 0, "metric": "progress"}
    return Score(**{**fields, "method": method, "value": value, **changes})


def test_standard_error_of_one_value_per_scene_is_the_usual_one():
    values = [0.1, 0.5, 0.6, 0.9]
    estimate = clustered_estimate(values, ["a", "b", "c", "d"])
    assert estimate.mean == pytest.approx(np.mean(values))
    assert estimate.standard_error == pytest.approx(np.std(values, ddof=1) / 2)


def test_repeating_the_same_value_within_a_scene_adds_no_certainty():
    once = clustered_estimate([0.1, 0.5, 0.9], ["a", "b", "c"])
    thrice = clustered_estimate([0.1, 0.5, 0.9] * 3, ["a", "b", "c"] * 3)
    assert thrice.standard_error == pytest.approx(once.standard_error)


def test_one_scene_alone_gives_no_standard_error():
    assert math.isnan(clustered_estimate([0.1, 0.5], ["a", "a"]).standard_error)


def test_what_is_missing_is_counted_and_not_averaged():
    estimate = clustered_estimate([0.4, math.nan], ["a", "b"])
    assert (estimate.mean, estimate.num_scored, estimate.num_missing) == (0.4, 1, 1)


def test_a_method_without_any_score_stays_in_the_table():
    rows = method_table([score(value=math.nan, reason="failed: out of memory")])
    assert math.isnan(rows[0].estimates["progress"].mean)
    assert "– (1 missing)" in markdown_table(rows)


def test_rows_are_printed_as_nothing_then_competitors_by_progress_then_exact():
    scores = [
        score("idu", 0.2),
        score("restage", 0.9, editor="exact"),
        score("restage", 0.6),
        score("nothing", 0.0, editor="none"),
        score("replace_once", math.nan),
    ]
    lines = markdown_table(method_table(scores)).splitlines()[2:]
    rows = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in lines]
    assert rows == [
        ("nothing", "none"),
        ("restage", "edit_model"),
        ("idu", "edit_model"),
        ("replace_once", "edit_model"),
        ("restage", "exact"),
    ]


def test_rows_do_not_depend_on_the_order_of_the_scores():
    scores = [score(value=v, scene=s, method=m) for v, s, m in [(0.1, "a", "idu"), (0.7, "b", "idu"), (0.2, "a", "x")]]
    assert method_table(scores) == method_table(scores[::-1])


def test_markdown_shows_mean_error_and_count():
    scores = [score(value=0.2, scene="a"), score(value=0.4, scene="b")]
    assert "| restage | edit_model | 0.300 ± 0.100 | 2 in 2 scenes |" in markdown_table(method_table(scores))
