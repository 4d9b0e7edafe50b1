from __future__ import annotations

from restage.report.words import hardware_in_words


def test_hardware_is_named_gpus_first() -> None:
    machine = {"cpu_count": 16, "processor": "Intel(R) Xeon(R) Platinum 8480C", "gpus": ["H100", "H100", "A40"]}
    assert hardware_in_words(machine) == "2 \N{MULTIPLICATION SIGN} H100, A40, 16 cores of Intel Xeon Platinum 8480C"


def test_records_that_say_less_are_read_too() -> None:
    assert hardware_in_words({"cpu_count": 2, "memory_gib": 24.0}) == "2 cores"
    assert hardware_in_words({"cpu_count": 1, "processor": "arm", "gpus": []}) == "one core of arm"
    assert hardware_in_words({}) == "see the record"
