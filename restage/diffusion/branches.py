"""Control branches: small networks beside the UNet that make it follow depth, ids or edges.

A branch is a folder: ours (`ControlBranch`, after ControlNeXt, Peng et al. 2024, arXiv 2408.06070), or a ControlNet of
diffusers (Zhang et al. 2023, arXiv 2302.05543). `load_branch` opens it, `Backbone.steered` puts it to work; what is
sampled, and under which attention control, does not change. Attention control is in `control.py`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from restage.diffusion.conditions import Conditions, as_picture, num_channels, stack_conditions
from restage.diffusion.config import BranchSource, Injection, Placement
from restage.diffusion.loading import load_model, read_config
from restage.records import InputError, content_id, hash_files, read_json, to_plain, write_atomically, write_json
from restage.run.models import add_on_of, folder_sha256

__all__ = ["BRANCH_RECORD", "Branch", "BranchRecord", "ControlBranch", "Residuals"]
__all__ += [
    "add_to_out",
    "branch_sha256",
    "branch_sources",
    "build_branch",
    "cross_normalize",
    "hook_into",
    "injected",
    "load_branch",
    "near_of",
    "out_layers",
]
__all__ += ["save_branch"]

BRANCH_RECORD, TO_OUT = "branch.json", "to_out.safetensors"
TIME_WIDTH = 32


def cross_normalize(
    features: Float[Tensor, "b c h w"], hidden: Float[Tensor, "b c h w"], *, tiny: float = 1e-5
) -> Float[Tensor, "b c h w"]:
    """Give features the mean and deviation of the UNet's own, over channels and pixels of each picture.

    `c' = (c - mean_c) std_h / (std_c + tiny) + mean_h`: the code of ControlNeXt, whose paper has another formula.
    """
    axes = (1, 2, 3)
    mean, deviation = hidden.mean(axes, keepdim=True), hidden.std(axes, keepdim=True)
    own, spread = features.mean(axes, keepdim=True), features.std(axes, keepdim=True)
    return (features - own) * (deviation / (spread + tiny)) + mean


class ControlBranch(ModelMixin, ConfigMixin):
    """Turns conditions, at the size of the picture, into features that are added to the UNet's at one place.

    Shaped as in ControlNeXt: three convolutions, residual blocks between strided convolutions, a residual convolution
    and a 1x1 convolution to the UNet's width. It sees neither latents nor text, so that one evaluation serves both
    halves of guidance; and only its last residual block, on the latents' grid, is told the time step, so that all
    before it is computed once for a picture (`encode`).
    """

    @register_to_config
    def __init__(
        self,
        condition_channels: int,
        out_channels: int,
        width: int = 48,
        stride: int = 8,
        injection: Injection = "cross_norm",
        placement: Placement = "conv_in",
    ) -> None:
        """Build it untrained; `stride` is the picture's size over that of the latents, a power of 2 from 4."""
        super().__init__()
        narrow, time, groups = width // 2, 4 * TIME_WIDTH, 8
        self.time_proj = Timesteps(TIME_WIDTH, True, 0)
        self.time_embedding = TimestepEmbedding(TIME_WIDTH, time)
        layers: list[nn.Module] = []
        for inputs, outputs, step in ((condition_channels, narrow, 2), (narrow, narrow, 1), (narrow, width, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, step, 1), nn.GroupNorm(groups, outputs), nn.SiLU()]
        self.stem = nn.Sequential(*layers)
        num_stages = round(math.log2(stride)) - 2

        def block(told: int | None) -> ResnetBlock2D:
            temb: Any = told
            return ResnetBlock2D(in_channels=width, out_channels=width, temb_channels=temb, groups=groups)

        self.blocks = nn.ModuleList([block(None) for _ in range(num_stages)])
        self.downs = nn.ModuleList([nn.Conv2d(width, width, 3, 2, 1) for _ in range(num_stages)])
        self.timed = block(time)
        self.mix = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.GroupNorm(groups, width), nn.Conv2d(width, width, 3, 1, 1)
        )
        self.out = nn.Conv2d(width, out_channels, 1)
        if injection == "zero_conv":
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]

    def forward(
        self, condition: Float[Tensor, "b c height width"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b out h w"]:
        """Return features on the latents' grid."""
        return self.finish(self.encode(condition), timesteps)

    def encode(self, condition: Float[Tensor, "b c height width"]) -> Float[Tensor, "b features h w"]:
        """Do what does not depend on the time step."""
        x = self.stem(condition)
        for block, down in zip(self.blocks, self.downs, strict=True):
            x = down(block(x, None))
        return x

    def finish(
        self, encoded: Float[Tensor, "b features h w"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b out h w"]:
        """Do the rest."""
        time = self.time_embedding(self.time_proj(timesteps).to(encoded.dtype))
        x = self.timed(encoded, time)
        return self.out(x + self.mix(x))

    def inject(
        self, hidden: Float[Tensor, "n c h w"], features: Float[Tensor, "b c h8 w8"], weight: float | Tensor
    ) -> Float[Tensor, "n c h w"]:
        """Add features to the UNet's; the n rows are those of b pictures, once or (guidance) several times."""
        if features.shape[2:] != hidden.shape[2:]:
            features = functional.adaptive_avg_pool2d(features, (hidden.shape[2], hidden.shape[3]))
        features = _repeated(features, len(hidden)).to(hidden.dtype)
        if self.config["injection"] == "cross_norm":
            features = cross_normalize(features, hidden)
        if isinstance(weight, Tensor):
            weight = _repeated(weight.view(-1, 1, 1, 1), len(hidden)).to(hidden)
        return hidden + weight * features


def _repeated(rows: Tensor, number: int) -> Tensor:
    if number % len(rows):
        raise InputError(f"conditions of {len(rows)} pictures do not fit a batch of {number}")
    return rows if number == len(rows) else rows.repeat(number // len(rows), *(1 for _ in rows.shape[1:]))


def build_branch(
    unet: UNet2DConditionModel,
    conditions: Sequence[str],
    *,
    injection: Injection = "cross_norm",
    placement: Placement = "conv_in",
    width: int = 48,
    stride: int = 8,
) -> ControlBranch:
    """Build an untrained branch for a UNet."""
    for value, known in ((injection, get_args(Injection)), (placement, get_args(Placement))):
        if value not in known:
            raise InputError(f"expected one of {', '.join(known)}, got {value!r}")
    widths: Any = unet.config["block_out_channels"]
    return ControlBranch(
        num_channels(conditions),
        widths[-1] if placement == "mid" else widths[0],
        width=width,
        stride=stride,
        injection=injection,
        placement=placement,
    )


# --- at work --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def injected(unet: nn.Module, placement: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within it, a call of the UNet goes on with `change` of what the part at this place gives."""
    num_calls = 0

    def counted(hidden: Tensor) -> Tensor:
        nonlocal num_calls
        num_calls += 1
        return change(hidden)

    handle = hook_into(unet, placement, counted)
    try:
        yield
    finally:
        handle.remove()
    if num_calls != 1:
        raise RuntimeError(f"a control branch reached the UNet {num_calls} times in one call; expected once")


def hook_into(unet: nn.Module, placement: str, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Have the UNet go on with `change` of what the part at this place gives, until the handle is removed."""
    parts: Any = unet
    site: nn.Module = {"conv_in": parts.conv_in, "down_0": parts.down_blocks[0], "mid": parts.mid_block}[placement]

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        # Down blocks return what their skips take as well, which stays the UNet's own.
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return site.register_forward_hook(hook)


class Residuals(NamedTuple):
    """What ControlNets add to the UNet's skips and middle."""

    down: tuple[Tensor, ...]
    mid: Tensor


@dataclass(frozen=True, eq=False)
class Branch:
    """A loaded branch, and how much and when it counts."""

    model: ControlBranch | ControlNetModel
    conditions: tuple[str, ...]  # what it takes
    takes_picture: bool = False  # as public ControlNets do, in place of stacked conditions
    weight: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)
    """When it is on, [from, until), in shares of the noise schedule from noise to clean."""
    near: float = 1.0  # z depth in world units whose inverse depth counts as 1
    sha256: str = ""  # hash of its folder
    to_out: Mapping[str, Tensor] = field(default_factory=dict)
    """Change of the UNet's weights that the branch was trained with."""

    def is_on(self, timestep: int, num_timesteps: int) -> bool:
        """Whether it acts at a step of the schedule."""
        # Steps end evenly spaced at the clean latent, so that this is the share of them that is done.
        done = 1 - (timestep + 1) / num_timesteps
        return self.weight != 0 and self.window[0] - 1e-9 <= done < self.window[1] - 1e-9

    def prepare(self, given: Sequence[Conditions], size: tuple[int, int]) -> Float[Tensor, "batch channels h w"]:
        """Return its input for pictures of this size.

        Raises:
            InputError: a picture has none of what it takes.
        """
        for conditions in given:
            if not set(self.conditions) & set(conditions):
                known = ", ".join(conditions) or "nothing"
                raise InputError(f"a control branch for {', '.join(self.conditions)} was given {known}")
        if self.takes_picture:
            (name,) = self.conditions
            return torch.stack([as_picture(name, conditions[name], size) for conditions in given])
        return stack_conditions(self.conditions, given, size)

    def residuals(
        self, latents: Tensor, timesteps: Tensor, condition: Tensor, *, text: Tensor, added: dict[str, Tensor] | None
    ) -> Residuals:
        """Return what a ControlNet adds for a batch of latents under text tokens."""
        model: Any = self.model
        down, mid = model(
            latents,
            timesteps,
            encoder_hidden_states=text,
            controlnet_cond=_repeated(condition, len(latents)).to(latents.dtype),
            conditioning_scale=self.weight,
            added_cond_kwargs=added,
            return_dict=False,
        )
        return Residuals(tuple(down), mid)


def near_of(branches: Sequence[Branch]) -> float | None:
    """Return the z depth that counts as 1; None where no branch minds, since ControlNets have depth stretched.

    Raises:
        InputError: branches want depth on different scales.
    """
    found = {branch.near for branch in branches if "depth" in branch.conditions and not branch.takes_picture}
    if len(found) > 1:
        told = " and ".join(f"{near:g}" for near in sorted(found))
        raise InputError(f"control branches were trained with depth on different scales ({told}); use one of them")
    return found.pop() if found else None


# --- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BranchRecord:
    """What `branch.json` says of a branch that was trained here."""

    conditions: tuple[str, ...]
    """What it takes, in this order."""
    near: float = 1.0
    """z depth, in world units, whose inverse depth counts as 1."""
    unet_sha256: str = ""
    """Weights of the UNet that it was trained for; empty if any will do."""


def out_layers(unet: nn.Module) -> dict[str, nn.Linear]:
    """Return the last projection of each attention layer, by the name of its module."""
    found = {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}
    return {f"{name}.to_out.0": module.to_out[0] for name, module in found.items()}  # pyright: ignore


def add_to_out(unet: nn.Module, change: Mapping[str, Tensor]) -> None:
    """Add the change that a branch was trained with to the weights of a UNet, in place."""
    weights = dict(unet.named_parameters())
    for name, delta in change.items():
        if name not in weights or weights[name].shape != delta.shape:
            raise InputError(f"a control branch changes {name}, which the UNet does not have in that shape")
        with torch.no_grad():
            weights[name].add_(delta.to(weights[name]))


def save_branch(
    model: ControlBranch | ControlNetModel, folder: Path, record: BranchRecord, to_out: Mapping[str, Tensor]
) -> None:
    """Save a branch as a folder of safetensors and configs, `branch.json` last."""
    folder.mkdir(parents=True, exist_ok=True)
    # Without its record, what a stop leaves half written is no branch.
    for name in (BRANCH_RECORD, TO_OUT):
        (folder / name).unlink(missing_ok=True)
    model.save_pretrained(folder)
    if to_out:
        with write_atomically(folder / TO_OUT) as temporary:
            save_file({name: delta.detach().cpu().contiguous() for name, delta in to_out.items()}, temporary)
    write_json(folder / BRANCH_RECORD, record)


def branch_sha256(folder: Path) -> str:
    """Return a hash of a branch's own files; what lies in folders below, such as the state of a training, is not."""
    return content_id("branch", hash_files(folder, (path for path in sorted(folder.glob("*")) if path.is_file())))


def branch_sources(texts: Sequence[str], model: Path) -> tuple[BranchSource, ...]:
    """Return the control branches that are named, or else the one that lies beside the model.

    Raises:
        InputError: none is named and none lies there, or a text cannot be read.
    """
    if texts:
        return tuple(BranchSource.parse(text) for text in texts)
    found = add_on_of(model, "control")
    if found is None:
        raise InputError(
            f"{model} comes without a control branch; train one with restage miniature train control, or "
            "restage train-control, and name its folder with --branch"
        )
    return (BranchSource(folder=found),)


def load_branch(source: BranchSource, unet: UNet2DConditionModel, unet_folder: Path) -> Branch:
    """Open a branch's folder, one that was trained here or a ControlNet of diffusers, on the UNet's device.

    Raises:
        InputError: it is neither, or broken, it is for another UNet, or a ControlNet whose condition was not named.
    """
    folder = source.folder
    has_record = (folder / BRANCH_RECORD).is_file()
    kinds = {"ControlBranch": ControlBranch, "ControlNetModel": ControlNetModel}
    name = read_config(folder).get("_class_name")
    if name not in kinds:
        raise InputError(f"{folder} holds a '{name}', expected a control branch: {' or '.join(kinds)}")
    if not has_record and (name == "ControlBranch" or not source.condition):
        missing = f"{BRANCH_RECORD} is missing" if name == "ControlBranch" else "say what it takes, as in depth=FOLDER"
        raise InputError(f"{folder}: {missing}")
    record = read_json(folder / BRANCH_RECORD, BranchRecord) if has_record else None
    model: Any = load_model(kinds[name], folder)
    model.to(unet.device).eval().requires_grad_(False)
    conditions = record.conditions if record else (source.condition,)
    expected = num_channels(conditions) if record else 3
    channels = model.config["condition_channels" if name == "ControlBranch" else "conditioning_channels"]
    if channels != expected:
        raise InputError(f"{folder} takes {channels} channels, but {', '.join(conditions)} has {expected}")
    _check_fits(folder, model, unet)
    if record and record.unet_sha256 not in ("", folder_sha256(unet_folder)):
        raise InputError(f"{folder} was trained for another UNet than the one in {unet_folder}")
    return Branch(
        model,
        conditions,
        takes_picture=record is None,
        weight=source.weight,
        window=(source.start, source.end),
        near=record.near if record else 1.0,
        sha256=branch_sha256(folder),
        to_out=_load_to_out(folder / TO_OUT),
    )


def _check_fits(folder: Path, model: ControlBranch | ControlNetModel, unet: UNet2DConditionModel) -> None:
    ours: Any = unet.config
    if isinstance(model, ControlBranch):
        widths = ours["block_out_channels"]
        expected = {"out_channels": widths[-1] if model.config["placement"] == "mid" else widths[0]}
    else:
        names = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type")
        expected = {name: ours[name] for name in names}
    for name, value in expected.items():
        found = to_plain(model.config[name])
        if found != to_plain(value):
            raise InputError(f"{folder} is for a UNet with {name} {found}, this one has {value}")


def _load_to_out(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except Exception as error:  # noqa: BLE001 - of a type that safetensors does not document
        raise InputError(f"{path} is not whole, or no safetensors file: {error}") from None
