"""The pipelines behind `ns-train restage`, `restage-idu` and `restage-fit`.

An edit pipeline loads a trained scene, changes the training views in the datamanager's memory between steps, and
leaves the rest of training to nerfstudio. What it changes when is a generator that each training step advances.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from restage.edit.editors import Edited, Editor, EditorSource, ViewBatch, check_editor, open_editor
from restage.edit.methods.idu import check_noise_range, turns
from restage.edit.methods.restage import choose_key_views, robust_weights, sharpen
from restage.nerfstudio.frames import SplatHolder, from_nerfstudio_cameras
from restage.nerfstudio.trainer import lpips_or_not_scored
from restage.nerfstudio.views import open_views, soften
from restage.records import EditRequest, InputError, derive_seed
from restage.run.models import models_in

__all__ = ["EditPipeline", "EditPipelineConfig", "FitPipeline", "FitPipelineConfig", "IduPipeline"]
__all__ += ["IduPipelineConfig", "RestagePipeline", "RestagePipelineConfig"]


@dataclass
class FitPipelineConfig(VanillaPipelineConfig):
    """Plain training, also where LPIPS cannot be scored."""

    _target: type = field(default_factory=lambda: FitPipeline)


class FitPipeline(VanillaPipeline):
    """nerfstudio's own pipeline; the only difference is that it starts without a network."""

    def __init__(self, *args: Any, **options: Any) -> None:
        with lpips_or_not_scored():
            super().__init__(*args, **options)


@dataclass
class EditPipelineConfig(FitPipelineConfig):
    """What all edits are told."""

    _target: type = field(default_factory=lambda: EditPipeline)
    instruction: str = ""
    """What to change, such as "make the cube blue"."""
    editor: str = "edit_model"
    """2D editor, one of Restage's menu: edit_model, exact, ..."""
    edit_model: Path | None = None
    """Folder of a trained edit model; default: the one that comes with Restage."""
    truth: Path | None = None
    """Truth folder of the edit, for the editor `exact`: images/ and masks/ by the file names of the views."""
    edit_seed: int = 0
    """Seed of the editor's noise and of the order of views."""


class EditPipeline(FitPipeline):
    """A pipeline that has an editor and changes its training views; what a method does is in `plan`."""

    config: EditPipelineConfig

    def __init__(self, config: EditPipelineConfig, device: str, test_mode: str = "val", **options: Any) -> None:
        is_training = test_mode == "val"
        self._editor: Editor | None = None
        self._request: EditRequest | None = None
        if is_training:
            self._request = EditRequest(instruction=config.instruction, source_caption="", target_caption="")
            check_editor(config.editor)
            if options.get("world_size", 1) > 1:
                raise InputError("an edit runs on one device; leave --machine.num-devices at 1")
        super().__init__(config, device, test_mode, **options)
        self._is_loaded = False
        self._plan: Iterator[str] | None = None
        if is_training:
            model = config.edit_model or models_in().edit_model
            source = EditorSource(file_names=self.file_names, truth=config.truth, model=model)
            self._editor = open_editor(config.editor, source)
            self._views = open_views(self.datamanager)
            self._originals = torch.stack([self._views.image(index) for index in range(self.num_views)])

    @property
    def file_names(self) -> tuple[str, ...]:
        """File names of the training views, without folders, by their index."""
        return tuple(path.name for path in self.datamanager.train_dataset.image_filenames)

    @property
    def num_views(self) -> int:
        """Number of training views."""
        return len(self.datamanager.train_dataset)

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load the trained scene; views are explained by the scene alone from here on, not by camera or exposure."""
        super().load_pipeline(loaded_state, step)
        self._is_loaded = True
        self.model.camera_optimizer.requires_grad_(False)
        embedding = getattr(getattr(self.model, "field", None), "embedding_appearance", None)
        if embedding is not None:
            embedding.requires_grad_(False)

    def plan(self) -> Iterator[str]:
        """Change the training views step by step; yields once for each training step, with what is being done."""
        raise NotImplementedError

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """One training step, after whatever the plan does before it."""
        if not self._is_loaded:
            raise InputError("an edit starts from a trained scene; give its checkpoints with --load-dir")
        if self._plan is None:
            self._plan = self.plan()
        next(self._plan, None)
        rays_or_camera, batch = self.datamanager.next_train(step)
        outputs = self._model(rays_or_camera)
        metrics = self.model.get_metrics_dict(outputs, batch)
        softened = {**outputs, "rgb": soften(outputs["rgb"], batch)}
        return outputs, self.model.get_loss_dict(softened, batch, metrics), metrics

    def render(self, indices: list[int]) -> Float[Tensor, "n 3 h w"]:
        """Training views as the model shows them now, on the CPU."""
        cameras = self.datamanager.train_dataset.cameras.to(self.device)
        was_training = self.training
        self.eval()
        with torch.no_grad(), torch.autocast(torch.device(self.device).type, enabled=False):
            views = [self.model.get_outputs_for_camera(cameras[index : index + 1])["rgb"] for index in indices]
        self.train(was_training)
        return torch.stack([view.permute(2, 0, 1).float().cpu().clamp(0, 1) for view in views])

    def edit(
        self, indices: list[int], renders: Float[Tensor, "n 3 h w"], *, noise_level: float, seed: int, is_shared: bool
    ) -> Edited:
        """Ask the editor; `is_shared` gives all views the same noise."""
        assert self._editor is not None and self._request is not None
        batch = ViewBatch(
            renders,
            self._originals[indices],
            request=self._request,
            view_indices=tuple(indices),
            noise_level=noise_level,
            seed=seed,
            noise_keys=(0,) * len(indices) if is_shared else None,
        )
        with torch.no_grad(), torch.autocast(torch.device(self.device).type, enabled=False):
            return self._editor.edit(batch)


@dataclass
class IduPipelineConfig(EditPipelineConfig):
    """Iterative dataset update; see `restage.edit.methods.idu.Idu`."""

    _target: type = field(default_factory=lambda: IduPipeline)
    edit_every: int = 10
    """Training steps from one edit to the next."""
    lowest_noise: float = 0.02
    highest_noise: float = 0.98
    """The noise level of each edit is drawn evenly between these shares of the schedule."""

    def __post_init__(self) -> None:
        check_noise_range(self.lowest_noise, self.highest_noise, edit_every=self.edit_every)


class IduPipeline(EditPipeline):
    """Training and editing take turns, one view at a time (Instruct-NeRF2NeRF, Haque et al. 2023, arXiv 2303.12789)."""

    config: IduPipelineConfig

    def plan(self) -> Iterator[str]:
        """Before every `edit_every`-th step one view is rendered, edited and put in place of its training view."""
        config = self.config
        for turn in turns(self.num_views, config.lowest_noise, config.highest_noise, seed=config.edit_seed):
            view = turn.view
            edited = self.edit(
                [view], self.render([view]), noise_level=turn.noise_level, seed=turn.seed, is_shared=False
            )
            self._views.replace(view, edited.images[0])
            yield from (f"{turn.number + 1} views edited so far" for _ in range(config.edit_every))


@dataclass
class RestagePipelineConfig(EditPipelineConfig):
    """Key views and predicted masks; see `restage.edit.methods.restage.Restage`."""

    _target: type = field(default_factory=lambda: RestagePipeline)
    num_key_views: int = 24
    """Views that are edited; all training views if there are fewer."""
    noise_levels: tuple[float, ...] = (1.0, 0.6)
    """Share of the schedule that the first edit and each refresh start at."""
    steps_per_round: int = 1000
    """Training steps after each edit; the last round goes on for as long as training does."""
    is_noise_shared: bool = True
    """Whether all key views start from the same noise, or each from its own."""
    mask_low: float = 0.2
    mask_high: float = 0.5
    """Mask values up to the first count as 0, from the second on as 1."""
    lift_threshold: float = 0.3
    """With splatfacto: splats move whose lifted mask is above this."""
    robust_scale: float = 0.2
    """Color difference, in [0, 1], at which a pixel weighs half from the middle of a round on."""

    def __post_init__(self) -> None:
        if not self.noise_levels or not all(0 < level <= 1 for level in self.noise_levels):
            raise InputError(f"expected at least one noise level, all in (0, 1], got {self.noise_levels}")
        if not 0 <= self.mask_low < self.mask_high <= 1:
            raise InputError(f"expected 0 <= mask_low < mask_high <= 1, got {self.mask_low} and {self.mask_high}")
        if self.num_key_views < 1 or self.steps_per_round < 2:
            raise InputError(
                f"expected num_key_views >= 1 and steps_per_round >= 2, got {self.num_key_views} and "
                f"{self.steps_per_round}"
            )


class RestagePipeline(EditPipeline):
    """The method `restage` on a nerfstudio model.

    Key views far apart are edited in one batch. Inside the editor's masks training asks for the edited views,
    outside for the unedited scene's own renders, so nothing there has a reason to move; other views are left out.
    From the middle of each round on, pixels that the views do not agree on weigh less. The key views are then
    rendered and edited again from less noise. On splatfacto the masks are also lifted to the splats, and those
    outside stay bit for bit what they were; a nerfacto has no parts that could be held.
    """

    config: RestagePipelineConfig

    def plan(self) -> Iterator[str]:
        """Edit the key views, train, weigh, train; then refresh."""
        cameras = from_nerfstudio_cameras(self.datamanager.train_dataset.cameras)
        keys = choose_key_views(cameras, self.config.num_key_views)
        self._views.keep_only(keys)
        unedited = self.render(keys)
        model, threshold = self.model, self.config.lift_threshold
        holder = SplatHolder(model, cameras[keys], threshold=threshold) if isinstance(model, SplatfactoModel) else None
        half = self.config.steps_per_round // 2
        for number, noise_level in enumerate(self.config.noise_levels):
            edited = self.edit(
                keys,
                self._originals[keys] if number == 0 else self.render(keys),
                noise_level=noise_level,
                seed=derive_seed(self.config.edit_seed, "restage", number),
                is_shared=self.config.is_noise_shared,
            )
            masks = sharpen(edited.masks, self.config.mask_low, self.config.mask_high)
            masks = holder.let_go(masks) if holder else masks
            targets = torch.lerp(unedited, edited.images, masks[:, None])
            weights = masks.square() + (1 - masks).square()
            self._replace(keys, targets, weights)
            yield from (f"round {number}: {len(keys)} key views edited" for _ in range(half))
            residuals = (self.render(keys) - targets).abs().mean(dim=1)
            self._replace(keys, targets, weights * robust_weights(residuals, self.config.robust_scale))
            rest = self.config.steps_per_round - half
            yield from (f"round {number}: fitting what the views agree on" for _ in range(rest))

    def _replace(self, keys: list[int], targets: Float[Tensor, "n 3 h w"], weights: Float[Tensor, "n h w"]) -> None:
        for key, target, weight in zip(keys, targets, weights, strict=True):
            self._views.replace(key, target, weight)
