"""Splats that are turned with the world look the same, and go back to the frame that their capture came in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation

from restage.records import InputError
from restage.scenes.capture import turn_upright
from restage.scenes.config import FitConfig
from restage.scenes.fit import render_views
from restage.scenes.io import read_capture, write_capture
from restage.scenes.io.splat_files import read_splats
from restage.scenes.splats import Splats
from restage.scenes.stage import fit_capture
from restage.scenes.turning import export_splats, move_splats
from tests.scenes.test_capture import turned
from tests.scenes.tiny_captures import small_capture

TURN = torch.from_numpy(Rotation.from_rotvec([0.7, -1.9, 0.4]).as_matrix())


def similarity(turn: torch.Tensor, scale: float = 1.0, shift: tuple[float, ...] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    whole = torch.eye(4, dtype=torch.float64)
    whole[:3, :3], whole[:3, 3] = scale * turn, torch.tensor(shift, dtype=torch.float64)
    return whole


TINY = FitConfig(steps=3, num_splats=60)


def some_splats(k: int) -> Splats:
    generator = torch.Generator().manual_seed(k)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Splats(draw(80, 3) * 0.5, draw(80, 3) * 0.4 - 2, draw(80, 4), draw(80), 0.5 * draw(80, k, 3))


@pytest.mark.parametrize("k", [1, 4, 9, 16])
@pytest.mark.parametrize("turn", [TURN, torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))])
def test_turned_splats_look_the_same_to_a_turned_camera(k: int, turn: torch.Tensor):
    capture, splats = small_capture(), some_splats(k)
    expected = render_views(splats, capture.cameras)
    found = render_views(move_splats(splats, similarity(turn)), turned(capture, turn).cameras)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_what_is_no_rotation_is_refused():
    with pytest.raises(InputError, match="rotation"):
        move_splats(some_splats(1), torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64)))


def test_a_fit_of_a_turned_capture_is_exported_in_the_frame_that_the_capture_came_in(tmp_path: Path):
    own = turned(small_capture(), TURN)
    write_capture(turn_upright(own), tmp_path / "capture")
    capture = read_capture(tmp_path / "capture")
    list(fit_capture(capture, tmp_path / "scene", TINY))
    export_splats(tmp_path / "scene", tmp_path / "own.ply", frame="own")
    export_splats(tmp_path / "scene", tmp_path / "upright.ply", frame="upright")
    upright = read_splats(tmp_path / "upright.ply")
    assert torch.equal(upright.means, read_splats(tmp_path / "scene" / "splats.ply").means)
    found = render_views(read_splats(tmp_path / "own.ply"), own.cameras)
    expected = render_views(upright, capture.cameras)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_an_edit_is_exported_by_the_turn_of_its_scene(tmp_path: Path):
    capture = replace(small_capture(), own_to_world=similarity(TURN))
    list(fit_capture(capture, tmp_path / "scenes" / "mine", TINY))
    edit = tmp_path / "edit" / "mine" / "blue" / "restage" / "0"
    edit.mkdir(parents=True)
    (edit / "splats.ply").write_bytes((tmp_path / "scenes" / "mine" / "splats.ply").read_bytes())
    export_splats(edit, tmp_path / "edit.ply", frame="own")
    export_splats(tmp_path / "scenes" / "mine", tmp_path / "scene.ply", frame="own")
    assert (tmp_path / "edit.ply").read_bytes() == (tmp_path / "scene.ply").read_bytes()


def test_splats_of_unknown_origin_are_exported_as_they_are_or_not_at_all(tmp_path: Path):
    list(fit_capture(small_capture(), tmp_path / "scene", TINY))
    (tmp_path / "scene" / "fit.json").unlink()
    with pytest.raises(InputError, match="--frame upright"):
        export_splats(tmp_path / "scene", tmp_path / "own.ply", frame="own")
    assert export_splats(tmp_path / "scene", tmp_path / "own.ply", frame="upright") > 0
    with pytest.raises(InputError, match=r"ends with one of .*\.ply"):
        export_splats(tmp_path / "scene", tmp_path / "own.obj", frame="upright")
    with pytest.raises(InputError, match="fit a capture first"):
        export_splats(tmp_path, tmp_path / "own.ply", frame="upright")
