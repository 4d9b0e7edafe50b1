"""The training views that a nerfstudio datamanager keeps in memory: read, replaced and weighted by the edit pipelines.

One class for rays (`VanillaDataManager`, nerfacto) and one for whole images (`FullImageDatamanager`, splatfacto).
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from torch import Tensor

from restage.records import InputError

__all__ = ["EditableFullImageDatamanager", "TrainingViews", "open_views", "soften"]


@runtime_checkable
class TrainingViews(Protocol):
    """Training views by their index in the training set."""

    def image(self, index: int) -> Float[Tensor, "3 h w"]:
        """The view as training sees it now, RGB in [0, 1], on the CPU."""
        ...

    def replace(self, index: int, image: Float[Tensor, "3 h w"], weight: Float[Tensor, "h w"] | None = None) -> None:
        """Train on this picture from now on; `weight` in [0, 1] says how much each pixel counts, by default fully."""

    def keep_only(self, indices: Sequence[int]) -> None:
        """Train on these views alone from now on."""


class _RayViews:
    """Views of a datamanager that samples rays out of one stack of images."""

    def __init__(self, datamanager: VanillaDataManager) -> None:
        batch = datamanager.train_image_dataloader.cached_collated_batch
        if batch is None or isinstance(batch["image"], list):
            raise InputError(
                "expected all training images in memory and of one size; leave "
                "--pipeline.datamanager.train-num-images-to-sample-from at -1 and crop the images alike"
            )
        order = torch.argsort(batch["image_idx"].cpu())
        for name, value in list(batch.items()):
            if isinstance(value, Tensor):
                batch[name] = value[order.to(value.device)]
        _check_channels(batch["image"].shape[-1])
        batch["error_factor"] = torch.ones_like(batch["image"][..., :1])
        self._whole: dict[str, Tensor] = dict(batch)
        self._sampled: dict[str, Tensor] = batch  # the dict that the datamanager samples from

    def image(self, index: int) -> Float[Tensor, "3 h w"]:
        return self._whole["image"][index].permute(2, 0, 1).float().cpu()

    def replace(self, index: int, image: Float[Tensor, "3 h w"], weight: Float[Tensor, "h w"] | None = None) -> None:
        # The views that are sampled are a copy once `keep_only` has picked some: both are written to.
        for batch in (self._whole, self._sampled):
            for place in (batch["image_idx"].cpu() == index).nonzero()[:, 0].tolist():
                batch["image"][place] = image.permute(1, 2, 0).to(batch["image"])
                factor = 1.0 if weight is None else weight.sqrt()[..., None]  # the loss of a nerfacto squares errors
                batch["error_factor"][place] = torch.as_tensor(factor).to(batch["error_factor"])

    def keep_only(self, indices: Sequence[int]) -> None:
        for name, value in self._whole.items():
            if isinstance(value, Tensor):
                self._sampled[name] = value[torch.tensor(list(indices), device=value.device)]


class EditableFullImageDatamanager(FullImageDatamanager):
    """nerfstudio's datamanager of whole images, which can be told to train on some of them only."""

    kept: frozenset[int] | None = None
    """Indices of the views that are trained on; all of them if None."""

    def sample_train_cameras(self) -> list[int]:
        """Order of the training views for the next round."""
        sampled = super().sample_train_cameras()
        return [index for index in sampled if self.kept is None or index in self.kept]


class _ImageViews:
    """Views of a datamanager that hands out one whole image at a time."""

    def __init__(self, datamanager: EditableFullImageDatamanager) -> None:
        self._datamanager = datamanager
        for view in datamanager.cached_train:
            _check_channels(view["image"].shape[-1])

    def image(self, index: int) -> Float[Tensor, "3 h w"]:
        image = self._datamanager.cached_train[index]["image"].permute(2, 0, 1).cpu()
        return image.float() / 255 if image.dtype == torch.uint8 else image.float()

    def replace(self, index: int, image: Float[Tensor, "3 h w"], weight: Float[Tensor, "h w"] | None = None) -> None:
        view = self._datamanager.cached_train[index]
        view["image"] = image.permute(1, 2, 0).contiguous().to(view["image"].device)
        ones = torch.ones_like(view["image"][..., :1])
        view["error_factor"] = ones if weight is None else weight[..., None].to(ones)  # splatfacto's loss is L1

    def keep_only(self, indices: Sequence[int]) -> None:
        self._datamanager.kept = frozenset(indices)
        self._datamanager.train_unseen_cameras = self._datamanager.sample_train_cameras()


def open_views(datamanager: Any) -> TrainingViews:
    """Return the training views of a datamanager."""
    if isinstance(datamanager, EditableFullImageDatamanager):
        return _ImageViews(datamanager)
    if isinstance(datamanager, VanillaDataManager):
        return _RayViews(datamanager)
    raise InputError(
        f"expected a datamanager that keeps its images in memory, got {type(datamanager).__name__}; "
        "leave --pipeline.datamanager as the restage methods set it"
    )


def soften(predicted: Float[Tensor, "*pixels 3"], batch: Mapping[str, Any]) -> Float[Tensor, "*pixels 3"]:
    """Let pixels count as their factor says, for any model and loss: the prediction moves towards its target.

    With factor f the error of a pixel becomes f times what it was, so an L1 loss counts it f-fold and an L2 loss
    f^2-fold; where f is 0 the pixel asks for nothing.
    """
    if "error_factor" not in batch:
        return predicted
    return torch.lerp(batch["image"].to(predicted), predicted, batch["error_factor"].to(predicted))


def _check_channels(count: int) -> None:
    if count != 3:
        raise InputError(f"expected RGB training images, got {count} channels; remove the alpha channel before editing")
