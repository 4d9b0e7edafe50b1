import pytest
import torch
from jaxtyping import TypeCheckError

from restage.edit.editors import EDITORS, EditorSource, ViewBatch
from restage.edit.pictures import quantize
from restage.records import InputError


@pytest.fixture
def source(tiny_scene, tmp_path) -> EditorSource:
    return EditorSource(file_names=tiny_scene.capture.file_names, truth=tiny_scene.write(tmp_path / "tiny"))


def edit(editor, scene, indices, **changes):
    images = scene.capture.images[list(indices)]
    options = {"request": scene.request, "view_indices": indices, "noise_level": 1.0, "seed": 0, **changes}
    return editor.edit(ViewBatch(images, images, **options))


def test_the_exact_editor_gives_the_truth_of_the_views_that_it_is_asked_for(tiny_scene, source):
    edited = edit(EDITORS["exact"](source), tiny_scene, (5, 0))
    assert torch.equal(edited.images, quantize(tiny_scene.truth_images[[5, 0]]))
    assert torch.equal(edited.masks, tiny_scene.truth_masks[[5, 0]])


def test_the_exact_editor_reads_no_view_that_it_is_not_asked_for(tiny_scene, source):
    for name in ("view_2.png", "view_6.png"):
        (source.truth / "images" / name).unlink()
    edit(EDITORS["exact"](source), tiny_scene, tiny_scene.capture.train_indices)
    with pytest.raises(InputError, match="view_2.png does not exist"):
        edit(EDITORS["exact"](source), tiny_scene, (2,))


def test_the_exact_editor_refuses_a_scene_without_truth(tmp_path):
    with pytest.raises(InputError, match="needs a truth folder"):
        EDITORS["exact"](EditorSource(file_names=("a.png",), truth=tmp_path / "none"))


def test_a_broken_truth_picture_is_named(tiny_scene, source):
    (source.truth / "masks" / "view_0.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match="view_0.png is not readable"):
        edit(EDITORS["exact"](source), tiny_scene, (0,))


def test_the_model_editor_refuses_to_open_without_a_model():
    with pytest.raises(InputError, match="folder of a trained edit model"):
        EDITORS["edit_model"](EditorSource())


def noise(scene, seed, indices, keys=None):
    images = torch.zeros(len(indices), 3, 8, 8)
    options = {"request": scene.request, "view_indices": indices, "noise_level": 1.0}
    return ViewBatch(images, images, **options, seed=seed, noise_keys=keys).draw_noise((2, 4, 4))


def test_noise_of_a_view_does_not_depend_on_the_batch(tiny_scene):
    first, second = noise(tiny_scene, 3, (4, 9))
    assert torch.equal(second, noise(tiny_scene, 3, (9,))[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, noise(tiny_scene, 4, (4,))[0])


def test_equal_noise_keys_share_their_noise(tiny_scene):
    first, second, third = noise(tiny_scene, 3, (4, 9, 2), (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, third)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view_indices": (0,)}, "view indices"),
        ({"noise_keys": (0, 0, 0)}, "noise keys"),
        ({"originals": torch.zeros(2, 3, 8, 4)}, "originals"),
        ({"noise_level": 0.0}, "noise level in"),
        ({"noise_level": 1.5}, "noise level in"),
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused(tiny_scene, changes, message):
    images = torch.zeros(2, 3, 8, 8)
    asked = {"request": tiny_scene.request, "view_indices": (0, 1), "noise_level": 1.0, "seed": 0}
    ViewBatch(images, images, **asked)
    with pytest.raises((InputError, TypeCheckError), match=message):  # a size is also seen by the suite's type checks
        ViewBatch(**{"views": images, "originals": images, **asked, **changes})
