"""Methods go on without views that an editor could not edit, and say so where they cannot."""

from dataclasses import dataclass, field

import pytest
import torch

from restage.edit.editors import ExactEditor
from restage.edit.editors.exact import NoisyEditor
from restage.edit.editors.interface import Edited, Editor, SeededNoise, ViewBatch
from restage.edit.job import EditJob
from restage.edit.methods import METHODS
from restage.edit.methods.idu import Turn, edit_turn
from restage.edit.results import KeptEdits
from restage.records import InputError
from restage.scenes.optimizer import Targets


@dataclass
class Forgetful:
    """Leaves out the second view of every batch that may lack one, and the scene's second view where it is asked for
    alone; what it gives for them is wrong on purpose."""

    editor: Editor
    asked: list[ViewBatch] = field(default_factory=list)

    def edit(self, batch: ViewBatch) -> Edited:
        self.asked.append(batch)
        if not batch.may_leave_out:
            raise InputError("a view could not be edited")
        edited = self.editor.edit(batch)
        place = min(1, len(batch.view_indices) - 1)
        if not place and batch.view_indices[0] != 1:
            return edited
        edited.images[place] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
        return edited._replace(left_out={place: "refused"})


@pytest.fixture
def exact(tiny_scene, tmp_path):
    truth = tiny_scene.write(tmp_path / "tiny")
    return ExactEditor(truth=truth, file_names=tiny_scene.capture.file_names)


SHORT = {
    "replace_once": {"num_steps": 40, "batch_size": 4},
    "restage": {"num_key_views": 4, "color_steps": 20, "shape_steps": 10},
    "joint": {"num_views": 4, "steps_per_round": 20},
}


@pytest.mark.parametrize("method", SHORT)
def test_nothing_is_fitted_to_a_view_that_was_left_out(tiny_scene, exact, method):
    scene = tiny_scene
    editor = Forgetful(exact)
    kept = KeptEdits(editor)
    job = EditJob.of(scene.splats, scene.capture, scene.request, kept, seed=0)
    *_, last = METHODS[method](**SHORT[method]).run(job)
    left_out = {batch.view_indices[1] for batch in editor.asked}
    assert left_out and not left_out & set(kept.images)
    whole = EditJob.of(scene.splats, scene.capture, scene.request, exact, seed=0)
    *_, other = METHODS[method](**SHORT[method]).run(whole)
    # Fitted to magenta, a quarter of the views would move colors by far more.
    assert float((last.splats.sh[:, 0] - other.splats.sh[:, 0]).abs().mean()) < 0.05


def test_a_method_that_needs_every_view_is_told_so(tiny_scene, exact):
    job = EditJob.of(tiny_scene.splats, tiny_scene.capture, tiny_scene.request, Forgetful(exact), seed=0)
    with pytest.raises(InputError, match="could not be edited"):
        list(METHODS["depth_fusion"]().run(job))


def test_a_view_that_is_edited_in_turn_stays_as_it_was_where_it_was_left_out(tiny_scene, exact):
    editor = Forgetful(exact)
    job = EditJob.of(tiny_scene.splats, tiny_scene.capture, tiny_scene.request, editor, seed=0)
    targets = Targets(job.capture.cameras, job.capture.images)
    for view in (0, 1):
        edit_turn(job, Turn(view, view, 0.5, 0), job.splats, targets)
    assert not torch.equal(targets.images[0], job.capture.images[0])
    assert torch.equal(targets.images[1], job.capture.images[1])


def test_an_editor_around_another_hands_on_what_was_left_out(tiny_scene, exact):
    job = EditJob.of(tiny_scene.splats, tiny_scene.capture, tiny_scene.request, exact, seed=0)
    batch = job.batch([0, 1, 2], noise_level=1.0, seed=3, may_leave_out=True)
    edited = NoisyEditor.of(Forgetful(exact), 0.1).edit(batch)
    assert dict(edited.left_out) == {1: "refused"} and edited.answered == [0, 2]


def test_seeds_of_single_views_give_the_noise_of_the_batch(tiny_scene, exact):
    job = EditJob.of(tiny_scene.splats, tiny_scene.capture, tiny_scene.request, exact, seed=0)
    for keys in (None, (0, 1, 0)):
        batch = job.batch([0, 2, 3], noise_level=1.0, seed=3, noise_keys=keys)
        for place, seed in enumerate(batch.noise_seeds()):
            one = ViewBatch(
                batch.views[:1],
                batch.originals[:1],
                request=batch.request,
                view_indices=(7,),
                noise_level=1.0,
                seed=99,
                noise_keys=SeededNoise((seed,)),
            )
            assert torch.equal(one.draw_noise((4, 2, 2))[0], batch.draw_noise((4, 2, 2))[place])


def test_what_was_left_out_stays_so_on_another_device() -> None:
    edited = Edited(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), {1: "refused"})
    assert edited.to("meta").left_out == {1: "refused"}
