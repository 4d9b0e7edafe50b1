import pytest

from restage.edit.job import EditJob
from restage.studies.held_out import GuardedEditor
from tests.edit.conftest import TinyScene, tiny_scene

__all__ = ["tiny_scene"]


@pytest.fixture
def tiny_job(tiny_scene: TinyScene) -> EditJob:
    train = tiny_scene.capture.train_indices
    editor = GuardedEditor(None, frozenset(train))
    return EditJob(tiny_scene.splats, tiny_scene.capture.select(train), train, tiny_scene.request, editor, 0)
