"""A tiny random text-to-image model with the backbone's interface, and a tokenizer that splits words."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from restage.diffusion.attention import controlled
from restage.diffusion.backbone import TextCondition
from restage.diffusion.control import StepControl
from restage.diffusion.schedule import Schedule

TEXTS = [
    "a red cube on the grass at noon",
    "a photo of two orange cones on sand",
    "the blue ball, big snowman at night",
]


def tiny_tokenizer(length: int = 24, texts: list[str] = TEXTS, vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer like CLIP's: lower case, words end in </w>, begin and end tokens, end pads."""
    core = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = ["<|startoftext|>", "<|endoftext|>"]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            end_of_word_suffix="</w>",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    start, end = (core.token_to_id(token) for token in special)
    core.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A {special[1]}", special_tokens=[(special[0], start), (special[1], end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[1],
        model_max_length=length,
    )


def tiny_unet(seed: int = 0, latent_size: int = 16, *, channels: tuple[int, ...] = (16, 32)) -> UNet2DConditionModel:
    """A random UNet of 270,000 parameters unless it has other channels, laid out like the miniature's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=latent_size,
            in_channels=4,
            out_channels=4,
            block_out_channels=channels,
            down_block_types=("CrossAttnDownBlock2D",) * len(channels),
            up_block_types=("CrossAttnUpBlock2D",) * len(channels),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        for name, parameter in unet.named_parameters():  # sharper attention than at the start
            if ".to_q." in name or ".to_k." in name:
                nn.init.normal_(parameter, std=(2 / channels[0]) ** 0.5)
        unet.conv_out.weight.data *= 0.2  # else steps amplify the last bits into other pictures
    return unet.eval().requires_grad_(False)


@dataclass
class TinyBackbone:
    tokenizer: PreTrainedTokenizerFast
    unet: UNet2DConditionModel
    schedule: Schedule
    table: Tensor
    device: torch.device = torch.device("cpu")

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.tokenizer.model_max_length, return_tensors="pt"
        )["input_ids"]
        places = torch.sin(torch.arange(ids.shape[1])[:, None] * torch.arange(1, 33) / 8)
        return self.table[ids] + 0.5 * places

    def encode_prompts(self, prompts: Sequence[str]) -> TextCondition:
        return TextCondition(self.encode_text(prompts))

    def predict_noise(
        self, latents: Tensor, timesteps: Tensor, text: Tensor | TextCondition, *, control: StepControl | None = None
    ) -> Tensor:
        tokens = text if isinstance(text, Tensor) else text.tokens
        kwargs = None if control is None else {"control": control}
        with torch.no_grad(), controlled(self.unet) if control is not None else contextlib.nullcontext():
            prediction = self.unet(
                latents.to(self.table.dtype), timesteps, encoder_hidden_states=tokens, cross_attention_kwargs=kwargs
            ).sample
        return self.schedule.to_epsilon(prediction, latents, timesteps)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return nn.functional.interpolate(latents[:, :3] * 0.2 + 0.5, scale_factor=8).clamp(0, 1)


def tiny_backbone(seed: int = 0, dtype: torch.dtype = torch.float32) -> TinyBackbone:
    """Make everything that the sampler asks of a backbone, with random weights.

    In float64, thresholds cut word maps alike on every machine: in float32 a pixel whose map is within the last bit of
    a threshold may fall on either side of it, and the trajectory then goes another way.
    """
    tokenizer = tiny_tokenizer()
    table = torch.randn(len(tokenizer), 32, generator=torch.Generator().manual_seed(seed)).to(dtype)
    unet = tiny_unet(seed)
    unet.to(dtype=dtype)  # pyright: ignore[reportCallIssue]  (diffusers wraps it)
    # Velocity, since the clean latents that a random model's noise stands for are huge, and rounding with them.
    config = {"beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}
    schedule = Schedule.from_config({"beta_schedule": "scaled_linear", **config})
    return TinyBackbone(tokenizer, unet, schedule, table)
