from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from restage.clips.files import ClipRecord, StoredClip
from restage.clips.flow import ClipFlow, Traced, estimate_flow
from restage.compare import clips
from restage.compare.clips import motion_fidelity, point_spread, score_clip, track_error, warp_error
from restage.compare.judges import Judges
from restage.edit.pictures import write_image
from restage.records import EditRequest
from restage.world.clips import ClipTruth, render_clip, sample_clip
from restage.world.grammar import sample_description

STILL = Traced(torch.zeros(2, 16, 16), torch.ones(16, 16, dtype=torch.bool))
EVERYWHERE = torch.ones(16, 16, dtype=torch.bool)


def test_spread_is_the_deviation_of_a_points_color_over_frames() -> None:
    frames = torch.zeros(4, 3, 16, 16)
    frames[::2] = 0.2
    found = point_spread(frames, [STILL] * 4, EVERYWHERE)
    assert found.value == pytest.approx(0.1) and float(found.picture.mean()) == pytest.approx(0.1)
    hidden = Traced(STILL.flow, ~EVERYWHERE)
    # A point that one frame alone sees has no spread, and so it does not count.
    assert math.isnan(point_spread(frames, [STILL, hidden, hidden, hidden], EVERYWHERE).value)
    assert point_spread(frames, [STILL, hidden, STILL, hidden], EVERYWHERE).value == pytest.approx(0)


def test_warp_and_track_errors_follow_the_given_flow() -> None:
    moved = torch.zeros(2, 16, 16)
    moved[0] = 2
    frames = torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    pair = torch.stack([frames[0, :, :, 2:18], frames[0, :, :, :16]])
    step = Traced(moved, EVERYWHERE.clone())
    step.is_seen[:, -2:] = False
    assert warp_error(pair, [step]) == pytest.approx(0, abs=1e-6)
    assert warp_error(pair, [STILL]) > 0.1
    flow = ClipFlow(moved[None], -moved[None])
    assert track_error(flow, [STILL, step], EVERYWHERE) == pytest.approx(0)
    assert track_error(flow, [STILL, STILL], EVERYWHERE) == pytest.approx(2)
    assert math.isnan(track_error(flow, [STILL, STILL], ~EVERYWHERE))


def test_motion_fidelity_is_1_for_the_same_motion_and_low_for_another() -> None:
    right, down, none = (torch.zeros(3, 2, 32, 32) for _ in range(3))
    right[:, 0], down[:, 1] = 2, 2
    flows = [ClipFlow(forward, -forward) for forward in (right, down, none)]
    assert [motion_fidelity(flow, flow) for flow in flows] == pytest.approx([1, 1, 1])
    assert motion_fidelity(flows[0], flows[1]) == pytest.approx(0, abs=1e-6)
    assert motion_fidelity(flows[0], flows[2]) == pytest.approx(0)
    assert motion_fidelity(flows[0], ClipFlow(-right, right)) == pytest.approx(-1)


def test_large_frames_have_no_more_tracks_and_shorter_stretches(tmp_path: Path) -> None:
    steps, _ = clips._track_steps(ClipFlow(torch.zeros(1, 2, 720, 1280), torch.zeros(1, 2, 720, 1280)))
    assert 512 < steps.shape[1] < 1.1 * clips.MAX_TRACKS
    paths = tuple(tmp_path / "frames" / f"{index}.png" for index in range(5))
    for path in paths:
        write_image(path, torch.rand(3, 16, 24))
    clip = StoredClip(tmp_path, paths, ClipRecord())
    request = EditRequest(instruction="make it golden", source_caption="", target_caption="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "STRETCH_PIXELS", 3 * 16 * 24)
        found = [len(part.source) for part in clips._stretches(clip, clip, None, None, request)]
    assert found == [3, 3]


@pytest.fixture(scope="module")
def truth() -> ClipTruth:
    scene = sample_description(5, split="all")
    return render_clip(sample_clip(5, motion="still", moves_camera=True, num_frames=4, size=64, scene=scene))


def test_points_of_a_matte_world_keep_their_color_along_exact_tracks(truth: ClipTruth) -> None:
    frames = torch.from_numpy(truth.images)
    exact = clips._Exact(truth.flows, truth.is_seen, truth.object_ids)
    tracks, steps = clips._follow(frames, exact, range(4))
    own = point_spread(frames, tracks, torch.ones(64, 64, dtype=torch.bool)).value
    wrong = point_spread(frames, [tracks[0]] * 4, torch.ones(64, 64, dtype=torch.bool)).value
    assert own < 0.03 and own < 0.4 * wrong
    assert warp_error(frames, steps) < 0.02
    estimated = track_error(estimate_flow(frames), tracks, torch.from_numpy(truth.object_ids[0]) >= 2)
    assert estimated < 2


def test_truth_scores_1_and_the_source_0_and_long_clips_are_measured_in_stretches(
    truth: ClipTruth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "STRETCH", 3)
    source = torch.from_numpy(truth.images)
    golden = source.clone()
    golden[:, :, 16:48, 16:48] = golden[:, :, 16:48, 16:48].flip(1)
    flicker = golden + 0.1 * torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(-1, 1, 1, 1)
    for name, frames in {"source": source, "golden": golden, "flicker": flicker.clamp(0, 1)}.items():
        for index, frame in enumerate(frames):
            write_image(tmp_path / name / "frames" / f"{index}.png", frame)
    for index, changed in enumerate((golden - source).abs().amax(dim=1) > 0.01):
        write_image(tmp_path / "truth" / "masks" / f"{index}.png", changed.float().expand(3, -1, -1))
        write_image(tmp_path / "truth" / "images" / f"{index}.png", golden[index])

    def clip(name: str) -> StoredClip:
        return StoredClip(tmp_path / name, tuple(sorted((tmp_path / name / "frames").glob("*.png"))), ClipRecord())

    request = EditRequest(instruction="swap red and blue", source_caption="", target_caption="")
    exact = clips._Exact(truth.flows, truth.is_seen, truth.object_ids)
    found = {}
    for name in ("source", "golden", "flicker"):
        stretches = clips._stretches(clip("source"), clip(name), tmp_path / "truth", exact, request)
        found[name], picture = score_clip(stretches, request, Judges(), has_exact_flow=True)
        assert picture is not None and len(found[name].progress) == 4 and found[name].has_exact_flow
    values = {name: scores.values for name, scores in found.items()}
    assert values["source"]["progress"] == pytest.approx(0, abs=0.02)
    assert values["golden"]["progress"] == pytest.approx(1, abs=0.02)
    assert values["golden"]["spread"] == pytest.approx(0, abs=1e-6) and values["golden"]["spill"] == pytest.approx(
        0, abs=1e-3
    )
    assert (values["flicker"]["spread"] or 0) > 0.03 and (values["flicker"]["spill"] or 0) > 0.05
    assert (values["flicker"]["warp_error"] or 0) > (values["golden"]["warp_error"] or 0) + 0.1
    assert values["golden"]["text_alignment"] is None and "caption" in found["golden"].reasons["text_alignment"]


def test_a_grade_of_whole_frames_has_exact_truth_on_any_clip() -> None:
    request = EditRequest(instruction="make it golden", source_caption="", target_caption="")
    graded = clips._graded(torch.rand(2, 3, 8, 8), request)
    assert graded is not None and graded.shape == (2, 3, 8, 8)
    other = EditRequest(instruction="make the cube golden", source_caption="", target_caption="")
    assert clips._graded(torch.rand(2, 3, 8, 8), other) is None


def test_the_picture_of_the_spread_is_gray_where_nothing_counts() -> None:
    picture = torch.tensor([[0.0, clips.SPREAD_RANGE, math.nan]])
    drawn = clips.draw_spread(picture)
    np.testing.assert_allclose(drawn[:, 0].T, [[0, 0, 0.35], [1, 1, 0], [0.85] * 3], atol=1e-6)
