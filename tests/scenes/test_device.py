"""Fits, losses and projections on a device that is not the CPU; and what `--device` means."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

from restage.records import InputError, read_json
from restage.scenes.cameras import project_points, unproject_depth
from restage.scenes.config import FitConfig, PhotometricLoss, RefineConfig
from restage.scenes.device import choose_device, made_on
from restage.scenes.fit import SplatFit, Targets, psnr, refine_splats, render_views
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.losses import ssim_map
from restage.scenes.stage import fit_capture
from tests.scenes.ball import ball_capture, ball_of_splats, equal, ring

SMALL = FitConfig(steps=9, num_splats=120, cull_every=4, fits_exposure=True, has_rates_by_distance=True, seed=3)


def on_device(tensors, device: str) -> bool:
    return {tensor.device.type for tensor in tensors} == {device}


def test_a_fit_stays_on_its_device_and_goes_as_on_the_cpu(elsewhere: str):
    config = replace(SMALL, coarse_share=0.4)
    masks = torch.ones(8, 24, 24)
    masks[:, :3] = 0
    capture = replace(ball_capture(), masks=masks)
    there, here = SplatFit(capture, config, device=elsewhere), SplatFit(capture, config)
    while not there.is_done:
        step, expected = there.step(), here.step()
        assert on_device(step.splats.parameters().values(), elsewhere)
        assert step.loss == pytest.approx(expected.loss, rel=1e-2)
    found, expected = (render_views(fit.optimizer.splats, capture.cameras).cpu() for fit in (there, here))
    assert float(psnr(found, expected).min()) > 40


def test_a_fit_goes_on_on_another_device_and_its_record_names_both(elsewhere: str, tmp_path, monkeypatch):
    monkeypatch.setattr("restage.scenes.stage.SAVE_EVERY_S", 0.0)
    capture = ball_capture()
    steps = fit_capture(capture, tmp_path, SMALL, device=elsewhere)
    for _ in range(5):
        next(steps)
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert list(fit_capture(capture, tmp_path, SMALL))[0].done in (5, 6)
    assert read_json(tmp_path / "fit.json")["device"] == f"{elsewhere}, then cpu"


def test_a_fit_elsewhere_is_written_whole_and_named_and_one_on_the_cpu_says_nothing_of_devices(
    elsewhere: str, tmp_path
):
    for device in (elsewhere, "cpu"):
        list(fit_capture(ball_capture(), tmp_path / device, SMALL, device=device))
    there, here = (read_json(tmp_path / device / "fit.json") for device in (elsewhere, "cpu"))
    assert there["device"] == elsewhere and "device" not in here
    assert there["id"] == here["id"]
    assert there["held_out_psnr_db"] == pytest.approx(here["held_out_psnr_db"], abs=0.2)
    assert len(read_splats(tmp_path / elsewhere / "splats.ply")) == there["num_splats"]


def test_refining_stays_on_the_device_and_keeps_what_is_frozen(elsewhere: str):
    splats, cameras = ball_of_splats().to(elsewhere), ring(4)
    targets = Targets(cameras, 1 - render_views(splats, cameras), torch.ones(4, 24, 24, device=elsewhere))
    trainable = (torch.arange(len(splats), device=elsewhere) % 2).float()
    *_, last = refine_splats(splats, targets, config=RefineConfig(steps=3), trainable=trainable)
    frozen = (trainable == 0).nonzero()[:, 0]
    assert equal(last.splats[frozen], splats[frozen]) and not equal(last.splats, splats)


def test_points_are_projected_and_found_again_on_their_device(elsewhere: str):
    cameras, points = ring(1), ball_of_splats().means.to(elsewhere)
    there, here = project_points(points, cameras), project_points(points.cpu(), cameras)
    assert on_device(there, elsewhere)
    torch.testing.assert_close(there.pixels.cpu(), here.pixels)
    depth = torch.full((24, 24), 2.0)
    found = unproject_depth(depth.to(elsewhere), cameras)
    torch.testing.assert_close(found.cpu(), unproject_depth(depth, cameras))


@pytest.mark.parametrize("has_weights", [False, True])
def test_the_loss_and_its_gradient_are_those_of_the_compiled_one(elsewhere: str, has_weights: bool):
    generator = torch.Generator().manual_seed(0)
    image, target, weights = (torch.rand(shape, generator=generator) for shape in ((3, 20, 25), (3, 20, 25), (20, 25)))
    weights = (weights > 0.3).float() if has_weights else None
    found = []
    for device in ("cpu", elsewhere):
        color = image.to(device).requires_grad_()
        given = None if weights is None else weights.to(device)
        loss = PhotometricLoss(ssim_share=0.4)(color, target.to(device), given)
        found.append((loss.detach().cpu(), torch.autograd.grad(loss, [color])[0].cpu()))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_similarity_elsewhere_is_exact_where_variances_are_tiny(elsewhere: str):
    image = 0.9 + 1e-3 * torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = ssim_map(image.to(elsewhere), image.to(elsewhere))
    torch.testing.assert_close(found.cpu(), torch.ones(1, 6, 6))


def test_splats_are_written_from_any_device(elsewhere: str, tmp_path):
    splats = ball_of_splats()
    splats.rotations[3] = 0
    for device in ("cpu", elsewhere):
        write_splats(splats.to(device), tmp_path / f"{device}.ply")
    assert (tmp_path / "cpu.ply").read_bytes() == (tmp_path / f"{elsewhere}.ply").read_bytes()


def test_devices_that_meet_are_refused(elsewhere: str):
    with pytest.raises(RuntimeError, match="same device"):
        torch.add(torch.ones(3, device=elsewhere), torch.ones(3))
    with pytest.raises(TypeError, match="numpy"):
        torch.ones(3, device=elsewhere).numpy()


def pretend(monkeypatch, *, count: int, kernels: object = None, is_installed: bool = True) -> None:
    """Let torch see GPUs, and let gsplat be installed, with its kernels or without."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    names = ("gsplat", "gsplat.cuda", "gsplat.cuda._backend")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name) if is_installed else None)
    if is_installed:
        sys.modules[names[-1]]._C = kernels  # pyright: ignore[reportAttributeAccessIssue]


def test_auto_takes_a_gpu_that_gsplat_can_draw_on(monkeypatch):
    pretend(monkeypatch, count=2, kernels=SimpleNamespace())
    assert [choose_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    assert made_on("cuda:1") == {"device": "cuda, NVIDIA H200"} and made_on("cpu") == {}
    with pytest.raises(InputError, match="no GPU cuda:2; expected cuda:0 to cuda:1"):
        choose_device("cuda:2")


def test_auto_without_a_gpu_is_the_cpu_without_a_word(monkeypatch, capsys):
    pretend(monkeypatch, count=0)
    assert choose_device("auto") == "cpu"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("is_installed", "reason"),
    [(False, r"gsplat is not installed; run: pip install 'restage\[cuda\]'"), (True, "finds no compiler.*nvcc")],
)
def test_a_gpu_that_cannot_be_drawn_on_is_left_with_a_word_and_refused_when_asked_for(
    monkeypatch, capsys, is_installed: bool, reason: str
):
    pretend(monkeypatch, count=1, is_installed=is_installed)
    assert choose_device("auto") == "cpu"
    assert "computing on the CPU" in capsys.readouterr().err
    with pytest.raises(InputError, match=reason):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "meta", ""])
def test_a_name_that_is_no_device_is_refused(name: str):
    with pytest.raises(InputError, match="expected auto, cpu, cuda, or cuda:N"):
        choose_device(name)


def test_a_gpu_without_cuda_in_torch_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(InputError, match="is built without CUDA") as refused:
        choose_device("cuda")
    assert "\n" not in str(refused.value)
