from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from restage.edit.clips.job import ClipJob, ClipStep, Finished, Windowed, edit_windows, spans
from restage.edit.editors.grade import GradeEditor
from restage.records import EditRequest, InputError

REQUEST = EditRequest(instruction="make it golden", source_caption="", target_caption="")


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 11))
def test_windows_cover_a_clip_and_share_the_overlap(count: int, window: int, overlap: int) -> None:
    overlap = min(overlap, window - 1)
    found = spans(count, window, overlap)
    assert found[0].start == 0 and found[-1].stop == count and all(len(span) <= window for span in found)
    for before, after in zip(found, found[1:], strict=False):
        assert before.stop - after.start == overlap and after.stop > before.stop
    assert all(len(span) == window for span in found[:-1])


@dataclass(frozen=True, kw_only=True)
class Counting(Windowed):
    """Gives each frame the number of its window as its gray."""

    def run(self, job: ClipJob) -> Iterator[ClipStep]:
        value = 0.0 if job.held is None else float(job.held.images.max()) + 0.25
        yield ClipStep(0, 1, "")
        yield ClipStep(1, 1, "", torch.full_like(job.frames, value), torch.full_like(job.frames[:, 0], value))


def edited(method: Windowed, count: int, **how: object) -> list[Finished]:
    frames = torch.zeros(count, 3, 8, 8)

    def read(indices: Sequence[int]) -> torch.Tensor:
        assert len(indices) <= method.window
        return frames[list(indices)]

    given_to = {"request": REQUEST, "editor": GradeEditor(), "seed": 0, **how}
    steps = edit_windows(read, count, method, **given_to)  # pyright: ignore[reportArgumentType]
    return [step.finished for step in steps if step.finished is not None]


def test_windows_fade_into_each_other_and_end_where_the_next_begins() -> None:
    found = edited(Counting(window=6, overlap=3), 12)
    values = torch.cat([part.images[:, 0, 0, 0] for part in found])
    assert [part.start for part in found] == [0, 3, 6] and len(values) == 12
    # Over three shared frames the share of the new window is 1/4, 2/4, 3/4.
    torch.testing.assert_close(values[3:6], torch.tensor([0.25, 0.5, 0.75]) * 0.25)
    assert found[-1].held is None
    for part in found[:-1]:
        assert part.held is not None and len(part.held.images) == 3


def test_an_edit_goes_on_from_how_the_last_window_ended() -> None:
    method = Counting(window=4, overlap=1)
    whole = edited(method, 13)
    rest = edited(method, 13, first=2, held=whole[1].held)
    assert [part.start for part in rest] == [part.start for part in whole[2:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(rest, whole[2:], strict=True))


def test_windows_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="overlap < window"):
        Counting(window=2, overlap=2)
