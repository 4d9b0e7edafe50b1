"""The settings of image pairs: how they are made, judged, checked and imported; apart from what loads torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from restage.diffusion.config import BLEND_ONLY, IN_PLACE, BranchSource, ControlOptions, SamplerConfig
from restage.records import InputError, added_later
from restage.run.limits import num_usable_cores
from restage.work.task import EngineConfig

__all__ = ["CLIP_THRESHOLDS", "FORMAT_NAMES", "MULTIPLE_OF", "PAIRS", "PUBLISHED", "CampaignConfig", "GenerateConfig"]
__all__ += ["ImportConfig", "MaskIs", "PairRule", "PairsConfig", "VerifyConfig"]


COMPILED_FROM = 2000
"""Number of pairs in a run at which compiling saves more time than it takes."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How pairs are sampled."""

    sampler: SamplerConfig = SamplerConfig()
    """Solver, number of steps, and the steps with guidance."""
    guidance: float = 4.0
    """Strength of classifier-free guidance; 1 = none."""
    control: ControlOptions = ControlOptions()
    """How edits are held to their sources; the end of `self_window` is drawn for each pair (see `self_share`)."""
    shape_control: ControlOptions | None = BLEND_ONLY
    """The same for pairs of the `SHAPE_KINDS` that name words: the source's attention, which `control` keeps, would
    hold an object to its old outline. None = `control` for all."""
    reshape_control_of_pictures: ControlOptions | None = IN_PLACE
    """The same for reshapes of a given picture, whose layout the model would not have chosen, so that everything else
    is held in place. None = `shape_control`."""
    inversion_iterations: int = 2
    """Number of UNet evaluations for each step back from a given picture to noise."""
    is_removal_reversed: bool = True
    """Whether removals without a picture are made as additions whose pictures change places: a thing removed by
    attention control leaves its outline in the attention of all other words, and something else grows there."""
    self_share: tuple[float, float] = (0.3, 0.7)
    """Lowest and highest share of the steps with the source's self attention; each pair draws its own share in between,
    as the pair maker of InstructPix2Pix does (there from 0.1 to 0.9)."""
    batch_size: int = 16
    """Number of pairs in a UNet call; pairs of one source caption and sample share their source."""
    held_by: tuple[str, ...] = added_later(())
    """What of the source holds the layout of both pictures, through control branches: `depth`, which `depth_model`
    reads, `ids`, which `ids_model` does, and `canny`, its edges."""
    branch: tuple[str, ...] = added_later(())
    """Control branches for that, each as [NAME=]FOLDER[,weight=W][,start=S][,end=E]; none = the one that lies beside
    the model, as the shipped one does."""
    depth_model: Path | None = added_later(None)
    """Folder of a DPT or Depth Anything of transformers."""
    ids_model: Path | None = added_later(None)
    """Folder of a Mask2Former, MaskFormer or SegFormer of transformers."""
    is_compiled: bool | None = None
    """Whether to compile the UNet, which takes some minutes in each process and is faster afterwards. None: in runs of
    at least 2000 pairs, on machines that can."""

    def __post_init__(self) -> None:
        low, high = self.self_share
        if not 0 <= low <= high <= 1:
            raise InputError(f"shares of steps must lie in [0, 1], low before high; got {self.self_share}")
        if self.batch_size < 1 or self.inversion_iterations < 1:
            counts = f"{self.batch_size} and {self.inversion_iterations}"
            raise InputError(f"batch_size and inversion_iterations must be at least 1, got {counts}")
        if set(self.held_by) - {"depth", "ids", "canny"} or (self.branch and not self.held_by):
            raise InputError("pairs are held by depth, ids or canny: --control depth, with or without --branch FOLDER")
        for name, model in (("depth", self.depth_model), ("ids", self.ids_model)):
            if (name in self.held_by) != (model is not None):
                raise InputError(
                    f"control by {name} needs a model that reads it from pictures, which is for nothing else: "
                    f"--control {name} --{name}-model FOLDER"
                )

    def branches_for(self, model: Path) -> tuple[BranchSource, ...]:
        """The control branches that pairs of a text-to-image model are made under."""
        from restage.diffusion.branches import branch_sources

        return branch_sources(self.branch, model) if self.held_by else ()

    def for_run(self, num_pairs: int) -> GenerateConfig:
        """Decide what depends on the length of the run and on this machine."""
        if self.is_compiled is not None:
            return self
        from restage.diffusion.hardware import can_compile

        return dataclasses.replace(self, is_compiled=num_pairs >= COMPILED_FROM and can_compile())


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """Which pairs are accepted."""

    version: int = 1
    """Raised whenever the same settings come to mean something else."""
    min_image_similarity: float | None = None
    """Similarity of the two pictures below which they are too different. None: what suits the CLIP (`clip_rule`)."""
    min_direction_similarity: float | None = None
    """Similarity of the steps between pictures and captions below which the edit is not the one asked for. None: what
    suits the CLIP."""
    min_text_similarity: float | None = None
    """Similarity of each picture and its caption below which the picture does not show it. None: what suits the
    CLIP."""
    min_change: float = 0.004
    """Mean absolute difference below which nothing was edited."""
    min_mask_share: float = 0.002
    """Share of the picture below which the mask is empty."""

    def __post_init__(self) -> None:
        if not (0 <= self.min_change <= 1 and 0 <= self.min_mask_share <= 1):
            raise InputError(f"min_change and min_mask_share must be in [0, 1], got {self}")
        if not all(math.isfinite(getattr(self, name) or 0) for name in CLIP_THRESHOLDS):
            raise InputError(f"thresholds must be numbers, got {self}")

    @property
    def has_thresholds(self) -> bool:
        """Whether all thresholds on CLIP are named."""
        return None not in (self.min_image_similarity, self.min_direction_similarity, self.min_text_similarity)

    def filled(self, other: PairRule) -> PairRule:
        """Return the rule with the thresholds of another one where it names none."""
        open_ = [name for name in CLIP_THRESHOLDS if getattr(self, name) is None]
        return dataclasses.replace(self, **{name: getattr(other, name) for name in open_})


CLIP_THRESHOLDS = ("min_image_similarity", "min_direction_similarity", "min_text_similarity")
"""Settings of a rule that depend on the CLIP."""


PUBLISHED = PairRule(min_image_similarity=0.7, min_direction_similarity=0.2, min_text_similarity=0.2)
"""The thresholds of InstructPix2Pix's public code, which are for OpenAI's CLIPs."""


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """How a run makes its image pairs."""

    generate: GenerateConfig = GenerateConfig()
    """How they are sampled."""
    rule: PairRule = PairRule()
    """Which are accepted."""
    samples_per_prompt: int = 1
    """Pairs that are made of each prompt pair, each from its own noise."""
    pairs_per_shard: int = 16
    """Pairs in a shard, accepted or not: what a kill costs at most. In a campaign: a few minutes' worth."""

    def __post_init__(self) -> None:
        if self.samples_per_prompt < 1 or self.pairs_per_shard < 1:
            counts = f"{self.samples_per_prompt}, {self.pairs_per_shard}"
            raise InputError(f"samples_per_prompt and pairs_per_shard must be at least 1, got {counts}")


@dataclass(frozen=True, kw_only=True)
class CampaignConfig(EngineConfig):
    """Where pairs are made, and what is to be said of it beforehand."""

    cost_per_hour: float = 0.0
    """Cost of one worker in any currency, from which the estimate says what an accepted pair costs."""
    estimate_only: bool = False
    """Stop after the estimate; the probe it is made from stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cost_per_hour < 0:
            raise InputError(f"cost_per_hour must be at least 0, got {self.cost_per_hour}")


FORMAT_NAMES = ("hf", "webdataset", "instruct-pix2pix", "imagefolder", "tryon")
"""Forms of data sets; a folder is taken for the first one that it looks like."""
MaskIs = Literal["auto", "white", "black", "transparent", "opaque", "none"]
MULTIPLE_OF = 8
"""The sides of pictures must be multiples of this, since autoencoders work on cells of 8 pixels."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """How foreign pairs are imported."""

    format: str = "auto"
    """Form of the data set: `hf` (parquet files with pictures), `webdataset` (tars), `instruct-pix2pix` (its folders),
    `imagefolder` (pictures as files, named in metadata.jsonl), `tryon` (persons and garments, laid out as VITON-HD),
    or `auto` for what the folder looks like."""
    size: int | None = None
    """Number of pixels a side: pictures are cropped to a square in the middle and scaled to it. None leaves them as
    they are; they must then have one size, whose sides are multiples of 8."""
    mask_is: MaskIs = "auto"
    """What marks the edited region in masks: white, black, transparent or opaque pixels. `auto` recognizes it by where
    the pictures differ; `none` goes without the masks."""
    pairs_per_shard: int = 64
    """Number of pairs in a shard."""
    strict: bool = False
    """Refuse a data set with any bad pair, instead of listing that pair as rejected."""

    def __post_init__(self) -> None:
        if self.format not in ("auto", *FORMAT_NAMES):
            raise InputError(f"unknown format {self.format!r}; known: auto, {', '.join(FORMAT_NAMES)}")
        if self.size is not None and not (MULTIPLE_OF <= self.size <= 8192 and self.size % MULTIPLE_OF == 0):
            raise InputError(f"size must be a multiple of {MULTIPLE_OF} pixels, at most 8192, got {self.size}")
        if self.pairs_per_shard < 1:
            raise InputError(f"pairs_per_shard must be at least 1, got {self.pairs_per_shard}")


MAX_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What is checked, and with how many threads."""

    fast: bool = False
    """Check only hashes and what the files say of each other; no picture is decoded."""
    num_threads: int = min(num_usable_cores(), MAX_THREADS)
    """Number of shards that are read at the same time; each takes the memory of a shard."""

    def __post_init__(self) -> None:
        if self.num_threads < 1:
            raise InputError(f"num_threads must be at least 1, got {self.num_threads}")


PAIRS = PairsConfig(generate=GenerateConfig(sampler=SamplerConfig(num_steps=14), guidance=3.0), pairs_per_shard=32)
"""How the miniature's pairs are made, in the demo and for its edit model; more guidance makes colors too strong."""
