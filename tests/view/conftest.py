from pathlib import Path

import pytest

from restage.edit.methods import Restage
from restage.edit.single import EditChoice
from restage.run.folder import RunFolder, StepByStep
from tests.edit.conftest import TinyScene, tiny_scene

__all__ = ["tiny_scene"]

QUICK = EditChoice(method="restage", editor="exact", settings=Restage(num_key_views=3, color_steps=6, shape_steps=4))


@pytest.fixture
def run_folder(tiny_scene: TinyScene, tmp_path: Path) -> Path:
    run = RunFolder.open(tmp_path / "run", StepByStep(), seed=0)
    tiny_scene.write(run.path / "scenes" / "tiny")
    run.close("done")
    return run.path
