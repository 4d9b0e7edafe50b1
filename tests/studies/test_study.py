import contextlib
import math
import multiprocessing
import random
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from restage.cli import run as run_command
from restage.edit.job import EditStep
from restage.edit.methods import Nothing, ReplaceOnce
from restage.records import EditRequest, InputError, Score, read_json, write_json
from restage.scenes.config import FitConfig
from restage.scores.rows import read_scores, read_view_scores
from restage.studies.scenes import FolderScene
from restage.studies.study import MenuEditor, Study, StudyMethod, identity_of, list_units, load_study
from restage.studies.work import run_study
from restage.work.engine import TasksSetAside
from restage.work.task import EngineConfig
from tests.studies.tiny_study import Brighten, Dying, run_until, tiny_study

STUDY_FILE = "from tests.studies.tiny_study import tiny_study\n\nSTUDY = tiny_study()\n"
REPOSITORY = Path(__file__).parent.parent.parent


def run(study: Study, folder: Path, **options) -> list[Score]:
    for _ in run_study(study, folder, **options):
        pass
    return read_scores(folder / "compare" / "scores.parquet")


def numbers_of(folder: Path) -> list[str]:
    """All rows apart from costs, as text, since NaN is not equal to itself."""
    scores = [row for row in read_scores(folder / "compare" / "scores.parquet") if not row.is_cost]
    return [repr(row) for row in [*scores, *read_view_scores(folder / "compare" / "views.parquet")]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "tiny"
    run(tiny_study(), folder)
    return folder


def test_every_unit_has_a_row_of_every_metric_and_every_nan_a_reason(finished):
    rows = read_scores(finished / "compare" / "scores.parquet")
    units = list_units(tiny_study())
    assert len(units) == 2 * (1 + 1 + 1 + 1 + 2)
    assert len({(row.scene, row.edit, row.method, row.editor, row.seed) for row in rows}) == len(units)
    assert len(rows) % len(units) == 0
    assert [row for row in rows if math.isnan(row.value) and not row.reason] == []


def test_the_anchor_of_single_views_shows_truth_with_the_exact_editor_and_has_no_scene(finished):
    rows = [row for row in read_scores(finished / "compare" / "scores.parquet") if row.method == "per_view"]
    assert all(row.value == pytest.approx(1, abs=0.01) for row in rows if row.metric == "progress")
    assert {row.reason for row in rows if row.metric == "depth_error"} == {"the result's splats were not kept"}


def test_a_method_that_breaks_is_a_row_with_its_reason(finished):
    rows = [row for row in read_scores(finished / "compare" / "scores.parquet") if row.method == "failing"]
    assert {row.reason for row in rows if row.metric == "progress"} == {"failed: ValueError: out of paint"}


def test_the_true_depth_is_kept_and_measured(finished):
    rows = read_scores(finished / "compare" / "scores.parquet")
    found = [row.value for row in rows if (row.method, row.metric) == ("nothing", "depth_error")]
    assert all(0 < value < 1 for value in found)


def test_a_study_killed_at_three_moments_ends_with_the_rows_of_an_undisturbed_one(finished, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.studies.tiny_study"])
    for count in (7, 45, 60):  # in the first scene's truth, in a result's pictures, between a result and its scores
        process = context.Process(target=run_until, args=(tmp_path / "tiny", count))
        process.start()
        process.join()
        assert process.exitcode == -9, f"was not killed at file {count}"
    run(tiny_study(), tmp_path / "tiny")
    assert numbers_of(tmp_path / "tiny") == numbers_of(finished)


def test_what_is_there_is_not_made_again(finished):
    made = {path: path.stat().st_mtime_ns for path in (finished / "edit").rglob("*") if path.is_file()}
    run(tiny_study(), finished)
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        ({"judges": 5}, "judges"),
        ({"scores": [{"scene": 5}]}, "scene"),
        ({"views": {}}, "views"),
        ({"cost": []}, "cost"),
    ],
)
def test_kept_scores_of_wrong_types_are_refused_by_file_and_field(finished, tmp_path, damage, field):
    copy = tmp_path / "tiny"
    shutil.copytree(finished, copy)
    path = sorted((copy / "compare" / "results").glob("*.json"))[0]
    write_json(path, {**read_json(path), **damage})
    with pytest.raises(InputError, match=f"{path.name}.*{field}"):
        list(run_study(tiny_study(), copy))


def test_a_study_may_grow_and_keeps_what_it_has(finished, tmp_path):
    small = replace(tiny_study(), scenes=tiny_study().scenes[:1], seeds=(0,))
    folder = tmp_path / "tiny"
    before = run(small, folder)
    after = run(tiny_study(), folder)
    assert len(after) > len(before)
    assert numbers_of(folder) == numbers_of(finished)


def test_a_result_whose_settings_changed_under_its_name_is_refused(finished):
    methods = {**tiny_study().methods, "brighten": StudyMethod(settings=Brighten(amount=0.4), editors=())}
    with pytest.raises(InputError, match="give what changed another name"):
        run(tiny_study(methods=methods), finished)


def test_two_workers_make_the_rows_of_one(finished, tmp_path):
    file = tmp_path / "tiny_again.py"
    file.write_text(f"import sys\n\nsys.path.insert(0, {str(REPOSITORY)!r})\n{STUDY_FILE}")
    run(load_study(file), tmp_path / "tiny", engine=EngineConfig(workers=2), file=file)
    assert numbers_of(tmp_path / "tiny") == numbers_of(finished)


def test_a_worker_that_dies_over_an_edit_is_replaced_and_the_edit_made(tmp_path):
    died = tmp_path / "died"
    study = tiny_study(scenes=tiny_study().scenes[:1])
    study = replace(
        study, methods={**study.methods, "dying": StudyMethod(settings=Dying(die_once=str(died)), editors=())}
    )
    steps = list(run_study(study, tmp_path / "local", engine=EngineConfig(engine="local", workers=1)))
    assert died.exists() and any("ended with code 9" in step.note for step in steps)
    run(study, tmp_path / "inline")
    assert numbers_of(tmp_path / "local") == numbers_of(tmp_path / "inline")


def test_an_edit_over_which_every_worker_dies_is_a_row_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("restage.work.task.MAX_LOSSES", 2)
    dying = Dying(die_once=str(tmp_path / "no such folder" / "died"))  # so that it never knows that it died
    study = tiny_study(scenes=tiny_study().scenes[:1])
    study = replace(
        study, methods={"nothing": study.methods["nothing"], "dying": StudyMethod(settings=dying, editors=())}
    )
    run(study, tmp_path / "tiny", engine=EngineConfig(engine="local", workers=1))
    rows = [row for row in read_scores(tmp_path / "tiny" / "compare" / "scores.parquet") if row.metric == "progress"]
    reasons = {row.method: row.reason for row in rows}
    assert reasons["nothing"] == "" and "lost 2 workers, the last: its process ended with code 9" in reasons["dying"]


def test_a_scene_that_cannot_be_made_is_named_and_the_other_one_is_done(tmp_path):
    study = tiny_study()
    for _ in run_study(study, tmp_path / "tiny2"):
        break
    (tmp_path / "tiny2" / "scenes").mkdir(exist_ok=True)
    shutil.rmtree(tmp_path / "tiny2" / "scenes" / "world-000", ignore_errors=True)
    (tmp_path / "tiny2" / "scenes" / "world-000").write_text("in the way")
    with pytest.raises(TasksSetAside, match="the first: world-000, "):
        run(study, tmp_path / "tiny2", engine=EngineConfig(engine="local", workers=1))
    made = {path.parts[-5] for path in (tmp_path / "tiny2" / "edit").rglob("record.json")}
    assert made == {"world-001"}


@dataclass(frozen=True)
class Cheater:
    """Looks for the truth of held-out views, and says nothing when it is caught."""

    way: str

    def run(self, job):
        yield EditStep(0, 1, 0.0, job.splats, "before")
        with contextlib.suppress(Exception):
            if self.way == "file":
                exact = job.editor.editor.editor
                next(iter(sorted(exact.truth.glob("images/*.png")))).read_bytes()
            elif self.way == "editor":
                held_out = sorted(set(range(6)) - set(job.view_indices))[:1]
                batch = job.batch([0], noise_level=1.0, seed=0)
                job.editor.edit(replace(batch, view_indices=tuple(held_out)))
            else:
                truth = job.editor.editor.editor.truth
                (truth.parent.parent / "capture" / "transforms.json").read_text()
        yield EditStep(1, 1, 0.0, job.splats, "after")


def test_a_method_that_reads_held_out_views_or_cameras_fails_whatever_it_catches(finished, tmp_path):
    methods = {way: StudyMethod(settings=Cheater(way)) for way in ("file", "editor", "camera")}
    study = tiny_study(methods={**methods, "nothing": StudyMethod(settings=Nothing())}, scenes=tiny_study().scenes[:1])
    rows = [row for row in run(study, tmp_path / "tiny") if row.metric == "progress"]
    reasons = {row.method: row.reason for row in rows}
    assert reasons.pop("nothing") == ""
    assert set(reasons) == set(methods)
    for way, reason in reasons.items():
        assert reason.startswith("failed: HeldOutRead: the method read held-out data"), way


def test_a_capped_method_is_said_to_be_capped(tmp_path):
    methods = {"replace_once": StudyMethod(settings=ReplaceOnce(num_steps=50))}
    study = tiny_study(methods=methods, scenes=tiny_study().scenes[:1], time_cap_s=1e-6)
    rows = {row.metric: row for row in run(study, tmp_path / "tiny")}
    assert rows["is_capped"].value == 1
    assert rows["is_capped"].is_cost
    record = read_json(next((tmp_path / "tiny" / "edit").rglob("record.json")))
    assert record["num_steps"] < 50


def test_a_users_capture_without_truth_is_edited_and_judged_by_what_needs_none(finished, tmp_path):
    request = EditRequest(instruction="make it blue", source_caption="a red ball", target_caption="a blue ball")
    scene = FolderScene(
        name="mine",
        folder=finished / "scenes" / "world-000" / "capture",
        requests={"blue": request},
        is_upright=True,
        fit=FitConfig(steps=10, num_splats=100),
    )
    study = tiny_study(scenes=(scene,), methods={"brighten": StudyMethod(settings=Brighten(), editors=())})
    rows = {row.metric: row for row in run(study, tmp_path / "tiny")}
    assert rows["progress"].reason == "no truth to measure against"
    assert -1 < rows["clip_direction"].value < 1


def test_identity_knows_settings_and_seeds_but_not_other_edits_or_places():
    study = tiny_study()
    unit = list_units(study)[-1]
    editors = {"exact": MenuEditor(name="exact", model=Path("here/model"))}
    moved = {"exact": MenuEditor(name="exact", model=Path("there/model"))}
    assert identity_of(replace(study, editors=editors), unit) == identity_of(replace(study, editors=moved), unit)
    assert identity_of(replace(study, seed=1), unit) != identity_of(study, unit)
    assert identity_of(study, replace(unit, seed=7)) != identity_of(study, unit)


def test_a_folder_of_another_study_is_refused(finished):
    with pytest.raises(InputError, match="holds something other than study 'other'"):
        run(tiny_study(name="other"), finished)


def test_a_file_without_a_study_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("STUDY = 3\n")
    with pytest.raises(InputError, match="expected a Study named STUDY"):
        load_study(tmp_path / "empty.py")
    with pytest.raises(InputError, match="expected a Python file"):
        load_study(tmp_path / "missing.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nx = (\n", "line 2: SyntaxError"),
        ("\n\nSTUDY = undefined\n", "line 3: NameError: name 'undefined'"),
        ("def study():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        ("raise SystemExit(0)\n", "line 1: SystemExit: 0"),
        ("import no_such_package\n", "No module named"),
    ],
)
def test_a_study_file_that_does_not_run_is_one_line_with_its_place(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    for _ in range(2):
        with pytest.raises(InputError, match=re.escape(expected)):
            load_study(tmp_path / "mine.py")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenes": ()}, "at least one scene"),
        ({"seeds": ()}, "at least one method and one seed"),
        ({"time_cap_s": 0.0}, "time cap"),
        ({"editors": {}, "methods": {"a": StudyMethod(settings=Nothing(), editors=("exact",))}}, "does not have"),
        ({"methods": {"a/b": StudyMethod(settings=Nothing())}}, "name of a folder"),
    ],
)
def test_a_study_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny_study(**changes)


def test_the_command_goes_on_from_a_folder_and_prints_the_table(finished, tmp_path, capsys):
    (finished / "study.py").write_text(STUDY_FILE)
    assert run_command(["study", str(finished)]) == 0
    assert "| nothing | none |" in capsys.readouterr().out
    assert run_command(["study", str(finished), "--out", str(tmp_path)]) == 2


@pytest.mark.slow
def test_a_study_killed_at_ten_random_moments_ends_with_the_rows_of_an_undisturbed_one(finished, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.studies.tiny_study"])
    moments, num_kills = random.Random(0), 0
    while num_kills < 10:
        process = context.Process(target=run_until, args=(tmp_path / "tiny", moments.randint(1, 20)))
        process.start()
        process.join()
        if process.exitcode == 0:  # it came through to its end; what it ended with is taken away, for the next kill
            shutil.rmtree(tmp_path / "tiny" / "edit" / "world-001")
            continue
        assert process.exitcode == -9
        num_kills += 1
    run(tiny_study(), tmp_path / "tiny")
    assert numbers_of(tmp_path / "tiny") == numbers_of(finished)
