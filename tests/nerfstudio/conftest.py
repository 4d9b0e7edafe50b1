"""Where nerfstudio is installed: a miniature capture with truth, and ns-train within this process."""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from restage.records import EditCase, read_json
from restage.world.config import CaptureConfig, WorldConfig
from restage.world.stage import make_scene, sample_scene

if importlib.util.find_spec("nerfstudio"):  # elsewhere other tests do compile
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nerfstudio compiles a 4x4 inverse, which takes a minute

SMALL = (
    *("--machine.device-type", "cpu"),
    *("--pipeline.datamanager.train-num-rays-per-batch", "256"),
    *("--steps-per-eval-image", "0"),
    *("--steps-per-eval-batch", "0"),
    *("--steps-per-eval-all-images", "0"),
    *("--logging.local-writer.enable", "False"),
)
SMALL_MODEL = (
    *("--pipeline.model.implementation", "torch"),
    *("--pipeline.model.num-levels", "6"),
    *("--pipeline.model.max-res", "192"),
    *("--pipeline.model.log2-hashmap-size", "15"),
    *("--pipeline.model.num-nerf-samples-per-ray", "20"),
    *("--pipeline.model.num-proposal-samples-per-ray", "32", "20"),
    *("--pipeline.model.use-appearance-embedding", "False"),
)


@dataclass(frozen=True)
class Scene:
    """A miniature scene on disk, with one edit and its truth."""

    capture: Path
    truth: Path
    case: EditCase


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("miniature")
    config = WorldConfig(
        edit_kinds=("recolour",),
        num_objects=1,
        capture=CaptureConfig(num_views=20, size=48, num_points=1500),
    )
    description, edits = sample_scene(config, name="scene", seed=3)
    for _ in make_scene(folder, description, edits, name="scene", seed=3, config=config.capture):
        pass
    truth = next((folder / "truth").iterdir())
    return Scene(folder / "capture", truth, read_json(truth / "edit.json", EditCase))


Train = Callable[..., Path]


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Run ns-train within this process; return the folder of the run."""
    output = tmp_path_factory.mktemp("outputs")

    def run(method: str, *arguments: Any, name: str) -> Path:
        import tyro
        from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
        from nerfstudio.scripts.train import main

        words = [method, "--output-dir", output, "--timestamp", name, "--experiment-name", "scene", *arguments]
        main(tyro.cli(AnnotatedBaseConfigUnion, args=[str(word) for word in words]))
        return output / "scene" / method / name

    return run


@pytest.fixture(scope="session")
def fitted(scene: Scene, train: Train) -> Path:
    """A small nerfacto, trained on the miniature scene."""
    return train("restage-fit", *SMALL, *SMALL_MODEL, "--max-num-iterations", 300, "--data", scene.capture, name="fit")


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Return the options that make training small; model settings come from the trained scene."""
    return SMALL


@pytest.fixture(scope="session")
def ns_train() -> str:
    return str(Path(sys.executable).parent / "ns-train")
