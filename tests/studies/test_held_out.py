from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from restage.edit.editors import ViewBatch
from restage.edit.job import EditStep
from restage.edit.methods import Nothing
from restage.edit.sharing import ViewSharing
from restage.records import InputError
from restage.studies.held_out import GuardedEditor, GuardedMethod, HeldOutRead, closed_folders


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "scenes").mkdir()
    path = tmp_path / "scenes" / "held_out.png"
    path.write_bytes(b"truth")
    return path


def read_with_path(path: Path) -> None:
    path.read_bytes()


def read_through_a_link(path: Path) -> None:
    link = path.parent.parent / "link.png"
    link.symlink_to(path)
    link.read_bytes()


def read_relative(path: Path) -> None:
    (path.parent / ".." / "scenes" / path.name).read_bytes()


def list_the_folder(path: Path) -> None:
    list(path.parent.iterdir())


@pytest.mark.parametrize("read", [read_with_path, read_through_a_link, read_relative, list_the_folder])
def test_what_is_closed_cannot_be_read(secret, read):
    with closed_folders(secret.parent) as reads:
        with pytest.raises(HeldOutRead, match="closed while a method runs"):
            read(secret)
    assert len(reads) == 1


def test_what_is_allowed_and_what_lies_elsewhere_can_be_read(secret, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"weights")
    with closed_folders(secret.parent, allowed=frozenset({str(secret.resolve())})) as reads:
        assert secret.read_bytes() == b"truth"
        assert (tmp_path / "model.bin").read_bytes() == b"weights"
    assert reads == []


def test_everything_is_open_again_afterwards(secret):
    with closed_folders(secret.parent):
        pass
    assert secret.read_bytes() == b"truth"


def test_the_editor_refuses_views_that_are_not_training_views(tiny_scene):
    editor = GuardedEditor(None, frozenset({0, 1}))
    images = tiny_scene.capture.images[:1]
    batch = ViewBatch(images, images, request=tiny_scene.request, view_indices=(2,), noise_level=1.0, seed=0)
    with pytest.raises(HeldOutRead, match="held out"):
        editor.edit(batch)
    with pytest.raises(HeldOutRead, match="held out"):
        editor.edit(replace(batch, sharing=ViewSharing(tiny_scene.capture.cameras[2], 1, 0)))
    for ask in (lambda: editor.edit(replace(batch, view_indices=(1,))), editor.scores):
        with pytest.raises(InputError, match="without an editor"):
            ask()


@dataclass(frozen=True)
class Slow:
    """Never ends by itself."""

    def run(self, job):
        step = 0
        while True:
            step += 1
            yield EditStep(step, 10**9, 0.0, job.splats, "on and on")


def test_a_method_is_stopped_at_its_first_step_after_its_time_is_up(tiny_job):
    steps = list(GuardedMethod(Slow(), time_cap_s=1e-6).run(tiny_job))
    assert [step.step for step in steps] == [1]


def test_a_method_without_a_cap_runs_to_its_end(tiny_job):
    assert len(list(GuardedMethod(Nothing()).run(tiny_job))) == 1
