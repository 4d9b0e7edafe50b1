from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from restage.run import limits


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight cores, 1,000 bytes of free memory, and control groups that the test writes."""
    monkeypatch.setattr(limits, "GROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(limits, "allowed_cores", lambda: list(range(8)))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_groups_nothing_is_limited(machine: Path) -> None:
    assert (limits.cpu_quota(), limits.num_usable_cores(), limits.free_memory_bytes()) == (math.inf, 8, 1000)


def test_groups_of_version_2_limit_with_all_that_are_around_them(machine: Path) -> None:
    write(machine, own="0::/users/one/job\n")
    write(machine / "users" / "one" / "job", cpu__max="max 100000", memory__max="max", memory__current="300")
    write(machine / "users" / "one", cpu__max="250000 100000", memory__max="900", memory__current="500")
    write(machine / "users" / "one", memory__stat="anon 7\ninactive_file 50\n")
    assert limits.cpu_quota() == 2.5 and limits.num_usable_cores() == 2
    assert limits.free_memory_bytes() == 450


def test_groups_of_version_1_limit_and_those_of_others_do_not(machine: Path) -> None:
    write(machine, own="4:memory:/a\n3:cpu,cpuacct:/docker/b\n1:pids:/c\n0::/\n")
    write(machine / "cpu", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")  # the container's own root
    write(machine / "memory" / "a", memory__limit_in_bytes="800", memory__usage_in_bytes="300")
    write(machine / "memory" / "other", memory__limit_in_bytes="1", memory__usage_in_bytes="1")
    write(machine / "memory", memory__limit_in_bytes=str(2**63 - 4096), memory__usage_in_bytes="999")
    assert limits.cpu_quota() == 0.5 and limits.num_usable_cores() == 1
    assert limits.free_memory_bytes() == 500


def test_a_quota_of_version_1_that_is_not_set_is_no_limit(machine: Path) -> None:
    write(machine, own="3:cpu,cpuacct:/\n")
    write(machine / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert limits.cpu_quota() == math.inf
