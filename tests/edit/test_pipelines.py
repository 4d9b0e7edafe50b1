"""Published editors on tiny random models that diffusers' own pipelines save."""

# The types that diffusers declares for parts of pipelines are narrower than what it takes.
# pyright: reportArgumentType=false

import dataclasses

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from restage.diffusion.editor import EditSettings, Guidance
from restage.edit.editors import EditorSource, open_editor
from restage.edit.editors.edit_model import PUBLISHED, ModelEditor
from restage.edit.editors.interface import ViewBatch
from restage.edit.editors.pipeline import KontextEditor
from restage.records import EditRequest, InputError
from tests.diffusion.tiny import tiny_tokenizer

REQUEST = EditRequest(instruction="a red cube", source_caption="", target_caption="")


def clip(tokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def vae(**settings) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        **settings,
    ).eval()


@pytest.fixture(scope="module")
def views() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory):
    """A tiny InstructPix2Pix folder, and the pipeline that wrote it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        pipeline = StableDiffusionInstructPix2PixPipeline(
            vae=vae(scaling_factor=0.18215),
            text_encoder=clip(tokenizer),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=16,
                in_channels=8,
                out_channels=4,
                block_out_channels=(16, 32),
                down_block_types=("CrossAttnDownBlock2D",) * 2,
                up_block_types=("CrossAttnUpBlock2D",) * 2,
                layers_per_block=1,
                cross_attention_dim=32,
                attention_head_dim=4,
                norm_num_groups=8,
            ).eval(),
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                clip_sample=False,
                timestep_spacing="trailing",
            ),
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    folder = tmp_path_factory.mktemp("pix2pix")
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return folder, pipeline


def test_instruct_pix2pix_edits_as_the_pipeline_of_diffusers_does(pix2pix, views):
    folder, pipeline = pix2pix
    editor = open_editor("instruct_pix2pix", EditorSource(model=folder))
    assert isinstance(editor, ModelEditor) and editor.settings is PUBLISHED
    editor = ModelEditor(
        editor.model, EditSettings(steps=1, guidance=Guidance(text=7.5, image=1.5), use_bfloat16=False)
    )
    editor.model.backbone.has_autocast = False
    batch = ViewBatch(views, views, request=REQUEST, view_indices=(0, 5), noise_level=1.0, seed=3)
    ours = editor.edit(batch)
    theirs = pipeline(
        prompt=[REQUEST.instruction] * 2,
        image=views,
        latents=batch.draw_noise((4, 16, 16)),
        num_inference_steps=1,
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        output_type="pt",
    ).images
    assert torch.allclose(ours.images, theirs, atol=2e-3)
    assert theirs.std() > 0.05


def test_instruct_pix2pix_offers_two_branches_that_see_the_original(pix2pix, views):
    editor = open_editor("instruct_pix2pix", EditorSource(model=pix2pix[0]))
    assert isinstance(editor, ModelEditor)
    scores = editor.scores()
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    first, second = (scores.branches(views[i : i + 1], REQUEST, view_index=i, seed=0) for i in range(2))
    assert not torch.equal(first.edited(latents, 400, None), first.source(latents, 400, None))
    assert not torch.equal(first.source(latents, 400, None), second.source(latents, 400, None))
    stronger = first.edited(latents, 400, 20.0) - first.edited(latents, 400, 7.5)
    assert stronger.abs().max() > 0
    assert torch.equal(first.source(latents, 400, 20.0), first.source(latents, 400, 7.5))


@pytest.fixture(scope="module")
def kontext(tmp_path_factory):
    """A tiny FLUX.1 Kontext folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        pipeline = FluxKontextPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=vae(scaling_factor=1.5, shift_factor=0.1),
            text_encoder=clip(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=T5EncoderModel(
                T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
            ).eval(),
            tokenizer_2=tokenizer,
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                axes_dims_rope=(4, 4, 8),
                guidance_embeds=True,
            ).eval(),
        )
    folder = tmp_path_factory.mktemp("kontext")
    pipeline.save_pretrained(folder)
    return folder


def edit_by_kontext(folder, views, originals=None, **changes):
    editor = dataclasses.replace(open_kontext(folder), steps=4)
    options = {"view_indices": tuple(range(len(views))), "noise_level": 1.0, "seed": 0, **changes}
    return editor.edit(ViewBatch(views, views if originals is None else originals, request=REQUEST, **options))


def open_kontext(folder) -> KontextEditor:
    editor = open_editor("pipeline", EditorSource(model=folder))
    assert isinstance(editor, KontextEditor)
    return editor


def test_kontext_edits_a_view_by_its_seed_and_original_alone(kontext, views):
    both = edit_by_kontext(kontext, views)
    assert both.images.shape == views.shape and both.masks.shape == (2, 32, 32)
    alone = edit_by_kontext(kontext, views[1:], view_indices=(1,))
    assert torch.allclose(alone.images[0], both.images[1], atol=1e-5)
    other = edit_by_kontext(kontext, views[1:], view_indices=(1,), originals=views[:1])
    assert not torch.allclose(other.images, alone.images, atol=1e-4)


def test_kontext_starts_from_the_view_at_partial_noise_only(kontext, views):
    def difference(noise_level: float) -> float:
        one, two = (
            edit_by_kontext(kontext, x, view_indices=(0,), originals=views[:1], noise_level=noise_level).images
            for x in (views[:1], views[1:])
        )
        return float((one - two).abs().mean())

    assert difference(1.0) == pytest.approx(0, abs=1e-6)
    assert difference(0.25) > 0.002


def test_kontext_takes_views_whose_size_its_latents_do_not_divide(kontext):
    odd = torch.rand(1, 3, 30, 37, generator=torch.Generator().manual_seed(0))
    assert edit_by_kontext(kontext, odd).images.shape == odd.shape


def test_the_rest_of_the_schedule_starts_where_the_shifted_scheduler_does(kontext):
    start = open_kontext(kontext)._start(0.5, 64)
    assert len(start.sigmas) == 14 and start.sigmas[0] == pytest.approx(0.5)
    assert 0.5 < start.first < 0.8  # shifted towards noise, as the pipeline will


def test_a_folder_of_another_pipeline_is_refused(pix2pix):
    with pytest.raises(InputError, match="expected a FluxKontextPipeline"):
        open_editor("pipeline", EditorSource(model=pix2pix[0]))
