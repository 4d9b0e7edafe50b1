from __future__ import annotations

from pathlib import Path

import pytest

from restage.cli import run
from restage.clips.files import open_clip
from restage.clips.films import write_film
from restage.edit.clips.stage import is_clip
from restage.edit.pictures import write_image
from restage.recipes import clip_name
from restage.records import read_json
from restage.run.reading import EditRecord


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frames(count: int = 6) -> list:
    import torch

    return list(torch.rand(1, 3, 32, 40).expand(count, -1, -1, -1) * torch.linspace(0.5, 1, count).reshape(-1, 1, 1, 1))


def test_a_film_is_edited_from_the_shell(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_film(here / "walk.mp4", frames(), frames_per_s=5.0)
    assert run(["edit", "walk.mp4", "make it golden", "--editor", "grade", "--size", "32"]) == 0
    told = capsys.readouterr().out
    assert "progress" in told and "edited: runs/walk/edit/walk/make-it-golden/carried-grade/0/clip.mp4" in told
    folder = here / "runs" / "walk" / "edit" / "walk" / "make-it-golden" / "carried-grade" / "0"
    assert read_json(folder / "record.json", EditRecord).status == "done"
    assert run(["edit", "runs/walk", "make it golden", "--editor", "grade", "--method", "per_frame"]) == 0
    assert run(["show", "runs/walk"]) == 0
    assert "clip walk: 6 frames, 5 a second" in capsys.readouterr().out


def test_clips_are_made_from_the_shell(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, frame in enumerate(frames()):
        write_image(here / "shots" / f"{index}.png", frame)
    assert run(["clip", "clips/shots", "--film", "shots", "--every", "2", "--frames-per-s", "10"]) == 0
    clip = open_clip(here / "clips" / "shots")
    assert len(clip) == 3 and clip.record.frames_per_s == 5
    made = ["clip", "clips/world", "--edition", "1", "--motion", "sun", "--num-frames", "2", "--size", "24"]
    assert run([*made, "--edit-kinds", "ground"]) == 0
    assert len(list((here / "clips" / "world" / "truth").iterdir())) == 1
    assert run(made) == 2
    assert "holds a clip already" in capsys.readouterr().err


def test_what_clips_cannot_do_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_film(here / "walk.mp4", frames(), frames_per_s=5.0)
    for more, expected in (
        (["--then", "make it red"], "--then: only scenes"),
        (["--strength", "0.5"], "--strength: only scenes"),
        (["--reference-mask", "mask.png"], "--reference-mask: only scenes"),
        (["--method", "per_frame", "--editor", "nobody"], "unknown editor"),
    ):
        assert run(["edit", "walk.mp4", "make it golden", *more]) == 2
        assert expected in capsys.readouterr().err


def test_a_clip_is_told_from_a_scene(here: Path) -> None:
    write_film(here / "walk.mp4", frames(), frames_per_s=5.0)
    write_image(here / "shots" / "0.png", frames()[0])
    assert is_clip(here / "walk.mp4", "auto") and is_clip(here / "walk.mp4", "tokenflow")
    assert not is_clip(here / "walk.mp4", "idu")  # a scene is fitted to the film first
    assert is_clip(here / "shots", "per_frame") and not is_clip(here / "shots", "auto")


def test_one_frame_is_a_clip_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_film(here / "one.mp4", frames(1), frames_per_s=5.0)
    assert run(["edit", "one.mp4", "make it golden", "--editor", "grade", "--out", "runs/other"]) == 0
    assert "edited: runs/other/edit/one/make-it-golden" in capsys.readouterr().out
    assert len(open_clip(here / "runs" / "other" / "scenes" / "one")) == 1
    assert run(["edit", "runs/other", "make it golden", "--editor", "grade", "--out", "runs/third"]) == 2
    assert "of a run already" in capsys.readouterr().err


def test_a_clip_is_named_in_letters_that_paths_take_well() -> None:
    names = {
        "Прогулка.mp4": "clip",
        "-walk 2.mp4": "walk-2",
        "a..b.mov": "a..b",
        "my (first) film.mp4": "my-first-film",
    }
    assert {name: clip_name(Path(name)) for name in names} == names


def test_a_film_is_made_of_a_clip(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_film(here / "walk.mp4", frames(), frames_per_s=6.0)
    assert run(["clip", "short.webm", "--film", "walk.mp4", "--every", "2"]) == 0
    assert "clip: short.webm" in capsys.readouterr().out
    assert run(["clip", "clips/short", "--film", "short.webm"]) == 0
    clip = open_clip(here / "clips" / "short")
    assert len(clip) == 3 and clip.record.frames_per_s == 3
    capsys.readouterr()
    for wrong, expected in (
        (["clip", "short.webm", "--film", "walk.mp4"], "is there already"),
        (["clip", "other.mp4", "--edit-kinds", "ground"], "--edit-kinds is for"),
        (["clip", "clips/other", "--every", "2"], "give --film"),
    ):
        assert run(wrong) == 2
        assert expected in capsys.readouterr().err
    assert not (here / "other.mp4").exists() and not (here / "clips" / "other").exists()
