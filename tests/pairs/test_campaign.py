import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from restage.pairs import campaign, stage
from restage.pairs.config import CampaignConfig
from restage.pairs.files import LocalFiles
from restage.pairs.stage import run_campaign
from restage.pairs.store import done_indices, drop_shard, read_rows
from restage.records import InputError, read_json
from restage.work.engine import WorkStopped
from restage.work.task import Tick
from tests.pairs.stand_in import StandIn, open_run, stand_in_config

LOCAL = CampaignConfig(engine="local", workers=2, grace_s=1.0)
VOLATILE = ("campaign.json", "failures")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in VOLATILE}


def make(path: Path, maker=None, engine=LOCAL, **changes):
    run = open_run(path)
    return list(run_campaign(run, stand_in_config(**changes), maker or StandIn(), engine))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("undisturbed")
    make(path, engine=CampaignConfig())
    return contents(path / "pairs")


def ids(path: Path) -> list[str]:
    return [row["id"] for row in read_rows(path / "pairs")]


def test_processes_make_the_bytes_that_one_process_makes(undisturbed, tmp_path):
    progress = make(tmp_path)
    assert contents(tmp_path / "pairs") == undisturbed
    assert "2 workers" in next(step.note for step in progress if step.stage == "estimate")
    status = read_json(tmp_path / "pairs" / "campaign.json")
    assert (status["status"], status["tasks"], status["pairs"]["made_now"]) == ("ended", {"all": 10, "done": 10}, 40)
    assert {"acceptance", "pairs_per_s", "hours_left", "failures", "pairs_per_s_by_device", "free_bytes"} <= set(status)


def test_a_worker_that_dies_is_replaced_and_its_task_made(undisturbed, tmp_path):
    maker = StandIn(dies_at="thing 17", die_once=str(tmp_path / "died"))
    progress = make(tmp_path / "run", maker)
    assert (tmp_path / "died").exists() and any("ended with code 9" in step.note for step in progress)
    assert contents(tmp_path / "run" / "pairs") == undisturbed


def test_a_task_that_fails_again_and_again_is_set_aside_and_all_others_are_made(undisturbed, tmp_path):
    with pytest.raises(WorkStopped, match=r"1 of 10 tasks .* task 4, ValueError: cannot make 'thing 17'"):
        make(tmp_path, StandIn(fails_at="thing 17"))
    assert done_indices(tmp_path / "pairs") == [0, 1, 2, 3, 5, 6, 7, 8, 9] and len(ids(tmp_path)) == 36
    failure = read_json(tmp_path / "pairs" / "failures" / "task-00004.json")
    assert "Traceback" in failure["details"] and len(failure["pairs"]) == 4
    make(tmp_path)  # whatever was wrong has been mended
    assert contents(tmp_path / "pairs") == undisturbed


def test_a_maker_that_opens_nowhere_stops_the_campaign_at_once(tmp_path):
    make_first = CampaignConfig(engine="local", workers=2)
    run = open_run(tmp_path)
    maker = StandIn(is_missing=True)
    (tmp_path / "pairs").mkdir()
    with pytest.raises(InputError, match="no models here"):
        list(run_campaign(run, stand_in_config(), maker, make_first))


def test_impossible_prompts_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    from tests.pairs import stand_in

    prompts = stand_in.make_prompts(2)
    monkeypatch.setattr(
        stand_in,
        "make_prompts",
        lambda count: [*prompts, stand_in.PromptPair(source="impossible", target="b", instruction="c", kind="d")],
    )
    with pytest.raises(InputError, match="impossible"):
        make(tmp_path)
    assert not (tmp_path / "pairs").exists()


class Full(LocalFiles):
    def free_bytes(self):
        return 60_000_000 if self.exists("shard-00000.done") else 10**9


def test_a_campaign_without_room_for_its_shards_stops_after_the_probe(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "open_files", lambda folder, **_: Full(Path(folder)))
    monkeypatch.setattr(campaign.Estimate, "MARGIN", 1e6)
    with pytest.raises(WorkStopped, match=r"60.0 MB free, the 9 tasks left need about"):
        make(tmp_path, engine=CampaignConfig())
    assert done_indices(tmp_path / "pairs") == [0]


def test_nothing_is_begun_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "MIN_FREE_BYTES", 2**62)
    with pytest.raises(WorkStopped, match="make room first"):
        make(tmp_path, engine=CampaignConfig())
    assert done_indices(tmp_path / "pairs") == []


def test_estimate_only_leaves_the_probe_and_says_what_the_rest_costs(undisturbed, tmp_path):
    engine = CampaignConfig(estimate_only=True, cost_per_hour=3600.0)
    steps = make(tmp_path, StandIn(seconds_per_batch=0.05), engine)
    (note,) = [step.note for step in steps if step.stage == "estimate"]
    assert "9 tasks, 36 pairs" in note and "cost" in note
    assert done_indices(tmp_path / "pairs") == [0]
    make(tmp_path)
    assert contents(tmp_path / "pairs") == undisturbed


def test_two_drivers_on_one_folder_do_no_harm(undisturbed, tmp_path):
    run = open_run(tmp_path)
    notes: list[list[str]] = [[], []]

    def drive(number: int) -> None:
        maker = StandIn(seconds_per_batch=0.02)
        notes[number] = [step.note for step in run_campaign(run, stand_in_config(), maker, CampaignConfig())]

    drivers = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert contents(tmp_path / "pairs") == undisturbed and all(notes)


def test_a_clock_that_jumps_changes_nothing(undisturbed, tmp_path, monkeypatch):
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 + (-1) ** next(jumps) * 1e8)
    make(tmp_path, engine=CampaignConfig())
    assert contents(tmp_path / "pairs") == undisturbed


def test_a_finished_shard_that_vanishes_meanwhile_is_made_again(undisturbed, tmp_path):
    run = open_run(tmp_path)
    for step in run_campaign(run, stand_in_config(), StandIn(), CampaignConfig()):
        if step.done == 40 and 3 in done_indices(tmp_path / "pairs") and not (tmp_path / "dropped").exists():
            (tmp_path / "dropped").touch()
            drop_shard(tmp_path / "pairs", 3)
    assert (tmp_path / "dropped").exists() and contents(tmp_path / "pairs") == undisturbed


DRIVER = """
import sys
from pathlib import Path
from restage.pairs.campaign import CampaignConfig
from restage.pairs.stage import run_campaign
from restage.run.progress import stop_on_signals
from tests.pairs.stand_in import StandIn, open_run, stand_in_config
if __name__ == "__main__":
    stop_on_signals()
    maker = StandIn(seconds_per_batch=0.1)
    engine = CampaignConfig(engine="local", workers=2, grace_s=5.0)
    for step in run_campaign(open_run(Path(sys.argv[1])), stand_in_config(), maker, engine):
        print(step.done, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_or_stopped_leaves_whole_shards_and_no_worker(undisturbed, tmp_path, number):
    script = tmp_path / "drive.py"
    script.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(script), str(tmp_path / "run")]
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert driver.stdout is not None
    assert any(line.strip() == "12" for line in driver.stdout)  # three shards are made
    driver.send_signal(number)
    driver.wait(timeout=30)
    pairs = tmp_path / "run" / "pairs"
    at_the_end = done_indices(pairs)
    assert 3 <= len(at_the_end) < 10
    if number == signal.SIGTERM:
        assert not [path for path in pairs.iterdir() if ".tmp" in path.name]
        assert read_json(pairs / "campaign.json")["status"] == "stopped"
    make(tmp_path / "run", engine=CampaignConfig())
    assert {name: content for name, content in contents(pairs).items() if ".tmp" not in name} == undisturbed


def test_a_disk_that_fills_up_stops_the_campaign_and_loses_nothing(undisturbed, tmp_path):
    script = tmp_path / "drive.py"
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    engine = 'CampaignConfig(engine="local", workers=2, grace_s=5.0)'
    script.write_text(
        DRIVER.replace(engine, "CampaignConfig()")
        .replace("    stop_on_signals()\n", "")
        .replace("import sys\n", f"import sys\n{limited}", 1)
    )
    run = open_run(tmp_path / "run")
    before = itertools.islice(run_campaign(run, stand_in_config(), StandIn(), CampaignConfig()), 6)
    assert [step.done for step in before] == [2, 4, 6, 8, 10, 12]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0 and "File too large" in done.stderr
    assert len(done_indices(tmp_path / "run" / "pairs")) == 3
    make(tmp_path / "run", engine=CampaignConfig())
    assert contents(tmp_path / "run" / "pairs") == undisturbed


def test_ticks_say_how_many_work_and_bad_engines_are_refused():
    assert Tick(num_workers=2) == Tick(2)
    inline = {"engine": "inline"}
    bad: list[dict[str, Any]] = [
        {"workers": 0},
        {**inline, "when_idle": True},
        {**inline, "workers": 2},
        {"cost_per_hour": -1.0},
    ]
    for settings in bad:
        with pytest.raises(InputError):
            CampaignConfig(**settings)


def test_several_workers_or_politeness_ask_for_processes_by_themselves():
    configs = [CampaignConfig(), CampaignConfig(workers=1), CampaignConfig(workers=2), CampaignConfig(when_idle=True)]
    assert [config.engine for config in configs] == ["inline", "inline", "local", "local"]
