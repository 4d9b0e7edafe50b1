"""What makes and scores a batch of pairs, and how a worker on another machine opens the same models.

A `Maker` is small and can be sent; `open` loads what is heavy onto a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from restage.diffusion.allocation import keep_freed_memory
from restage.diffusion.backbone import Backbone
from restage.pairs.generate import GenerateConfig, GeneratedPairs, PairJob, generate_pairs, make_control
from restage.pairs.score import ImageTextModel, PairScores, score_pairs
from restage.records import InputError, content_id
from restage.run.models import ASSETS, folder_sha256

__all__ = ["LoadedMaker", "Made", "Maker", "ModelMaker", "OpenMaker"]

PACKAGE = "package:"
"""Prefix of a path within `restage/assets`, wherever that lies on a machine."""


class Made(NamedTuple):
    """A batch of pairs with their scores, in the order of their jobs."""

    pairs: GeneratedPairs
    scores: list[PairScores]


@runtime_checkable
class OpenMaker(Protocol):
    """Makes pairs on one device."""

    def check(self, job: PairJob) -> None:
        """Refuse a pair that cannot be made.

        Raises:
            InputError: why.
        """
        ...

    def make(self, jobs: Sequence[PairJob]) -> Made:
        """Make one batch; the same jobs give the same pictures."""
        ...


@runtime_checkable
class Maker(Protocol):
    """Describes what makes pairs, and opens it."""

    @property
    def id(self) -> str:
        """Content id of all that the pictures depend on besides the jobs; empty if it is not known."""
        ...

    def open(self, device: str) -> OpenMaker:
        """Load it onto a device.

        Raises:
            InputError: the models are missing on this machine, or are different ones here.
        """
        ...


@dataclass(frozen=True)
class LoadedMaker:
    """Models that are in memory, for work inside this process."""

    backbone: Backbone
    clip: ImageTextModel
    generate: GenerateConfig
    id: str = ""

    def open(self, device: str) -> LoadedMaker:
        """Return itself, since its models are loaded."""
        # Batch after batch has the same sizes: memory given back to the system would only be asked for again.
        if self.backbone.device.type == "cpu":
            keep_freed_memory()
        return self

    def check(self, job: PairJob) -> None:
        """Refuse a pair whose attention cannot be controlled."""
        make_control(self.backbone, job, self.generate)

    def make(self, jobs: Sequence[PairJob]) -> Made:
        """Make one batch."""
        made = generate_pairs(self.backbone, jobs, self.generate)
        prompts = [job.prompt for job in jobs]
        scores = score_pairs(self.clip, prompts, sources=made.sources, edited=made.edited, masks=made.masks)
        return Made(made, scores)


@dataclass(frozen=True, kw_only=True)
class ModelMaker:
    """Models named by their folders; a worker that has different files there is turned away."""

    text_to_image: str
    clip: str
    generate: GenerateConfig
    id: str
    num_pairs: int = 0
    """Number of pairs of the run, for what pays off only in long runs."""

    @classmethod
    def of(cls, text_to_image: Path, clip: Path, generate: GenerateConfig) -> ModelMaker:
        """Describe the models in two folders; folders inside the package are found on every machine.

        Raises:
            InputError: a folder is missing.
        """
        models_id = content_id("models", [folder_sha256(text_to_image), folder_sha256(clip)])
        return cls(text_to_image=_portable(text_to_image), clip=_portable(clip), generate=generate, id=models_id)

    def open(self, device: str) -> OpenMaker:
        """Load the models onto a device, after comparing their files with the id."""
        from restage.diffusion.backbone import load_backbone
        from restage.diffusion.clip import load_clip

        text_to_image, clip = _here(self.text_to_image), _here(self.clip)
        found = content_id("models", [folder_sha256(text_to_image), folder_sha256(clip)])
        if found != self.id:
            raise InputError(f"the models in {text_to_image} and {clip} are not those of the campaign; copy those here")
        backbone = load_backbone(text_to_image, device)
        generate = self.generate.for_run(self.num_pairs)
        return LoadedMaker(backbone, load_clip(clip, device), generate, self.id).open(device)


def _portable(folder: Path) -> str:
    if folder.resolve().is_relative_to(ASSETS):
        return PACKAGE + folder.resolve().relative_to(ASSETS).as_posix()
    return str(folder.resolve())


def _here(folder: str) -> Path:
    return ASSETS / folder.removeprefix(PACKAGE) if folder.startswith(PACKAGE) else Path(folder)
