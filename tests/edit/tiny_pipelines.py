"""Instruction pipelines of diffusers with tiny random weights, one builder a family; nothing is downloaded."""

# The types that diffusers declares for parts of pipelines are narrower than what it takes.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler

from restage.diffusion.loading import pictures_only
from tests.diffusion.tiny import tiny_tokenizer
from tests.edit.tiny_parts import IDS, TEXT, TOKENIZER, clip_text, qwen3_vl, qwen_processor, qwen_vl, unet, vae


def instruct_pix2pix() -> Any:
    tokenizer = tiny_tokenizer()
    return diffusers.StableDiffusionInstructPix2PixPipeline(
        vae=vae(scaling_factor=0.18215),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=32),
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def instruct_pix2pix_xl() -> Any:
    tokenizer = tiny_tokenizer()
    return diffusers.StableDiffusionXLInstructPix2PixPipeline(
        vae=vae(scaling_factor=0.13),
        text_encoder=clip_text(tokenizer),
        text_encoder_2=clip_text(tokenizer, transformers.CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,  # 6 * 8 + 32
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
    )


def kontext(cls: type = diffusers.FluxKontextPipeline) -> Any:
    tokenizer = tiny_tokenizer()
    text = transformers.T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(scaling_factor=1.5, shift_factor=0.1),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=transformers.T5EncoderModel(text).eval(),
        tokenizer_2=tokenizer,
        transformer=diffusers.FluxTransformer2DModel(
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


def _flux2_parts(guidance_embeds: bool) -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": diffusers.AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(8,),
            layers_per_block=1,
            latent_channels=1,
            norm_num_groups=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval(),
        "transformer": diffusers.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,  # of three layers of the text encoder
            timestep_guidance_channels=256,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance_embeds,
        ).eval(),
    }


def klein(cls: type = diffusers.Flux2KleinPipeline) -> Any:
    # The pipeline reads the states of layers 9, 18 and 27.
    text = transformers.Qwen3Config(**{**TEXT, "num_hidden_layers": 28}, head_dim=8)
    encoder = transformers.Qwen3ForCausalLM(text).eval()
    return cls(**_flux2_parts(False), text_encoder=encoder, tokenizer=TOKENIZER)


def flux2() -> Any:
    config = transformers.Mistral3Config(
        text_config={**TEXT, "model_type": "mistral", "num_hidden_layers": 31, "head_dim": 8},  # 10, 20 and 30
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=IDS["<|image_pad|>"],
    )
    encoder = transformers.Mistral3ForConditionalGeneration(config).eval()
    # The published model's processor, Pixtral's, needs torchvision; of it only the chat's template is used.
    return diffusers.Flux2Pipeline(**_flux2_parts(True), text_encoder=encoder, tokenizer=qwen_processor())


def qwen_edit(cls: type = diffusers.QwenImageEditPipeline) -> Any:
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval(),
        text_encoder=qwen_vl(),
        tokenizer=TOKENIZER,
        processor=qwen_processor(),
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ).eval(),
    )


def qwen21() -> Any:
    return diffusers.QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval(),
        text_encoder=qwen3_vl(),
        processor=qwen_processor(transformers.Qwen3VLProcessor, patch_size=16),
        transformer=diffusers.QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(8, 4, 4),
        ).eval(),
    )


def longcat() -> Any:
    return diffusers.LongCatImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(latent_channels=16, scaling_factor=1.5, shift_factor=0.1),
        text_encoder=qwen_vl(),
        tokenizer=TOKENIZER,
        text_processor=qwen_processor(),
        transformer=diffusers.LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 4, 8],
        ).eval(),
    )


def joy(cls: type, transformer: type) -> Any:
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval(),
        text_encoder=qwen3_vl(),
        tokenizer=TOKENIZER,
        processor=qwen_processor(transformers.Qwen3VLProcessor, patch_size=16),
        transformer=transformer(
            in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=16, num_layers=1, rope_dim_list=[4, 6, 6]
        ).eval(),
    )


def joy_edit() -> Any:
    return joy(diffusers.JoyImageEditPipeline, diffusers.JoyImageEditTransformer3DModel)


def joy_edit_plus() -> Any:
    return joy(diffusers.JoyImageEditPlusPipeline, diffusers.JoyImageEditPlusTransformer3DModel)


def z_image_omni() -> Any:
    siglip = transformers.Siglip2VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_patches=16, patch_size=16
    )
    return diffusers.ZImageOmniPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(latent_channels=16, scaling_factor=0.4, shift_factor=0.1),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**TEXT, head_dim=8)).eval(),
        tokenizer=TOKENIZER,
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            siglip_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 64, 64],
        ).eval(),
        siglip=transformers.Siglip2VisionModel(siglip).eval(),
        siglip_processor=transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=16),
    )


def omnigen() -> Any:
    tokenizer = tiny_tokenizer(length=512)
    return diffusers.OmniGenPipeline(
        transformer=diffusers.OmniGenTransformer2DModel(
            in_channels=4,
            hidden_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=16,
            num_layers=1,
            pad_token_id=0,
            vocab_size=len(tokenizer),
            max_position_embeddings=1024,
            rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        vae=vae(levels=4, scaling_factor=0.13),
        tokenizer=tokenizer,
    )


def dream_lite(cls: type = diffusers.DreamLitePipeline) -> Any:
    return cls(
        text_encoder=qwen3_vl(),
        tokenizer=TOKENIZER,
        processor=qwen_processor(transformers.Qwen3VLProcessor, patch_size=16, max_pixels=32 * 32 * 4),
        vae=diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ).eval(),
        unet=diffusers.DreamLiteUNetModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=16,
            attention_head_dim=8,
            addition_embed_type="time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def kandinsky5() -> Any:
    tokenizer = tiny_tokenizer(length=77)
    return diffusers.Kandinsky5I2IPipeline(
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=32,
            time_dim=16,
            out_visual_dim=4,
            model_dim=16,
            ff_dim=16,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(2, 2, 4),
            visual_cond=True,
        ).eval(),
        vae=vae(levels=4, scaling_factor=0.5),
        text_encoder=qwen_vl(),
        tokenizer=qwen_processor(),
        text_encoder_2=clip_text(tokenizer),
        tokenizer_2=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "StableDiffusionInstructPix2PixPipeline": instruct_pix2pix,
    "StableDiffusionXLInstructPix2PixPipeline": instruct_pix2pix_xl,
    "FluxKontextPipeline": kontext,
    "FluxKontextInpaintPipeline": lambda: kontext(diffusers.FluxKontextInpaintPipeline),
    "Flux2Pipeline": flux2,
    "Flux2KleinPipeline": klein,
    "Flux2KleinKVPipeline": lambda: klein(diffusers.Flux2KleinKVPipeline),
    "Flux2KleinInpaintPipeline": lambda: klein(diffusers.Flux2KleinInpaintPipeline),
    "QwenImageEditPipeline": qwen_edit,
    "QwenImageEditPlusPipeline": lambda: qwen_edit(diffusers.QwenImageEditPlusPipeline),
    "QwenImageEditInpaintPipeline": lambda: qwen_edit(diffusers.QwenImageEditInpaintPipeline),
    "QwenImage21Pipeline": qwen21,
    "LongCatImageEditPipeline": longcat,
    "JoyImageEditPipeline": joy_edit,
    "JoyImageEditPlusPipeline": joy_edit_plus,
    "ZImageOmniPipeline": z_image_omni,
    "OmniGenPipeline": omnigen,
    "DreamLitePipeline": dream_lite,
    "DreamLiteMobilePipeline": lambda: dream_lite(diffusers.DreamLiteMobilePipeline),
    "Kandinsky5I2IPipeline": kandinsky5,
}


def build(name: str) -> Any:
    """Build the pipeline of a class of the table; the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BUILDERS[name]()


def save(name: str, folder: Path) -> None:
    """Write the folder of a pipeline of a class of the table."""
    with pictures_only():
        build(name).save_pretrained(folder)
