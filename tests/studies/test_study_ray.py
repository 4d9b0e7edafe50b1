import pytest

from restage.studies.study import load_study
from restage.studies.work import run_study
from restage.work.task import EngineConfig
from tests.studies.test_study import REPOSITORY, numbers_of
from tests.work.local_cluster import local_cluster

pytest.importorskip("ray", reason="needs restage[cluster]")

RAY = EngineConfig(engine="ray", grace_s=1.0)
STUDY_FILE = """import sys

sys.path.insert(0, {repository!r})
from restage.studies.study import StudyMethod
from tests.studies.tiny_study import Dying, tiny_study

dying = StudyMethod(settings=Dying(die_once={died!r}), editors=())
STUDY = tiny_study(methods={{**tiny_study().methods, "dying": dying}})
"""


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as found:
        yield found


def test_a_worker_killed_over_an_edit_and_a_driver_started_again_leave_no_trace_in_the_rows(cluster, tmp_path):
    file, folder = tmp_path / "mine.py", tmp_path / "ray"
    file.write_text(STUDY_FILE.format(repository=str(REPOSITORY), died=str(tmp_path / "died")))
    study = load_study(file)
    steps = run_study(study, folder, engine=RAY, file=file)
    stages = []
    for step in steps:
        file.unlink(missing_ok=True)  # workers read the copy in the study's folder
        stages.append(step.stage)
        if step.stage == "edit" and step.done >= 3:
            break
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]
    at_the_stop = len(list(folder.glob("edit/**/record.json")))
    assert "scenes" in stages and 3 <= at_the_stop < 14
    list(run_study(study, folder, engine=RAY, file=folder / "study.py"))
    assert (tmp_path / "died").exists()
    list(run_study(study, tmp_path / "inline"))
    assert numbers_of(folder) == numbers_of(tmp_path / "inline")
