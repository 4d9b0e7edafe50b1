import os
import stat

import psutil
import pytest

from restage.work.worker import DeviceWatch


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A stand-in for nvidia-smi whose answers are files."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *compute-apps*) cat {tmp_path}/pids;; *utilization*) cat {tmp_path}/use;; esac\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def say(pids: str, use: str) -> None:
        (tmp_path / "pids").write_text(pids)
        (tmp_path / "use").write_text(use)

    return say


def test_a_gpu_is_left_to_others_and_our_own_process_does_not_count(nvidia_smi):
    watch = DeviceWatch("cuda:0")
    nvidia_smi("4711\n", "3\n")
    assert not watch.is_free()
    nvidia_smi("", "0\n")
    assert watch.is_free()
    watch.before_load()
    nvidia_smi("99\n", "100\n")  # ours, by the number that it has outside of the container
    watch.after_load()
    assert watch.is_free()
    nvidia_smi("99\n4711\n", "100\n")
    assert not watch.is_free()


def test_a_gpu_whose_processes_cannot_be_seen_is_judged_by_its_use(nvidia_smi):
    nvidia_smi("", "85\n")
    assert not DeviceWatch("cuda:1").is_free()


def test_a_cpu_is_left_to_others_by_its_load(monkeypatch):
    monkeypatch.setattr("restage.work.worker.num_usable_cores", lambda: 4)
    for load, is_free in ((0.0, True), (3.4, True), (3.6, False), (9.0, False)):
        monkeypatch.setattr(psutil, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert DeviceWatch("cpu").is_free() == is_free
    monkeypatch.setattr(psutil, "getloadavg", lambda: (4.4, 0.0, 0.0))
    watch = DeviceWatch("cpu", num_own_threads=1)
    watch.after_load()
    assert watch.is_free()  # one of the 4.4 is us
