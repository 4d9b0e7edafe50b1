import numpy as np
import pytest

from restage.diffusion.hardware import keep_freed_memory
from restage.run import environment as memory
from restage.run.environment import PeakMemory, process_peak_mb

SIZE_MB = 300


def hold() -> None:
    """Touch memory that is given back at once, or kept by the C library where the process has asked for that."""
    np.ones(SIZE_MB * 2**20, dtype=np.uint8)


def needs_reset() -> None:
    if not PeakMemory().is_own:
        pytest.skip("the high-water mark cannot be set back here: /proc/self/clear_refs")


def test_work_is_not_charged_for_what_earlier_work_held_and_gave_back():
    needs_reset()
    before = PeakMemory()
    hold()
    after = PeakMemory()
    idle_mb = after.read_mb()
    again = PeakMemory()
    hold()
    assert again.read_mb() > idle_mb + 0.8 * SIZE_MB
    assert process_peak_mb() >= again.read_mb() > 0
    assert before.is_own


def test_memory_that_the_c_library_keeps_is_charged_to_no_later_work():
    needs_reset()
    keep_freed_memory()
    hold()
    idle_mb = PeakMemory().read_mb()
    again = PeakMemory()
    hold()
    assert again.read_mb() > idle_mb + 0.8 * SIZE_MB


def test_the_peak_of_the_process_outlives_a_reset():
    needs_reset()
    hold()
    highest_mb = process_peak_mb()
    later = PeakMemory()
    assert later.read_mb() < highest_mb - 0.5 * SIZE_MB
    assert process_peak_mb() >= highest_mb


def test_where_the_mark_cannot_be_set_back_it_is_that_of_the_process(monkeypatch):
    hold()
    monkeypatch.setattr(memory, "_reset", lambda: False)
    peak = PeakMemory()
    assert not peak.is_own
    assert peak.read_mb() == process_peak_mb()
