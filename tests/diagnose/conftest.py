import shutil
from pathlib import Path

import pytest

from restage.edit.config import EditConfig
from restage.edit.methods import ReplaceOnce
from restage.records import write_json
from restage.run.folder import open_run
from restage.scenes.config import FitConfig, ScenesConfig
from restage.scenes.stage import run_scenes
from restage.train.config import TrainConfig
from restage.world.config import CaptureConfig, WorldConfig
from restage.world.stage import run_world


@pytest.fixture(scope="session")
def scenes_run(tmp_path_factory) -> Path:
    """A run with four fitted scenes of one edit each."""
    folder = tmp_path_factory.mktemp("diagnose") / "scenes"
    run = open_run(folder)
    capture = CaptureConfig(num_views=6, held_out_every=3, size=32, num_points=300)
    list(run_world(run, WorldConfig(num_scenes=4, num_objects=1, edit_kinds=("ground",), capture=capture)))
    list(run_scenes(run, ScenesConfig(fit=FitConfig(steps=15, num_splats=120))))
    return folder


@pytest.fixture
def make_run(scenes_run, tmp_path):
    """Make a run of those scenes with a stand-in for the edit model, whose weights are a text."""

    def make(name: str, *, guidance: float = 1.5, weights: str = "good", num_steps: int = 6) -> Path:
        folder = tmp_path / name
        run = open_run(folder)
        shutil.copytree(scenes_run / "scenes", folder / "scenes")
        config = EditConfig(
            methods=("replace_once",), editors=("exact",), settings={"replace_once": ReplaceOnce(num_steps=num_steps)}
        )
        run.folder("edit")
        run.mark_done("edit", config)
        (folder / "train" / "unet").mkdir(parents=True)
        (folder / "train" / "unet" / "weights.txt").write_text(weights)
        write_json(folder / "train" / "edit_model.json", {"guidance": {"text": guidance}})
        run.mark_done("train", TrainConfig())
        return folder

    return make
