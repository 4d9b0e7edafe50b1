from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import numba
import pytest
import torch

from restage.run import threads

PROGRAM = "import os, restage; print(os.environ['OMP_WAIT_POLICY'], os.environ['KMP_BLOCKTIME'])"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, "PASSIVE 0"), ({"OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "infinite"}, "ACTIVE infinite")],
)
def test_threads_that_wait_do_not_spin_unless_the_user_wants_it(chosen: dict[str, str], expected: str) -> None:
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env={**own, **chosen}, capture_output=True, text=True)
    assert done.stdout.strip() == expected


class Watch:
    """Stands for the machine: as many cores are free as the test says."""

    def __init__(self) -> None:
        self.cores_free = 4.0

    def free(self) -> float:
        return self.cores_free


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> threads._Followed:
    """Four cores, numba's own choice of threads, and a look at the load whenever it is asked for."""
    found = threads._Followed()
    monkeypatch.setattr(found, "watch", Watch())
    monkeypatch.setattr(threads, "LOOK_S", 0.0)
    monkeypatch.setattr(threads, "num_usable_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return found


def test_threads_follow_what_others_leave_free(followed: threads._Followed, monkeypatch) -> None:
    numbers = []
    for cores_free in (3.9, 2.4, 0.3, -5.0, 4.0):
        monkeypatch.setattr(followed.watch, "cores_free", cores_free)
        numbers.append(followed.number())
    assert numbers == [4, 2, 1, 1, 4]


def test_limits_of_the_user_hold_when_all_is_free(followed: threads._Followed, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert followed.number() == 3
    followed.limit = 2
    assert followed.number() == 2
    monkeypatch.setattr(threads, "num_usable_cores", lambda: 1)
    assert followed.number() == 1


def test_between_two_looks_the_load_is_not_looked_at(followed: threads._Followed, monkeypatch) -> None:
    assert followed.number() == 4
    monkeypatch.setattr(threads, "LOOK_S", 1e9)
    monkeypatch.setattr(followed.watch, "cores_free", 1.0)
    assert followed.number() == 4


def test_load_of_others_is_told_from_our_own_and_from_lower_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0, "own": 0.0, "user": 0.0, "nice": 0.0}
    idle, not_ours = SimpleNamespace(user=0.0, system=0.0, nice=0.0), SimpleNamespace(user=9.0)
    monkeypatch.setattr(threads, "allowed_cores", lambda: [0, 1])
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(threads.time, "process_time", lambda: clock["own"])
    monkeypatch.setattr(threads.os, "nice", lambda by: 0)

    def cpu_times(percpu: bool) -> list[SimpleNamespace]:
        return [SimpleNamespace(user=clock["user"], system=0.0, nice=clock["nice"]), idle, not_ours]

    monkeypatch.setattr("psutil.cpu_times", cpu_times)
    watch = threads.CoreWatch()
    clock.update(now=10.0, user=15.0, nice=5.0, own=5.0)
    assert watch.free() == pytest.approx(1.0)
    clock.update(now=20.0, user=22.0, nice=15.0, own=12.0)
    assert watch.free() == pytest.approx(2.0)
    monkeypatch.setattr(threads.os, "nice", lambda by: 10)
    watch = threads.CoreWatch()
    clock.update(now=30.0, nice=25.0)
    assert watch.free() == pytest.approx(1.0)


def test_limits_are_set_back_at_the_end() -> None:
    torch_before, numba_before = torch.get_num_threads(), numba.get_num_threads()
    with threads.limited_threads(3):
        assert torch.get_num_threads() == 3
        with threads.small_tensors():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        assert numba.get_num_threads() == min(3, numba.config.NUMBA_NUM_THREADS)  # pyright: ignore[reportAttributeAccessIssue]
    assert (torch.get_num_threads(), numba.get_num_threads()) == (torch_before, numba_before)
    with threads.limited_threads(None):
        assert torch.get_num_threads() == torch_before


def test_compiled_loops_of_a_fit_follow_the_load_unless_numba_was_given_a_number() -> None:
    program = (
        "import numba, sys\n"
        "from restage.run import threads\n"
        "threads._followed.watch.free = lambda: 2.0\n"
        "threads.num_usable_cores = lambda: 3\n"
        "threads.follow_load()\n"
        "print(numba.get_num_threads())\n"
    )
    own = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    for chosen, expected in (({}, str(min(2, os.cpu_count() or 1))), ({"NUMBA_NUM_THREADS": "3"}, "3")):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env={**own, **chosen}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


@pytest.mark.parametrize("free", [1, 2, 3])
def test_parts_are_each_computed_once_in_one_thread_and_come_in_order(
    followed: threads._Followed, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr(threads, "_followed", followed)
    monkeypatch.setattr(followed.watch, "free", lambda: float(free))
    seen: list[tuple[str, int]] = []

    def part(number: int) -> int:
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        time.sleep(0.01)
        return number

    before = torch.get_num_threads()
    assert threads.compute_parts([partial(part, number) for number in range(7)]) == list(range(7))
    assert torch.get_num_threads() == before
    assert {count for _, count in seen} == {1}
    assert len(seen) == 7
    assert len({name for name, _ in seen}) <= free


def test_what_goes_wrong_in_a_part_is_raised(followed: threads._Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_followed", followed)
    monkeypatch.setattr(followed.watch, "free", lambda: 3.0)
    with pytest.raises(ZeroDivisionError):
        threads.compute_parts([lambda: 1, lambda: 1 // 0, lambda: 2])
