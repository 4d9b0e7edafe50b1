"""`restage miniature`: trains one part of the miniature, in a clone of the repository.

Annotations are evaluated when the command is built: hence no `from __future__ import annotations` here.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from restage.diffusion.config import Injection, Placement
from restage.records import InputError, Progress
from restage.run.environment import check_device
from restage.run.progress import show_progress
from restage.train.config import Arm

__all__ = ["MiniatureConfig", "miniature", "train_miniature"]

PartName = Literal[
    "pictures", "autoencoder", "text-to-image", "control", "reader", "clip", "edit-model", "probe", "views", "motion"
]


@dataclass(frozen=True, kw_only=True)
class MiniatureConfig:
    """How a part is trained."""

    folder: Path = Path("training")
    """Folder that holds the pictures (`pictures/`) and the models (`miniature/`) with their training state."""
    num_pictures: int = 25_000
    """Size of the training set."""
    num_rings: int = 4000
    """Scenes that the part views is trained on, each from eight sides."""
    num_clips: int = 3000
    """Clips of eight frames that the part motion is trained on."""
    num_steps: int | None = None
    """Training steps; default: the recipe's."""
    compile: bool = False
    """Compile the model first (needs a C++ compiler): takes some minutes and makes steps faster."""
    start: Path | None = None
    """Folder of a model whose weights training goes on from: of text-to-image for that part and for the autoencoder, of
    which then only the decoder is trained, so that models trained on its latents stay valid; of text-to-image for
    `control`, too; else of the same part."""
    start_share: float = 0.0
    """Part `text-to-image`: share of the weights of --start in those that are saved, as a mean of both, 0 to 1."""
    arm: Arm = "branch"
    """Part `control`: what is trained. `branch`: a small branch and small changes of the UNet's output projections;
    `branch-only`: the branch alone; `controlnet`: a copy of the UNet's encoder."""
    injection: Injection = "cross_norm"
    """Part `control`: how the branch gets into the UNet."""
    placement: Placement = "conv_in"
    """Part `control`: after which part of the UNet."""
    version: Literal["filtered", "unfiltered", "exact"] = "filtered"
    """Pairs that the edit model is trained on: those that the rule accepts (the model that ships), all that were made,
    or rendered ones; the others go to `edit_model_unfiltered` and `edit_model_exact`."""
    references: Literal["none", "words", "beside", "tokens"] = "none"
    """Train an edit model that looks at a picture as well, on rendered pairs: `beside` the view, or as `tokens` in
    cross attention; `words` sees the same pairs without their pictures. It goes to `edit_model_<this>`."""
    batch_size: int | None = None
    """Examples in a training step; default: the recipe's."""
    seed: int = 0
    """Seed for the initial weights, the batches and the noise; another seed needs a folder of its own."""
    device: str = "cpu"
    """Where to train, such as `cuda`; the edit model's pairs are made on every GPU, or else on every core."""


PART_OF = {
    "start_share": "text-to-image",
    "num_rings": "views",
    "num_clips": "motion",
    "version": "edit-model",
    "references": "edit-model",
}
PART_OF |= dict.fromkeys(("arm", "injection", "placement"), "control")
"""The one part that an option is for."""


def miniature(
    action: Positional[Literal["train"]],
    part: Positional[PartName],
    *,
    config: Annotated[MiniatureConfig, arg(name="")] = MiniatureConfig(),  # noqa: B008
) -> None:
    """Make the models of the miniature world from nothing, one part after the other.

    Example: restage miniature train pictures; restage miniature train autoencoder

    Ctrl-C stops it at any time; the same command goes on from the last checkpoint. docs/miniature.md has the costs.

    Args:
        action: What to do.
        part: Which part; each needs the parts named before it.
        config: How it is trained.
    """
    check_device(config.device)
    show_progress(train_miniature(part, config))


@contextlib.contextmanager
def without_denormals() -> Iterator[None]:
    """Within it, what is smaller than the least normal number (1.2e-38 in float32) counts as zero on the CPU.

    Afterwards it counts again, whatever was set before.

    Where an activation is far below zero, its gradient is such a number, and processors are slow over them: the
    backward pass of the trained autoencoder took six times as long (docs/log/2026-11-28-autoencoder.md). PyTorch's
    worker threads take this over from the thread that starts them, so enter it before the first of its operations.
    """
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def train_miniature(part: str, config: MiniatureConfig) -> Iterator[Progress]:
    """Train one part of the miniature.

    Args:
        part: One of `PartName`.
        config: How it is trained.

    Raises:
        InputError: there is no such part, it starts from nothing, or what it needs has not been made yet.
    """
    from miniature import autoencoder, clip, control, edit_model, motion, pictures, probe, reader, text_to_image, views
    from restage.diffusion.config import TrainingConfig
    from restage.pairs.config import CampaignConfig
    from restage.train.config import BranchConfig

    recipes = {
        "autoencoder": (autoencoder.train_autoencoder, autoencoder.RECIPE),
        "text-to-image": (text_to_image.train_text_to_image, text_to_image.RECIPE),
        "control": (control.train_control, control.RECIPE),
        "reader": (reader.train_reader, reader.RECIPE),
        "clip": (clip.train_clip, clip.RECIPE),
        "probe": (probe.train_probe, probe.RECIPE),
    }
    folder, start = config.folder, config.start
    if start is not None and part in ("pictures", "clip"):
        raise InputError(f"{part} starts from nothing; a model to start from is for the other parts")
    if config.compile and part in ("control", "probe", "views", "motion"):
        raise InputError(f"PyTorch's compiler fails on the part {part}; omit --compile")
    for name, owner in PART_OF.items():
        if part != owner and getattr(config, name) != getattr(MiniatureConfig, name):
            raise InputError(f"--{name.replace('_', '-')} is for the part {owner}, not for {part}")

    def as_asked(training: TrainingConfig) -> TrainingConfig:
        return replace(
            training,
            num_steps=training.num_steps if config.num_steps is None else config.num_steps,
            batch_size=training.batch_size if config.batch_size is None else config.batch_size,
            seed=config.seed,
            is_compiled=config.compile,
        )

    if part == "pictures":
        yield from pictures.make_pictures(folder / "pictures", config.num_pictures)
    elif part == "edit-model" and config.references != "none":
        recipe = edit_model.REFERENCE_RECIPE
        recipe = replace(recipe, train=replace(recipe.train, training=as_asked(recipe.train.training)))
        arm, device = config.references, config.device
        yield from edit_model.train_with_references(folder / "miniature", arm, recipe, start=start, device=device)
    elif part == "edit-model":
        recipe = edit_model.RECIPE
        recipe = replace(recipe, train=replace(recipe.train, training=as_asked(recipe.train.training)))
        yield from edit_model.train_edit(
            folder / "miniature",
            recipe,
            version=config.version,
            start=start,
            engine=CampaignConfig(engine="local"),
            device=config.device,
        )
    elif part == "views":
        with without_denormals():
            how = {"num_rings": config.num_rings, "start": start, "device": config.device}
            yield from views.train_views(folder / "miniature", as_asked(views.RECIPE), **how)
    elif part == "motion":
        with without_denormals():
            how = {"num_clips": config.num_clips, "start": start, "device": config.device}
            yield from motion.train_motion(folder / "miniature", as_asked(motion.RECIPE), **how)
    elif part in recipes:
        if not (folder / "pictures").is_dir():
            raise InputError(f"{folder / 'pictures'} does not exist; run: restage miniature train pictures")
        train, training = recipes[part]
        found = pictures.Pictures(folder / "pictures", config.num_pictures)
        more: dict[str, Any] = {} if start is None else {"start": start}
        if part == "text-to-image":
            more["start_share"] = config.start_share
        if part == "control":
            more["config"] = BranchConfig(arm=config.arm, injection=config.injection, placement=config.placement)
        with without_denormals():
            yield from train(folder / "miniature", found, as_asked(training), device=config.device, **more)
    else:
        raise InputError(
            f"unknown part {part!r}; choose from pictures, edit-model, views, motion, {', '.join(recipes)}"
        )
