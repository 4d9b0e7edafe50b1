import dataclasses
import json
from pathlib import Path

import pytest
import torch

from restage.edit.editors import EditorSource, open_editor
from restage.edit.job import Dialed, EditJob, EditStep, TimeLimited, blend_splats
from restage.edit.methods import Nothing, ReplaceOnce, Restage
from restage.edit.results import edit_scene
from restage.edit.single import EditChoice
from restage.recipes import edit_folder
from restage.records import EditRequest, InputError
from restage.run.folder import RunFolder
from restage.scenes.fit import render_views
from restage.scenes.io.splat_files import read_splats


@pytest.fixture
def parts(tiny_scene, tmp_path):
    truth = tiny_scene.write(tmp_path / "tiny")
    editor = open_editor("exact", EditorSource(file_names=tiny_scene.capture.file_names, truth=truth))
    return {
        "splats": tiny_scene.splats,
        "capture": tiny_scene.capture,
        "request": tiny_scene.request,
        "editor": editor,
        "seed": 0,
        "folder": tmp_path / "result",
    }


def run(parts, method):
    return list(edit_scene(**parts, method=method))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_half_way_in_splats_is_half_way_in_the_views(tiny_scene, strength):
    blended = blend_splats(tiny_scene.splats, tiny_scene.recolored, strength)
    views = [
        render_views(splats, tiny_scene.capture.cameras)
        for splats in (tiny_scene.splats, blended, tiny_scene.recolored)
    ]
    assert torch.allclose(views[1], torch.lerp(views[0], views[2], strength), atol=1e-4)


def test_at_the_ends_of_the_dial_splats_are_bit_for_bit_those_of_the_ends(tiny_scene):
    for strength, expected in ((0.0, tiny_scene.splats), (1.0, tiny_scene.recolored)):
        blended = blend_splats(tiny_scene.splats, tiny_scene.recolored, strength)
        for name, tensor in expected.parameters().items():
            assert torch.equal(getattr(blended, name), tensor), name


def test_rotations_take_the_shorter_way(tiny_scene):
    after = tiny_scene.splats.clone()
    after.rotations[0] = -torch.nn.functional.normalize(torch.tensor([1.0, 0.2, 0.0, 0.0]), dim=0)
    blended = blend_splats(tiny_scene.splats, after, 0.5).rotations
    assert blended[0, 0] > 0.99 and 0.05 < blended[0, 1] < 0.15
    assert torch.equal(blended[1:], tiny_scene.splats.rotations[1:])


def test_added_splats_fade_in_and_lost_ones_are_refused(tiny_scene):
    before, after = tiny_scene.splats[20:], tiny_scene.splats
    order = torch.cat([torch.arange(20, 200), torch.arange(20)])
    blended = blend_splats(before, after[order], 0.0)
    assert len(blended) == 200 and bool((blended.opacity_logits[180:] < -7).all())
    views = [render_views(splats, tiny_scene.capture.cameras[0]) for splats in (before, blended)]
    assert torch.allclose(views[0], views[1], atol=1e-3)
    with pytest.raises(InputError, match="same splats, or more"):
        blend_splats(after, before, 0.5)


def test_a_dialed_method_stops_half_way_in_every_step(parts, tiny_scene):
    full = run(parts, ReplaceOnce(num_steps=60))[-1].splats
    half = run(parts, Dialed(settings=ReplaceOnce(num_steps=60), strength=0.5))[-1].splats
    assert torch.allclose(half.sh, (full.sh + tiny_scene.splats.sh) / 2, atol=1e-6)


def test_a_method_whose_time_is_up_leaves_what_it_has(parts):
    steps = run(parts, TimeLimited(settings=ReplaceOnce(num_steps=10_000), time_budget_s=0.05))
    assert 0 < steps[-1].step < 10_000
    record = json.loads((parts["folder"] / "record.json").read_text())
    assert record["status"] == "done" and "stopped after step" in record["reason"]
    assert len(read_splats(parts["folder"] / "splats.ply")) == 200


def test_an_edit_that_changes_nothing_says_so_and_one_that_does_says_nothing(parts):
    run(parts, Nothing())
    record = json.loads((parts["folder"] / "record.json").read_text())
    assert record["is_no_op"] and record["reason"] == "the scene did not change"
    run(parts, ReplaceOnce(num_steps=60))
    record = json.loads((parts["folder"] / "record.json").read_text())
    assert not record["is_no_op"] and record["reason"] == ""


def test_notes_say_how_far_held_out_views_have_changed_and_the_picture_is_gone_at_the_end(parts):
    shown = []
    for step in edit_scene(**parts, method=ReplaceOnce(num_steps=60)):
        shown.append(step.note)
        assert step.step < 10 or (parts["folder"] / "preview.png").exists()
    changes = [float(note.rpartition(" ")[2]) for note in shown if "held-out views changed by" in note]
    assert changes[-1] > 2 * changes[0] >= 0
    assert not (parts["folder"] / "preview.png").exists()


def test_a_stopped_edit_leaves_a_usable_scene_and_no_record(parts):
    class Interrupted(ReplaceOnce):
        def run(self, job: EditJob):
            for step in super().run(job):
                if step.step == 30:
                    raise KeyboardInterrupt
                yield step

    with pytest.raises(KeyboardInterrupt):
        run(parts, Interrupted(num_steps=60))
    assert not (parts["folder"] / "record.json").exists()
    stopped = json.loads((parts["folder"] / "stopped.json").read_text())
    assert stopped["status"] == "stopped" and stopped["num_steps"] == 29
    assert not torch.equal(read_splats(parts["folder"] / "splats.ply").sh, parts["splats"].sh)
    run(parts, ReplaceOnce(num_steps=60))
    assert not (parts["folder"] / "stopped.json").exists()


def test_an_edit_stopped_before_its_first_step_writes_nothing(parts):
    class Interrupted(Nothing):
        def run(self, job: EditJob):
            yield EditStep(0, 1, 0.0, job.splats, "editing")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(parts, Interrupted())
    assert not parts["folder"].exists() or not list(parts["folder"].iterdir())


def test_instructions_one_after_another_each_start_from_the_one_before_and_overwrite_nothing(tiny_scene, tmp_path):
    opened = RunFolder.open(tmp_path / "run", Nothing(), seed=0)
    scene = opened.path / "scenes" / "tiny"
    tiny_scene.write(scene)
    before = (scene / "splats.ply").read_bytes()
    settings = Restage(noise_levels=(1.0,), color_steps=30, shape_steps=2, num_key_views=4)
    choice = EditChoice(editor="grade", settings=settings)
    requests = [
        EditRequest(instruction=text, source_caption="", target_caption="")
        for text in ("make it blue", "make it darker")
    ]
    notes = [step.note for step in edit_folder(scene, requests, choice)]
    folders = [Path(note) for note in notes if note.startswith(str(opened.path))]
    assert len(folders) == 2 and "-on-" in str(folders[1])
    blue, dark = (read_splats(folder / "splats.ply") for folder in folders)
    start = json.loads((folders[0] / "record.json").read_text())["id"]
    assert json.loads((folders[1] / "record.json").read_text())["inputs"]["starts_from"] == start
    assert blue.sh[:80, 0, 0].mean() < tiny_scene.splats.sh[:80, 0, 0].mean() - 0.3  # the ball was red
    assert dark.sh[:80].mean() < blue.sh[:80].mean() - 0.05
    assert (scene / "splats.ply").read_bytes() == before


def test_strength_and_budget_out_of_range_are_refused():
    for strength, time_budget_s in ((1.5, None), (-0.1, None), (1.0, 0.0)):
        with pytest.raises(InputError, match="expected a"):
            EditChoice(strength=strength, time_budget_s=time_budget_s)
    assert EditChoice().resolved() == Restage()
    assert dataclasses.replace(EditChoice(), strength=0.5).resolved() == Dialed(settings=Restage(), strength=0.5)
