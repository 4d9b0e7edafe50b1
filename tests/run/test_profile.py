from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from restage.audit.show import describe_profile
from restage.records import InputError, read_json, write_json
from restage.run import profile
from restage.run.folder import open_run, working
from restage.run.layout import RUN_RECORD
from restage.run.profile import PartTime, StageTime, add_up, listening, timed
from restage.run.reading import read_run_record


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Wall seconds now, for a test to set; each second uses two of CPU, and threads wait half a second for a core."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: 2 * now[0])
    used = profile._Used
    monkeypatch.setattr(used, "now", lambda: used(now[0], 2 * now[0], now[0] / 2))
    return now


def test_parts_count_for_themselves_alone_and_add_up_to_their_stage(clock: list[float]) -> None:
    with listening("fit") as found:
        for _ in range(3):
            with timed("step"):
                clock[0] += 1.0
                with timed("render"):
                    clock[0] += 4.0
        clock[0] += 2.0
    (fit,) = found.values()
    assert (fit.wall_s, fit.cpu_s, fit.queued_s) == (17.0, 34.0, 8.5)
    expected = {"render": (12.0, 24.0, 3), "step": (3.0, 6.0, 3), "other": (2.0, 4.0, 0)}
    assert {name: (took.wall_s, took.cpu_s, took.times) for name, took in fit.all_parts.items()} == expected
    assert list(fit.all_parts) == list(expected)


def test_a_stage_within_another_one_has_its_own_parts_and_steps_may_be_yielded_in_it(clock: list[float]) -> None:
    def steps():
        with profile.stage("fit"):
            for _ in range(2):
                with timed("render"):
                    clock[0] += 3.0
                yield

    with listening("world") as found:
        with timed("draw"):
            clock[0] += 1.0
        for _ in steps():
            pass
        with timed("draw"):
            clock[0] += 1.0
    assert found["fit"].wall_s == 6.0 and found["fit"].parts == {"render": PartTime(wall_s=6.0, cpu_s=12.0, times=2)}
    assert found["world"].wall_s == 2.0 and found["world"].parts == {"draw": PartTime(wall_s=2.0, cpu_s=4.0, times=2)}


def test_a_part_that_fails_is_counted_and_leaves_the_others_right(clock: list[float]) -> None:
    with listening("fit") as found:
        with pytest.raises(ValueError, match="no"), timed("render"):
            clock[0] += 1.0
            raise ValueError("no")
        with timed("loss"):
            clock[0] += 1.0
    assert {name: took.wall_s for name, took in found["fit"].parts.items()} == {"render": 1.0, "loss": 1.0}


def test_nothing_is_timed_where_nobody_listens_or_in_another_thread() -> None:
    assert timed("render") is timed("loss")
    with listening("fit") as found:
        thread = threading.Thread(target=lambda: timed("render").__enter__())
        thread.start()
        thread.join()
    assert found["fit"].parts == {}


def test_the_times_of_sessions_add_up() -> None:
    one = StageTime(wall_s=1.0, cpu_s=2.0, queued_s=0.5, num_threads=2, parts={"a": PartTime(wall_s=1.0, times=1)})
    both = add_up({"fit": one}, {"fit": one, "edit": one})
    assert both["edit"] == one
    assert both["fit"] == StageTime(
        wall_s=2.0, cpu_s=4.0, queued_s=1.0, num_threads=2, parts={"a": PartTime(wall_s=2.0, times=2)}
    )


def test_a_run_keeps_where_its_time_went_in_its_record_and_shows_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for _ in range(2):
        with working(open_run(run), "scenes"), timed("render"):
            pass
    (stage,) = add_up(*(session.profile for session in read_run_record(run).sessions)).values()
    assert stage.parts["render"].times == 2 and 0 <= stage.parts["render"].wall_s <= stage.wall_s
    lines = describe_profile(run)
    assert [line.split()[:2] for line in lines[1:]] == [["scenes", "render"], ["scenes", "other"], ["scenes", "all"]]


def test_a_run_of_an_earlier_version_says_that_it_does_not_know(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with working(open_run(run), "scenes"):
        pass
    record = read_json(run / RUN_RECORD, dict)
    del record["sessions"][0]["profile"]
    write_json(run / RUN_RECORD, record)
    with pytest.raises(InputError, match="earlier version"):
        describe_profile(run)
