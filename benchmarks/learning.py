"""What makes text-to-image learn fast: short trainings of equal time on the world's second edition, side by side.

    python -m benchmarks.learning FOLDER [--arms unet-v transformer-flow] [--minutes 20] [--num-pictures 6000]

One thread, at the lowest priority. Each arm trains for so many minutes of its own and then appends one line of JSON to
FOLDER/results.jsonl; Ctrl-C or a kill loses a minute at most, and the same command goes on. Pictures are rendered and
encoded once, with the shipped autoencoder. Captions say places in half of the scenes; words are whole tokens here.

All arms are measured alike, on pictures that none has seen: the mean squared error of the clean latents that they
predict from noisy ones (whose variance is near 1), at four shares of noise, with captions and without. `text_gain` is
how much of the error the caption takes away; `*_average` is the same with averaged weights. FOLDER/<arm>.png shows
twelve captions painted in 25 steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import PixArtTransformer2DModel
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from miniature.text_to_image import TEXT_WIDTH, build_unet
from restage.diffusion.backbone import load_backbone
from restage.diffusion.hardware import bfloat16_autocast
from restage.diffusion.training import explicit_attention
from restage.records import derive_seed, write_atomically
from restage.run.models import models_in
from restage.world import second
from restage.world.capture import sample_camera
from restage.world.render import render_view

LENGTH = 56
"""Words of the longest caption that is kept whole."""
NUM_HELD_OUT = 256
NOISE_SHARES = (0.2, 0.4, 0.6, 0.8)
"""s of `(1 - s) x + s noise`: where all arms are measured."""
WARMUP_STEPS, SAVE_EVERY_S = 100, 60.0


@dataclass(frozen=True)
class Arm:
    """One way to learn."""

    body: str = "unet"
    """`unet`, as it ships, or `transformer`: 16x16 tokens of one latent pixel, PixArt's blocks."""
    target: str = "v"
    """What is predicted: `v` on the cosine schedule, `flow` (noise - x) or `x` (weighted as flow) on straight lines."""
    learning_rate: float = 5e-4
    batch_size: int = 32
    width: int = 256
    num_layers: int = 8
    ema_decay: float = 0.996


ARMS = {
    "unet-v": Arm(),
    "unet-flow": Arm(target="flow"),
    "unet-x": Arm(target="x"),
    "transformer-v": Arm("transformer", "v"),
    "transformer-flow": Arm("transformer", "flow"),
    "transformer-x": Arm("transformer", "x"),
    "transformer-flow-wide": Arm("transformer", "flow", width=384),
    "transformer-flow-slow": Arm("transformer", "flow", learning_rate=2.5e-4),
    "transformer-flow-fast": Arm("transformer", "flow", learning_rate=1e-3),
    "unet-flow-fast": Arm(target="flow", learning_rate=1e-3),
    "unet-flow-large-batch": Arm(target="flow", learning_rate=7e-4, batch_size=64),
    "unet-flow-small-batch": Arm(target="flow", learning_rate=3.5e-4, batch_size=16),
}


class Data(NamedTuple):
    """Latents and word ids; the last `NUM_HELD_OUT` are not trained on."""

    latents: Float[Tensor, "n c 16 16"]
    ids: Int[Tensor, "n wordings words"]
    captions: list[str]
    """Of the held-out pictures."""


# --- data -----------------------------------------------------------------------------------------------------------


def make_data(folder: Path, num_pictures: int, *, num_wordings: int = 4) -> Data:
    """Render, encode and caption pictures, 250 at a time; what is there is not made again."""
    backbone = load_backbone(models_in().text_to_image)
    latents, captions = [], []
    for start in range(0, num_pictures, 250):
        path = folder / f"pictures-{start:06d}.npz"
        if not path.exists():
            images, told = [], []
            for index in range(start, min(start + 250, num_pictures)):
                seed = derive_seed("learning", index)
                scene = second.sample_description(seed)
                camera = sample_camera(scene, seed)
                images.append(render_view(scene, camera).image)
                told.append([second.caption_of(scene, derive_seed(seed, k), camera) for k in range(num_wordings)])
            encoded = torch.cat([backbone.encode_images(part) for part in torch.from_numpy(np.stack(images)).split(25)])
            with write_atomically(path) as temporary, temporary.open("wb") as file:
                np.savez(file, latents=encoded.half().numpy(), captions=np.array(told))
            print(f"pictures: {start + len(images)} of {num_pictures}", flush=True)
        saved = np.load(path)
        latents.append(torch.from_numpy(saved["latents"]))
        captions += saved["captions"].tolist()
    words = sorted({word for told in captions for text in told for word in text.replace(",", " ,").split()})
    known = {word: 2 + i for i, word in enumerate(words)}  # 0 fills up, 1 ends
    ids = torch.zeros(len(captions), num_wordings, LENGTH, dtype=torch.long)
    for row, told in enumerate(captions):
        for k, text in enumerate(told):
            found = [known[word] for word in text.replace(",", " ,").split()][: LENGTH - 1]
            ids[row, k, : len(found) + 1] = torch.tensor([*found, 1])
    return Data(torch.cat(latents), ids, [told[0] for told in captions[-NUM_HELD_OUT:]])


# --- models ---------------------------------------------------------------------------------------------------------


class Painter(nn.Module):
    """Predicts clean latents from noisy ones `a x + s noise`, by whatever target the arm learns."""

    def __init__(self, arm: Arm, channels: int, num_words: int) -> None:
        super().__init__()
        self.arm = arm
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=num_words, hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=4,
                num_attention_heads=6, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1,
            )
        )  # fmt: skip
        if arm.body == "unet":
            self.body: nn.Module = build_unet(channels).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        else:
            self.body = PixArtTransformer2DModel(
                num_attention_heads=arm.width // 64, attention_head_dim=64, in_channels=channels,
                out_channels=channels, num_layers=arm.num_layers, cross_attention_dim=arm.width, attention_bias=True,
                sample_size=16, patch_size=1, caption_channels=TEXT_WIDTH, use_additional_conditions=False,
            )  # fmt: skip

    def output(self, noisy: Tensor, level: Tensor, ids: Tensor) -> Tensor:
        """Return what the body says at noise levels in [0, 1]."""
        words = self.text(input_ids=ids).last_hidden_state
        more = {} if self.arm.body == "unet" else {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        return self.body(noisy, timestep=999 * level, encoder_hidden_states=words, **more).sample

    def clean(self, x: Tensor, noise: Tensor, share: Tensor, ids: Tensor) -> Tensor:
        """Return the predicted clean latents for `(1 - share) x + share noise`, in the arm's own scaling."""
        s = share.view(-1, 1, 1, 1)
        if self.arm.target == "v":
            norm = torch.sqrt((1 - s) ** 2 + s**2)
            a, sigma, level = (1 - s) / norm, s / norm, torch.atan2(share, 1 - share) / (math.pi / 2)
            noisy = a * x + sigma * noise
            return a * noisy - sigma * self.output(noisy, level, ids).float()
        noisy = (1 - s) * x + s * noise
        output = self.output(noisy, share, ids).float()
        return output if self.arm.target == "x" else noisy - s * output

    def loss(self, x: Tensor, noise: Tensor, level: Tensor, ids: Tensor) -> Tensor:
        """Mean squared error of the arm's target, for levels drawn evenly from [0, 1]."""
        if self.arm.target == "v":
            angle = level.view(-1, 1, 1, 1) * (math.pi / 2)
            noisy = angle.cos() * x + angle.sin() * noise
            return (self.output(noisy, level, ids).float() - angle.cos() * noise + angle.sin() * x).square().mean()
        # More of the middle, where most is learned (logit-normal shares, as in Stable Diffusion 3).
        share = torch.sigmoid(torch.special.ndtri(level.clamp(1e-3, 1 - 1e-3)))
        s = share.view(-1, 1, 1, 1)
        output = self.output((1 - s) * x + s * noise, share, ids).float()
        if self.arm.target == "x":
            return ((output - x) / s.clamp(min=0.05)).square().mean()
        return (output - noise + x).square().mean()


@torch.no_grad()
def measure(model: Painter, data: Data) -> dict[str, float]:
    """Errors of the predicted clean latents on held-out pictures."""
    x, ids = data.latents[-NUM_HELD_OUT:].float(), data.ids[-NUM_HELD_OUT:, 0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    empty = torch.zeros_like(ids)
    empty[:, 0] = 1
    figures: dict[str, float] = {}
    with bfloat16_autocast(x.device):
        for share in NOISE_SHARES:
            for name, words in (("", ids), ("_without_text", empty)):
                errors = [
                    (model.clean(*part, torch.full((len(part[0]),), share), told) - part[0]).square().mean()
                    for *part, told in zip(x.split(32), noise.split(32), words.split(32), strict=True)
                ]
                figures[f"error_{share}{name}"] = round(float(torch.stack(errors).mean()), 5)
    figures["text_gain"] = round(1 - figures["error_0.8"] / figures["error_0.8_without_text"], 4)
    return figures


@torch.no_grad()
def draw(model: Painter, data: Data, path: Path, *, guidance: float = 4.0, num_steps: int = 25) -> None:
    """Paint twelve held-out captions: deterministic steps along straight lines."""
    ids = data.ids[-NUM_HELD_OUT:, 0][:12]
    empty = torch.zeros_like(ids)
    empty[:, 0] = 1
    shares = torch.linspace(1, 0, num_steps + 1).clamp(max=0.995)
    noisy = torch.randn((12, *data.latents.shape[1:]), generator=torch.Generator().manual_seed(1))
    for now, then in zip(shares[:-1], shares[1:], strict=True):
        told, plain = (_clean_at(model, noisy, now, words) for words in (ids, empty))
        x = plain + guidance * (told - plain)
        noise = (noisy - (1 - now) * x) / now
        noisy = (1 - then) * x + then * noise
    images = load_backbone(models_in().text_to_image).decode_latents(noisy).clamp(0, 1)
    rows = [torch.cat(list(images[i : i + 6]), 2) for i in (0, 6)]
    pixels = (torch.cat(rows, 1).permute(1, 2, 0) * 255 + 0.5).byte().numpy()
    with write_atomically(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
    path.with_suffix(".txt").write_text("\n".join(data.captions[:12]) + "\n")


def _clean_at(model: Painter, noisy: Tensor, share: Tensor, ids: Tensor) -> Tensor:
    """Return the predicted clean latents of `noisy = (1 - share) x + share noise`, of which neither part is known."""
    # With x = noisy / (1 - share) and no noise, the mixture is `noisy` again.
    return model.clean(noisy / (1 - share), torch.zeros_like(noisy), share.expand(len(noisy)), ids)


# --- arms -----------------------------------------------------------------------------------------------------------


def run_arm(name: str, arm: Arm, data: Data, folder: Path, budget_s: float) -> dict[str, Any]:
    """Train one arm until its time is spent, and measure it."""
    torch.manual_seed(0)
    channels, num_words = data.latents.shape[1], int(data.ids.max()) + 1
    model, average = Painter(arm, channels, num_words), Painter(arm, channels, num_words)
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=arm.learning_rate, weight_decay=0.01, fused=True)
    path, step, spent_s = folder / f"{name}.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        step, spent_s = state["step"], state["spent_s"]
        for part, key in ((model, "model"), (average, "average"), (optimizer, "optimizer")):
            part.load_state_dict(state[key])
    saved_s, num_training = spent_s, len(data.latents) - NUM_HELD_OUT
    while spent_s < budget_s:
        start_s = time.thread_time()
        generator = torch.Generator().manual_seed(derive_seed("learning", step) % 2**62)
        # The rate falls over the last quarter of the time, whatever number of steps that is.
        cool = min(1.0, (budget_s - spent_s) / (0.25 * budget_s))
        for group in optimizer.param_groups:
            group["lr"] = arm.learning_rate * cool * min(1.0, (step + 1) / WARMUP_STEPS)
        chosen = torch.randint(num_training, (arm.batch_size,), generator=generator)
        ids = data.ids[chosen, torch.randint(data.ids.shape[1], (arm.batch_size,), generator=generator)].clone()
        dropped = torch.rand(arm.batch_size, generator=generator) < 0.1
        ids[dropped] = 0
        ids[dropped, 0] = 1
        x = data.latents[chosen].float()
        noise = torch.randn(x.shape, generator=generator)
        spaced = (torch.arange(arm.batch_size) + torch.rand(1, generator=generator)) / arm.batch_size
        # As in the recipes: on a CPU, fused attention spends more on its backward pass than it saves.
        with bfloat16_autocast(x.device), explicit_attention(model):
            loss = model.loss(x, noise, spaced, ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(arm.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        step, spent_s = step + 1, spent_s + time.thread_time() - start_s
        if spent_s - saved_s > SAVE_EVERY_S or spent_s >= budget_s:
            saved_s = spent_s
            state = {"step": step, "spent_s": spent_s, "model": model.state_dict(), "average": average.state_dict()}
            with write_atomically(path) as temporary:
                torch.save({**state, "optimizer": optimizer.state_dict()}, temporary)
            print(f"{name}: step {step}, {spent_s:.0f} of {budget_s:.0f} s, loss {loss.item():.4f}", flush=True)
    figures = measure(model.eval(), data)
    figures |= {f"{key}_average": value for key, value in measure(average.eval(), data).items()}
    draw(average, data, folder / f"{name}.png")
    parameters = sum(p.numel() for p in model.body.parameters())
    return {"arm": name, **asdict(arm), "steps": step, "seconds": round(spent_s), "parameters": parameters, **figures}


def main(arguments: list[str] | None = None) -> None:
    """Run the arms that are not in the results yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--num-pictures", type=int, default=6000)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.nice(max(0, 19 - os.nice(0)))
    asked.folder.mkdir(parents=True, exist_ok=True)
    results = asked.folder / "results.jsonl"
    done = {json.loads(line)["arm"] for line in results.read_text().splitlines()} if results.exists() else set()
    data = make_data(asked.folder, asked.num_pictures + NUM_HELD_OUT)
    for name in [name for name in asked.arms if name not in done]:
        line = json.dumps(run_arm(name, ARMS[name], data, asked.folder, 60 * asked.minutes))
        with results.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
