"""Fit, load and edit from Python: the same runs as from the shell, results that show themselves, errors in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import restage
from restage.api import _shown
from restage.cli import run
from restage.clips.films import write_film
from restage.edit.methods.replace_once import ReplaceOnce
from restage.records import InputError
from restage.scenes.io import write_capture
from restage.scenes.turning import export_splats
from tests.scenes.tiny_captures import small_capture
from tests.tiny_models import write_tiny_models

SETTINGS = ReplaceOnce(num_steps=6)
QUICK: dict[str, Any] = {"editor": "grade", "method": "replace_once", "settings": SETTINGS, "device": "cpu"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> restage.Scene:
    folder = tmp_path_factory.mktemp("api")
    write_capture(small_capture(), folder / "mine")
    return restage.fit(folder / "mine", folder / "run", steps=10, num_splats=300)


def test_a_fit_is_a_run_as_the_shell_makes_it(scene: restage.Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(scene.splats) == scene.record.num_splats
    assert len(scene.capture.cameras) == len(scene.capture.images)
    assert run(["show", str(scene.run)]) == 0
    assert "scene mine" in capsys.readouterr().out
    assert restage.load(scene.run).folder == scene.folder


def test_an_edit_changes_the_splats_and_another_starts_from_it(scene: restage.Scene) -> None:
    gold = restage.edit(scene, "make it golden", **QUICK)
    assert gold.record.editor == "grade" and not torch.equal(gold.splats.sh, scene.splats.sh)
    dark = restage.edit(gold, "make it bronze", **QUICK)
    assert dark.record.method == "replace_once" and dark.scene == scene
    assert not torch.equal(dark.splats.sh, gold.splats.sh)
    loaded = restage.load(gold.folder)
    assert isinstance(loaded, restage.Edit) and loaded.record.id == gold.record.id
    assert dark.scores == {}


def test_a_caption_becomes_a_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_models(tmp_path / "models") / "text_to_image"
    monkeypatch.setattr("restage.generate.scene.NUM_VIEWS", 8)
    monkeypatch.chdir(tmp_path)
    made = restage.generate("a red cone", generator="sds", model=model, num_steps=2, device="cpu")
    assert made.folder == Path("runs/a-red-cone/scenes/a-red-cone-0")
    assert made.record.num_splats == len(made.splats) and "data:image/png" in made._repr_html_()
    assert restage.load("runs/a-red-cone").folder == made.folder


def test_results_show_themselves_in_a_notebook(scene: restage.Scene) -> None:
    edit = restage.edit(scene, "make it golden", **QUICK)
    for shown, heads in ((scene._repr_html_(), ["fit"]), (edit._repr_html_(), ["before", "after"])):
        assert re.findall(r"<th>(fit|before|after)</th>", shown)[: len(heads)] == heads
        assert shown.count("data:image/png;base64,") % len(heads) == 0 and "data:image/png" in shown
        assert shown.count("<img alt=") == shown.count("<img")
    assert "make it golden" in edit._repr_html_()
    assert "<b>" not in _shown([[]], ["<b>"], {"<b>": "<b>"})


def test_a_film_is_edited_and_shows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_film(Path("walk.mp4"), torch.rand(4, 3, 32, 48), frames_per_s=5.0)
    gold = restage.edit("walk.mp4", "make it golden", editor="grade", size=32, out="runs/mine", device="cpu")
    assert isinstance(gold, restage.ClipEdit) and gold.film.is_file() and gold.scores["progress"] > 0.5
    assert len(gold.frames) == len(gold.clip.frames) == 4 and gold.frames.read([3]).shape[0] == 1
    again = restage.edit(gold.clip, "turn it to night", editor="grade", method="per_frame", device="cpu")
    assert again.clip == gold.clip and again.record.method == "per_frame"
    for found in (gold.clip.run, gold.clip.folder):
        loaded = restage.load(found)
        assert isinstance(loaded, restage.Clip) and loaded.folder.samefile(gold.clip.folder)
    loaded = restage.load(gold.folder)
    assert isinstance(loaded, restage.ClipEdit) and loaded.record.id == gold.record.id
    shown = gold._repr_html_()
    assert "data:video/mp4;base64," in shown and shown.count("<img alt=") == 6 and "make it golden" in shown
    assert "data:image/png;base64," in gold.clip._repr_html_()
    monkeypatch.setattr("restage.api.SHOWN_FILM_BYTES", 0)
    assert "<video" not in gold._repr_html_()
    with pytest.raises(InputError, match="only scenes"):
        restage.edit(gold.clip, "make it golden", region="bear")
    with pytest.raises(InputError, match="unknown settings strength"):
        restage.edit(gold.clip, "make it golden", strength=0.5)
    with pytest.raises(InputError, match="edit its film"):
        restage.edit(gold.folder, "make it red")


def test_what_cannot_be_used_is_one_line(scene: restage.Scene, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown settings stepz"):
        restage.fit(tmp_path, stepz=10)
    with pytest.raises(InputError, match="unknown settings colour"):
        restage.edit(scene, "make it golden", colour="red")
    with pytest.raises(InputError, match="this is a scene"):
        restage.edit(scene, "make it golden", size=32)
    with pytest.raises(InputError, match="not a folder"):
        restage.load(tmp_path / "none")


def test_the_package_is_light_until_it_is_used() -> None:
    program = (
        "import sys, restage; assert not {'numpy', 'torch'} & set(sys.modules);"
        "restage.fit; import restage.edit.job, restage.generate"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_splats_of_others_become_scenes(scene: restage.Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = scene.run.parent / "mine"
    export_splats(scene.folder, Path("own.ply"), frame="own")
    taken = restage.fit(source, "taken", splats="own.ply")
    assert taken.record.num_splats == scene.record.num_splats and len(taken.capture.cameras) == len(
        scene.capture.cameras
    )
    with pytest.raises(InputError, match="omit steps"):
        restage.fit(source, "taken", splats="own.ply", steps=5)
    gold = restage.edit("own.ply", "make it golden", size=32, **QUICK)
    assert isinstance(gold, restage.Edit)
    assert gold.scene.folder == Path("runs/own/scenes/own") and gold.scene.capture.cameras.width == 32


def test_one_reference_may_be_given_as_it_is(scene: restage.Scene, tmp_path: Path) -> None:
    for reference in (str(tmp_path / "none.png"), tmp_path / "none.png", [tmp_path / "none.png"]):
        with pytest.raises(InputError, match=r"none\.png does not exist"):
            restage.edit(scene, "make it golden", reference=reference, **QUICK)
    with pytest.raises(InputError, match="a mask for each of 0 references"):
        restage.edit(scene, "make it golden", reference_mask=tmp_path / "none.png", **QUICK)
