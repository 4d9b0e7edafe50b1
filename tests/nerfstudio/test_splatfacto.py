"""splatfacto draws with gsplat, which needs CUDA; here Restage's own CPU rasterizer stands in for it."""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nerfstudio", reason="runs in .venv-nerfstudio: make test-nerfstudio")

import torch
from nerfstudio.models import splatfacto
from torch import Tensor

from restage.compare.metrics import progress, psnr_db, spill
from restage.edit.pictures import read_image, read_mask
from restage.nerfstudio.export import export_scene, load_trained_scene
from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.fit import render_views
from restage.scenes.io import read_splats
from restage.scenes.rasterize import rasterize_numba
from restage.scenes.splats import Splats

pytestmark = pytest.mark.nerfstudio

SMALL_SPLATS = (
    *("--machine.device-type", "cpu"),
    *("--pipeline.datamanager.cache-images", "gpu"),  # leaves them where they are; "cpu" pins memory for a GPU
    *("--pipeline.model.stop-split-at", "0"),
    *("--pipeline.model.num-downscales", "0"),
    *("--pipeline.model.background-color", "black"),
    *("--steps-per-eval-image", "0"),
    *("--steps-per-eval-all-images", "0"),
    *("--logging.local-writer.enable", "False"),
)


def _rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int,
    render_mode: str,
    **others: Any,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """gsplat's `rasterization` for one camera, as far as splatfacto uses it."""
    splats = Splats(
        means=means,
        log_scales=scales.log(),
        rotations=quats,
        opacity_logits=opacities.logit(),
        sh=colors[:, : (sh_degree + 1) ** 2],
    )
    cameras = Cameras(torch.linalg.inv(viewmats.detach()), Ks, width, height)
    drawn = rasterize_numba(splats, cameras)
    layers = [drawn.color.permute(1, 2, 0)]
    if render_mode == "RGB+ED":
        layers.append((drawn.depth / drawn.alpha.clamp_min(1e-6))[..., None])
    return torch.cat(layers, dim=2)[None], drawn.alpha[None, ..., None], {"means2d": means * 1}


@pytest.fixture(scope="module", autouse=True)
def _on_the_cpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splatfacto, "rasterization", _rasterize)
        patch.setattr(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor)
        yield


@pytest.fixture(scope="module")
def splatted(scene, train) -> Path:
    steps = ("--max-num-iterations", 300)
    return train("restage-fit-splatfacto", *SMALL_SPLATS, *steps, "--data", scene.capture, name="splats")


@pytest.fixture(scope="module")
def restaged(scene, splatted, train) -> Path:
    words = ("--pipeline.instruction", scene.case.request.instruction)
    editor = ("--pipeline.editor", "exact", "--pipeline.truth", scene.truth)
    load = ("--load-dir", splatted / "nerfstudio_models", "--data", scene.capture)
    rounds = ("--pipeline.steps-per-round", 75, "--max-num-iterations", 150)
    return train("restage-splatfacto", *SMALL_SPLATS, *words, *editor, *load, *rounds, name="restaged")


def test_restage_moves_only_the_splats_under_the_masks(splatted, restaged) -> None:
    before = load_trained_scene(splatted / "config.yml").splats()
    after = load_trained_scene(restaged / "config.yml").splats()
    moved = torch.zeros(len(before), dtype=torch.bool)
    for name, tensor in before.parameters().items():
        moved |= (tensor != after.parameters()[name]).flatten(1).any(dim=1) if tensor.ndim > 1 else False
    share = float(moved.float().mean())
    print(f"{share:.3f} of {len(before)} splats moved")
    assert 0 < share < 0.5


def test_restage_brings_a_splatfacto_to_the_true_edit_and_leaves_the_rest(scene, splatted, restaged) -> None:
    before, after = load_trained_scene(splatted / "config.yml"), load_trained_scene(restaged / "config.yml")
    capture, held_out = before.capture, list(before.capture.held_out_indices)
    truth = torch.stack([read_image(scene.truth / "images" / capture.file_names[index]) for index in held_out])
    masks = torch.stack([read_mask(scene.truth / "masks" / capture.file_names[index]) for index in held_out])
    cameras = capture.cameras[held_out]
    unedited, result = before.render(cameras), after.render(cameras)
    reached = progress(result, capture.images[held_out], truth, masks).mean
    spilled = spill(result, unedited, masks).mean
    print(f"fit {psnr_db(unedited, capture.images[held_out]).mean:.2f} dB, progress {reached:.3f}, spill {spilled:.4f}")
    assert progress(unedited, capture.images[held_out], truth, masks).mean < 0.25
    assert reached > 0.5
    assert spilled < 0.01


def test_the_splats_of_a_splatfacto_come_back_into_the_frame_of_the_capture(splatted, tmp_path) -> None:
    scene = load_trained_scene(splatted / "config.yml")
    exported = export_scene(scene, tmp_path)
    assert exported.splats is not None
    cameras = scene.capture.cameras[[0, 7]]
    assert psnr_db(render_views(read_splats(exported.splats), cameras), scene.render(cameras)).mean > 40


def test_splats_of_a_turned_frame_are_refused(scene, train) -> None:
    few, turned = ("--max-num-iterations", 1), ("nerfstudio-data", "--orientation-method", "pca")
    run = train("restage-fit-splatfacto", *SMALL_SPLATS, *few, "--data", scene.capture, *turned, name="turned")
    with pytest.raises(InputError, match="orientation-method none"):
        load_trained_scene(run / "config.yml").splats()
