import dataclasses
from typing import cast

import pytest
import torch

from restage.diffusion.attention import attention_layers
from restage.edit.editors import EditorSource, ViewBatch, open_editor
from restage.edit.editors.edit_model import ModelEditor, best_matches, share_attention
from restage.edit.sharing import ViewSharing, fundamental_matrix, near_epipolar_lines
from restage.records import EditRequest, InputError
from restage.run.models import models_in
from restage.scenes.cameras import project_points
from restage.world.capture import make_capture
from restage.world.grammar import sample_description


@pytest.fixture(scope="module")
def editor() -> ModelEditor:
    return cast(ModelEditor, open_editor("edit_model", EditorSource(model=models_in().edit_model)))


@pytest.fixture(scope="module")
def capture():
    return make_capture(sample_description(3, num_objects=1), name="w", seed=0, num_views=6, size=64, num_points=0)


def test_a_point_lies_on_its_epipolar_line(capture):
    cameras = capture.cameras[[0, 1]]
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 0.4 + torch.tensor([0.0, 0.0, 0.5])
    first, second = (project_points(points, cameras[index]).pixels for index in range(2))
    ones = torch.ones(40, 1)
    lines = torch.cat([first, ones], dim=1) @ fundamental_matrix(cameras).T
    distances = (lines * torch.cat([second, ones], dim=1)).sum(dim=1) / lines[:, :2].norm(dim=1)
    assert distances.abs().max() < 0.01


def test_pixels_near_the_line_are_few_and_hold_the_true_match(capture):
    cameras = capture.cameras[[0, 1]].to_size(16, 16)
    near = near_epipolar_lines(cameras, reach=1.0)
    assert near.shape == (256, 256) and near.float().mean() < 0.25
    point = torch.tensor([[0.1, 0.1, 0.5]])
    (x0, y0), (x1, y1) = (project_points(point, cameras[i]).pixels[0].int().tolist() for i in range(2))
    assert near[16 * y0 + x0, 16 * y1 + x1]


def test_the_best_match_is_sought_among_the_allowed_only():
    features = torch.eye(3)[None]
    allowed = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    match = best_matches(features, features + 0.01, allowed)
    assert match[0, 0] == 0 and match[0, 1] != 1 and match[0, 2] == 2


def test_each_group_has_one_key_view_at_each_step_and_not_always_the_same(capture):
    sharing = ViewSharing(capture.cameras, 2, 0)
    drawn = [sharing.keys_at(step) for step in range(20)]
    assert all([key // 2 for key in keys] == [0, 1, 2] for keys in drawn)
    assert len({tuple(keys) for keys in drawn}) > 3
    assert drawn[0] == ViewSharing(capture.cameras, 2, 0).keys_at(0)


def test_the_nearer_key_view_weighs_more(capture):
    weights = ViewSharing(capture.cameras, 3, 0).nearest_keys(1, [0, 4])
    assert [number for _, number in weights] == [0, 1]
    assert weights[0][0] > 0.5 and sum(weight for weight, _ in weights) == pytest.approx(1)
    assert ViewSharing(capture.cameras, 6, 0).nearest_keys(1, [4]) == [(1.0, 0)]


def test_one_view_alone_is_edited_as_without_sharing(editor, capture):
    request = EditRequest(instruction="make the sky dark", source_caption="", target_caption="")
    view = capture.images[:1]
    batch = ViewBatch(view, view, request=request, view_indices=(0,), noise_level=0.3, seed=0)
    alone = editor.edit(batch)
    shared = editor.edit(dataclasses.replace(batch, sharing=ViewSharing(capture.cameras[0], 1, 0)))
    assert (alone.images - shared.images).abs().mean() < 0.01  # bfloat16, other kernels


def test_views_that_share_attention_differ_from_views_by_themselves_and_layers_are_restored(editor, capture):
    request = EditRequest(instruction="turn it to night", source_caption="", target_caption="")
    images, indices = capture.images, tuple(range(6))
    batch = ViewBatch(images, images, request=request, view_indices=indices, noise_level=1.0, seed=0)
    before = [layer.processor for layer in attention_layers(editor.model.unet)]
    shared = editor.edit(dataclasses.replace(batch, sharing=ViewSharing(capture.cameras, 3, 0)))
    assert [layer.processor for layer in attention_layers(editor.model.unet)] == before
    assert torch.isfinite(shared.images).all()
    alone = editor.edit(batch)
    assert (shared.images - alone.images).abs().mean() > 0.01


def test_sharing_that_makes_no_sense_is_refused(editor, capture):
    with pytest.raises(InputError, match="group_size"):
        ViewSharing(capture.cameras, 0, 0)
    with (
        pytest.raises(RuntimeError, match="only some"),
        share_attention(editor.model.unet, ViewSharing(capture.cameras, 3, 0)),
    ):
        layer = next(layer for layer in attention_layers(editor.model.unet) if not layer.is_cross_attention)
        layer.processor.num_calls = 1  # pyright: ignore
