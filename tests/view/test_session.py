import io
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from restage.cli import run as restage
from restage.edit.editors import EDITORS, Edited, ViewBatch
from restage.edit.methods import ReplaceOnce
from restage.edit.single import EditChoice
from restage.generate.generators import Blob, Sds
from restage.generate.scene import SceneOrder
from restage.recipes import edit_folder
from restage.records import EditRequest, InputError, read_json
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.references import GivenPicture
from restage.view import EditStopped, ViewSession, open_scenes
from restage.view.reference_control import keep_upload
from restage.view.scene import list_kept
from restage.view.versions import stop_between_layers
from restage.world.clips import sample_clip, write_clip
from tests.scenes.test_references import picture
from tests.tiny_models import write_tiny_models
from tests.view.conftest import QUICK

BLUE = EditRequest(instruction="make it blue", source_caption="", target_caption="")
FREE = EditRequest(instruction="make it green", source_caption="", target_caption="")


class LayeredEditor:
    """Works through many small layers, like a model, and says when it has begun."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.num_layers_done = 0

    def edit(self, batch: ViewBatch) -> Edited:
        layer, originals = torch.nn.Identity(), batch.originals
        for _ in range(1000):
            layer(batch.views)
            self.num_layers_done += 1
            self.has_begun.set()
        return Edited(originals, torch.ones(len(originals), *originals.shape[2:]))


class DimEditor:
    """Makes every view darker."""

    def edit(self, batch: ViewBatch) -> Edited:
        return Edited(batch.originals * 0.5, torch.ones_like(batch.originals[:, 0]))


DIM = EditChoice(method="replace_once", editor="edit_model", settings=ReplaceOnce(num_steps=2))


@pytest.fixture
def session(run_folder: Path) -> ViewSession:
    return ViewSession(run_folder)


def files_of(folder: Path) -> dict[str, object]:
    """Everything in a result folder; records without what differs from run to run."""
    files: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content: object = path.read_bytes()
        if path.name == "record.json":
            content = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("cost", "seal")}
        files[path.relative_to(folder).as_posix()] = content
    return files


def test_an_edit_is_kept_exactly_as_the_edit_command_keeps_it(session, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "other")
    list(session.edit(BLUE, QUICK))
    last = list(edit_folder(tmp_path / "other" / "scenes" / "tiny", [BLUE], QUICK))[-1]
    kept = session.shown.kept
    assert kept is not None
    assert kept.folder.relative_to(run_folder) == Path(last.note).relative_to(tmp_path / "other")
    assert files_of(kept.folder) == files_of(Path(last.note))
    assert read_json(run_folder / "run.json")["status"] == "done"


def test_the_steps_of_an_edit_end_with_the_version_that_is_shown(session):
    *_, last = session.edit(BLUE, QUICK)
    assert len(session.versions) == 2 and session.position == 1
    assert torch.allclose(last.splats.sh, session.shown.splats.sh, atol=1e-6)
    assert not torch.equal(session.shown.splats.sh, session.before.sh)


def test_the_scene_before_is_never_written_to(session, run_folder, monkeypatch):
    monkeypatch.setitem(EDITORS, "edit_model", lambda source: DimEditor())
    path = run_folder / "scenes" / "tiny" / "splats.ply"
    content, before = path.read_bytes(), session.before.clone()
    list(session.edit(BLUE, QUICK))
    list(session.edit(FREE, DIM, is_chained=True))
    assert path.read_bytes() == content
    assert all(torch.equal(value, session.before.parameters()[name]) for name, value in before.parameters().items())


def test_undo_and_redo_go_through_the_versions(session):
    list(session.edit(BLUE, QUICK))
    edited = session.shown
    assert session.undo().kept is None and session.shown.splats is session.before
    assert not session.can_undo and session.can_redo
    assert session.redo() is edited
    with pytest.raises(InputError, match="nothing to redo"):
        session.redo()


def test_an_edit_after_an_undo_drops_what_could_be_redone_but_keeps_its_record(session):
    list(session.edit(BLUE, QUICK))
    first = session.shown.kept
    assert first is not None
    session.undo()
    list(session.edit(BLUE, EditChoice(method="replace_once", editor="exact", settings=ReplaceOnce(num_steps=2))))
    assert [version.kept.method for version in session.versions[1:] if version.kept] == ["replace_once"]
    assert first.folder in [kept.folder for kept in session.kept_edits()]
    assert session.open_kept(first.folder).kept == first


def test_an_edit_made_before_is_opened_without_a_step(session, run_folder):
    list(session.edit(BLUE, QUICK))
    again = ViewSession(run_folder)
    assert list(again.edit(BLUE, QUICK)) == []
    assert again.shown.kept == session.shown.kept


def test_a_second_edit_is_asked_to_wait(session):
    running = session.edit(BLUE, QUICK)
    next(running)
    assert session.is_running
    with pytest.raises(InputError, match="an edit is running; wait"):
        next(session.edit(FREE, QUICK))
    with pytest.raises(InputError, match="while an edit is running"):
        session.undo()
    list(running)
    assert not session.is_running and len(session.versions) == 2


def test_a_stopped_edit_leaves_nothing_and_the_next_one_runs(session, run_folder):
    running = session.edit(BLUE, QUICK)
    next(running)
    session.stop()
    with pytest.raises(EditStopped):
        list(running)
    assert not session.is_running and session.shown.kept is None
    assert not list(run_folder.glob("edit/**/splats.ply"))
    assert read_json(run_folder / "run.json")["status"] == "stopped"
    list(session.edit(BLUE, QUICK))
    assert session.shown.kept is not None


def test_a_scene_grows_from_words_goes_on_after_a_stop_and_is_then_shown(session, run_folder, tmp_path, monkeypatch):
    small = Sds(num_steps=4, num_pictures=1, blob=Blob(num_splats=60, num_ground=40, num_sky=20))
    monkeypatch.setattr("restage.generate.scene.make_generator", lambda name, preset: small)
    monkeypatch.setattr("restage.generate.scene.NUM_VIEWS", 8)
    model = write_tiny_models(tmp_path / "models") / "text_to_image"
    order = SceneOrder(captions=("a red cone",), generator="sds", model=model)
    growing = session.generate(order)
    first = next(growing)
    assert (first.step, first.num_steps, len(first.splats)) == (1, 4, 120)
    session.stop()
    with pytest.raises(EditStopped, match="go on from here"):
        list(growing)
    assert session.scene.name == "tiny" and not session.is_running
    assert [step.step for step in session.generate(order)][-1] == 4
    assert session.scene.name == "a-red-cone-0" and session.why_not_edit == ""
    assert set(session.scenes) == {"tiny", "a-red-cone-0"}
    session.choose_scene("tiny")


def test_stop_reaches_an_editor_in_the_middle_of_its_layers(session, monkeypatch):
    editor = LayeredEditor()
    monkeypatch.setitem(EDITORS, "edit_model", lambda source: editor)
    threading.Thread(target=lambda: (editor.has_begun.wait(), session.stop()), daemon=True).start()

    class Waiting(torch.nn.Module):
        def forward(self, views):
            if editor.num_layers_done > 100:
                assert session._stop.wait(timeout=20)
            return views

    monkeypatch.setattr(torch.nn, "Identity", Waiting)
    with pytest.raises(EditStopped):
        list(session.edit(FREE, EditChoice(method="restage", editor="edit_model")))
    assert 0 < editor.num_layers_done < 1000


def test_other_threads_and_later_work_are_not_stopped():
    stop, layer = threading.Event(), torch.nn.Identity()
    stop.set()
    outcomes = []
    with stop_between_layers(stop):
        thread = threading.Thread(target=lambda: outcomes.append(layer(torch.ones(1))))
        thread.start()
        thread.join()
        with pytest.raises(EditStopped):
            layer(torch.ones(1))
    assert layer(torch.ones(1)) == 1 and len(outcomes) == 1


def test_a_failing_edit_raises_and_the_session_goes_on(session, monkeypatch):
    def fail(source):
        raise RuntimeError("the weights are broken")

    monkeypatch.setitem(EDITORS, "edit_model", fail)
    with pytest.raises(RuntimeError, match="weights are broken"):
        list(session.edit(FREE, EditChoice()))
    list(session.edit(BLUE, QUICK))
    assert session.shown.kept is not None


def test_an_edit_on_top_starts_from_what_is_shown_and_says_so(session, monkeypatch):
    monkeypatch.setitem(EDITORS, "edit_model", lambda source: DimEditor())
    list(session.edit(BLUE, QUICK))
    first = session.shown
    assert first.kept is not None
    list(session.edit(FREE, DIM, is_chained=True))
    on_top = session.shown
    assert on_top.kept is not None
    assert read_json(on_top.kept.folder / "record.json")["inputs"]["starts_from"] == first.kept.record_id
    session.undo()
    session.undo()
    list(session.edit(FREE, DIM))
    alone = session.shown
    assert alone.kept is not None and alone.kept.folder != on_top.kept.folder
    to_first = (on_top.splats.sh - first.splats.sh).abs().mean()
    assert to_first < (alone.splats.sh - first.splats.sh).abs().mean()


def test_other_settings_make_another_result(session):
    folders = set()
    for num_steps in (400, 2, 3):
        choice = EditChoice(method="replace_once", editor="exact", settings=ReplaceOnce(num_steps=num_steps))
        running = session.edit(BLUE, choice)
        if num_steps == 400:
            next(running)
            running.close()
            continue
        list(running)
        folders.add(session.shown.kept.folder)
    assert len(folders) == 2


def test_what_is_saved_is_what_is_shown(session, tmp_path):
    list(session.edit(BLUE, QUICK))
    session.save_splats(tmp_path / "out.ply")
    assert torch.equal(read_splats(tmp_path / "out.ply").sh, session.shown.splats.sh)


def test_the_truth_that_goes_with_a_version_is_that_of_its_edit(session):
    assert session.case == "blue"
    list(session.edit(BLUE, QUICK))
    assert session.case == "blue"


@pytest.mark.parametrize("inside", ["", "scenes/tiny", "scenes/tiny/capture"])
def test_a_run_a_scene_and_its_capture_open_the_same_scene(run_folder, inside):
    session = ViewSession(run_folder / inside)
    assert session.scene.name == "tiny" and len(session.before) == 200
    assert session.scene.capture is not None and not session.why_not_edit


def test_an_edit_of_a_file_of_splats_makes_its_run_and_is_kept_there(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "ball.spz"
    write_splats(read_splats(run_folder / "scenes" / "tiny" / "splats.ply"), file)
    session = ViewSession(file)
    assert len(session.before) == 200 and session.scene.capture is None and not session.why_not_edit
    before = session.before
    list(session.edit(FREE, EditChoice(method="replace_once", editor="grade", settings=ReplaceOnce(num_steps=2))))
    kept = session.shown.kept
    assert kept is not None and kept.folder.is_relative_to(Path("runs") / "ball" / "edit" / "ball")
    assert session.scene.capture is not None and session.before is before
    assert torch.equal(before.means, read_splats(Path("runs/ball/scenes/ball/splats.ply")).means)
    session.save_splats(tmp_path / "out.ply")
    # In the file's own frame, where y is down: grade leaves the centers nearly where they were.
    moved = (read_splats(tmp_path / "out.ply").means - read_splats(file).means).norm(dim=1)
    assert float(moved.median()) < 0.02


def test_a_scene_outside_of_a_run_is_not_edited(run_folder, tmp_path):
    shutil.copytree(run_folder / "scenes" / "tiny", tmp_path / "alone")
    session = ViewSession(tmp_path / "alone")
    assert "in no run folder" in session.why_not_edit


def test_a_clip_is_no_scene_and_its_pictures_are_named(tmp_path):
    write_clip(sample_clip(0, num_frames=2, size=16), tmp_path / "first")
    with pytest.raises(InputError, match=r"first is a clip of pictures, not a scene; look at .*first.clip\.webp$"):
        ViewSession(tmp_path / "first")


def test_edits_of_the_edits_command_are_offered(session, run_folder):
    assert restage(["edits", str(run_folder), "--methods", "replace_once", "--editors", "exact"]) == 0
    (kept,) = list_kept(session.scene)
    assert (kept.edit, kept.method, kept.editor) == ("blue", "replace_once", "exact")


def test_a_run_of_two_scenes_lets_one_choose(run_folder):
    shutil.copytree(run_folder / "scenes" / "tiny", run_folder / "scenes" / "other")
    session = ViewSession(run_folder)
    assert list(session.scenes) == ["other", "tiny"]
    session.choose_scene("tiny")
    assert session.scene.name == "tiny"
    with pytest.raises(InputError, match="no scene 'third'; there are: other, tiny"):
        session.choose_scene("third")


def test_paths_with_nothing_to_show_say_what_to_do(tmp_path, run_folder):
    (tmp_path / "empty").mkdir()
    shutil.copytree(run_folder / "scenes" / "tiny" / "capture", tmp_path / "unfitted")
    for path, words in ((tmp_path / "no", "does not exist"), (tmp_path / "empty", "restage fit")):
        with pytest.raises(InputError, match=words):
            open_scenes(path)
    with pytest.raises(InputError, match="capture without a fit; run: restage fit"):
        open_scenes(tmp_path / "unfitted")


def test_an_uploaded_picture_is_kept_with_the_scene_and_asked_for(session: ViewSession, monkeypatch) -> None:
    class Copier(DimEditor):
        takes_references = True

        def edit(self, batch: ViewBatch) -> Edited:
            assert len(batch.references) == 1
            return super().edit(batch)

    monkeypatch.setitem(EDITORS, "edit_model", lambda source: Copier())
    kept = keep_upload(session, GivenPicture(picture(), name="photo.png"))
    assert session.scene.folder is not None
    assert (session.scene.folder / "references" / kept.picture).read_bytes() == picture()
    request = replace(FREE, references=(kept,))
    assert list(session.edit(request, DIM))
    assert session.shown.kept is not None
    record = read_json(session.shown.kept.folder / "record.json")
    assert record["request"]["references"] == [{"picture": kept.picture}]
    with pytest.raises(InputError, match="is not readable as an image"):
        keep_upload(session, GivenPicture(b"no picture", name="text.png"))
    masked = keep_upload(session, GivenPicture(picture(), picture(), "photo.png"))
    assert masked.mask and (session.scene.folder / "references" / masked.mask).read_bytes() == picture()
    small = io.BytesIO()
    Image.new("L", (3, 2)).save(small, "png")
    with pytest.raises(InputError, match="the mask of photo.png has 3x2 pixels"):
        keep_upload(session, GivenPicture(picture(), small.getvalue(), "photo.png"))
    monkeypatch.setattr("restage.view.reference_control.MAX_BYTES", 10)
    with pytest.raises(InputError, match="expected pictures of at most"):
        keep_upload(session, GivenPicture(picture(), name="photo.png"))
