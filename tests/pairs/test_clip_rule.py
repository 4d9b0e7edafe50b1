"""Thresholds that suit a CLIP, from its own folder."""

import json
import shutil

import pytest
import torch

from restage.commands.pairs import build_calibrate
from restage.diffusion.clip import load_clip
from restage.pairs.clip_rule import calibrate, exact_pairs, read_clip_rule, rule_for
from restage.pairs.config import PAIRS, PUBLISHED, PairRule, PairsConfig
from restage.pairs.encoding import ImagePair
from restage.pairs.score import PairScores, judge
from restage.recipes import RULE, demo_config
from restage.records import InputError, PromptPair, content_id
from restage.run.models import ASSETS, folder_sha256, models_in


def test_the_shipped_clip_names_the_rule_of_the_demo_and_keeps_its_hash(tmp_path):
    expected = PairRule(min_image_similarity=0.3, min_direction_similarity=0.3, min_text_similarity=0.75)
    assert read_clip_rule(ASSETS / "clip") == RULE == expected == demo_config(models_in()).pairs.rule
    assert content_id("rule", expected) == "rule-62d6559e5375f37c"
    shutil.copytree(ASSETS / "clip", tmp_path / "clip", ignore=lambda *_: ["pair_rule.json"])
    assert folder_sha256(tmp_path / "clip") == folder_sha256(ASSETS / "clip")


def test_a_rule_that_names_thresholds_keeps_them_and_others_come_from_the_clip():
    assert rule_for(PUBLISHED, ASSETS / "clip") == PUBLISHED
    mixed = rule_for(PairRule(min_image_similarity=0.5, min_change=0.01), ASSETS / "clip")
    assert mixed == PairRule(
        min_image_similarity=0.5, min_direction_similarity=0.3, min_text_similarity=0.75, min_change=0.01
    )
    assert PairsConfig().rule == PAIRS.rule == PairRule()


def test_a_clip_like_those_of_openai_has_the_published_thresholds_and_an_unknown_one_has_to_be_calibrated(tmp_path):
    config = {"model_type": "clip", "projection_dim": 768, "text_config": {"projection_dim": 768}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert rule_for(PairRule(), tmp_path) == PUBLISHED
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": {"vocab_size": 1000}}))
    with pytest.raises(InputError, match=f"restage calibrate {tmp_path}"):
        rule_for(PairRule(), tmp_path)
    with pytest.raises(InputError, match="no thresholds"):
        judge(PairScores(0.9, 0.9, 0.9, 0.9, 0.1, 0.1), PairRule())


@pytest.mark.parametrize("content", ["[]", "{", '{"min_image_similarity": 0.3}', '{"min_image_similarity": "x"}'])
def test_a_broken_record_is_refused_by_name(tmp_path, content):
    (tmp_path / "pair_rule.json").write_text(content)
    with pytest.raises(InputError, match=r"pair_rule\.json"):
        read_clip_rule(tmp_path)


class ToyClip:
    """Sees the mean color of a picture, and reads it off the caption: exact pairs fit, others do not."""

    def encode_images(self, images):
        return torch.nn.functional.normalize(images.mean(dim=(2, 3)) + 1e-6, dim=-1)

    def encode_text(self, texts):
        colors = torch.tensor([[float(part) for part in text.split()] for text in texts])
        return torch.nn.functional.normalize(colors + 1e-6, dim=-1)


def toy_pairs(count):
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        colors = torch.rand((2, 3), generator=generator)
        texts = [" ".join(f"{value:.4f}" for value in color) for color in colors]
        source, edited = (color[:, None, None].expand(3, 8, 8).clone() for color in colors)
        prompt = PromptPair(source=texts[0], target=texts[1], instruction=f"do {number}", kind="recolour")
        yield ImagePair(id=str(number), source=source, edited=edited, mask=torch.ones(8, 8), prompt=prompt, facts={})


def test_thresholds_keep_right_pairs_and_refuse_those_with_a_wrong_picture():
    found = calibrate(ToyClip(), toy_pairs(40))
    assert found.num_pairs == 40 and found.kept >= 0.95 and found.kept_of_wrong <= 0.2
    assert found.rule.min_direction_similarity is not None and found.rule.min_direction_similarity > 0.9
    with pytest.raises(InputError, match="at least 30 pairs"):
        calibrate(ToyClip(), toy_pairs(5))


@pytest.mark.slow
def test_calibrating_the_shipped_clip_gives_thresholds_near_its_own_that_accept_exact_recolours(tmp_path):
    shutil.copytree(ASSETS / "clip", tmp_path / "clip")
    build_calibrate()(tmp_path / "clip", num_pairs=140)
    rule = read_clip_rule(tmp_path / "clip")
    assert rule is not None and rule != PUBLISHED
    clip = load_clip(tmp_path / "clip")
    assert calibrate(clip, exact_pairs(63, seed=9)).kept >= 0.85
    assert rule.min_text_similarity == pytest.approx(0.75, abs=0.1)
