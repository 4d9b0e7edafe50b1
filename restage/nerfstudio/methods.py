"""Restage's methods for `ns-train`, found by nerfstudio through the entry points in pyproject.toml.

`restage` and `restage-idu` edit a trained nerfacto, `restage-fit` trains one that can be read back; the same with
`-splatfacto` for Gaussian splats, which need CUDA. See docs/nerfstudio.md.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.models.splatfacto import SplatfactoModelConfig
from nerfstudio.plugins.types import MethodSpecification

from restage.nerfstudio.pipelines import FitPipelineConfig, IduPipelineConfig, RestagePipelineConfig
from restage.nerfstudio.trainer import EditTrainerConfig, allow_checkpoints
from restage.nerfstudio.views import EditableFullImageDatamanager

__all__ = ["restage", "restage_fit", "restage_fit_splatfacto", "restage_idu", "restage_idu_splatfacto"]
__all__ += ["restage_splatfacto"]

allow_checkpoints()  # here, since every command of nerfstudio loads this module before it loads a checkpoint

FIT_RATE = 1e-2
"""Learning rate of a nerfacto, nerfstudio's own default."""
EDIT_RATE = 5e-3
"""Learning rate when a nerfacto is edited."""


def _dataparser(load_points: bool) -> NerfstudioDataParserConfig:
    """The world keeps its axes, so that splats with spherical harmonics can be taken back without turning them."""
    return NerfstudioDataParserConfig(orientation_method="none", load_3D_points=load_points)


def _rays() -> VanillaDataManagerConfig:
    return VanillaDataManagerConfig(
        dataparser=_dataparser(load_points=False), train_num_rays_per_batch=4096, eval_num_rays_per_batch=4096
    )


def _images() -> FullImageDatamanagerConfig:
    return FullImageDatamanagerConfig(
        _target=EditableFullImageDatamanager, dataparser=_dataparser(load_points=True), cache_images_type="uint8"
    )


def _nerfacto() -> NerfactoModelConfig:
    """The cameras stay where the capture has them, so that the scene stays in the capture's frame."""
    return NerfactoModelConfig(
        eval_num_rays_per_chunk=1 << 15, average_init_density=0.01, camera_optimizer=CameraOptimizerConfig(mode="off")
    )


def _splatfacto() -> SplatfactoModelConfig:
    return SplatfactoModelConfig(sh_degree=2)  # a third less to fit than splatfacto's own 3


def _adam(rate: float, final: float | None = None, steps: int = 30_000) -> dict[str, object]:
    scheduler = None if final is None else ExponentialDecaySchedulerConfig(lr_final=final, max_steps=steps)
    return {"optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": scheduler}


def _nerfacto_optimizers(rate: float) -> dict[str, object]:
    return {
        "proposal_networks": _adam(rate, rate / 100, 200_000),
        "fields": _adam(rate, rate / 100, 200_000),
        "camera_opt": _adam(rate / 10, rate / 100, 5_000),
    }


def _splatfacto_optimizers(color: dict[str, object]) -> dict[str, object]:
    return {
        "means": _adam(1.6e-4, 1.6e-6),
        "features_dc": color,
        "features_rest": _adam(2.5e-3 / 20),
        "opacities": _adam(5e-2),
        "scales": _adam(5e-3),
        "quats": _adam(1e-3),
        "camera_opt": _adam(1e-4, 5e-7),
        "bilateral_grid": _adam(2e-3, 1e-4),
    }


def _shared(method_name: str, num_steps: int) -> dict[str, object]:
    """What all methods have in common: the device that is there, and an end without a viewer that waits."""
    return {
        "method_name": method_name,
        "max_num_iterations": num_steps,
        "mixed_precision": torch.cuda.is_available() and "splatfacto" not in method_name,
        "machine": MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        "viewer": ViewerConfig(num_rays_per_chunk=1 << 15),
        "vis": "tensorboard",
        "steps_per_eval_batch": 0 if "splatfacto" in method_name else 500,
    }


restage = MethodSpecification(
    config=EditTrainerConfig(
        pipeline=RestagePipelineConfig(datamanager=_rays(), model=_nerfacto()),
        optimizers=_nerfacto_optimizers(EDIT_RATE),
        **_shared("restage", 2000),
    ),
    description="Edit a trained nerfacto by text: key views edited together, everything outside their masks kept.",
)

restage_idu = MethodSpecification(
    config=EditTrainerConfig(
        pipeline=IduPipelineConfig(datamanager=_rays(), model=_nerfacto()),
        optimizers=_nerfacto_optimizers(EDIT_RATE),
        **_shared("restage-idu", 15_000),
    ),
    description="Edit a trained nerfacto by text: iterative dataset update with a Restage editor.",
)

restage_fit = MethodSpecification(
    config=TrainerConfig(
        pipeline=FitPipelineConfig(datamanager=_rays(), model=_nerfacto()),
        optimizers=_nerfacto_optimizers(FIT_RATE),
        **_shared("restage-fit", 30_000),
    ),
    description="Train a nerfacto on a Restage capture, to be edited or read back by Restage.",
)

restage_splatfacto = MethodSpecification(
    config=EditTrainerConfig(
        pipeline=RestagePipelineConfig(datamanager=_images(), model=_splatfacto()),
        # Only what is to change moves, so its colors may go fast: a new color is 1 to 3 units away.
        optimizers=_splatfacto_optimizers(_adam(2e-2, 2.5e-3, 2000)),
        **_shared("restage-splatfacto", 2000),
    ),
    description="Edit a trained splatfacto by text: as restage, and only the splats under the masks move (CUDA).",
)

restage_idu_splatfacto = MethodSpecification(
    config=EditTrainerConfig(
        pipeline=IduPipelineConfig(datamanager=_images(), model=_splatfacto()),
        optimizers=_splatfacto_optimizers(_adam(2.5e-3)),
        **_shared("restage-idu-splatfacto", 7500),
    ),
    description="Edit a trained splatfacto by text: iterative dataset update with a Restage editor (CUDA).",
)

restage_fit_splatfacto = MethodSpecification(
    config=TrainerConfig(
        pipeline=FitPipelineConfig(datamanager=_images(), model=_splatfacto()),
        optimizers=_splatfacto_optimizers(_adam(2.5e-3)),
        **_shared("restage-fit-splatfacto", 30_000),
    ),
    description="Train a splatfacto on a Restage capture; its splats can be read back by Restage (CUDA).",
)
