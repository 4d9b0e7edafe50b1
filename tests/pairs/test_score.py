import math

import pytest
import torch

from restage.pairs.config import PUBLISHED, PairRule
from restage.pairs.score import PairScores, judge, score_pairs
from restage.records import InputError
from tests.pairs.tiny import PROMPTS

GOOD = PairScores(0.9, 0.5, 0.3, 0.3, 0.05, 0.1)


class GivenClip:
    """Gives prepared embeddings: before and after of pictures and texts, in the plane."""

    def __init__(self, before, after, text_before, text_after):
        self.images, self.texts = torch.tensor([before, after]), torch.tensor([text_before, text_after])

    def encode_images(self, images):
        return self.images

    def encode_text(self, texts):
        return self.texts


def score(*embeddings):
    sources, edited, masks = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.25), torch.zeros(1, 8, 8)
    masks[:, :4] = 1
    (found,) = score_pairs(GivenClip(*embeddings), PROMPTS[:1], sources=sources, edited=edited, masks=masks)
    return found


def test_scores_are_the_cosines_of_their_definition():
    found = score([1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8])
    step, text_step = (-0.4, 0.8), (-0.6, -0.2)
    cosine = (step[0] * text_step[0] + step[1] * text_step[1]) / math.hypot(*step) / math.hypot(*text_step)
    assert found == pytest.approx((0.6, cosine, 0.0, 0.28, 0.25, 0.5), abs=1e-6)


def test_an_edit_the_wrong_way_scores_below_zero_and_is_rejected():
    found = score([1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0])
    assert found.direction_similarity == pytest.approx(-1)
    assert judge(GOOD._replace(direction_similarity=-0.9), PUBLISHED) == "change is not the one asked for"


EAST, NORTH = [1.0, 0.0], [0.0, 1.0]


@pytest.mark.parametrize("embeddings", [(EAST, EAST, NORTH, EAST), (EAST, NORTH, NORTH, NORTH)])
def test_direction_is_nan_when_either_step_is_zero_and_the_pair_rejected(embeddings):
    found = score(*embeddings)
    assert math.isnan(found.direction_similarity)
    assert judge(GOOD._replace(direction_similarity=math.nan), PUBLISHED) == "direction cannot be scored"


def test_each_threshold_rejects_with_a_reason_of_its_own():
    low = {"image_similarity": 0.6, "direction_similarity": 0.1, "source_text": 0.1, "target_text": 0.1, "change": 0.0}
    reasons = [judge(GOOD._replace(**{name: value}), PUBLISHED) for name, value in {**low, "mask_share": 0.0}.items()]
    assert judge(GOOD, PUBLISHED) == "" and "" not in reasons and len(set(reasons)) == 6


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_thresholds_are_numbers(value):
    with pytest.raises(InputError, match="thresholds must be numbers"):
        PairRule(min_text_similarity=value)
