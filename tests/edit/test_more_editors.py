import dataclasses

import pytest
import torch

from restage.edit.editors import EDITORS, Edited, EditorSource, NoisyEditor, ViewBatch, check_editor, open_editor
from restage.edit.editors.grade import GRADES, GradeEditor, grade_views, read_grade
from restage.edit.editors.interface import score_model_of
from restage.edit.pictures import write_mask
from restage.records import EditRequest, InputError


def request(instruction: str) -> EditRequest:
    return EditRequest(instruction=instruction, source_caption="", target_caption="")


@pytest.fixture
def exact(tiny_scene, tmp_path):
    truth = tiny_scene.write(tmp_path / "tiny")
    return open_editor("exact", EditorSource(file_names=tiny_scene.capture.file_names, truth=truth))


def edit(editor, scene, indices, asked=None, **changes):
    images = scene.capture.images[list(indices)]
    options = {"view_indices": tuple(indices), "noise_level": 1.0, "seed": 0, **changes}
    return editor.edit(ViewBatch(images, images, request=asked or scene.request, **options))


@pytest.mark.parametrize(
    ("instruction", "grade", "subject"),
    [
        ("make it golden", "golden", ""),
        ("Turn it to night!", "night", ""),
        ("make the bear bronze", "bronze", "bear"),
        ("turn the red house into gold", "golden", "red house"),
        ("make everything black and white", "black and white", ""),
    ],
)
def test_an_instruction_is_read_into_a_grade_and_a_subject(instruction, grade, subject):
    assert read_grade(instruction) == (GRADES[grade], subject)


def test_what_no_grade_can_do_is_refused_with_what_can_be_done():
    with pytest.raises(InputError, match="knows golden, bronze"):
        read_grade("add a hat")


def test_gold_is_luminance_times_a_colour_and_night_scales_the_channels():
    white = torch.full((1, 3, 2, 2), 0.5)
    golden = grade_views(white, "make it golden").images[0, :, 0, 0]
    assert torch.allclose(golden, torch.tensor([0.625, 0.475, 0.15]), atol=1e-5)
    colors = torch.tensor([0.8, 0.4, 0.2])[None, :, None, None].expand(1, 3, 2, 2)
    night = grade_views(colors, "turn it to night").images[0, :, 0, 0]
    assert torch.allclose(night, torch.tensor([0.8 * 0.22, 0.4 * 0.28, 0.2 * 0.48]), atol=1e-6)


def test_a_grade_stays_inside_its_region_and_needs_one_for_a_thing(tiny_scene, tmp_path):
    for name, mask in zip(tiny_scene.capture.file_names, tiny_scene.truth_masks, strict=True):
        write_mask(tmp_path / "regions" / name, mask)
    editor = EDITORS["grade"](EditorSource(file_names=tiny_scene.capture.file_names, truth=tmp_path))
    edited = edit(editor, tiny_scene, (3, 1), request("make the ball green"))
    outside = tiny_scene.truth_masks[[3, 1]] == 0
    before = tiny_scene.capture.images[[3, 1]]
    assert torch.equal(edited.images.movedim(1, -1)[outside], before.movedim(1, -1)[outside])
    assert (edited.images - before).abs().mean(1)[~outside].mean() > 0.1
    assert torch.equal(edited.masks, tiny_scene.truth_masks[[3, 1]])
    with pytest.raises(InputError, match="does not know where 'ball' is"):
        edit(GradeEditor(), tiny_scene, (3,), request("make the ball green"))


def test_noise_of_strength_zero_changes_nothing_and_of_one_disturbs_every_view(tiny_scene, exact):
    views = tiny_scene.capture.train_indices
    truth = edit(exact, tiny_scene, views)
    calm = edit(NoisyEditor.of(exact, 0.0), tiny_scene, views)
    inside = truth.masks[:, None]
    assert torch.allclose(calm.images * inside, truth.images * inside)
    wild = edit(NoisyEditor.of(exact, 1.0), tiny_scene, views)
    errors = ((wild.images - truth.images).abs() * inside).mean(dim=(1, 2, 3))
    assert (errors > 0.005).all()


def test_each_disturbance_does_what_it_says(tiny_scene, exact):
    views, original = tiny_scene.capture.train_indices, tiny_scene.capture.images
    missed = edit(NoisyEditor(editor=exact, miss_share=1.0), tiny_scene, views)
    assert torch.equal(missed.images, original[list(views)]) and missed.masks.max() == 0
    colored = edit(NoisyEditor(editor=exact, color_std=0.3), tiny_scene, views)
    assert torch.equal(colored.masks, edit(exact, tiny_scene, views).masks)
    moved = edit(NoisyEditor(editor=exact, shift_share=0.1), tiny_scene, views)
    assert not torch.equal(moved.masks, colored.masks)
    assert moved.masks.mean() == pytest.approx(float(colored.masks.mean()), rel=0.2)


def test_a_view_is_disturbed_by_its_own_seed_whatever_its_batch_and_noise_key(tiny_scene, exact):
    noisy = NoisyEditor.of(exact, 0.5)
    alone = edit(noisy, tiny_scene, (4,))
    together = edit(noisy, tiny_scene, (0, 4), noise_keys=(0, 0))
    assert torch.equal(alone.images[0], together.images[1])
    assert not torch.equal(alone.images, edit(noisy, tiny_scene, (4,), seed=1).images)


def test_editors_are_asked_for_by_name_and_strength(tiny_scene, tmp_path):
    source = EditorSource(file_names=tiny_scene.capture.file_names, truth=tiny_scene.write(tmp_path / "tiny"))
    noisy = open_editor("noisy-0.5-exact", source)
    assert isinstance(noisy, NoisyEditor) and noisy.miss_share == 0.25
    for name in ("magic", "noisy-2-exact", "noisy-0.5-magic", "noisy-exact"):
        with pytest.raises(InputError, match="unknown editor"):
            check_editor(name)


def test_a_model_that_knows_its_picture_predicts_the_noise_that_was_added(tiny_scene, exact):
    scores = score_model_of(exact)
    original = tiny_scene.capture.images[3:4]
    branches = scores.branches(original, tiny_scene.request, view_index=3, seed=0)
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for predict, image in zip(branches, (edit(exact, tiny_scene, (3,)).images, original), strict=True):
        clean = scores.encode(image)
        noisy = scores.schedule.add_noise(clean, noise, torch.tensor([500]))
        assert torch.allclose(predict(noisy, 500, None), noise, atol=1e-4)


def test_an_editor_without_predictions_is_refused_by_name():
    class Plain:
        def edit(self, batch):
            return Edited(batch.views, batch.views[:, 0])

    with pytest.raises(InputError, match="Plain does not offer"):
        score_model_of(Plain())


def test_editors_with_a_model_say_what_is_missing(tmp_path):
    for name in ("edit_model", "instruct_pix2pix", "pipeline"):
        with pytest.raises(InputError, match="expected"):
            open_editor(name, EditorSource(model=tmp_path / "none"))


def test_the_text_to_image_editor_wants_captions_and_edits_from_noise_to_noise(tiny_scene):
    from restage.edit.editors.text_to_image import open_text_to_image

    editor = dataclasses.replace(open_text_to_image(EditorSource()), steps=2)
    views = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    batch = ViewBatch(views, views, request=tiny_scene.request, view_indices=(0, 1), noise_level=0.5, seed=0)
    edited = editor.edit(batch)
    assert edited.images.shape == views.shape and edited.masks.shape == (2, 128, 128)
    with pytest.raises(InputError, match="--target-caption"):
        editor.edit(dataclasses.replace(batch, request=request("make it blue")))
    branches = editor.scores().branches(views[:1], tiny_scene.request, view_index=0, seed=0)
    latents = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(branches.edited(latents, 500, None), branches.source(latents, 500, None))
