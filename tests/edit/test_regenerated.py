from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from restage.diffusion.attention import attention_layers
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.conditions import invert_depth
from restage.edit.editors import EditorSource, open_editor, regenerated, text_to_image
from restage.edit.editors.interface import ViewBatch
from restage.edit.editors.regenerated import attend_to_references, regenerate
from restage.edit.job import EditJob
from restage.edit.methods.controlled import Controlled
from restage.edit.sharing import ViewLayout
from restage.records import InputError
from restage.scenes.layouts import splat_depths
from tests.tiny_branch import write_tiny_branch
from tests.tiny_models import write_tiny_models

CAPTIONS = {"source_caption": "a red ball on the grass", "target_caption": "a blue ball on the sand"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_models(tmp_path_factory.mktemp("models"))
    write_tiny_branch(folder / "text_to_image", folder / "branch")
    return folder / "text_to_image"


def open_with_branch(model: Path) -> Any:
    source = EditorSource(model=model, options=(f"branch={model.parent / 'branch'}",))
    return open_editor("text_to_image", source)


def batch_of(scene: Any, number: int, layout: ViewLayout) -> ViewBatch:
    images = scene.capture.images[:number]
    request = replace(scene.request, **CAPTIONS)
    indices = tuple(range(number))
    return ViewBatch(images, images, request=request, view_indices=indices, noise_level=1.0, seed=0, layout=layout)


def layout_of(scene: Any, number: int, own_share: float = 0.6) -> ViewLayout:
    return ViewLayout(splat_depths(scene.splats, scene.capture.cameras[range(number)]), (1, 3), own_share)


def test_a_view_attends_to_itself_and_to_the_mean_of_the_references(model: Path) -> None:
    unet = load_backbone(model).unet
    layer: Any = attention_layers(unet)[0]
    states = torch.randn(2 * 3, 16, layer.to_q.in_features)  # two halves of three views
    with pytest.raises(RuntimeError, match="only some"), attend_to_references(unet, 3, 2, 0.6):
        found = layer(states)
    query, key, value = (
        part(states).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (layer.to_q, layer.to_k, layer.to_v)
    )
    for row in range(6):
        half = 3 * (row // 3)
        attend = [
            functional.scaled_dot_product_attention(query[row], key[other], value[other])
            for other in (row, half, half + 1)
        ]
        out = 0.6 * attend[0] + 0.2 * attend[1] + 0.2 * attend[2]
        torch.testing.assert_close(found[row], layer.to_out[0](out.transpose(0, 1).flatten(1)))


def test_views_come_back_where_nothing_is_asked_for(model: Path, tiny_scene: Any) -> None:
    backbone = replace(load_backbone(model), has_autocast=False)
    text = backbone.encode_prompts([CAPTIONS["source_caption"]])
    batch = batch_of(tiny_scene, 5, layout_of(tiny_scene, 5, own_share=1.0))
    assert batch.layout is not None
    told = {"before": text, "after": text, "guidance": 1.0}
    found = regenerate(backbone, batch, batch.layout, **told, num_steps=20)
    clean = backbone.encode_images(batch.originals)
    noise = torch.randn_like(clean)
    assert (found - clean).abs().mean() < 0.2 * (noise - clean).abs().mean()


def test_a_view_does_not_depend_on_how_many_are_painted_at_once(
    model: Path, tiny_scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = open_with_branch(model)
    batch = batch_of(tiny_scene, 6, layout_of(tiny_scene, 6))
    whole, at_once = editor.edit(batch), []
    for module in (regenerated, text_to_image):
        monkeypatch.setattr(module, "VIEWS_AT_ONCE", 1)
    decode = Backbone.decode_latents
    monkeypatch.setattr(Backbone, "decode_latents", lambda self, x: at_once.append(len(x)) or decode(self, x))
    found = editor.edit(batch)
    torch.testing.assert_close(found.images, whole.images, rtol=0, atol=0.03)
    torch.testing.assert_close(found.masks, whole.masks, rtol=0, atol=0.03)
    assert at_once == [1] * 6


def test_depth_lies_where_the_view_does_if_its_sides_are_no_multiples_of_a_latents(
    model: Path, tiny_scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    steered = Backbone.steered
    monkeypatch.setattr(Backbone, "steered", lambda self, *a: given.append(a) or steered(self, *a))
    whole, layout = batch_of(tiny_scene, 4, layout_of(tiny_scene, 4)), layout_of(tiny_scene, 4)
    views, depths = whole.views[..., :-3, :-2], layout.depths[..., :-3, :-2]
    batch = replace(whole, views=views, originals=views, layout=replace(layout, depths=depths))
    assert open_with_branch(model).edit(batch).images.shape == views.shape
    (conditions, size), *_ = given
    assert size == tuple(whole.views.shape[-2:]) and conditions[0]["depth"].shape[1:] == size
    expected = invert_depth(depths[1], 1.5)  # the first of a batch is the first reference view
    torch.testing.assert_close(conditions[0]["depth"][..., :-3, :-2], expected)


def test_depth_and_references_matter(model: Path, tiny_scene: Any) -> None:
    editor, layout = open_with_branch(model), layout_of(tiny_scene, 5)
    found = editor.edit(batch_of(tiny_scene, 5, layout)).images
    flat = editor.edit(batch_of(tiny_scene, 5, replace(layout, depths=torch.full_like(layout.depths, 2.0)))).images
    alone = editor.edit(batch_of(tiny_scene, 5, replace(layout, own_share=1.0))).images
    assert found.shape == tiny_scene.capture.images[:5].shape
    assert (found - flat).abs().mean() > 1e-4 and (found - alone).abs().mean() > 1e-4


def test_the_branch_beside_the_model_is_taken_where_none_is_named(model: Path, tiny_scene: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "text_to_image")
    batch = batch_of(tiny_scene, 4, layout_of(tiny_scene, 4))
    plain = open_editor("text_to_image", EditorSource(model=folder)).edit(batch).images
    shutil.copytree(model.parent / "branch", tmp_path / "control")
    beside = open_editor("text_to_image", EditorSource(model=folder)).edit(batch).images
    torch.testing.assert_close(beside, open_with_branch(model).edit(batch).images, rtol=0, atol=1e-5)
    assert (beside - plain).abs().mean() > 1e-4


def test_the_method_paints_all_views_and_fits_to_them(model: Path, tiny_scene: Any) -> None:
    request = replace(tiny_scene.request, **CAPTIONS)
    job = EditJob.of(tiny_scene.splats, tiny_scene.capture, request, open_with_branch(model), 0)
    *_, last = Controlled(num_steps=2).run(job)
    assert not torch.equal(last.splats.sh, tiny_scene.splats.sh)


def test_options_and_layouts_that_make_no_sense_are_refused(model: Path, tiny_scene: Any) -> None:
    with pytest.raises(InputError, match="branch=FOLDER alone"):
        open_editor("text_to_image", EditorSource(model=model, options=("twig=1",)))
    for changes in ({"references": ()}, {"references": (9,)}, {"own_share": 1.5}):
        with pytest.raises(InputError):
            replace(layout_of(tiny_scene, 4), **changes)
    with pytest.raises(InputError, match="at least 1"):
        Controlled(num_references=0)
