from dataclasses import replace

import pytest
import torch

from restage.diagnose.cases import find_cases
from restage.diagnose.parts import RunParts
from restage.diagnose.trials import Trials
from restage.diagnose.workbench import Workbench
from restage.diffusion.editor import Guidance
from restage.edit.editors.exact import ExactEditor
from restage.edit.editors.interface import Edited
from restage.edit.stage import load_scene

NONE = frozenset()


class StandIn:
    """Goes a share of the way to the truth, and masks nothing but what the truth changes in every second row."""

    def __init__(self, exact, share):
        self.exact, self.share, self.calls = exact, share, 0

    def edit(self, batch):
        self.calls += 1
        truth = self.exact.edit(batch)
        return Edited(torch.lerp(batch.originals, truth.images, self.share), truth.masks)


@pytest.fixture
def setup(make_run):
    a, b = (RunParts.open(make_run(name), "replace_once") for name in "ab")
    (case,) = find_cases(a.path, b.path, 1)
    bench = Workbench({"A": a, "B": b}, (), a.path / "diagnose", a.model)
    assert bench.mixes(case, NONE) == []
    return bench.setup(case, NONE)


@pytest.fixture
def trials(tmp_path, monkeypatch, setup):
    editor = StandIn(ExactEditor(setup.truth, load_scene(setup.scene)[0].file_names), 0.6)
    monkeypatch.setattr(Trials, "_open", lambda self, model, setup: editor)
    made = Trials(tmp_path / "trials")
    return made, editor


def test_single_views_are_measured_against_the_exact_truth(trials, setup):
    numbers = trials[0].run(setup, "single views", 0).numbers
    assert numbers["progress"] == pytest.approx(0.6, abs=0.01)
    assert numbers["spill"] == pytest.approx(0.0, abs=1e-3)
    assert numbers["mask_iou"] == 1.0


def test_a_trial_is_made_once_and_read_afterwards(trials, setup):
    made, editor = trials
    first = made.run(setup, "whole", 0)
    assert editor.calls == 1
    assert Trials(made.folder).run(setup, "whole", 0) == first
    assert editor.calls == 1
    assert first.numbers["progress"] < first.numbers["views_progress"]  # the fit of this tiny run is not much


def test_the_exact_editor_is_tried_once_for_all_edit_models(trials, setup):
    made, editor = trials
    made.run(setup, "exact", 0)
    made.run(replace(setup, model_id="another", guidance=Guidance(text=9.0)), "exact", 0)
    assert editor.calls == 0 and len(list(made.folder.glob("*.json"))) == 1


def test_another_guidance_is_another_trial(trials, setup):
    made, editor = trials
    made.run(setup, "single views", 0)
    made.run(replace(setup, guidance=Guidance(text=9.0)), "single views", 0)
    assert editor.calls == 2


def test_the_unedited_scene_tells_how_well_its_views_agree(trials, setup):
    numbers = trials[0].run(setup, "scene", 0).numbers
    assert numbers["psnr_db"] > 5 and numbers["disagreement"] < 0.05
