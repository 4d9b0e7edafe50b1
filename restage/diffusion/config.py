"""The settings of sampling, attention control and training, apart from what they steer, which loads torch.

The defaults of `ControlOptions` are those of `restage pairs`; `PROMPT_TO_PROMPT`, `INSTRUCT_PIX2PIX` and `MASACTRL` are
the settings that were published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from restage.records import InputError, added_later

__all__ = ["BLEND_ONLY", "IN_PLACE", "INSTRUCT_PIX2PIX", "MASACTRL", "PROMPT_TO_PROMPT", "BranchSource"]
__all__ += [
    "ControlOptions",
    "Injection",
    "LocalBlend",
    "Padding",
    "Placement",
    "ReferenceArm",
    "SamplerConfig",
    "TrainingConfig",
    "Window",
]


ReferenceArm = Literal["words", "mutual", "beside", "tokens"]
"""How an edit model looks at a reference picture; see `restage.diffusion.references`."""

Padding = Literal["own", "public"]
"""How the tokens after the words are connected, if the two captions have different numbers of tokens. `own`: end token
to end token and padding to padding. `public`: by position, as in the public code of Prompt-to-Prompt."""


Window = tuple[float, float]
"""When something is on: [from, until), in shares of the steps."""


@dataclass(frozen=True, kw_only=True)
class LocalBlend:
    """Settings of local blend: what no chosen word attends to is kept as in the source (Prompt-to-Prompt)."""

    threshold: float = 0.3
    """Share of its maximum above which a word map counts, in (0, 1)."""
    start: float = 0.2
    """Share of the steps after which blending begins, in [0, 1]; 1 = never."""
    kept_threshold: float = 0.3
    """The same as `threshold` for words whose place is never to change."""

    def __post_init__(self) -> None:
        for name in ("threshold", "kept_threshold"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} of local blend must be in (0, 1), got {getattr(self, name)}")
        if not 0 <= self.start <= 1:
            raise InputError(f"start of local blend must be in [0, 1], got {self.start}")


@dataclass(frozen=True, kw_only=True)
class ControlOptions:
    """How the edit branch of a pair is held to its source branch."""

    cross_window: Window = (0.0, 0.8)
    """When edit tokens with a counterpart in the source take its cross attention."""
    swapped_window: Window | None = None
    """The same for words that were swapped in for others; None = `cross_window`. With a short window, or none, the new
    thing takes a shape of its own while everything else stays in its place."""
    word_windows: Mapping[str, Window] = field(default_factory=dict)
    """The same for single words of the edit caption."""
    word_strengths: Mapping[str, float] = field(default_factory=dict)
    """Factor on the attention that words of the edit caption get (Prompt-to-Prompt's reweighting); 1 = as it is."""
    self_attention: Literal["inject", "mutual", "none"] = "inject"
    """`inject`: the source's self attention, which keeps its layout; `mutual`: its keys and values (MasaCtrl), which
    keeps its look and lets the layout move."""
    self_window: Window = (0.0, 0.5)
    """When self attention is controlled."""
    self_max_size: int | None = None
    """Control self attention at layers of at most this many pixels a side; None = all layers."""
    self_first_layer: float = 0.0
    """Share of the self-attention layers, in the order of their calls, from which on they are controlled."""
    self_unconditional: bool = True
    """Whether the unconditional half of guidance is controlled, too."""
    region_threshold: float = 0.0
    """`mutual` only: above 0, what the pair's words attend to and the rest are kept apart (MasaCtrl's masks)."""
    blend: LocalBlend = LocalBlend()
    """For pairs that name words."""
    padding: Padding = added_later("own")
    """What end and padding tokens are connected to if the captions have different numbers of tokens. `own`: to end and
    padding tokens of the source. `public`: to the tokens at the same position, as in Prompt-to-Prompt's public code."""

    def __post_init__(self) -> None:
        windows = {name: getattr(self, name) for name in ("cross_window", "self_window", "swapped_window")}
        windows |= {f"word_windows[{word!r}]": window for word, window in self.word_windows.items()}
        for name, window in windows.items():
            if window is not None and not 0 <= window[0] <= window[1] <= 1:
                raise InputError(f"{name} must be two shares of the steps in [0, 1], low before high; got {window}")
        if self.self_max_size is not None and self.self_max_size < 1:
            raise InputError(f"self_max_size must be at least 1 pixel or None, got {self.self_max_size}")
        if not (0 <= self.self_first_layer <= 1 and 0 <= self.region_threshold < 1):
            found = f"{self.self_first_layer} and {self.region_threshold}"
            raise InputError(f"self_first_layer and region_threshold must be shares in [0, 1], got {found}")


PROMPT_TO_PROMPT = ControlOptions(self_window=(0.0, 0.4), self_max_size=16, self_unconditional=False)
"""Hertz et al. 2022 (arXiv 2208.01626), settings of the public notebook."""


INSTRUCT_PIX2PIX = ControlOptions(cross_window=(0.0, 0.0), blend=LocalBlend(start=1.0))
"""The pair maker of Brooks et al. 2022 (arXiv 2211.09800): self attention at all layers; the end of its window is drawn
anew for each pair (`GenerateConfig.self_share`; there 0.1 to 0.9). Words only make the mask."""


BLEND_ONLY = ControlOptions(cross_window=(0.0, 0.0), self_attention="none")
"""Only local blend holds the edit to its source: nothing changes outside its region, and inside any shape may form."""


IN_PLACE = ControlOptions(cross_window=(0.0, 0.8), swapped_window=(0.0, 0.2), self_attention="none")
"""What is swapped keeps its place but not its shape; everything else keeps both."""


MASACTRL = ControlOptions(
    cross_window=(0.0, 0.0),
    self_attention="mutual",
    self_window=(0.08, 1.0),
    self_first_layer=0.625,
    blend=LocalBlend(start=1.0),
)
"""Cao et al. 2023 (arXiv 2304.08465): from step 4 of 50 and self-attention layer 10 of 16 on."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How trajectories are sampled."""

    num_steps: int = 18
    """UNet calls of a trajectory."""
    solver: str = "dpmpp_2m"
    """One of `sampling.SOLVERS`."""
    guidance_window: tuple[float, float] = (0.0, 1.0)
    """When guidance is on, in shares of the steps; a step without it costs half (limited interval guidance,
    Kynkaanniemi et al. 2024, arXiv 2404.07724)."""
    map_size: int | None = None
    """Record word maps at cross-attention layers of this many pixels a side; None = the size nearest to 16 from above
    that the UNet has."""
    pad_to: int = 1
    """Fill the rows of sources, and those of edits, with copies up to multiples of this, so that a compiled UNet meets
    few sizes of batches and is seldom compiled anew."""

    def __post_init__(self) -> None:
        low, high = self.guidance_window
        if self.num_steps < 1 or self.pad_to < 1:
            raise InputError(f"num_steps and pad_to must be at least 1, got {self.num_steps} and {self.pad_to}")
        if not 0 <= low <= high <= 1:
            raise InputError(f"guidance_window must be two shares in [0, 1], low before high; got {(low, high)}")


Injection = Literal["cross_norm", "zero_conv"]
"""How a branch's features get into the UNet: with the mean and deviation of what is there, or through a convolution
that starts at zero."""
Placement = Literal["conv_in", "down_0", "mid"]
"""After which part of the UNet: its first convolution, its first down block, or its middle block."""


@dataclass(frozen=True, kw_only=True)
class BranchSource:
    """Which control branch is used, and how."""

    folder: Path
    """Folder of the branch: safetensors and config.json."""
    condition: str = ""
    """What a ControlNet of diffusers takes, such as `depth`; branches that were trained here say it themselves."""
    weight: float = 1.0
    """Factor on what it adds; 0 = off."""
    start: float = 0.0
    """Share of the noise schedule, from noise to clean, at which it sets in."""
    end: float = 1.0
    """Share at which it ends."""

    def __post_init__(self) -> None:
        if not (0 <= self.start <= self.end <= 1 and math.isfinite(self.weight)):
            raise InputError(
                f"a control branch needs a finite weight and 0 <= start <= end <= 1, got {self.weight}, {self.start} "
                f"and {self.end}"
            )

    @classmethod
    def parse(cls, text: str) -> BranchSource:
        """Read `[CONDITION=]FOLDER[,weight=W][,start=S][,end=E]`."""
        first, *rest = text.split(",")
        condition, sign, folder = first.rpartition("=")
        try:
            options = {name: float(value) for name, value in (option.split("=") for option in rest)}
            if not folder or sign and not condition or not options.keys() <= {"weight", "start", "end"}:
                raise ValueError
        except ValueError:
            form = "[CONDITION=]FOLDER[,weight=W][,start=S][,end=E]"
            raise InputError(f"expected a control branch as {form}, got {text!r}") from None
        return cls(folder=Path(folder), condition=condition, **options)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and how fast to train."""

    num_steps: int
    """Steps in all; may be raised between two sessions as long as the cooldown has not begun."""
    batch_size: int = 32
    learning_rate: float = 4e-4
    """AdamW's learning rate after the warm-up and before the cooldown."""
    num_warmup_steps: int = 50
    """Steps over which the learning rate rises linearly from zero."""
    cooldown_share: float = 0.25
    """Share of all steps, at the end, over which the learning rate falls linearly to zero (warm-up, stable, decay)."""
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    """Decay of the moving average of the weights that is kept in the end; less in the first steps."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    is_bf16: bool | None = None
    """Whether losses are computed under bfloat16 autocast; None for where the device computes in it by itself."""
    is_compiled: bool = False
    """Whether the model goes through `torch.compile` (needs a C++ compiler): minutes at first, then faster steps."""
    checkpoint_every_s: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1:
            raise InputError(f"training needs steps and a batch, got {self.num_steps} steps of {self.batch_size}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"expected a learning rate above 0, got {self.learning_rate}")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, 0 to num_steps - 1."""
        warm = min(1.0, (step + 1) / max(1, self.num_warmup_steps))
        cool = min(1.0, (self.num_steps - step) / max(1.0, self.cooldown_share * self.num_steps))
        return self.learning_rate * warm * cool
