import math

import pytest
import torch
from torch.nn.functional import normalize

from restage.compare.metrics import (
    clip_direction,
    edit_consistency,
    feature_similarity,
    frame_consistency,
    step_consistency,
    text_similarity,
    typeset_consistency,
)

SOURCE, TARGET = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])


def path(count: int = 5, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_an_edit_along_the_captions_has_direction_one_and_the_way_back_minus_one():
    before, after = SOURCE[None], TARGET[None]
    assert clip_direction(after, before, TARGET, SOURCE).mean == pytest.approx(1)
    assert clip_direction(before, after, TARGET, SOURCE).mean == pytest.approx(-1)


def test_an_edit_across_the_captions_has_direction_zero():
    before, after = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    assert clip_direction(after, before, TARGET, SOURCE).mean == pytest.approx(0)


def test_doing_nothing_has_no_direction_and_says_why():
    measured = clip_direction(path(), path(), path(1, 1)[0], path(1, 2)[0])
    assert math.isnan(measured.mean)
    assert measured.reason.startswith("5 of 5 views are not scored: the two pictures have the same embedding")


def test_captions_without_a_difference_have_no_direction():
    assert math.isnan(clip_direction(path(), path(seed=1), SOURCE.repeat(3)[:8], SOURCE.repeat(3)[:8]).mean)


def test_similarity_of_equal_embeddings_is_one_and_of_opposite_ones_minus_one():
    assert feature_similarity(path(), path()).mean == pytest.approx(1)
    assert feature_similarity(path(), -path()).mean == pytest.approx(-1)
    assert text_similarity(torch.stack([SOURCE, TARGET]), TARGET).per_view == pytest.approx((0, 1))


def test_four_consistencies_say_different_things_of_doing_nothing():
    frames = path()
    assert frame_consistency(frames).mean < 1
    assert step_consistency(frames, frames).mean == pytest.approx(1)
    assert math.isnan(edit_consistency(frames, frames).mean)
    assert typeset_consistency(frames, frames).mean == 0


def test_consistencies_are_what_their_formulas_say():
    edited, unedited = path(3, 1).double(), path(3, 2).double()

    def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
        return float(first @ second / first.norm() / second.norm())

    pairs = [(edited[i], edited[i + 1], unedited[i], unedited[i + 1]) for i in range(2)]
    expected = {
        step_consistency: sum(cosine(o1 - o0, e1 - e0) for e0, e1, o0, o1 in pairs) / 2,
        edit_consistency: sum(cosine(e0 - o0, e1 - o1) for e0, e1, o0, o1 in pairs) / 2,
        typeset_consistency: sum(float((e0 - o0) @ (e1 - e0)) for e0, e1, o0, o1 in pairs) / 2,
    }
    for measure, value in expected.items():
        assert measure(edited.float(), unedited.float()).mean == pytest.approx(value, abs=1e-5)
    expected_frames = sum(float(e0 @ e1) for e0, e1, _, _ in pairs) / 2
    assert frame_consistency(edited.float()).mean == pytest.approx(expected_frames, abs=1e-5)


def test_the_same_edit_of_every_frame_is_consistent_and_a_flickering_one_is_not():
    unedited = path(4)
    step = path(1, 5)[0]
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    assert edit_consistency(unedited + 0.1 * step, unedited).mean == pytest.approx(1, abs=1e-5)
    assert edit_consistency(unedited + 0.1 * step * signs, unedited).mean == pytest.approx(-1, abs=1e-5)
