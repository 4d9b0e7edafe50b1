from pathlib import Path

import pytest

from restage.studies.file import load_study
from restage.studies.run import run_study
from restage.studies.study import Study, StudyMethod
from restage.work.interface import EngineConfig
from tests.studies.test_study import REPOSITORY, numbers_of
from tests.studies.tiny_study import Dying, tiny_study
from tests.work.local_cluster import local_cluster

pytest.importorskip("ray", reason="needs restage[cluster]")

RAY = EngineConfig(engine="ray", grace_s=1.0)
STUDY_FILE = """import sys

sys.path.insert(0, {!r})
from tests.studies.tiny_study import tiny_study

STUDY = tiny_study()
"""


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as found:
        yield found


def dying_study(died: Path) -> Study:
    dying = StudyMethod(settings=Dying(die_once=str(died)), editors=())
    return tiny_study(methods={**tiny_study().methods, "dying": dying})


def test_a_worker_killed_over_an_edit_and_a_driver_started_again_leave_no_trace_in_the_rows(cluster, tmp_path):
    study, folder = dying_study(tmp_path / "died"), tmp_path / "ray"
    steps = run_study(study, folder, engine=RAY)
    stages = []
    for step in steps:
        stages.append(step.stage)
        if step.stage == "edit" and step.done >= 3:
            break
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]
    at_the_stop = len(list(folder.glob("edit/**/record.json")))
    assert "scenes" in stages and 3 <= at_the_stop < 14
    list(run_study(study, folder, engine=RAY))
    assert (tmp_path / "died").exists()
    list(run_study(study, tmp_path / "inline"))
    assert numbers_of(folder) == numbers_of(tmp_path / "inline")


def test_workers_read_a_study_from_the_copy_in_its_folder(cluster, tmp_path):
    file, folder = tmp_path / "mine.py", tmp_path / "study"
    file.write_text(STUDY_FILE.format(str(REPOSITORY)))
    study = load_study(file)
    for _ in run_study(study, folder, engine=RAY, file=file):
        file.unlink(missing_ok=True)
    assert (folder / "study.py").exists() and (folder / "compare" / "scores.parquet").exists()
