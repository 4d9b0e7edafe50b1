"""Bfloat16 only where the hardware computes in it, unless the settings say otherwise; training without denormals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from miniature import autoencoder, pictures
from miniature.command import MiniatureConfig, train_miniature, without_denormals
from restage.diffusion import hardware
from restage.diffusion.config import TrainingConfig
from restage.diffusion.edit_models import widen_unet
from restage.diffusion.editor import EditModel, EditSettings, edit_images
from restage.diffusion.training import train
from restage.records import Progress
from tests.train.tiny import tiny_backbone

CPU = torch.device("cpu")


EVERY_WISH = pytest.mark.parametrize(
    ("is_fast", "is_wanted", "expected"),
    [
        (False, None, torch.float32),
        (True, None, torch.bfloat16),
        (False, True, torch.bfloat16),
        (True, False, torch.float32),
    ],
)


def set_capabilities(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


@pytest.mark.parametrize(
    ("capabilities", "is_fast"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx2": True}, False),
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_a_processor_is_fast_where_it_has_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: Mapping[str, bool], is_fast: bool
) -> None:
    set_capabilities(monkeypatch, **capabilities)
    assert hardware.has_fast_bfloat16(CPU) is is_fast


@pytest.mark.parametrize(("capability", "is_fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_is_fast_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_fast: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.has_fast_bfloat16(torch.device("cuda", 0)) is is_fast


def test_other_devices_compute_in_float32() -> None:
    assert not hardware.has_fast_bfloat16(torch.device("mps"))


@EVERY_WISH
def test_training_computes_in_what_was_asked_for_or_is_fast(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_fast: bool, is_wanted: bool | None, expected: torch.dtype
) -> None:
    set_capabilities(monkeypatch, avx512_bf16=is_fast)
    model = nn.Linear(4, 1)
    dtypes = []

    def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        output = model(torch.randn(3, 4, generator=generator))
        dtypes.append(output.dtype)
        return {"l2": output.float().square().mean()}

    list(train(model, loss_of, folder=tmp_path, config=TrainingConfig(num_steps=1, is_bf16=is_wanted)))
    assert dtypes == [expected] and model.weight.dtype == torch.float32


@EVERY_WISH
def test_editing_computes_in_what_was_asked_for_or_is_fast(
    monkeypatch: pytest.MonkeyPatch, is_fast: bool, is_wanted: bool | None, expected: torch.dtype
) -> None:
    set_capabilities(monkeypatch, avx512_bf16=is_fast)
    backbone = dataclasses.replace(tiny_backbone(), has_autocast=is_wanted)
    model = EditModel(backbone, widen_unet(backbone.unet))
    dtypes: dict[str, torch.dtype] = {}
    model.unet.conv_out.register_forward_hook(lambda _, __, output: dtypes.update(unet=output.dtype))
    layers = [module for module in backbone.vae.modules() if isinstance(module, nn.Conv2d)]
    layers[-1].register_forward_hook(lambda _, __, output: dtypes.update(vae=output.dtype))
    views = torch.rand(1, 3, 64, 64)
    settings = EditSettings(steps=1, use_bfloat16=is_wanted)
    edited = edit_images(model, views, views, "x", noise_level=1.0, seeds=[0], settings=settings)
    assert dtypes == {"unet": expected, "vae": expected}
    assert edited.images.dtype == torch.float32


class NoPictures(pictures.Pictures):
    """A training set that is never looked at."""

    def __init__(self, *_: object) -> None:
        self.descriptions = []


def half_of_the_least_normal_number() -> float:
    return float(torch.tensor(torch.finfo(torch.float32).tiny) * 0.5)


def test_denormal_numbers_are_zero_within_and_come_back_after_an_error() -> None:
    assert half_of_the_least_normal_number() > 0
    with pytest.raises(ValueError, match="stop"), without_denormals():
        assert half_of_the_least_normal_number() == 0
        raise ValueError("stop")
    assert half_of_the_least_normal_number() > 0


def test_the_miniature_is_trained_without_denormal_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(*_: object, **__: object) -> Iterator[Progress]:
        for _step in range(2):
            yield Progress(stage=f"{half_of_the_least_normal_number():g}", done=1, total=1)

    (tmp_path / "pictures").mkdir()
    monkeypatch.setattr(pictures, "Pictures", NoPictures)
    monkeypatch.setattr(autoencoder, "train_autoencoder", recipe)
    assert [progress.stage for progress in train_miniature("autoencoder", MiniatureConfig(folder=tmp_path))] == [
        "0",
        "0",
    ]
    assert half_of_the_least_normal_number() > 0
