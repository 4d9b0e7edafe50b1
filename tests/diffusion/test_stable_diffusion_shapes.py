"""The same code on models laid out as Stable Diffusion 1, 2 and XL: tiny, random, saved by diffusers' pipelines."""

import dataclasses

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from restage.diffusion.attention import attention_layers
from restage.diffusion.backbone import load_backbone
from restage.diffusion.config import ControlOptions, LocalBlend, SamplerConfig
from restage.diffusion.control import PairControl
from restage.diffusion.pair_sampler import PairBatch, sample_pairs
from tests.diffusion.cases import CASES
from tests.diffusion.explicit import explicit_steps
from tests.diffusion.tiny import tiny_tokenizer

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
SHAPES = {
    "1": {
        "sample_size": 16,
        "down_block_types": (CROSS, CROSS, CROSS, PLAIN),
        "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP),
        "block_out_channels": (16, 16, 32, 32),
        "attention_head_dim": 4,
        "cross_attention_dim": 24,
    },
    "2": {
        "sample_size": 16,
        "down_block_types": (CROSS, CROSS, CROSS, PLAIN),
        "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP),
        "block_out_channels": (16, 16, 32, 32),
        "attention_head_dim": (2, 2, 4, 4),
        "use_linear_projection": True,
        "cross_attention_dim": 32,
    },
    "XL": {
        "sample_size": 32,
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
        "block_out_channels": (16, 16, 32),
        "attention_head_dim": (1, 2, 4),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "cross_attention_dim": 24 + 32,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
}
NUM_LAYERS = {"1": 32, "2": 32, "XL": 2 * (2 * 2 + 2 * 3 + 3 + 3 * 3 + 3 * 2)}
NUM_STEPS = 5


def text_config(width, tokenizer, **settings):
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )


def make_pipeline(version):
    tokenizer = tiny_tokenizer()
    unet = UNet2DConditionModel(in_channels=4, out_channels=4, layers_per_block=2, norm_num_groups=8, **SHAPES[version])
    vae = AutoencoderKL(
        block_out_channels=[8, 8, 8, 8],  # pyright: ignore[reportArgumentType]
        down_block_types=["DownEncoderBlock2D"] * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=["UpDecoderBlock2D"] * 4,  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction" if version == "2" else "epsilon",
        clip_sample=False,
        steps_offset=1,
    )
    parts = {"vae": vae, "unet": unet, "scheduler": scheduler, "tokenizer": tokenizer}
    if version == "XL":
        return StableDiffusionXLPipeline(
            **parts,  # pyright: ignore[reportArgumentType]
            text_encoder=CLIPTextModel(text_config(24, tokenizer)),
            tokenizer_2=tokenizer,  # pyright: ignore[reportArgumentType]
            text_encoder_2=CLIPTextModelWithProjection(text_config(32, tokenizer, projection_dim=16)),
        )
    return StableDiffusionPipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        text_encoder=CLIPTextModel(text_config(SHAPES[version]["cross_attention_dim"], tokenizer)),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module", params=SHAPES)
def model(request, tmp_path_factory):
    """The pipeline of diffusers, and our backbone loaded from the folder that it saved."""
    folder = tmp_path_factory.mktemp(f"stable-diffusion-{request.param}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = make_pipeline(request.param)
    pipeline.unet.conv_out.weight.data *= 0.2  # else steps amplify the last bits into other pictures
    pipeline.save_pretrained(folder)
    return request.param, pipeline, dataclasses.replace(load_backbone(folder), has_autocast=False)


def test_prompts_are_embedded_as_the_pipeline_does(model):
    version, pipeline, backbone = model
    found = backbone.encode_prompts(["a red ball on sand"])
    encoded = pipeline.encode_prompt(
        "a red ball on sand",
        device="cpu",
        num_images_per_prompt=1,
        **({} if version == "XL" else {"do_classifier_free_guidance": False}),
    )
    torch.testing.assert_close(found.tokens, encoded[0])
    if version == "XL":
        torch.testing.assert_close(found.pooled, encoded[2])
    else:
        assert found.pooled is None


def test_every_attention_layer_is_found(model):
    version, _, backbone = model
    layers = attention_layers(backbone.unet)
    assert len(layers) == NUM_LAYERS[version]
    assert [layer.is_cross_attention for layer in layers[:4]] == [False, True, False, True]


# Blended never: in float32 a map that is cut at a threshold may go either way, by the last bit.
WITH_MAPS = dataclasses.replace(CASES["replace"], options=ControlOptions(blend=LocalBlend(start=1.0)))


@pytest.mark.parametrize(
    "case", [WITH_MAPS, CASES["refine and reweight"], CASES["MasaCtrl"]], ids=["replace", "refine", "MasaCtrl"]
)
def test_control_equals_explicit_probabilities(model, case):
    version, _, backbone = model
    assert not case.cuts_maps
    map_size = 16
    shape = (4, SHAPES[version]["sample_size"], SHAPES[version]["sample_size"])
    batch = PairBatch(
        control=case.control(),
        source_of=torch.tensor([0]),
        source_text=backbone.encode_prompts([case.source]),
        edit_text=backbone.encode_prompts([case.target]),
        seeds=(case.seed,),
        guidance=torch.tensor([3.0]),
    )
    *_, found = sample_pairs(backbone, batch, SamplerConfig(num_steps=NUM_STEPS, solver="ddim"))
    controller = case.controller(NUM_STEPS, map_size, backbone.tokenizer)
    *_, expected = explicit_steps(backbone, controller, seed=case.seed, guidance=3.0, shape=shape)
    scale = expected.abs().mean()  # a random model that predicts noise goes far
    torch.testing.assert_close(
        torch.cat([found.source_latents, found.edit_latents]) / scale, expected / scale, rtol=0, atol=1e-4
    )
    assert (found.maps is not None) == bool(case.words)
    if found.maps is not None:
        side = found.maps.shape[-1]
        maps = [controller.word_map_of(branch, case.words) / NUM_STEPS for branch in (0, 1)]
        assert side == map_size
        torch.testing.assert_close(found.maps[:, 0], torch.stack(maps), rtol=1e-3, atol=1e-5)


def test_unlike_pairs_share_a_batch(model):
    _, _, backbone = model
    cases = [CASES[name] for name in ("replace and reweight", "refine and reweight", "MasaCtrl", "InstructPix2Pix")]
    batch = PairBatch(
        control=PairControl.merge([case.control() for case in cases]),
        source_of=torch.arange(4),
        source_text=backbone.encode_prompts([case.source for case in cases]),
        edit_text=backbone.encode_prompts([case.target for case in cases]),
        seeds=(1, 2, 3, 4),
        guidance=torch.full((4,), 3.0),
    )
    *_, last = sample_pairs(backbone, batch, SamplerConfig(num_steps=2))
    assert last.edit_latents.isfinite().all()
    for i, case in enumerate(cases):
        alone = dataclasses.replace(batch.select(torch.tensor([i])), seeds=(i + 1,), control=case.control())
        *_, own = sample_pairs(backbone, alone, SamplerConfig(num_steps=2))
        scale = own.edit_latents.abs().mean()
        torch.testing.assert_close(last.edit_latents[i] / scale, own.edit_latents[0] / scale, rtol=0, atol=1e-4)
