"""A request's pictures reach editors that look at them, and are refused by the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from restage.audit.records import check_records
from restage.cli import run as restage
from restage.edit.editors import EDITORS
from restage.edit.editors.exact import ExactEditor, NoisyEditor
from restage.edit.editors.interface import Edited, KnownScores, ViewBatch, score_model_of
from restage.edit.editors.referenced import show_references
from restage.edit.editors.settled import SettledEditor
from restage.edit.methods import ReplaceOnce
from restage.edit.single import EditChoice, open_edit
from restage.records import EditCase, EditRequest, InputError, read_json, write_json
from restage.run.folder import RunFolder
from restage.scenes.references import GivenPicture, ShownPicture, read_references
from tests.scenes.test_references import mask, picture


class Copier:
    """Paints views in the color of the reference."""

    takes_references = True

    def edit(self, batch: ViewBatch) -> Edited:
        (reference,) = batch.references
        color = reference.picture.mean(dim=(1, 2))[:, None, None]
        return Edited(color.expand_as(batch.originals).clone(), torch.ones_like(batch.originals[:, 0]))


@pytest.fixture
def run(tiny_scene, tmp_path: Path) -> RunFolder:
    run = RunFolder.open(tmp_path / "run", EditChoice(), seed=0)
    tiny_scene.write(run.path / "scenes" / "tiny")
    return run


CHOICE = EditChoice(method="replace_once", editor="grade", settings=ReplaceOnce(num_steps=2))


def ask(run: RunFolder, content: bytes = b"") -> EditRequest:
    references = (GivenPicture(content or picture()).keep(run.path / "scenes" / "tiny"),)
    return EditRequest(instruction="as in the picture", source_caption="", target_caption="", references=references)


def test_an_edit_by_a_picture_keeps_it_in_its_record_and_each_picture_is_an_edit_of_its_own(run, monkeypatch) -> None:
    monkeypatch.setitem(EDITORS, "grade", lambda source: Copier())
    folders = []
    for content in (picture(), picture(8)):
        request = ask(run, content)
        opened = open_edit(run, run.path / "scenes" / "tiny", request=request, choice=CHOICE)
        assert len(list(opened.steps)) > 0
        record = json.loads((opened.folder / "record.json").read_text())
        assert record["request"]["references"] == [{"picture": request.references[0].picture}]
        folders.append(opened.folder)
    assert folders[0] != folders[1]
    again = open_edit(run, run.path / "scenes" / "tiny", request=ask(run), choice=CHOICE)
    assert again.folder == folders[0] and not list(again.steps)
    findings = _check(run.path)
    assert not findings
    kept = run.path / "scenes" / "tiny" / "references" / ask(run).references[0].picture
    kept.write_bytes(picture(4))
    assert [(found.reason, found.file) for found in _check(run.path)] == [
        ("changed", kept.relative_to(run.path).as_posix())
    ]
    kept.unlink()
    assert [found.reason for found in _check(run.path)] == ["missing"]


def _check(path: Path) -> list:
    steps = check_records(path)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return [found for found in stop.value.findings if "references" in found.file]


def test_editors_that_look_at_one_picture_say_so_in_one_line(run, capsys) -> None:
    (run.path / "photo.png").write_bytes(picture())
    folder = run.path / "scenes" / "tiny"
    asked = ["edit", str(folder), "make it golden", "--editor", "grade", "--reference", str(run.path / "photo.png")]
    assert restage(asked) == 2
    assert "this editor looks at no picture but the view; omit --reference" in capsys.readouterr().err
    assert not (run.path / "edit").exists()


def test_the_exact_editor_knows_the_truth_of_a_request_with_its_picture_alone(run, tiny_scene) -> None:
    folder = run.path / "scenes" / "tiny"
    request = ask(run)
    case = EditCase(scene="tiny", kind="look", request=request, has_truth=True)
    write_json(folder / "truth" / "blue" / "edit.json", case)
    choice = EditChoice(method="replace_once", editor="exact", settings=ReplaceOnce(num_steps=2))
    assert list(open_edit(run, folder, request=request, choice=choice).steps)
    with pytest.raises(InputError, match="the exact editor needs a truth folder"):
        open_edit(run, folder, request=ask(run, picture(8)), choice=choice)


def test_what_goes_around_an_editor_hands_pictures_on(tiny_scene) -> None:
    shown = (ShownPicture(torch.rand(3, 5, 7)),)
    views = tiny_scene.capture.images[:2]
    batch = ViewBatch(views, views, request=tiny_scene.request, view_indices=(0, 1), noise_level=1.0, seed=0)
    settled = show_references(SettledEditor(Copier()), shown)
    assert isinstance(settled, SettledEditor)
    for editor in (settled, show_references(NoisyEditor(editor=Copier()), shown)):
        edited = editor.edit(batch)
        assert torch.allclose(edited.images.mean(dim=(2, 3))[0], shown[0].picture.mean(dim=(1, 2)), atol=1e-5)
    exact = ExactEditor(Path("nowhere"), ())
    assert show_references(exact, ()) is exact
    assert isinstance(score_model_of(show_references(exact, shown)), KnownScores)


def test_a_mask_says_which_part_of_a_picture_is_meant(run) -> None:
    kept = GivenPicture(picture(), mask()).keep(run.path)
    request = EditRequest(instruction="as it", source_caption="", target_caption="", references=(kept,))
    assert read_references(run.path, request)[0].mask is not None
    assert read_json(_write(run.path, request), EditRequest) == request


def _write(folder: Path, request: EditRequest) -> Path:
    write_json(folder / "request.json", request)
    return folder / "request.json"
