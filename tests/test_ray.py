"""Campaigns and studies on nodes of Ray; one cluster serves all tests, since its nodes take long to start."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from restage.pairs.config import CampaignConfig
from restage.pairs.stage import run_campaign
from restage.studies.study import load_study
from restage.studies.work import run_study
from restage.work.task import EngineConfig
from tests.pairs.stand_in import StandIn, open_run, stand_in_config
from tests.pairs.test_campaign import contents
from tests.studies.test_study import REPOSITORY, numbers_of
from tests.work.local_cluster import NODE, local_cluster

ray = pytest.importorskip("ray", reason="needs restage[cluster]")

PORT = 26379
RAY = CampaignConfig(engine="ray", grace_s=1.0)
STUDY_RAY = EngineConfig(engine="ray", grace_s=1.0)
NUM_PAIRS = 160


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("undisturbed")
    list(run_campaign(open_run(path, NUM_PAIRS), stand_in_config(), StandIn(), CampaignConfig()))
    return contents(path / "pairs")


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as found:
        yield found


def test_actors_on_nodes_that_come_and_go_make_the_bytes_that_one_process_makes(undisturbed, cluster, tmp_path):
    run = open_run(tmp_path, NUM_PAIRS)
    events: list[str] = []
    maker = StandIn(seconds_per_batch=0.2, dies_at="thing 17", die_once=str(tmp_path / "died"))
    for step in run_campaign(run, stand_in_config(), maker, RAY):
        if step.done >= 40 and not events:
            events.append("node killed")
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        elif step.done >= 60 and len(events) == 1:
            events.append("node joined")
            cluster.add_node(**NODE)
    assert len(events) == 2 and (tmp_path / "died").exists()
    assert contents(tmp_path / "pairs") == undisturbed


def test_a_task_that_no_actor_can_make_is_set_aside(cluster, tmp_path):
    with pytest.raises(ValueError, match="1 of 10 tasks"):
        list(run_campaign(open_run(tmp_path), stand_in_config(), StandIn(fails_at="thing 17"), RAY))


STUDY_FILE = """import sys

sys.path.insert(0, {repository!r})
from restage.studies.study import StudyMethod
from tests.studies.tiny_study import Dying, tiny_study

dying = StudyMethod(settings=Dying(die_once={died!r}), editors=())
STUDY = tiny_study(methods={{**tiny_study().methods, "dying": dying}})
"""


def test_a_worker_killed_over_an_edit_and_a_driver_started_again_leave_no_trace_in_the_rows(cluster, tmp_path):
    file, folder = tmp_path / "mine.py", tmp_path / "ray"
    file.write_text(STUDY_FILE.format(repository=str(REPOSITORY), died=str(tmp_path / "died")))
    study = load_study(file)
    # The undisturbed one comes first, so that the workers find all kernels compiled.
    (tmp_path / "died").touch()
    list(run_study(study, tmp_path / "inline"))
    (tmp_path / "died").unlink()
    steps = run_study(study, folder, engine=STUDY_RAY, file=file)
    stages = []
    for step in steps:
        file.unlink(missing_ok=True)  # workers read the copy in the study's folder
        stages.append(step.stage)
        if step.stage == "edit" and step.done >= 3:
            break
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]
    at_the_stop = len(list(folder.glob("edit/**/record.json")))
    assert "scenes" in stages and 3 <= at_the_stop < 14
    list(run_study(study, folder, engine=STUDY_RAY, file=folder / "study.py"))
    assert (tmp_path / "died").exists()
    assert numbers_of(folder) == numbers_of(tmp_path / "inline")


DRIVER = """
import sys
from pathlib import Path
from restage.pairs.campaign import CampaignConfig
from restage.pairs.stage import run_campaign
from restage.run.progress import stop_on_signals
from tests.pairs.stand_in import StandIn, open_run, stand_in_config
if __name__ == "__main__":
    stop_on_signals()
    engine = CampaignConfig(engine="ray", address=sys.argv[2], grace_s=3.0)
    run, maker = open_run(Path(sys.argv[1]), 160), StandIn(seconds_per_batch=0.1)
    for step in run_campaign(run, stand_in_config(), maker, engine):
        print(step.stage, step.done, flush=True)
"""


NODE_OPTIONS = ["--num-cpus=1", "--object-store-memory=83886080", "--disable-usage-stats"]


def start_node(environment: dict[str, str], *options: str) -> None:
    command = [str(Path(sys.executable).parent / "ray"), "start", *NODE_OPTIONS, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_servers_by_ray_start_ask_for_their_token_and_go_on_after_a_signal(undisturbed, tmp_path):
    """As README's "On three servers": a token that all know, and RAY_AUTH_MODE=token everywhere."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "7" * 64}
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), **settings}
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: Ray's sockets lie in it
    before = set(psutil.pids())
    script = tmp_path / "drive.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(tmp_path / "run"), f"127.0.0.1:{PORT}"]
    try:
        start_node(environment, "--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}")
        start_node(environment, f"--address=127.0.0.1:{PORT}")
        stranger = {**environment, "RAY_AUTH_TOKEN": "8" * 64}
        refused = subprocess.run(command, env=stranger, capture_output=True, text=True)
        assert "if it is there and asks for its token, set RAY_AUTH_MODE=token" in refused.stderr
        driver = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert driver.stdout is not None and any(line.startswith("pairs 20") for line in driver.stdout)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(timeout=60)
        done = len(list((tmp_path / "run" / "pairs").glob("*.done")))
        assert 5 <= done < 40 and not list((tmp_path / "run" / "pairs").glob(".*"))
        again = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert contents(tmp_path / "run" / "pairs") == undisturbed
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if process.pid not in before and str(folder) in str(process.info["cmdline"]):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)
