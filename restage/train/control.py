"""Trains a control branch beside a frozen UNet, on pictures whose conditions are known.

The miniature's recipe and `restage train-control` call it; what is sampled with a branch is in `restage.diffusion`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models import ControlNetModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from restage.diffusion.backbone import Backbone
from restage.diffusion.branches import BranchRecord, ControlBranch, build_branch, hook_into, out_layers, save_branch
from restage.diffusion.conditions import num_channels
from restage.diffusion.config import TrainingConfig
from restage.diffusion.training import explicit_attention, train
from restage.records import InputError, Progress, content_id
from restage.run.models import folder_sha256
from restage.train.batches import draw_timesteps
from restage.train.config import BranchConfig

__all__ = ["BranchBatch", "BranchData", "check_training", "drop_conditions", "train_branch"]

TO_OUT_SHARE = 0.1
"""Learning rate of the UNet's output projections, as a share of the branch's (ControlNeXt: 1e-5 beside 1e-4)."""


class BranchBatch(NamedTuple):
    """What one step trains on."""

    clean: Float[Tensor, "b c h w"]  # latents
    captions: list[str]  # empty where the caption is left out
    conditions: Float[Tensor, "b channels height width"]
    is_steered: Float[Tensor, " b"]  # 0 where the conditions are left out: the branch does not act there


@dataclass(frozen=True)
class BranchData:
    """Pictures with conditions."""

    names: tuple[str, ...]
    """The conditions, in the order of their channels."""
    id: str
    """Content id of all that batches depend on."""
    batch: Callable[[int, torch.Generator], BranchBatch]
    """The batch of a step; the same step and generator give the same one."""
    near: float = 1.0


def drop_conditions(
    conditions: Float[Tensor, "b channels height width"],
    names: Sequence[str],
    config: BranchConfig,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "b channels height width"], Float[Tensor, " b"]]:
    """Leave out all conditions of some pictures, and all but one of some others, so that each serves alone as well."""
    draws = torch.rand(len(conditions), generator=generator)
    is_steered = (draws >= config.drop_control).float()
    kept, start = conditions.clone(), 0
    edge = config.drop_control
    for name in names if len(names) > 1 else ():
        end = start + num_channels([name])
        is_alone = (draws >= edge) & (draws < edge + config.alone_share)
        rest = torch.ones(conditions.shape[1], dtype=torch.bool)
        rest[start:end] = False
        kept[is_alone.nonzero()[:, :1], rest.nonzero()[:, 0]] = 0
        start, edge = end, edge + config.alone_share
    return kept, is_steered


class _Steered(nn.Module):
    """What is trained: a branch, and changes of the UNet's output projections, in a UNet that is passed to it."""

    def __init__(self, branch: ControlBranch | ControlNetModel, unet: nn.Module, *, trains_out: bool) -> None:
        super().__init__()
        self.branch = branch
        layers = list(out_layers(unet).values()) if trains_out else []
        self.weights = nn.ParameterList([torch.zeros_like(layer.weight) for layer in layers])
        self.biases = nn.ParameterList([torch.zeros_like(layer.bias) for layer in layers])
        self.features, self.gate = None, None

    def changes(self, unet: nn.Module) -> dict[str, Tensor]:
        """Return what is to be added to the UNet's weights, by their names."""
        names = list(out_layers(unet))[: len(self.weights)]
        found = {f"{name}.weight": TO_OUT_SHARE * w for name, w in zip(names, self.weights, strict=True)}
        return found | {f"{name}.bias": TO_OUT_SHARE * b for name, b in zip(names, self.biases, strict=True)}

    def _change_out(self, index: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # Scaled, so that Adam, which does not see scales, moves them at their share of the rate.
        weight, bias = TO_OUT_SHARE * self.weights[index], TO_OUT_SHARE * self.biases[index]
        return output + functional.linear(inputs[0], weight.to(output.dtype), bias.to(output.dtype))

    def _inject(self, hidden: Tensor) -> Tensor:
        branch: Any = self.branch
        return branch.inject(hidden, self.features, self.gate)

    @contextlib.contextmanager
    def within(self, unet: nn.Module) -> Iterator[None]:
        """Within it, the UNet is under the branch and has its output projections changed."""
        with contextlib.ExitStack() as hooks:
            if isinstance(self.branch, ControlBranch):
                hooks.callback(hook_into(unet, self.branch.config["placement"], self._inject).remove)
            for index, layer in enumerate(list(out_layers(unet).values())[: len(self.weights)]):
                hooks.callback(layer.register_forward_hook(partial(self._change_out, index)).remove)
            yield

    def forward(
        self,
        unet: nn.Module,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        conditions: Tensor,
        gate: Tensor,
        added: dict[str, Tensor] | None,
    ) -> Tensor:
        """Predict what the UNet is trained to predict."""
        options: dict[str, Any] = {"encoder_hidden_states": text, "added_cond_kwargs": added}
        branch: Any = self.branch
        if isinstance(branch, ControlBranch):
            self.features, self.gate = branch(conditions, timesteps), gate
            return unet(noisy, timesteps, **options).sample
        down, mid = branch(noisy, timesteps, controlnet_cond=conditions, return_dict=False, **options)
        scale = gate.view(-1, 1, 1, 1)
        return unet(
            noisy,
            timesteps,
            **options,
            down_block_additional_residuals=[scale * part for part in down],
            mid_block_additional_residual=scale * mid,
        ).sample


def _build(backbone: Backbone, names: tuple[str, ...], config: BranchConfig) -> ControlBranch | ControlNetModel:
    if config.arm == "controlnet":
        net: Any = ControlNetModel
        levels = backbone.pixels_per_latent.bit_length() - 1
        widths = (16, 32, 96, 256)
        if levels + 1 != len(widths):
            raise InputError(f"a copied-encoder ControlNet is for pictures of 8 pixels a latent, not {2**levels}")
        return net.from_unet(backbone.unet, conditioning_channels=num_channels(names))
    return build_branch(
        backbone.unet,
        names,
        injection=config.injection,
        placement=config.placement,
        width=config.width,
        stride=backbone.pixels_per_latent,
    )


def check_training(training: TrainingConfig) -> None:
    """Refuse settings that a control branch cannot be trained with."""
    if training.is_compiled:
        raise InputError("a control branch is trained without PyTorch's compiler; omit --training.is-compiled")


def train_branch(
    backbone: Backbone,
    data: BranchData,
    config: BranchConfig,
    *,
    training: TrainingConfig,
    state: Path,
    folder: Path,
) -> Iterator[Progress]:
    """Train a branch for a backbone into `folder`; a call after a stop goes on from `state`, to the same weights.

    The loss is the one that the backbone was trained with. Its own weights stay as they are.

    Raises:
        InputError: the state is of another training, the backbone does not come from a folder, or the training is to be
            compiled.
    """
    if backbone.folder is None:
        raise InputError("a control branch is trained for a model that lies in a folder")
    check_training(training)
    unet, schedule = backbone.unet, backbone.schedule
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)  # initial weights only
        branch = _build(backbone, data.names, config)
    branch.to(backbone.device)  # pyright: ignore[reportArgumentType]
    branch.train().requires_grad_(True)
    model = _Steered(branch, unet, trains_out=config.arm == "branch").to(backbone.device)
    sha256 = folder_sha256(backbone.folder / "unet")
    made_from = content_id("branch", [config, sha256, data.id])

    def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = data.batch(step, generator)
        clean = batch.clean.to(backbone.device)
        t = draw_timesteps(len(clean), schedule.num_train_timesteps, 1.0, generator).to(clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        noisy = schedule.add_noise(clean, noise, t)
        text = backbone.encode_prompts(batch.captions)
        prediction = model(
            unet,
            noisy.contiguous(memory_format=torch.channels_last),
            t,
            text.tokens,
            batch.conditions.to(clean),
            batch.is_steered.to(clean),
            backbone.added_conditions(text, noisy),
        )
        target = schedule.target(clean, noise, t)
        return {"denoising": functional.mse_loss(prediction.float(), target)}

    with model.within(unet), explicit_attention(unet):
        for step in train(model, loss_of, folder=state, config=training, made_from=made_from):
            note = f"loss {step.losses['loss']:.4f}"
            yield Progress(stage="control", done=step.step, total=step.num_steps, note=note)
    record = BranchRecord(conditions=data.names, near=data.near, unet_sha256=sha256)
    save_branch(branch, folder, record, model.changes(unet))
