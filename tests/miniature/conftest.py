"""What trainings of the miniature begin with: a tokenizer, a few pictures, an untrained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from miniature import pictures, text_to_image
from miniature.pictures import Pictures, make_pictures
from restage.diffusion.backbone import Backbone, load_vae, save_backbone, save_tokenizer
from restage.diffusion.schedule import Schedule
from restage.run.models import models_in
from tests.tiny_models import tokenizer_of_the_world


@pytest.fixture(scope="session")
def tokenizer():
    return tokenizer_of_the_world()


@pytest.fixture
def folder(tokenizer, tmp_path: Path) -> Path:
    """A folder to train in that has its tokenizer, which takes longer to build than these trainings take."""
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    return tmp_path


@pytest.fixture(scope="session")
def start(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained text-to-image model on the shipped autoencoder."""
    torch.manual_seed(3)
    vae = load_vae(models_in().text_to_image / "vae")
    parts = text_to_image.build_text_encoder(tokenizer), text_to_image.build_unet(vae.config["latent_channels"])
    schedule = Schedule.from_config(text_to_image.SCHEDULER_CONFIG)
    folder = tmp_path_factory.mktemp("start") / "text_to_image"
    save_backbone(Backbone(tokenizer, *parts, vae, schedule, text_to_image.SCHEDULER_CONFIG), folder)
    return folder


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "SHARD_SIZE", 6)
        list(make_pictures(folder / "pictures", 12))
    return folder


@pytest.fixture
def small_set(training_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Pictures:
    monkeypatch.setattr(pictures, "SHARD_SIZE", 6)
    return Pictures(training_folder / "pictures")
