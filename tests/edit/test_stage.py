import dataclasses
import json

import pytest
import torch

from restage.edit.config import EditConfig
from restage.edit.editors import Edited
from restage.edit.methods import Nothing, ReplaceOnce, Restage
from restage.edit.results import edit_scene, orbit_cameras
from restage.edit.stage import list_units, run_edit
from restage.records import EditCase, InputError, write_json
from restage.run.folder import RunFolder
from restage.scenes.cameras import project_points
from restage.scenes.io.splat_files import read_splats
from restage.work.task import EngineConfig

CONFIG = EditConfig(
    methods=("nothing", "replace_once", "restage"),
    editors=("exact",),
    settings={
        "replace_once": ReplaceOnce(num_steps=10),
        "restage": Restage(color_steps=4, shape_steps=4, num_key_views=4),
    },
)


@pytest.fixture
def run(tiny_scene, tmp_path) -> RunFolder:
    run = RunFolder.open(tmp_path / "run", CONFIG, seed=0)
    tiny_scene.write(run.path / "scenes" / "tiny")
    return run


def result_files(folder) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _comparable(path) for name, path in files.items() if name != "stage.json"}


def _comparable(path) -> bytes:
    if path.name != "record.json":
        return path.read_bytes()
    return json.dumps(
        {key: value for key, value in json.loads(path.read_text()).items() if key not in ("cost", "seal")}
    ).encode()


def test_a_result_folder_holds_what_the_conventions_name(run, tiny_scene):
    list(run_edit(run, CONFIG))
    folder = run.path / "edit" / "tiny" / "blue" / "restage-exact" / "0"
    assert {path.name for path in folder.iterdir()} == {
        "splats.ply",
        "held_out",
        "views",
        "masks",
        "orbit.mp4",
        "record.json",
    }
    assert {path.name for path in (folder / "held_out").iterdir()} == {"view_2.png", "view_6.png"}
    assert len(read_splats(folder / "splats.ply")) == len(tiny_scene.splats)
    assert (folder / "orbit.mp4").read_bytes()[4:8] == b"ftyp"
    record = json.loads((folder / "record.json").read_text())
    named = {key: record[key] for key in ("scene", "edit", "kind", "method", "editor", "seed", "status")}
    assert named == {
        "scene": "tiny",
        "edit": "blue",
        "kind": "recolour",
        "method": "restage",
        "editor": "exact",
        "seed": 0,
        "status": "done",
    }
    assert record["cost"]["seconds"] > 0
    assert not (run.path / "edit" / "tiny" / "blue" / "nothing-none" / "0" / "views").exists()


def test_a_stage_that_is_done_does_nothing(run):
    list(run_edit(run, CONFIG))
    (only,) = run_edit(run, CONFIG)
    assert only.note == "done before"


def test_a_kill_and_a_restart_end_with_the_same_files(run, tiny_scene, tmp_path):
    list(run_edit(run, CONFIG))
    killed = RunFolder.open(tmp_path / "killed", CONFIG, seed=0)
    tiny_scene.write(killed.path / "scenes" / "tiny")
    for progress in run_edit(killed, CONFIG):
        if "replace_once" in progress.note and "/10)" in progress.note:
            break
    assert not (killed.path / "edit" / "stage.json").exists()
    list(run_edit(killed, CONFIG))
    assert result_files(killed.path / "edit") == result_files(run.path / "edit")


def test_processes_make_the_files_that_one_process_makes(run, tiny_scene, tmp_path):
    list(run_edit(run, CONFIG, engine=EngineConfig(threads=1)))
    other = RunFolder.open(tmp_path / "local", CONFIG, seed=0)
    tiny_scene.write(other.path / "scenes" / "tiny")
    list(run_edit(other, CONFIG, engine=EngineConfig(engine="local", workers=2)))
    assert result_files(other.path / "edit") == result_files(run.path / "edit")


def test_an_edit_that_fails_is_a_record_with_its_reason_and_the_others_go_on(run):
    for path in (run.path / "scenes" / "tiny" / "truth" / "blue" / "images").iterdir():
        path.unlink()
    last = list(run_edit(run, CONFIG))[-1]
    assert (last.done, last.total) == (3, 3)
    record = json.loads((run.path / "edit" / "tiny" / "blue" / "replace_once-exact" / "0" / "record.json").read_text())
    assert record["status"] == "failed"
    assert "view_0.png does not exist" in record["reason"]
    assert (run.path / "edit" / "tiny" / "blue" / "nothing-none" / "0" / "record.json").exists()
    assert json.loads((run.path / "edit" / "stage.json").read_text())["facts"] == {"num_edits": 3, "num_failed": 2}


def test_the_exact_editor_on_an_edit_without_truth_is_a_failed_record(run, tiny_scene):
    case = EditCase(scene="tiny", kind="free", request=tiny_scene.request, has_truth=False)
    write_json(run.path / "scenes" / "tiny" / "truth" / "free" / "edit.json", case)
    list(run_edit(run, CONFIG))
    record = json.loads((run.path / "edit" / "tiny" / "free" / "restage-exact" / "0" / "record.json").read_text())
    assert (record["status"], record["kind"]) == ("failed", "free")
    assert "needs a truth folder" in record["reason"]


def test_a_missing_model_is_refused_before_any_work(run, tmp_path):
    config = EditConfig(methods=("nothing", "restage"), editors=("edit_model",))
    with pytest.raises(InputError, match="folder of a trained edit model"):
        list(run_edit(run, config, model=tmp_path / "none"))
    assert not (run.path / "edit").exists()


def test_nothing_is_run_once_per_seed_whatever_editors_there_are(run):
    config = EditConfig(methods=("nothing", "idu"), editors=("exact", "edit_model"), seeds=(0, 1))
    names = [f"{unit.method}-{unit.editor}-{unit.seed}" for unit in list_units(run.path, config)]
    assert names == [
        "nothing-none-0",
        "nothing-none-1",
        "idu-exact-0",
        "idu-exact-1",
        "idu-edit_model-0",
        "idu-edit_model-1",
    ]


def test_a_config_that_cannot_run_is_refused_in_one_line(run):
    with pytest.raises(InputError, match="unknown method magic; choose from nothing"):
        EditConfig(methods=("magic",))
    with pytest.raises(InputError, match="settings for idu"):
        EditConfig(methods=("nothing",), settings={"idu": Nothing()})
    with pytest.raises(InputError, match="no scene moon"):
        list_units(run.path, EditConfig(scenes=("moon",)))
    with pytest.raises(InputError, match="no edit pink"):
        list_units(run.path, EditConfig(edits=("pink",)))


def test_changed_settings_change_the_id_of_the_stage(run):
    list(run_edit(run, dataclasses.replace(CONFIG, methods=("nothing",), settings={})))
    with pytest.raises(InputError, match="another config"):
        list(run_edit(run, CONFIG))


@pytest.mark.parametrize("num_views", [1, 4])
def test_a_scene_without_truth_and_without_held_out_views_can_be_edited(tiny_scene, tmp_path, num_views):
    capture = tiny_scene.capture.select([0, 1, 3, 4][:num_views])

    class Darken:
        def edit(self, batch):
            return Edited(batch.originals * 0.5, torch.ones_like(batch.originals[:, 0]))

    steps = edit_scene(
        tiny_scene.splats,
        capture,
        request=tiny_scene.request,
        method=Restage(color_steps=40, shape_steps=5),
        editor=Darken(),
        seed=0,
        folder=tmp_path / "mine",
    )
    splats = list(steps)[-1].splats
    assert splats.sh[tiny_scene.is_ball, 0, 0].mean() < tiny_scene.splats.sh[tiny_scene.is_ball, 0, 0].mean() - 0.3
    assert json.loads((tmp_path / "mine" / "record.json").read_text())["status"] == "done"
    assert not (tmp_path / "mine" / "held_out").exists()
    assert (tmp_path / "mine" / "orbit.mp4").stat().st_size > 1000


def test_orbit_cameras_look_at_what_the_views_look_at(tiny_scene):
    cameras = orbit_cameras(tiny_scene.capture, 12)
    assert len(cameras) == 12
    for index in range(12):
        projected = project_points(torch.tensor([[0.0, 0.0, 0.2]]), cameras[index])
        assert torch.allclose(projected.pixels, torch.tensor([[16.0, 16.0]]), atol=1e-2)
