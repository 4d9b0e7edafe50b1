"""The benchmark of edits by a picture, and the color difference that it measures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import reference
from benchmarks.color_difference import delta_e, lab_of
from restage.edit.methods import Restage
from restage.world.description import Description, Edit, SceneObject
from tests.tiny_models import write_tiny_models

SHARMA = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.02 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1
50 -1.1848 -84.8006 50 0 -82.7485 1
50 -0.9009 -85.5211 50 0 -82.7485 1
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.49 -0.001 50 -2.49 0.0009 7.1792
50 2.49 -0.001 50 -2.49 0.001 7.1792
50 2.49 -0.001 50 -2.49 0.0011 7.2195
50 2.49 -0.001 50 -2.49 0.0012 7.2195
50 -0.001 2.49 50 0.0009 -2.49 4.8045
50 -0.001 2.49 50 0.001 -2.49 4.8045
50 -0.001 2.49 50 0.0011 -2.49 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.903
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1
50 2.5 0 50 3.2972 0 1
50 2.5 0 50 1.8634 0.5757 1
50 2.5 0 50 3.2592 0.335 1
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.263
61.2901 3.7196 -5.3901 61.4292 2.248 -4.962 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.694 23.0331 14.973 -42.5619 2.0373
36.4612 47.858 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.441 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.135 0.9033 -0.0636 -0.5514 0.9082
"""


def test_color_differences_are_those_of_the_published_test_data() -> None:
    rows = np.array([[float(x) for x in line.split()] for line in SHARMA.split("\n") if line])
    assert rows.shape == (34, 7)
    np.testing.assert_allclose(delta_e(rows[:, :3], rows[:, 3:6]), rows[:, 6], atol=6e-5)
    np.testing.assert_allclose(delta_e(rows[:, 3:6], rows[:, :3]), rows[:, 6], atol=6e-5)


def test_white_and_gray_have_no_color() -> None:
    np.testing.assert_allclose(lab_of(np.ones(3)), [100, 0, 0], atol=2e-2)
    np.testing.assert_allclose(lab_of(np.full(3, 0.5))[1:], [0, 0], atol=2e-2)
    np.testing.assert_allclose(lab_of(np.array([1.0, 0, 0])), [53.24, 80.09, 67.2], atol=0.05)


def test_words_say_the_nearest_names() -> None:
    cube = SceneObject(kind="cube", color="white")
    scene = Description(objects=(cube,), ground="sand", time="noon")

    def told(asked: str, **changes) -> str:
        after = dataclasses.replace(scene, objects=(dataclasses.replace(cube, **changes),))
        return reference.in_words(Edit(kind=asked, instruction="", before=scene, after=after))

    assert told("look", color="#1f78d0") == "make the cube blue"
    striped = {"color": "#d01f1f", "pattern": "striped", "second_color": "#e0e0e8"}
    assert told("look", **striped) == "make the cube red and white striped"
    assert told("swap", color="#1f78d0", kind="cone") == "turn the cube into a blue cone"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_models(tmp_path_factory.mktemp("models"))


def test_it_runs_to_its_last_line_and_goes_on_where_it_was_stopped(models: Path, tmp_path: Path, monkeypatch, capsys):
    quick = {"restage": lambda: Restage(num_key_views=2, color_steps=1, shape_steps=1)}
    monkeypatch.setattr(reference, "METHODS", quick)
    asked = ["--model", str(models / "edit_model"), "--worlds", "1", "--anchors", "1", "--size", "32"]
    asked += ["--scenes", "1", "--methods", "restage", "--fit-steps", "4", "--scene-views", "6"]
    asked += ["--folder", str(tmp_path / "out")]
    found = reference.main(asked)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    expected = {"progress_reference", "progress_words", "delta_e_reference", "delta_e_nearest_name", "pattern_right"}
    expected |= {"kind_right", "spill", "copy_leak", "noop_change", "anchor_gain"}
    assert expected | {"scene_progress_reference", "scene_progress_words"} <= set(found)
    measured = expected - {"pattern_right"} | {"scene_progress_reference", "scene_progress_words"}
    assert all(found[name] is not None for name in measured)
    (path,) = (tmp_path / "out").glob("rows-*.jsonl")
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    path.write_text("\n".join(lines[:2]) + '\n{"part": "anc')  # killed while it wrote
    edits: list[str] = []
    monkeypatch.setattr(reference, "measure_view", lambda *args, **how: edits.append("again"))
    assert reference.main(asked) == found and not edits
    assert path.read_text().splitlines() == lines


def test_an_exact_edit_is_scored_as_one(models: Path) -> None:
    truth = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    inside = np.zeros((8, 8), bool)
    inside[2:5] = True
    assert reference._mean_delta_e(truth, truth, inside) == 0
    assert reference._mean_delta_e(truth, 1 - truth, inside) > 10
