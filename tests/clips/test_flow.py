from __future__ import annotations

import torch
from torch.nn import functional

from restage.clips.flow import estimate_flow, look_up


def texture(size: int) -> torch.Tensor:
    coarse = torch.rand(1, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, (size, size), mode="bicubic")[0].clamp(0, 1)


def moving(count: int, step: int, size: int = 64) -> torch.Tensor:
    """A window that moves over a texture to the left, so that what it shows goes to the right."""
    wide = texture(size + step * count)
    return torch.stack([wide[:, :size, step * (count - i) : step * (count - i) + size] for i in range(count)])


def test_flow_of_a_shifted_texture_is_the_shift() -> None:
    flow = estimate_flow(moving(3, 2))
    inside = (slice(None), slice(8, -8), slice(8, -8))
    for found, expected in ((flow.forward, 2.0), (flow.backward, -2.0)):
        error = (found[:, 0][inside] - expected).abs()
        assert float(error.mean()) < 0.15 and float(found[:, 1][inside].abs().mean()) < 0.15


def test_a_point_is_followed_over_several_frames_until_it_leaves() -> None:
    frames = moving(5, 3)
    traced = estimate_flow(frames).trace(0, 4)
    assert float((traced.flow[0, 8:-8, 8:-20] - 12).abs().mean()) < 0.5
    assert float(traced.is_seen[8:-8, 8:-20].float().mean()) > 0.95 and not bool(traced.is_seen[:, -10:].any())
    found = look_up(frames[4], traced.flow)
    assert float((found - frames[0]).abs().mean(dim=0)[traced.is_seen].mean()) < 0.02
    back = estimate_flow(frames).trace(4, 0)
    assert float((back.flow[0, 8:-8, 20:-8] + 12).abs().mean()) < 0.5


def test_what_a_thing_hides_is_not_seen() -> None:
    back = texture(64)
    frames = torch.stack([back, back.clone()])
    patch = texture(96)[:, :20, :20]
    frames[0, :, 20:40, 10:30] = patch
    frames[1, :, 20:40, 16:36] = patch
    seen = estimate_flow(frames).seen_next[0]
    assert float(seen[22:38, 12:28].float().mean()) > 0.7  # the thing itself
    assert float(seen[22:38, 31:36].float().mean()) < 0.5  # what it moves over
    assert float(seen[:, 50:60].float().mean()) > 0.95


def test_small_frames_and_a_single_one_have_flow_too() -> None:
    assert estimate_flow(moving(2, 1, size=32)).forward.shape == (1, 2, 32, 32)
    assert estimate_flow(moving(1, 1)).forward.shape == (0, 2, 64, 64)


def test_the_points_of_a_single_frame_are_where_they_are() -> None:
    traced = estimate_flow(moving(1, 1)).trace(0, 0)
    assert traced.flow.shape == (2, 64, 64) and not traced.flow.any() and bool(traced.is_seen.all())
