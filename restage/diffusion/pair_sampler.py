"""Source and edit branches side by side from the same noise, under attention control, as a stream of steps.

The batch of a UNet call is [sources | edits]: several edits may share one source, which is then sampled once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from restage.diffusion.conditions import Conditions
from restage.diffusion.config import SamplerConfig
from restage.diffusion.control import PairControl
from restage.diffusion.sampling import Solver, initial_noise, latent_shape, step_noise
from restage.diffusion.word_maps import WordMaps, blend_masks
from restage.records import InputError

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone, TextCondition

__all__ = ["PairBatch", "PairStep", "map_size_of", "sample_pairs"]


@dataclass(frozen=True, eq=False)
class PairBatch:
    """What one call samples: some sources, and edits that each belong to one of them."""

    control: PairControl  # one row for each edit
    source_of: Int[Tensor, " edits"]  # index of each edit's source
    source_text: TextCondition
    edit_text: TextCondition
    seeds: tuple[int, ...]  # one for each source: of its initial noise and its step noise, which its edits share
    guidance: Float[Tensor, " sources"]  # strength of classifier-free guidance of each source and its edits; 1 = none
    trajectories: Float[Tensor, "levels sources channels height width"] | None = None
    """Where sources are pictures: their latents at each noise level, from `sampling.invert_latents` with as many
    steps. They are held to these, and their edits start from the first; None to sample them."""
    conditions: tuple[Conditions, ...] | None = None
    """What holds the layout of each source, and of its edits, through the backbone's control branches; None if nothing
    does."""

    def __post_init__(self) -> None:
        num_sources, num_edits = len(self.seeds), len(self.control)
        if self.conditions is not None and len(self.conditions) != num_sources:
            raise InputError(f"{num_sources} sources need as many conditions, got {len(self.conditions)}")
        found = (len(self.source_text), len(self.guidance), len(self.edit_text), len(self.source_of))
        if found != (num_sources, num_sources, num_edits, num_edits):
            raise InputError(f"a batch of {num_sources} seeds and {num_edits} controls has other parts of {found}")
        if self.trajectories is not None and self.trajectories.shape[1] != num_sources:
            raise InputError(f"{num_sources} sources need as many trajectories, got {self.trajectories.shape[1]}")
        if not bool(((self.source_of >= 0) & (self.source_of < num_sources)).all()):
            raise InputError(f"source_of must name some of {num_sources} sources, got {self.source_of.tolist()}")

    def select(self, edits: Int[Tensor, " chosen"], *, pad_to: int = 1) -> PairBatch:
        """Keep only these edits, in order, and the sources that they need; both are padded with copies of the first."""
        sources, source_of = self.source_of[edits].unique(return_inverse=True)
        sources, edits = (torch.cat([x, x[:1].expand(-len(x) % pad_to)]) for x in (sources, edits))
        return PairBatch(
            control=self.control.select(edits),
            source_of=torch.cat([source_of, source_of[:1].expand(len(edits) - len(source_of))]),
            source_text=self.source_text.select(sources),
            edit_text=self.edit_text.select(edits),
            seeds=tuple(self.seeds[i] for i in sources.tolist()),
            guidance=self.guidance[sources],
            trajectories=None if self.trajectories is None else self.trajectories[:, sources],
            conditions=None if self.conditions is None else tuple(self.conditions[i] for i in sources.tolist()),
        )


class PairStep(NamedTuple):
    """A batch of pairs after one step."""

    step: int  # counted from 1
    num_steps: int
    source_of: Int[Tensor, " edits"]  # the row of `source_latents` that each edit belongs to
    source_latents: Float[Tensor, "sources channels height width"]
    edit_latents: Float[Tensor, "edits channels height width"]
    maps: Float[Tensor, "branches_edits 2 size size"] | None
    """Word maps so far, [source | edit]; None if no pair has words."""


def map_size_of(unet_config: Any, latent_size: int) -> int:
    """Pixels a side of the cross-attention layers nearest to 16 from above, else of the largest there are."""
    kinds = unet_config["down_block_types"]
    sizes = [latent_size >> level for level, kind in enumerate(kinds) if "CrossAttn" in kind]
    if not sizes:
        raise InputError(f"a UNet of {', '.join(kinds)} has no cross attention to control")
    return min((size for size in sizes if size >= 16), default=max(sizes))


class _Trajectory:
    """The state of a batch while it is sampled."""

    def __init__(self, backbone: Backbone, batch: PairBatch, config: SamplerConfig) -> None:
        self.backbone, self.config = backbone, config
        self.num_sources, self.num_edits = len(batch.seeds), len(batch.control)
        self.batch = batch = batch.select(torch.arange(self.num_edits), pad_to=config.pad_to)
        if batch.conditions is not None:
            rows = [*range(len(batch.seeds)), *batch.source_of.tolist()]
            self.backbone = backbone.steered([batch.conditions[row] for row in rows])
        self.shape, self.device = latent_shape(backbone), backbone.device
        self.timesteps = backbone.schedule.timesteps(config.num_steps)
        self.solver = Solver(backbone.schedule, self.timesteps, config.solver, step_noise=self._step_noise)
        self.empty = backbone.encode_prompts([""])
        from restage.diffusion.attention import num_self_layers  # loads diffusers, as the backbone has

        self.num_layers = num_self_layers(backbone.unet)
        self.maps: WordMaps | None = None
        regions = batch.control.self_attention.region_threshold > 0
        if batch.control.needs_maps or bool(regions.any()):
            size = config.map_size or map_size_of(backbone.unet.config, self.shape[1])
            self.maps = WordMaps(size, len(batch.control), self.device)
        # An edit starts from the very noise of its source: what both captions share then falls into the same place.
        self.latents = self._for_branches(self._first_latents().to(self.device))

    def _first_latents(self) -> Float[Tensor, "sources channels height width"]:
        found = self.batch.trajectories
        if found is None:
            return initial_noise(self.shape, self.batch.seeds)
        if found.shape[0] != self.config.num_steps + 1 or tuple(found.shape[2:]) != self.shape:
            raise InputError(
                f"{self.config.num_steps} steps at latents of {self.shape} need trajectories of one level more, got "
                f"{found.shape[0]} levels of {tuple(found.shape[2:])}"
            )
        return found[0]

    def _hold_sources(self, step: int) -> None:
        """Where sources are pictures, put them where inversion found them to be after `step` steps."""
        # Sampled freely, a source would drift from its picture, since inversion is exact only without guidance and with
        # endless iterations; its edits attend to it, and would drift along.
        if self.batch.trajectories is not None:
            edits = self.latents[len(self.batch.seeds) :]
            self.latents = torch.cat([self.batch.trajectories[step].to(self.latents), edits])

    def _for_branches(self, sources: Float[Tensor, "sources ..."]) -> Float[Tensor, "branches ..."]:
        return torch.cat([sources, sources[self.batch.source_of.to(sources.device)]])

    def _step_noise(self, step: int) -> Tensor:
        # Noise of its own would part an edit from its source wherever a solver adds some.
        return self._for_branches(step_noise(self.shape, self.batch.seeds, step).to(self.device))

    def _predict(self, step: int) -> Tensor:
        """Noise prediction of all branches, guided where guidance is on."""
        backbone, batch = self.backbone, self.batch
        low, high = (round(share * self.config.num_steps) for share in self.config.guidance_window)
        is_guided = low <= step < high and bool((batch.guidance != 1).any())
        control = batch.control.at_step(
            step,
            self.config.num_steps,
            source_of=batch.source_of,
            num_sources=len(batch.seeds),
            num_layers=self.num_layers,
            maps=self.maps,
            device=self.device,
        )
        text = batch.source_text.cat(batch.edit_text)
        t = torch.full((len(self.latents),), self.timesteps[step], device=self.device)
        if not is_guided:
            return backbone.predict_noise(self.latents, t, text, control=control)
        # Both halves in one call: [unconditional | conditional], each of them [sources | edits].
        doubled, both = torch.cat([self.latents, self.latents]), self.empty.expand(len(text)).cat(text)
        epsilon = backbone.predict_noise(doubled, torch.cat([t, t]), both, control=control)
        unconditional, conditional = epsilon.chunk(2)
        scale = self._for_branches(batch.guidance).to(self.device).view(-1, 1, 1, 1)
        return unconditional + scale * (conditional - unconditional)

    def _blend(self, step: int) -> None:
        """Local blend: where an edit may not change, its latents are its source's."""
        blend = self.batch.control.blend
        is_on = step >= blend.start * self.config.num_steps
        is_on &= (blend.has_words | blend.has_kept) & (blend.start < 1)
        if self.maps is None or not bool(is_on.any()):
            return
        mask = blend_masks(self.maps.mean(), blend, size=(self.shape[1], self.shape[2]))
        mask = torch.where(is_on.to(self.device)[:, None, None], mask, 1.0)[:, None]
        num_sources, source_of = len(self.batch.seeds), self.batch.source_of.to(self.device)

        def blended(latents: Tensor) -> Tensor:
            source, edit = latents[:num_sources], latents[num_sources:]
            kept = source[source_of]
            return torch.cat([source, kept + mask * (edit - kept)])

        self.latents = blended(self.latents)
        # The multistep solver extrapolates from the last prediction, which would carry back what was blended away.
        self.solver.adjust(blended)

    def advance(self, step: int) -> PairStep:
        """Do step `step` (from 0)."""
        schedule = self.backbone.schedule
        with torch.no_grad():
            t = torch.full((len(self.latents),), self.timesteps[step], device=self.device)
            x0 = schedule.to_x0(self._predict(step), self.latents, t)
            self.latents = self.solver.step(step, self.latents, x0)
            self._hold_sources(step + 1)
            self._blend(step)
        # Without the rows that pad the batch.
        first_edit, maps = len(self.batch.seeds), None
        if self.maps is not None:
            maps = torch.cat([part[: self.num_edits] for part in self.maps.mean().chunk(2)])
        return PairStep(
            step=step + 1,
            num_steps=self.config.num_steps,
            source_of=self.batch.source_of[: self.num_edits],
            source_latents=self.latents[: self.num_sources],
            edit_latents=self.latents[first_edit : first_edit + self.num_edits],
            maps=maps,
        )


def sample_pairs(backbone: Backbone, batch: PairBatch, config: SamplerConfig | None = None) -> Iterator[PairStep]:
    """Sample sources and their edits from the same noise, the edits under control; sources may be pictures."""
    config = config or SamplerConfig()
    trajectory = _Trajectory(backbone, batch, config)
    for step in range(config.num_steps):
        yield trajectory.advance(step)
