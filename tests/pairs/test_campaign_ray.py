import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from restage.pairs.executors.interface import EngineConfig
from restage.pairs.stage import run_campaign
from tests.pairs.stand_in import StandIn, open_run, stand_in_config
from tests.pairs.test_campaign import contents

ray = pytest.importorskip("ray", reason="needs restage[cluster]")

RAY = EngineConfig(engine="ray", grace_s=1.0)
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
NUM_PAIRS = 160


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("undisturbed")
    list(run_campaign(open_run(path, NUM_PAIRS), stand_in_config(), StandIn(), EngineConfig()))
    return contents(path / "pairs")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ.update(PYTHONPATH=os.getcwd(), RAY_USAGE_STATS_ENABLED="0")
    found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        for _ in range(2):
            found.add_node(**NODE)  # pyright: ignore[reportArgumentType]  (its options are told by ray.init)
        ray.init(address=found.address, log_to_driver=False)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


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


DRIVER = """
import sys
from pathlib import Path
from restage.pairs.executors.interface import EngineConfig
from restage.pairs.stage import run_campaign
from restage.stopping import stop_on_signals
from tests.pairs.stand_in import StandIn, open_run, stand_in_config
if __name__ == "__main__":
    stop_on_signals()
    engine = EngineConfig(engine="ray", address=sys.argv[2], grace_s=3.0)
    run, maker = open_run(Path(sys.argv[1]), 160), StandIn(seconds_per_batch=0.1)
    for step in run_campaign(run, stand_in_config(), maker, engine):
        print(step.stage, step.done, flush=True)
"""


def start_node(folder: Path, *options: str) -> None:
    command = [Path(sys.executable).parent / "ray", "start", "--num-cpus=1", f"--temp-dir={folder}"]
    limits = ["--object-store-memory=83886080", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    subprocess.run([*command, *limits, *options], check=True, capture_output=True)


@pytest.mark.slow
def test_two_servers_by_ray_start_are_stopped_by_a_signal_and_gone_on_with(undisturbed, tmp_path, tmp_path_factory):
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.update(environment)
    folder = Path("/tmp") / f"ray-{os.getpid()}"  # short: Ray's sockets lie in it
    before = set(psutil.pids())
    start_node(folder, "--head", "--port=26379", "--include-dashboard=false")
    start_node(folder, "--address=127.0.0.1:26379")
    script = tmp_path / "drive.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(tmp_path / "run"), "127.0.0.1:26379"]
    try:
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
        time.sleep(0.5)
