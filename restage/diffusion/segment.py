"""Pictures to segmentation maps by a text-to-image UNet alone, nothing trained: EmerDiff.

K-means over the queries of one cross-attention layer gives coarse segments; each is then pushed in that layer, and the
pixels that answer the most are its own (Namekata et al. 2024, arXiv 2401.11739). `sharpen_masks` fits coarse edit masks
to the segments; `cut_masks` fits them to the pictures' colours, without any model. Called by `benchmarks/segment.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.cluster.vq import kmeans2
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from restage.diffusion.control import ANY_SIZE, INJECT, CrossControl, PairControl, SelfControl, StepControl
from restage.diffusion.pair_sampler import map_size_of
from restage.diffusion.sampling import Solver, initial_noise
from restage.diffusion.word_maps import BlendControl
from restage.records import InputError, derive_seed

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone

__all__ = ["SegmentConfig", "SegmentStep", "coarse_segments", "cut_masks", "picture_features", "segment_images"]
__all__ += ["sharpen_masks"]


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How pictures are segmented."""

    num_segments: int = 12
    """Clusters of k-means for each picture, at most; the paper has 10 to 40."""
    layer_size: int | None = None
    """Pixels a side (the shorter one) of the layers that are read and pushed; None = the size nearest to 16 from above
    that the UNet has."""
    feature_layer: int = 0
    """Layer whose queries are clustered, among the cross-attention layers of that size in the up blocks, in order."""
    modulated_layer: int = 0
    """Which of these layers is pushed; the first does better than the last on the miniature."""
    feature_signal: float = 0.9983
    """Share of the clean latent's variance that is left where queries are read (`Schedule.alphas_cumprod`, the nearest
    step): that of the paper's t = 1 of Stable Diffusion, so that other schedules get the same noise."""
    signal: float = 0.6224
    """The same where denoising begins, and a segment is pushed: that of the paper's t = 281."""
    num_steps: int = 2
    """Steps from there; the paper's schedule has 15. On the miniature 4 bring nothing more, 1 does worse."""
    strength: float = 10.0
    """What is added to and taken from the layer's output in a segment; the paper's."""
    blur_px: float = 2.0
    """Standard deviation, in pixels, of the Gaussian that smooths how pixels answer; 0 = none."""
    batch_size: int = 64
    """Rows of a UNet call, beside those of the pictures as they are; two for each segment."""
    seed: int = 0
    """Seed for the noise and the clusters."""

    def __post_init__(self) -> None:
        for name in ("signal", "feature_signal"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} must be a share of the variance in (0, 1), got {getattr(self, name)}")
        for name in ("num_segments", "num_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise InputError(f"batch_size must be at least 2, one row to push each way; got {self.batch_size}")
        if self.blur_px < 0 or self.strength <= 0:
            found = f"{self.blur_px} and {self.strength}"
            raise InputError(f"blur_px must not be negative and strength be above 0, got {found}")


class SegmentStep(NamedTuple):
    """A batch of pictures after some of their segments were pushed."""

    done: int  # segments so far
    total: int
    labels: Int[Tensor, "pictures height width"]
    """From 0, the numbering is each picture's own; those of the last step are final."""


def _cross_layers(unet: nn.Module) -> list[Attention]:
    """Cross-attention layers of the up blocks, in the order of their calls."""
    blocks: Any = getattr(unet, "up_blocks", nn.ModuleList())
    return [layer for layer in blocks.modules() if isinstance(layer, Attention) and layer.is_cross_attention]


@contextlib.contextmanager
def _recorded_queries(layers: Sequence[Attention]) -> Iterator[list[Float[Tensor, "b pixels d"]]]:
    """Collect the queries of these layers from a UNet call within the context, in order."""
    found: list[Tensor] = []
    hooks = [layer.to_q.register_forward_hook(lambda _, __, out: found.append(out.float())) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    if len(found) != len(layers):
        raise RuntimeError(f"expected queries of {len(layers)} cross-attention layers, got {len(found)}")


@contextlib.contextmanager
def _pushed(layer: Attention, offset: Float[Tensor, "rows pixels"]) -> Iterator[None]:
    """Add `offset` to all channels of the layer's output in the one UNet call within the context."""
    num_calls = 0

    def push(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        nonlocal num_calls
        num_calls += 1
        return output + offset[..., None].to(output.dtype)

    hook = layer.register_forward_hook(push)
    try:
        yield
    finally:
        hook.remove()
    if num_calls != 1:
        raise RuntimeError(f"expected one call of the modulated layer, got {num_calls}")


def _fixed_attention(source_of: Int[Tensor, " edits"], num_tokens: int, device: torch.device) -> StepControl:
    """Return the control of edits that attend, in every layer, to what their sources attend to."""
    # With attention free, a push in one layer would change who attends to whom in all later ones, and pixels far from
    # the segment would answer. Only values differ from the source's, so that the answer stays where the push was.
    count = len(source_of)
    ones, none, always = torch.ones(count), torch.zeros(count, num_tokens), torch.tensor([0.0, 1.0])
    control = PairControl(
        CrossControl(
            word_map=torch.eye(num_tokens).expand(count, -1, -1),
            shared=torch.ones(count, num_tokens),
            window=always.expand(count, num_tokens, 2),
            strength=torch.ones(count, num_tokens),
        ),
        SelfControl(
            kind=torch.full((count,), INJECT),
            window=always.expand(count, 2),
            max_size=torch.full((count,), ANY_SIZE),
            first_layer=0 * ones,
            has_unconditional=ones.bool(),
            region_threshold=0 * ones,
        ),
        BlendControl(none, none, none, none, start=ones, threshold=0.5 * ones, kept_threshold=0.5 * ones),
    )
    return control.at_step(0, 1, source_of=source_of, device=device)


def _cluster(features: Float[Array, "pixels d"], count: int, seed: int) -> Int[Array, " pixels"]:
    """K-means with one fixed seeding; clusters that stay empty are left out of the numbering."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of clusters that stay empty
        draw: Any = {"seed": np.random.default_rng(seed)}  # `rng` from scipy 1.15 on, which takes both
        _, labels = kmeans2(features, min(count, len(features)), iter=30, minit="++", **draw)
    return np.unique(labels, return_inverse=True)[1]  # numbered without gaps


class _Pictures:
    """A batch of pictures with all that stays the same while their segments are pushed."""

    def __init__(self, backbone: Backbone, images: Tensor, captions: Sequence[str], config: SegmentConfig) -> None:
        self.backbone, self.config = backbone, config
        self.clean = backbone.encode_images(images)
        seeds = [derive_seed(config.seed, "segment", index) for index in range(len(images))]
        self.noise = initial_noise(self.clean.shape[1:], seeds).to(self.clean)
        self.text = backbone.encode_prompts(list(captions))
        height, width = self.clean.shape[2:]
        shorter = min(height, width)  # layers keep the picture's proportions
        side = config.layer_size or map_size_of(backbone.unet.config, shorter)
        self.grid = (height * side // shorter, width * side // shorter)

    def timestep_of(self, signal: float) -> int:
        """The step of the schedule that leaves about this share of the clean latent's variance."""
        return int((self.backbone.schedule.alphas_cumprod - signal).abs().argmin())

    def at(self, timestep: int | None, pictures: Int[Tensor, " chosen"]) -> Tensor:
        """These pictures' latents with noise; None = clean."""
        clean = self.clean[pictures]
        if timestep is None:
            return clean
        t = torch.full((len(clean),), timestep, device=clean.device)
        return self.backbone.schedule.add_noise(clean, self.noise[pictures], t)

    def read(self) -> tuple[Float[Tensor, "b pixels d"], Attention]:
        """The queries to cluster, and the layer to push."""
        config, layers = self.config, _cross_layers(self.backbone.unet)
        everything = torch.arange(len(self.clean), device=self.clean.device)
        timestep = self.timestep_of(config.feature_signal)
        with _recorded_queries(layers) as queries:
            t = torch.full((len(everything),), timestep, device=everything.device)
            self.backbone.predict_noise(self.at(timestep, everything), t, self.text)
        sized = [i for i, query in enumerate(queries) if query.shape[1] == self.grid[0] * self.grid[1]]
        asked = (config.feature_layer, config.modulated_layer)
        if any(not -len(sized) <= layer < len(sized) for layer in asked):
            found = f"{len(sized)} of {len(layers)} cross-attention layers in the up blocks have {self.grid} pixels"
            raise InputError(f"{found}, layers {asked} were asked for; change layer_size or the layers")
        return queries[sized[asked[0]]], layers[sized[asked[1]]]

    def answer(
        self, layer: Attention, picture_of: Int[Tensor, " segments"], segments: Float[Tensor, "segments pixels"]
    ) -> Float[Tensor, "segments height width"]:
        """How far each pixel moves between a segment pushed up and pushed down: length of its difference in RGB."""
        schedule, config = self.backbone.schedule, self.config
        start = (self.timestep_of(config.signal) + 1) / schedule.num_train_timesteps
        timesteps = schedule.timesteps(config.num_steps, start=start)
        solver = Solver(schedule, timesteps, "ddim")
        # Each segment is pushed up and down, as two edits of its picture, which is computed once for all of them.
        pictures, source_of = picture_of.repeat(2).unique(return_inverse=True)
        text = self.text.select(torch.cat([pictures, pictures[source_of]]))
        control = _fixed_attention(source_of, text.tokens.shape[1], self.clean.device)
        # Rows of the batch are [pictures | pushed up | pushed down]; pictures are not pushed.
        offset = torch.cat([torch.zeros(len(pictures), segments.shape[1]), segments, -segments]).to(self.clean.device)
        edits = self.at(timesteps[0], pictures)[source_of]
        for step, timestep in enumerate(timesteps):
            latents = torch.cat([self.at(timestep, pictures), edits])
            t = torch.full((len(latents),), timestep, device=latents.device)
            # One push, in the first step: pushed in each, the differences would smear along the way.
            with _pushed(layer, config.strength * offset) if step == 0 else contextlib.nullcontext():
                epsilon = self.backbone.predict_noise(latents, t, text, control=control)
            moved = solver.step(step, latents, schedule.to_x0(epsilon, latents, t))
            # What the step lacks to lead each picture to where it is known to come from goes to its edits, too.
            until = timesteps[step + 1] if step + 1 < len(timesteps) else None
            missing = self.at(until, pictures) - moved[: len(pictures)]
            edits = moved[len(pictures) :] + missing[source_of]
        up, down = self.backbone.decode_latents(edits).cpu().chunk(2)
        return (up - down).square().sum(1).sqrt()


def _read(
    backbone: Backbone, images: Tensor, captions: Sequence[str] | None, config: SegmentConfig
) -> tuple[_Pictures, Attention, list[Int[Array, " pixels"]]]:
    """Cluster the queries of pictures; returns the layer to push as well."""
    pictures = _open_pictures(backbone, images, captions, config)
    queries, layer = pictures.read()
    return pictures, layer, [_cluster(query.cpu().numpy(), config.num_segments, config.seed) for query in queries]


def _open_pictures(
    backbone: Backbone, images: Tensor, captions: Sequence[str] | None, config: SegmentConfig
) -> _Pictures:
    captions = [""] * len(images) if captions is None else captions
    if len(images) == 0 or len(captions) != len(images):
        raise InputError(f"expected one caption for each picture, got {len(captions)} for {len(images)} pictures")
    unet: Any = getattr(
        backbone.unet, "_orig_mod", backbone.unet
    )  # compiled, it would not call hooks that are set later
    return _Pictures(dataclasses.replace(backbone, unet=unet), images, captions, config)


def picture_features(
    backbone: Backbone, images: Float[Tensor, "b 3 h w"], *, config: SegmentConfig = SegmentConfig()
) -> Float[Tensor, "b d grid_height grid_width"]:
    """Return the queries that segments are clusters of, at the size of the layer; costs one UNet call."""
    pictures = _open_pictures(backbone, images, None, config)
    queries, _ = pictures.read()
    return queries.transpose(1, 2).unflatten(2, pictures.grid)


def coarse_segments(
    backbone: Backbone,
    images: Float[Tensor, "b 3 h w"],
    *,
    captions: Sequence[str] | None = None,
    config: SegmentConfig = SegmentConfig(),
) -> Int[Tensor, "b grid_height grid_width"]:
    """Return only the clusters that `segment_images` begins with, at the size of the layer; costs one UNet call."""
    pictures, _, clusters = _read(backbone, images, captions, config)
    return torch.from_numpy(np.stack(clusters)).unflatten(1, pictures.grid)


def segment_images(
    backbone: Backbone,
    images: Float[Tensor, "b 3 h w"],
    *,
    captions: Sequence[str] | None = None,
    config: SegmentConfig = SegmentConfig(),
) -> Iterator[SegmentStep]:
    """Segment pictures, rendered, photographed or sampled, as a stream of steps; the last one has the labels.

    EmerDiff: k-means over queries gives masks M_i. With all attention kept as it is, one layer's output at one step is
    `f(softmax(QK) V) + strength M_i` or `- strength M_i`; a pixel's label is the i whose two pictures differ the most
    there. Costs `(2 num_segments + 1) num_steps + 1` UNet rows and `2 num_segments` decodings a picture.
    Pictures are brought to the step by noise and led back with the error of each step known and taken off, as in
    edit-friendly inversion (Huberman-Spiegelglas et al. 2023, arXiv 2304.06140) with one noise for all steps.

    Pictures are of a size that the autoencoder takes; they need no captions, as in the paper.
    """
    pictures, layer, clusters = _read(backbone, images, captions, config)
    segments = [torch.from_numpy(np.eye(labels.max() + 1)[labels].T).float() for labels in clusters]
    number = torch.cat([torch.arange(len(masks)) for masks in segments])
    picture_of = torch.cat([torch.full((len(masks),), index) for index, masks in enumerate(segments)])
    masks = torch.cat(segments)
    best = torch.full((len(images), *images.shape[2:]), -1.0)
    labels = torch.zeros(best.shape, dtype=torch.long)
    # Segments of all pictures in one row of chunks, so that every UNet call is full.
    for chunk in torch.arange(len(masks)).split(config.batch_size // 2):
        answers = pictures.answer(layer, picture_of[chunk].to(pictures.clean.device), masks[chunk])
        smooth = torch.from_numpy(gaussian_filter(answers.numpy(), (0, config.blur_px, config.blur_px)))
        for index, answer in zip(chunk.tolist(), smooth, strict=True):
            picture = picture_of[index]
            is_better = answer > best[picture]
            best[picture] = torch.where(is_better, answer, best[picture])
            labels[picture] = torch.where(is_better, number[index], labels[picture])
        yield SegmentStep(int(chunk[-1]) + 1, len(masks), labels.clone())


def sharpen_masks(
    masks: Float[Tensor, "b h w"], labels: Int[Tensor, "b h w"], *, min_share: float = 0.7
) -> Float[Tensor, "b h w"]:
    """Fit masks to segments: the union of those of which a mask covers more than a share; 0 or 1.

    What is above 0.5 counts as mask. A mask that covers no segment that far stays as it is, since nothing is known of
    its edge.
    """
    if masks.shape != labels.shape:
        raise InputError(f"masks and labels must be of one size, got {tuple(masks.shape)} and {tuple(labels.shape)}")
    if not 0 <= min_share < 1:
        raise InputError(f"min_share must be in [0, 1), got {min_share}")
    is_in = (masks > 0.5).float()
    pixels = labels.flatten(1)
    covered = torch.zeros(len(masks), int(labels.max()) + 1).scatter_add_(1, pixels, is_in.flatten(1))
    size = torch.zeros_like(covered).scatter_add_(1, pixels, torch.ones_like(is_in).flatten(1))
    sharp = (covered > min_share * size).gather(1, pixels).view(masks.shape).float()
    is_empty = ~sharp.flatten(1).any(1)
    return torch.where(is_empty[:, None, None], is_in, sharp)


def cut_masks(
    masks: Float[Tensor, "b h w"], images: Float[Tensor, "b 3 h w"], *, num_rounds: int = 5
) -> Float[Tensor, "b h w"]:
    """Cut coarse masks down to what differs in colour from everything outside of them; 0 or 1.

    GrabCut (Rother et al. 2004, https://doi.org/10.1145/1015706.1015720): outside of a mask all is background, inside
    the colours decide, and a cut along edges is cheap. A mask of nothing or of everything, or of which nothing would
    be left, stays as it is. A hundredth of the cost of segments by the UNet.
    """
    if masks.shape != images[:, 0].shape:
        raise InputError(f"masks and pictures must be of one size, got {tuple(masks.shape)}, {tuple(images.shape)}")
    cut = []
    for mask, image in zip(masks > 0.5, images, strict=True):
        marks = np.where(mask.numpy(), cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
        if bool(mask.any()) and not bool(mask.all()):
            cv2.setRNGSeed(0)  # its first guess of the colours is k-means
            pixels = np.ascontiguousarray((image.permute(1, 2, 0).clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8))
            cv2.grabCut(pixels, marks, None, np.zeros((1, 65)), np.zeros((1, 65)), num_rounds, cv2.GC_INIT_WITH_MASK)  # pyright: ignore
        left = torch.from_numpy(marks == cv2.GC_PR_FGD)
        cut.append(left if bool(left.any()) else mask)
    return torch.stack(cut).float()
