"""Segmenters of transformers are the real classes with tiny random weights: the calls are right, masks say nothing."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from restage.records import InputError
from restage.regions.segmenters import GroundedSegmenter, SalientSegmenter, open_segmenter
from restage.run.models import models_in

PICTURES = torch.linspace(0, 1, 2 * 3 * 40 * 48).reshape(2, 3, 40, 48)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenters")
    torch.manual_seed(0)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(models_in().text_to_image / "tokenizer")
    small = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
    text = {
        **small,
        "num_hidden_layers": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 32,
        "eos_token_id": tokenizer.eos_token_id,
    }
    clipseg = transformers.CLIPSegConfig(
        text_config={**text, "bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id},
        vision_config={**small, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        extract_layers=[1, 2],
        reduce_dim=16,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=32,
    )
    transformers.CLIPSegForImageSegmentation(clipseg).save_pretrained(folder / "clipseg")
    tokenizer.save_pretrained(folder / "clipseg")
    _save_dino(folder / "dino")
    _save_sam(folder / "sam")
    return folder


def _save_dino(folder):
    out: Any = {"out_indices": [2, 3, 4]}
    swin = transformers.SwinConfig(window_size=7, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, image_size=64, **out)
    bert = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    halves: Any = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in [("attention_heads", 4)]
    }
    config = transformers.GroundingDinoConfig(
        backbone_config=swin,
        text_config={"model_type": "bert", **bert, "max_position_embeddings": 64, "vocab_size": 120},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
        **halves,
    )
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    transformers.GroundingDinoImageProcessorPil(size=size).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "bear", ".", "?"]
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)


def _save_sam(folder):
    hiera = transformers.Sam2HieraDetConfig(
        hidden_size=12,
        num_attention_heads=1,
        blocks_per_stage=[1, 2, 2, 2],
        embed_dim_per_stage=[12, 24, 48, 96],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        image_size=[128, 128],
        window_positional_embedding_background_size=[2, 2],
        window_size_per_stage=[8, 4, 14, 7],
        global_attention_blocks=[4],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[96, 48, 24, 12],
        fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )
    decoder = {"hidden_size": 32, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    prompts = {"hidden_size": 32, "image_size": 128, "mask_input_channels": 8}
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    transformers.Sam2Model(config).save_pretrained(folder)


def test_clipseg_gives_a_mask_that_depends_on_the_words(folders):
    segmenter = open_segmenter([folders / "clipseg"])
    masks = [segmenter.segment(PICTURES, words) for words in ("the red cube", "the tree")]
    assert masks[0].shape == (2, 40, 48) and bool(((masks[0] >= 0) & (masks[0] <= 1)).all())
    assert segmenter.reads_words and not torch.equal(masks[0], masks[1])


def test_boxes_of_grounding_dino_are_cut_out_by_sam(folders, monkeypatch):
    segmenter = open_segmenter([folders / "sam", folders / "dino"])
    assert segmenter.name == "GroundingDINO of dino, SAM 2 of sam" and segmenter.reads_words
    monkeypatch.setattr(GroundedSegmenter, "min_score", 0.0)
    masks = segmenter.segment(PICTURES, "The bear")
    assert masks.shape == (2, 40, 48) and bool(((masks >= 0) & (masks <= 1)).all()) and float(masks.max()) > 0
    monkeypatch.setattr(GroundedSegmenter, "min_score", 1.0)
    assert float(segmenter.segment(PICTURES, "the bear").max()) == 0


def test_folders_of_something_else_are_refused(folders, tmp_path):
    for name, model_type in (("bert", "bert"), ("broken", "clipseg")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": model_type}))
    for given in ([tmp_path / "bert"], [folders / "sam"], [folders / "dino", folders / "clipseg"]):
        with pytest.raises(InputError, match="expected a folder of CLIPSeg, or one of GroundingDINO"):
            open_segmenter(given)
    with pytest.raises(InputError, match="is not readable as a CLIPSegForImageSegmentation"):
        open_segmenter([tmp_path / "broken"])


class Session:
    """Stands for the model of the extra: what is bright is conspicuous."""

    def get_inputs(self) -> Any:
        return [type("Input", (), {"name": "picture"})]

    def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        (picture,) = given.values()
        assert picture.shape == (1, 3, 320, 320) and picture.dtype == np.float32
        return [(picture.mean(axis=1, keepdims=True) > 0.5).astype(np.float32)]


def test_the_salient_segmenter_asks_its_model_in_its_size(monkeypatch):
    segmenter = object.__new__(SalientSegmenter)
    monkeypatch.setattr(segmenter, "session", Session(), raising=False)
    pictures = torch.zeros(1, 3, 40, 48)
    pictures[:, :, 10:30, 12:36] = 1
    masks = segmenter.segment(pictures, "anything")
    assert masks.shape == (1, 40, 48) and float(masks[0, 12:28, 14:34].min()) > 0.9 and float(masks[0, :8].max()) < 0.1
    assert not segmenter.reads_words
