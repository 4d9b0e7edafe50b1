"""A fit as files: what is written, what is recognised, and that a stop or a kill costs nothing but time."""

import itertools
import re
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image

from restage.records import InputError, Progress, read_json
from restage.scenes.capture import Capture
from restage.scenes.config import FitConfig
from restage.scenes.io.splat_files import read_splats
from restage.scenes.stage import capture_sha256, fit_capture
from tests.scenes.ball import ball_capture, equal

TIMED = {"seconds": 0, "seal": ""}
"""What differs between equal fits: their time, and the seal over it."""

SMALL = FitConfig(steps=30, num_splats=150, cull_every=10, seed=3)
EVERYTHING = replace(
    SMALL,
    fits_exposure=True,
    stop_gain=1e-6,
    coarse_share=0.3,
    other_decay=0.1,
)
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from restage.scenes import stage
from tests.scenes.ball import ball_capture
from tests.scenes.test_fitted import EVERYTHING

stage.SAVE_EVERY_S = 0.0
whole_save, saves = torch.save, []

def save(state, path):
    saves.append(path)
    if len(saves) == 17:
        Path(path).write_bytes(b"half a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)
    whole_save(state, path)

torch.save = save
list(stage.fit_capture(ball_capture(), Path(sys.argv[1]), EVERYTHING))
"""


@pytest.fixture(scope="module")
def capture() -> Capture:
    return ball_capture()


def run(steps):
    return list(steps)[-1]


def test_a_stopped_fit_ends_like_an_undisturbed_one(capture, tmp_path, monkeypatch):
    monkeypatch.setattr("restage.scenes.stage.SAVE_EVERY_S", 0.0)
    run(fit_capture(capture, tmp_path / "whole", SMALL))
    steps = cast(Generator[Progress], fit_capture(capture, tmp_path / "stopped", SMALL))
    for _ in range(14):
        next(steps)
    steps.close()
    assert (tmp_path / "stopped" / "fit_state.pt").exists()
    assert not (tmp_path / "stopped" / "fit.json").exists()
    resumed = list(fit_capture(capture, tmp_path / "stopped", SMALL))
    assert resumed[0].done in (14, 15)
    assert equal(read_splats(tmp_path / "whole" / "splats.ply"), read_splats(tmp_path / "stopped" / "splats.ply"))
    whole, stopped = (read_json(tmp_path / name / "fit.json") for name in ("whole", "stopped"))
    assert {**whole, **TIMED} == {**stopped, **TIMED}
    assert len(whole["held_out_psnr_db_by_view"]) == 2
    assert (tmp_path / "whole" / "held_out.png").exists()
    assert not list(tmp_path.glob("*/*.pt"))
    assert [step.note for step in fit_capture(capture, tmp_path / "whole", SMALL)] == ["fitted before"]


def test_a_preview_shows_held_out_views_while_a_fit_works(capture, tmp_path, monkeypatch):
    monkeypatch.setattr("restage.scenes.stage.PEEK_EVERY_S", 0.0)
    run(fit_capture(capture, tmp_path / "whole", SMALL))
    steps = fit_capture(capture, tmp_path / "watched", SMALL)
    note = next(itertools.islice(steps, 20, None)).note
    assert re.search(r"held-out views \d+\.\d dB \(preview\.png\)", note)
    with Image.open(tmp_path / "watched" / "preview.png") as preview:
        assert preview.size == (2 * capture.cameras.width, 2 * capture.cameras.height)
    run(steps)
    assert not (tmp_path / "watched" / "preview.png").exists()
    assert equal(read_splats(tmp_path / "whole" / "splats.ply"), read_splats(tmp_path / "watched" / "splats.ply"))


def test_a_fit_killed_while_it_wrote_a_checkpoint_ends_like_an_undisturbed_one(capture, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")], cwd=Path(__file__).parents[2], timeout=300
    )
    assert child.returncode == -9
    resumed = list(fit_capture(capture, tmp_path / "killed", EVERYTHING))
    assert resumed[0].done == 17
    run(fit_capture(capture, tmp_path / "whole", EVERYTHING))
    assert equal(read_splats(tmp_path / "whole" / "splats.ply"), read_splats(tmp_path / "killed" / "splats.ply"))
    whole, killed = (read_json(tmp_path / name / "fit.json") for name in ("whole", "killed"))
    assert {**whole, **TIMED} == {**killed, **TIMED}


def test_a_finished_fit_is_recognised_by_its_config_and_its_capture(capture, tmp_path):
    run(fit_capture(capture, tmp_path, replace(SMALL, steps=2)))
    with pytest.raises(InputError, match="another config"):
        next(iter(fit_capture(capture, tmp_path, replace(SMALL, steps=3))))
    other = replace(capture, images=1 - capture.images)
    with pytest.raises(InputError, match="other views"):
        next(iter(fit_capture(other, tmp_path, replace(SMALL, steps=2))))
    assert run(fit_capture(ball_capture(), tmp_path, replace(SMALL, steps=2))).note == "fitted before"


def test_whatever_a_fit_depends_on_is_in_the_hash_of_its_capture(capture):
    cameras = replace(capture.cameras, camera_to_world=capture.cameras.camera_to_world + 0.01)
    changes = [
        {"images": capture.images + 0.001},
        {"cameras": cameras},
        {"points": capture.points[:-1], "point_colors": capture.point_colors[:-1]},
        {"train_indices": (0, 1), "held_out_indices": (2, 3)},
        {"masks": torch.ones(8, 24, 24)},
    ]
    hashes = {capture_sha256(replace(capture, **change)) for change in changes}
    assert len(hashes | {capture_sha256(capture)}) == 6
    assert capture_sha256(ball_capture()) == capture_sha256(capture)


def test_a_checkpoint_of_another_capture_is_not_used(capture, tmp_path, monkeypatch):
    monkeypatch.setattr("restage.scenes.stage.SAVE_EVERY_S", 0.0)
    steps = cast(Generator[Progress], fit_capture(capture, tmp_path, SMALL))
    for _ in range(3):
        next(steps)
    steps.close()
    other = replace(capture, images=1 - capture.images)
    assert next(iter(fit_capture(other, tmp_path, SMALL))).done == 1


@pytest.mark.parametrize(("every_s", "num_looks"), [(1e9, 0), (0.0, SMALL.steps)])
def test_held_out_views_are_shown_now_and_then(capture, tmp_path, monkeypatch, every_s, num_looks):
    monkeypatch.setattr("restage.scenes.stage.PEEK_EVERY_S", every_s)
    monkeypatch.setattr("restage.scenes.stage.PEEK_SHARE", 1e9)
    shown = []
    monkeypatch.setattr("restage.scenes.stage._strip", lambda *views: shown.append(views) or torch.zeros(4, 4, 3))
    notes = [step.note for step in fit_capture(capture, tmp_path, SMALL)]
    assert len(shown) == num_looks + 1  # and the one that stays
    assert ["held-out" in note for note in notes] == [bool(num_looks)] * SMALL.steps


def test_a_broken_state_is_named(capture, tmp_path):
    (tmp_path / "fit_state.pt").write_bytes(b"not a state")
    with pytest.raises(InputError, match="delete it"):
        next(iter(fit_capture(capture, tmp_path, SMALL)))
