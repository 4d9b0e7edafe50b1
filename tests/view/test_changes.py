"""Direct edits and regions in the viewer, without a browser."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from restage.cli import run as restage
from restage.edit.direct.changes import current_change, read_history
from restage.edit.direct.operations import Delete, Duplicate, Move, Recolor
from restage.records import InputError, read_json, write_json
from restage.regions.making import RegionMaker
from restage.regions.region import Region
from restage.scenes.cameras import project_points
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.splats import Splats
from restage.view import ViewSession
from restage.view.region_controls import PICK_HEIGHT_PX
from restage.view.selecting import polygon_mask, region_in_mask, region_size, stroke_mask
from tests.edit.conftest import TinyScene

GOLD = Recolor(towards="gold")


@pytest.fixture
def session(run_folder: Path) -> ViewSession:
    return ViewSession(run_folder)


@pytest.fixture
def ball(session: ViewSession, tiny_scene: TinyScene) -> Region:
    return Region.of(session.before, tiny_scene.is_ball.float(), by="hand")


def test_a_change_is_shown_at_once_and_written_as_the_shell_writes_it(session, ball, run_folder, tmp_path):
    session.select(ball)
    session.save_region("ball")
    write_json(run_folder / "scenes" / "tiny" / "fit.json", {"num_splats": 200, "seconds": 1.0})
    shutil.copytree(run_folder, tmp_path / "other")
    session.change(GOLD)
    assert session.shown.label == "recolor ball towards gold" and session.shown.kept is None and session.has_unkept
    assert not torch.equal(session.shown.splats.sh, session.before.sh)
    list(session.keep())
    kept = session.shown.kept
    assert kept is not None and not session.has_unkept
    assert torch.equal(read_splats(kept.folder / "splats.ply").sh, session.shown.splats.sh)
    command = ["change", str(tmp_path / "other"), "recolor", "--region", "ball", "--towards", "gold", "--device", "cpu"]
    assert restage(command) == 0
    twin = tmp_path / "other" / kept.folder.relative_to(run_folder)
    ours, theirs = (read_json(folder / "record.json", dict) for folder in (kept.folder, twin))
    assert {**ours, "cost": 0, "seal": 0} == {**theirs, "cost": 0, "seal": 0}
    assert read_history(run_folder, "tiny") == read_history(tmp_path / "other", "tiny")
    assert json.loads((run_folder / "run.json").read_text())["status"] == "done"


def test_undo_and_redo_go_for_the_shell_too_and_another_session_opens_where_the_scene_stands(session, ball, run_folder):
    session.select(ball)
    session.change(GOLD)
    session.change(Delete())
    assert session.selected is None and len(session.shown.splats) == 120
    list(session.keep())
    last = session.shown.kept
    assert last is not None and current_change(run_folder, "tiny") == last.folder
    session.undo()
    assert session.selected is not None and session.selected.inside.sum() == 80
    first = session.shown.kept
    assert first is not None and current_change(run_folder, "tiny") == first.folder
    assert len(ViewSession(run_folder).shown.splats) == 200
    session.redo()
    assert session.selected is None and current_change(run_folder, "tiny") == last.folder
    other = ViewSession(run_folder)
    assert [version.label for version in other.versions][0] == "before" and len(other.versions) == 3
    assert len(other.shown.splats) == 120 and len(other.undo().splats) == 200


def test_what_is_undone_before_it_is_written_leaves_nothing(session, ball, run_folder):
    session.select(ball)
    session.change(GOLD)
    session.undo()
    list(session.keep())
    assert not (run_folder / "edit").exists() and session.shown.splats is session.before


def test_what_is_undone_while_it_is_written_counts_as_undone(session, ball, run_folder):
    session.select(ball)
    session.change(GOLD)
    writing = session.keep()
    next(writing)
    session.undo()
    list(writing)
    assert current_change(run_folder, "tiny") is None and len(read_history(run_folder, "tiny").undone) == 1
    session.redo()
    kept = session.shown.kept
    assert kept is not None and current_change(run_folder, "tiny") == kept.folder


def test_regions_of_the_scene_before_are_carried_to_what_is_shown(session, ball, tiny_scene):
    session.select(ball)
    session.save_region("ball")
    session.change(Duplicate(by=(0.0, 0.0, 1.0)))
    session.change(Move(by=(0.1, 0.0, 0.0)))
    list(session.keep())
    session.select(Region.of(session.shown.splats, (torch.arange(280) == 199).float(), by="hand"))
    session.change(Delete())  # a splat of the disc, which lies before the copies
    session.open_region("ball")
    chosen = session.chosen().inside
    assert len(chosen) == 279 and torch.equal(chosen[:199], tiny_scene.is_ball[:199]) and not chosen[199:].any()
    assert session.selected_name == "ball" and session.regions() == ["ball"]


def test_choices_are_added_taken_away_and_refused_when_empty(session, ball):
    disc = Region.of(session.before, 1 - ball.weights, by="hand")
    with pytest.raises(InputError, match="no splats are chosen"):
        session.change(GOLD)
    session.select(disc)
    session.select(ball, "add")
    assert session.chosen().share == 1.0
    session.select(disc, "take")
    assert torch.equal(session.chosen().inside, ball.inside)
    session.select(ball, "take")
    assert session.selected is None


def test_a_change_of_a_file_of_splats_makes_its_run(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_splats(read_splats(run_folder / "scenes" / "tiny" / "splats.ply"), tmp_path / "ball.ply")
    session = ViewSession(tmp_path / "ball.ply")
    session.select(Region.of(session.before, (torch.arange(200) < 80).float(), by="hand"))
    session.change(GOLD)
    assert not (tmp_path / "runs").exists()
    list(session.keep())
    kept = session.shown.kept
    assert kept is not None and kept.folder.is_relative_to(Path("runs/ball/edit/ball"))
    session.save_region("ball")
    assert session.regions() == ["ball"] and len(session.scene.cameras) == 24


def test_shapes_drawn_in_a_window_choose_what_is_seen_in_them(session, tiny_scene):
    camera = tiny_scene.capture.cameras[0].to_size(PICK_HEIGHT_PX, PICK_HEIGHT_PX)
    mask = tiny_scene.truth_masks[0] > 0
    rows, columns = mask.any(dim=1).nonzero()[:, 0] / 32, mask.any(dim=0).nonzero()[:, 0] / 32
    left, top, right, bottom = (float(v) for v in (columns[0], rows[0], columns[-1] + 1 / 32, rows[-1] + 1 / 32))
    box = polygon_mask(camera, [(left, top), (right, top), (right, bottom), (left, bottom)])
    assert float(box.mean()) == pytest.approx((right - left) * (bottom - top), rel=0.05)
    chosen = region_in_mask(session.before, camera, box, "box").inside
    assert (chosen & tiny_scene.is_ball).sum() > 30, "those of the ball that face the camera"
    middle = ((left + right) / 2, (top + bottom) / 2)
    dab = region_in_mask(session.before, camera, stroke_mask(camera, [middle], 0.06), "brush")
    assert tiny_scene.is_ball[dab.inside].all() and 0 < dab.inside.sum() < chosen.sum()
    assert 0.05 < region_size(session.before, dab) < 0.3
    across = stroke_mask(camera, [(0.2, 0.5), (0.7, 0.5), (0.7, 0.8)], 0.1)
    # Two strips that overlap at the corner, and round ends and outer corner.
    wanted = 0.2 * (0.5 + 0.3) - 0.1**2 + 1.25 * math.pi * 0.1**2
    assert float(across.mean()) == pytest.approx(wanted, rel=0.05)
    with pytest.raises(InputError, match="there are no splats"):
        region_in_mask(session.before, camera, stroke_mask(camera, [(0.01, 0.01)], 0.005), "brush")
    with pytest.raises(InputError, match="three corners"):
        polygon_mask(camera, [(0.1, 0.1), (0.2, 0.2)])


def test_clicks_say_what_belongs_to_a_thing_and_what_does_not(session, tiny_scene):
    camera = tiny_scene.capture.cameras[2]

    def at(*point: float) -> tuple[float, float]:
        x, y = (project_points(torch.tensor([point]), camera).pixels[0] / 32).tolist()
        return x, y

    on_disc = at(*max(((0.7, 0.0, 0.0), (0.0, 0.7, 0.0), (-0.7, 0.0, 0.0)), key=lambda point: at(*point)[1]))
    session.choose_object(camera, at(0.0, 0.0, 0.4), "new")
    session.choose_object(camera, on_disc, "take")
    chosen, is_ball = session.chosen().inside, tiny_scene.is_ball
    assert (chosen & is_ball).sum() / (chosen | is_ball).sum() > 0.9
    session.change(Move(by=(0.0, 0.0, 0.3)))
    session.select(None)
    session.choose_object(camera, at(0.0, 0.0, 0.7), "new")
    session.choose_object(camera, on_disc, "take")
    moved = session.chosen().inside
    assert (moved & is_ball).sum() / (moved | is_ball).sum() > 0.9, "where it was moved to"
    session.choose_object(camera, on_disc, "new")
    session.choose_object(camera, at(0.0, 0.0, 0.7), "take")
    assert not (session.chosen().inside & is_ball).sum() > 8
    session.select(Region.of(session.shown.splats, (~is_ball).float(), by="hand"))
    session.choose_object(camera, at(0.0, 0.0, 0.7), "add")
    assert session.chosen().share == 1.0, "beside what was chosen in another way"


def test_clicks_at_copies_are_refused_and_so_are_scenes_outside_of_runs(session, ball, run_folder, tmp_path):
    session.select(ball)
    session.change(Duplicate(by=(0.0, 0.0, 1.5)))
    high = session.scene.cameras[0]
    x, y = (project_points(torch.tensor([[0.0, 0.0, 1.9]]), high).pixels[0] / 32).clamp(0, 1).tolist()
    with pytest.raises(InputError, match="an edit added what is there|shows no splat"):
        session.choose_object(high, (x, y), "new")
    shutil.copytree(run_folder / "scenes" / "tiny", tmp_path / "alone")
    with pytest.raises(InputError, match="in no run folder"):
        ViewSession(tmp_path / "alone").choose_object(high, (0.5, 0.5), "new")


def test_words_choose_what_the_regions_of_the_shell_would(session, ball, monkeypatch):
    monkeypatch.setattr(RegionMaker, "by_words", lambda maker, words: Region.of(maker.splats, ball.weights, by=words))
    session.choose_by_words(" the red ball ")
    assert torch.equal(session.chosen().inside, ball.inside) and session.selected_name == "ball"
    with pytest.raises(InputError, match="expected words"):
        session.choose_by_words(" ")


def test_a_floater_is_chosen_to_be_deleted(session, run_folder, tiny_scene):
    lone = replace(tiny_scene.splats[:1].clone(), means=torch.tensor([[0.0, 0.9, 1.2]]))
    parts = {name: torch.cat([value, getattr(lone, name)]) for name, value in tiny_scene.splats.parameters().items()}
    write_splats(Splats(**parts), run_folder / "scenes" / "tiny" / "splats.ply")
    session.choose_scene("tiny")
    session.choose_floaters()
    assert session.chosen().inside[200] and session.chosen().inside.sum() < 20 and session.selected_name == "floaters"


def test_a_thing_is_removed_and_its_place_filled_as_from_the_shell(session, ball, run_folder):
    session.select(ball)
    session.change(GOLD)
    list(session.remove())
    kept = session.shown.kept
    assert kept is not None and kept.method == "remove" and session.selected is None
    assert read_json(kept.folder / "record.json", dict)["inputs"]["starts_from"] == session.versions[1].kept.record_id
    assert current_change(run_folder, "tiny") == kept.folder and not session.is_running
    session.undo()
    assert current_change(run_folder, "tiny") == session.versions[1].kept.folder


def test_a_version_has_a_name_that_the_run_keeps(session, ball, run_folder):
    with pytest.raises(InputError, match="the scene before any edit"):
        session.name_version("mine")
    session.select(ball, name="ball")
    session.change(Recolor(towards="gold"))
    with pytest.raises(InputError, match="not written into the run yet"):
        session.name_version("mine")
    list(session.keep())
    session.name_version("  golden  ")
    assert session.shown.label == "golden: recolor ball towards gold"
    session.change(Recolor(towards="red"))
    list(session.keep())
    again = ViewSession(run_folder)
    assert [version.label for version in again.versions][:2] == ["before", "golden: recolor ball towards gold"]
    assert "golden: recolor ball towards gold" in [kept.label for kept in again.kept_edits()]
    again.undo()
    again.name_version("")
    assert "golden" not in again.shown.label and read_history(run_folder, "tiny").names == {}
    with pytest.raises(InputError, match="at most 80 letters on one line"):
        again.name_version("a" * 81)


def test_a_scene_whose_last_change_was_removed_from_the_disk_opens_before_it(session, ball, run_folder):
    for operation in (GOLD, Move(by=(0.1, 0.0, 0.0))):
        session.select(ball)
        session.change(operation)
        list(session.keep())
    first, second = (version.kept.folder for version in session.versions if version.kept is not None)
    shutil.rmtree(second)
    with pytest.warns(UserWarning, match="is gone; what is shown is the scene before that change"):
        again = ViewSession(run_folder)
    assert again.shown.kept is not None and again.shown.kept.folder == first
    again.select(ball)
    again.change(Delete())
    list(again.keep())
    kept = [version.kept for version in again.versions if version.kept is not None]
    places = [one.folder.relative_to(run_folder).as_posix() for one in kept]
    assert list(read_history(run_folder, "tiny").current) == places and len(places) == 2
