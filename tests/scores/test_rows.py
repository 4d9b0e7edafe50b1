"""Tables of rows: what is not readable, or of a wrong type, is one line that names file and field."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restage.records import InputError, Score
from restage.scores.rows import read_scores, write_scores

ROW = Score(scene="a", edit="e", kind="k", method="m", editor="x", seed=1, metric="progress", value=0.5)


def test_rows_are_read_back_and_null_is_nan(tmp_path):
    write_scores(tmp_path / "scores.parquet", [ROW])
    assert read_scores(tmp_path / "scores.parquet") == [ROW]
    row = {**dataclasses.asdict(ROW), "value": None, "reason": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "scores.parquet")
    (found,) = read_scores(tmp_path / "scores.parquet")
    assert found.value != found.value and found.reason == ""


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", "1", r"scores.parquet, row 0: seed: expected int, got str"),
        ("value", "high", r"row 0: value: expected float, got str"),
        ("scene", None, r"row 0: scene: expected str, got null"),
        ("is_cost", "no", r"row 0: is_cost: expected bool, got str"),
    ],
)
def test_a_column_of_a_wrong_type_is_named(tmp_path, field, value, message):
    pq.write_table(pa.Table.from_pylist([{**dataclasses.asdict(ROW), field: value}]), tmp_path / "scores.parquet")
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path / "scores.parquet")
