import pytest
import torch

from restage.edit.editors import EDITORS, EditorSource
from restage.edit.editors.interface import noise_seeds
from restage.edit.pictures import quantize
from restage.records import InputError


@pytest.fixture
def source(tiny_scene, tmp_path) -> EditorSource:
    return EditorSource(file_names=tiny_scene.capture.file_names, truth=tiny_scene.write(tmp_path / "tiny"))


def edit(editor, scene, indices, **changes):
    images = scene.capture.images[list(indices)]
    options = {"view_indices": indices, "noise_level": 1.0, "seed": 0, **changes}
    return editor.edit(images, images, scene.request, **options)


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


def test_noise_of_a_view_does_not_depend_on_the_batch():
    assert noise_seeds(3, (4, 9), None)[1] == noise_seeds(3, (9,), None)[0]
    assert noise_seeds(3, (4, 9), None)[0] != noise_seeds(3, (4, 9), None)[1]
    assert noise_seeds(3, (4,), None) != noise_seeds(4, (4,), None)


def test_equal_noise_keys_share_their_noise():
    assert len(set(noise_seeds(3, (4, 9, 2), (0, 0, 0)))) == 1
