from __future__ import annotations

from restage.report.words import hardware_in_words, unbroken_duration


def test_hardware_is_named_gpus_first() -> None:
    machine = {"cpu_count": 16, "processor": "Intel(R) Xeon(R) Platinum 8480C", "gpus": ["H100", "H100", "A40"]}
    assert hardware_in_words(machine) == "2 \N{MULTIPLICATION SIGN} H100, A40, 16 cores of Intel Xeon Platinum 8480C"


def test_records_that_say_less_are_read_too() -> None:
    assert hardware_in_words({"cpu_count": 2, "memory_gib": 24.0}) == "2 cores"
    assert hardware_in_words({"cpu_count": 1, "processor": "arm", "gpus": []}) == "one core of arm"
    assert hardware_in_words({}) == "see the record"


def test_a_duration_breaks_between_its_parts_only() -> None:
    assert unbroken_duration(630.0) == "10\N{NO-BREAK SPACE}min 30\N{NO-BREAK SPACE}s"
    assert unbroken_duration(7800.0) == "2\N{NO-BREAK SPACE}h 10\N{NO-BREAK SPACE}min"
    assert unbroken_duration(0.8) == "0.8\N{NO-BREAK SPACE}s"
