"""Try-on with tiny random weights in the layout of CatVTON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from restage.edit.editors import EditorSource, open_editor
from restage.edit.editors.interface import Edited, ViewBatch
from restage.edit.editors.try_on import load_attention
from restage.edit.methods import ReplaceOnce
from restage.edit.single import EditChoice, open_edit
from restage.records import EditRequest, InputError
from restage.run.folder import RunFolder
from restage.scenes.references import GivenPicture, ShownPicture
from tests.edit.tiny_parts import vae
from tests.scenes.test_references import picture

OPTIONS = ("steps=2", "size=64")


def tiny_unet(seed: int) -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=8,
            in_channels=9,
            out_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=16,
            norm_num_groups=8,
        ).eval()


def attention_of(unet: torch.nn.Module, *, by_part: bool = False, count: int = 8) -> dict[str, torch.Tensor]:
    """Name self-attention weights as CatVTON's list of modules does: by the layer's number, or by its part's."""
    state, parts = {}, {"to_q": 1, "to_k": 2, "to_v": 3, "to_out.0": 5}
    layers = [module for name, module in unet.named_modules() if name.endswith("attn1")]
    for number, layer in enumerate(layers):
        for name, value in layer.state_dict().items():
            part, _, leaf = name.rpartition(".")
            place = f"{count * number + parts[part]}.{leaf}" if by_part else f"{count * number}.{name}"
            state[place] = value.clone().contiguous()
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("try_on")
    tiny_unet(0).save_pretrained(folder / "unet")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vae(levels=4).save_pretrained(folder / "vae")
    DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(
        folder / "scheduler"
    )
    place = folder / "mix-48k-1024" / "attention"
    place.mkdir(parents=True)
    save_file(attention_of(tiny_unet(5)), place / "model.safetensors")
    return folder


def batch(tiny_scene, color: float = 0.2, indices: tuple[int, ...] = (0, 1), **changes) -> ViewBatch:
    views = tiny_scene.capture.images[list(indices)]
    regions = torch.zeros_like(views[:, 0])
    regions[:, 8:24, 8:24] = 1
    told = {
        "request": tiny_scene.request,
        "view_indices": indices,
        "noise_level": 1.0,
        "seed": 0,
        "regions": regions,
        "references": (ShownPicture(torch.full((3, 20, 10), color)),),
    }
    return ViewBatch(views, views, **(told | changes))


def edit(folder: Path, asked: ViewBatch) -> Edited:
    return open_editor("try_on", EditorSource(model=folder, options=OPTIONS)).edit(asked)


def test_the_garment_decides_and_views_do_not_depend_on_their_batch(tiny_scene, folder: Path) -> None:
    dark, bright = edit(folder, batch(tiny_scene)), edit(folder, batch(tiny_scene, 0.9))
    assert dark.images.shape == (2, 3, 32, 32) and float((dark.images - bright.images).abs().max()) > 1e-4
    regions = batch(tiny_scene).regions
    assert regions is not None and torch.equal(dark.masks, regions)
    alone = edit(folder, batch(tiny_scene, indices=(1,)))
    torch.testing.assert_close(alone.images[0], dark.images[1], rtol=0, atol=1e-4)
    near = edit(folder, batch(tiny_scene, noise_level=0.1))
    assert float((near.images - dark.images).abs().max()) > 1e-4


def test_what_is_missing_is_said(tiny_scene, folder: Path, tmp_path: Path) -> None:
    for changes in ({"references": ()}, {"regions": None}):
        with pytest.raises(InputError, match="try-on needs one picture of a garment"):
            edit(folder, replace(batch(tiny_scene), **changes))
    with pytest.raises(InputError, match="expected the folder of an inpainting model"):
        open_editor("try_on", EditorSource(model=tmp_path))
    (tmp_path / "unet").symlink_to(folder / "unet")
    with pytest.raises(InputError, match="attention/model.safetensors once"):
        open_editor("try_on", EditorSource(model=tmp_path))


@pytest.mark.parametrize(("by_part", "count"), [(False, 8), (True, 8), (False, 7), (True, 7)])
def test_attention_weights_load_by_their_numbers(tmp_path: Path, by_part: bool, count: int) -> None:
    unet, other = tiny_unet(0), tiny_unet(5)
    save_file(attention_of(other, by_part=by_part, count=count), tmp_path / "a.safetensors")
    load_attention(unet, tmp_path / "a.safetensors")
    expected, untouched = other.state_dict(), tiny_unet(0).state_dict()
    for name, value in unet.state_dict().items():
        assert torch.equal(value, (expected if ".attn1." in name else untouched)[name])


def test_attention_weights_of_another_unet_are_refused(tmp_path: Path) -> None:
    state = attention_of(tiny_unet(0))
    save_file(dict(list(state.items())[:-1]), tmp_path / "short.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    for name in ("short", "other"):
        with pytest.raises(InputError, match="does not hold the self-attention of this UNet"):
            load_attention(tiny_unet(0), tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_attention(tiny_unet(0), tmp_path / "none.safetensors")


def test_views_of_a_scene_go_in_and_splats_come_out(tiny_scene, folder: Path, tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", EditChoice(), seed=0)
    scene = run.path / "scenes" / "tiny"
    tiny_scene.write(scene)
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"view_0.png": [0.2, 0.2, 0.8, 0.8], "view_1.png": [0.2, 0.2, 0.8, 0.8]}')
    shown = (GivenPicture(picture()).keep(scene),)
    request = EditRequest(instruction="put it on", source_caption="", target_caption="", references=shown)
    choice = EditChoice(
        method="replace_once",
        editor="try_on",
        model=folder,
        model_options=OPTIONS,
        region=boxes,
        settings=ReplaceOnce(num_steps=4),
    )
    opened = open_edit(run, scene, request=request, choice=choice)
    *_, last = opened.steps
    changed = (last.splats.sh - tiny_scene.splats.sh).abs().amax(dim=(1, 2)) > 0
    assert 0 < int(changed.sum()) < len(changed)  # what lies outside of the region is held


def test_a_soft_region_is_a_mask_of_0_and_1_to_the_model(tiny_scene, folder: Path) -> None:
    hard = batch(tiny_scene)
    assert hard.regions is not None
    soft = (0.95 * hard.regions).clamp_min(0.02)
    painted = edit(folder, replace(hard, regions=soft))
    assert torch.equal(painted.images, edit(folder, hard).images) and torch.equal(painted.masks, soft)
