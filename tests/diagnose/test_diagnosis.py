import json
from typing import Any

import pytest
from PIL import Image

from restage.diagnose import DiagnoseConfig, run_diagnose
from restage.diagnose.trials import Trials
from restage.records import InputError, read_json
from restage.run.models import models_in

CONFIG = DiagnoseConfig(method="replace_once", max_cases=4)


@pytest.fixture
def calls(monkeypatch):
    """Puts a rule in the place of trials: much guidance and bad weights cost progress; lists what was tried."""
    found = []

    def measure(self, setup, kind, seed):
        found.append(kind)
        scene = int(setup.truth.parents[1].name[-3:])
        progress = (0.9 if setup.guidance.text < 5 else 0.4) + 0.01 * (scene % 2) * setup.guidance.text
        progress -= 0.3 * is_bad(setup.model) + 0.1 * is_bad(setup.mask_model) + 0.001 * setup.method.num_steps
        numbers = {name: 0.1 for name in ("spill", "mask_iou", "disagreement", "views_disagreement")}
        value = {"exact": 0.95, "exact masks": progress + 0.02}.get(kind, progress)
        return {**numbers, "psnr_db": 20.0, "progress": value, "views_progress": progress + 0.05}

    monkeypatch.setattr(Trials, "_measure", measure)
    return found


def is_bad(model):
    return (model / "unet" / "weights.txt").read_text() == "bad"


def run(a, b, config=CONFIG):
    steps = list(run_diagnose(a, b, config, models=models_in()))
    return read_json(b / "diagnose" / "diagnosis.json"), steps


def test_the_part_that_was_made_worse_is_named_with_what_it_costs(make_run, calls):
    a, b = make_run("a"), make_run("b", guidance=7.5, num_steps=7)
    found, steps = run(a, b)
    assert found["answer"] == "guidance"
    shares = {part["part"]: part["share"]["mean"] for part in found["parts"]}
    assert set(shares) == {"guidance", "method"}
    assert shares["guidance"] > 0.1 and abs(shares["method"]) < 0.03
    assert found["total"]["mean"] == pytest.approx(sum(shares.values()) + found["remainder"]["mean"])
    assert "the guidance of the editor (text 1.5, image 1.5 -> text 7.5, image 1.5)" in found["sentence"]
    assert steps[-1].note == found["sentence"]


def test_two_faults_are_told_apart_and_their_interaction_is_shown(make_run, calls):
    found, _ = run(make_run("a"), make_run("b", guidance=7.5, weights="bad"))
    assert found["blamed"][0] == "guidance" and "edit_model" in found["blamed"]
    assert {part["part"] for part in found["parts"] if part["within"] == "edit_model"} == {"masks"}


def test_what_is_lost_along_the_ladder_adds_up_to_all_that_is_missing(make_run, calls):
    found, _ = run(make_run("a"), make_run("b", guidance=7.5))
    for side in "AB":
        assert sum(step[side]["mean"] for step in found["ladder"]) == pytest.approx(1 - found["means"][side])
    views = next(step for step in found["ladder"] if step["step"] == "single views")
    assert views["B - A"]["mean"] == pytest.approx(found["total"]["mean"])


def test_a_harmless_difference_is_not_blamed(make_run, calls):
    found, _ = run(make_run("a"), make_run("b", num_steps=7))
    assert found["answer"] == "" and not found["is_difference"] and found["blamed"] == []
    assert found["sentence"].startswith("No difference beyond noise")
    assert "edit.settings.replace_once.num_steps" in {one["where"] for one in found["differences"]}


def test_a_run_that_does_better_gains(make_run, calls):
    found, _ = run(make_run("a", weights="bad"), make_run("b"))
    assert found["answer"] == "edit_model"
    assert "that B gains against A" in found["sentence"]
    assert found["total"]["mean"] < 0


def test_what_was_tried_before_a_stop_is_not_tried_again_and_the_answer_is_the_same(make_run, calls):
    a, b, c = make_run("a"), make_run("b", guidance=7.5), make_run("c", guidance=7.5)
    whole, _ = run(a, b)
    num_calls = len(calls)
    steps: Any = run_diagnose(a, c, CONFIG, models=models_in())
    for _ in range(2):
        next(steps)
    steps.close()
    stopped, _ = run(a, c)
    assert len(calls) == 2 * num_calls
    for record in (whole, stopped):
        for name in ("cpu_seconds", "runs", "differences"):
            record.pop(name)
    assert stopped == whole
    run(a, c)
    assert len(calls) == 2 * num_calls


def test_figure_and_tables_lie_beside_the_record(make_run, calls):
    _, b = make_run("a"), make_run("b", guidance=7.5)
    found, _ = run(b.parent / "a", b)
    folder = b / "diagnose"
    with Image.open(folder / found["figure"]) as image:
        assert image.width > 800
    assert "guidance" in (folder / found["figure_svg"]).read_text()
    tables = (folder / found["table"]).read_text()
    assert found["sentence"] in tables and "## Where along the stages they part" in tables
    json.dumps(found, allow_nan=False)


def test_when_time_is_out_the_answer_says_what_was_not_swapped(make_run, calls):
    config = DiagnoseConfig(method="replace_once", max_cases=4, time_budget_s=1e-6)
    found, _ = run(make_run("a"), make_run("b", guidance=7.5, num_steps=7), config)
    assert any("no time was left to swap guidance" in limit for limit in found["limits"])
    assert "no single part" in found["sentence"]


def test_runs_without_a_common_scene_are_tried_on_the_scenes_of_both(make_run, calls):
    a, b = make_run("a"), make_run("b", guidance=7.5)
    for path in (b / "scenes").glob("*"):
        if path.is_dir():
            path.rename(path.with_name(f"other-{path.name}"))
    found, _ = run(a, b)
    assert {case["scene"].split()[0] for case in found["cases"]} == {"A", "B"}
    assert found["answer"] == "guidance"


def test_a_run_is_not_compared_with_itself(make_run):
    a = make_run("a")
    with pytest.raises(InputError, match="expected two runs"):
        run(a, a)


def test_a_folder_that_is_no_run_is_refused(make_run, tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        run(make_run("a"), tmp_path)


def test_an_unknown_method_is_refused(make_run):
    with pytest.raises(InputError, match="unknown method 'wish'"):
        run(make_run("a"), make_run("b"), DiagnoseConfig(method="wish"))
