"""A scene that ns-train has trained, seen from Restage: its cameras, its frame, its pictures and its splats."""

# nerfstudio is in an environment of its own, which the type checker does not see.
# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from restage.nerfstudio.checkpoints import latest_checkpoint, read_checkpoint
from restage.nerfstudio.frames import (
    Similarity,
    from_nerfstudio_cameras,
    similarity_between,
    to_nerfstudio_cameras,
)
from restage.nerfstudio.installed import require_nerfstudio
from restage.nerfstudio.splatfacto import splats_of
from restage.nerfstudio.trainer import read_config
from restage.records import InputError
from restage.scenes.cameras import Cameras
from restage.scenes.capture import Capture
from restage.scenes.io import read_capture
from restage.scenes.splats import Splats

require_nerfstudio()
from nerfstudio.models.splatfacto import SplatfactoModel  # noqa: E402
from nerfstudio.pipelines.base_pipeline import VanillaPipeline  # noqa: E402

__all__ = ["TrainedScene", "load_trained_scene"]


@dataclass(frozen=True)
class TrainedScene:
    """A trained pipeline and the capture it was trained on."""

    pipeline: VanillaPipeline
    capture: Capture
    """As Restage reads it: lenses undistorted, world as in the file."""
    frame: Similarity
    """From the capture's frame to the one that nerfstudio trained in."""

    @torch.no_grad()
    def render(self, cameras: Cameras) -> Float[Tensor, "n 3 h w"]:
        """Pictures from cameras in the capture's frame, RGB in [0, 1]."""
        model = self.pipeline.model.eval()
        seen = to_nerfstudio_cameras(cameras, self.frame).to(model.device)
        views = [model.get_outputs_for_camera(seen[index : index + 1])["rgb"] for index in range(len(cameras))]
        return torch.stack([view.permute(2, 0, 1).float().cpu().clamp(0, 1) for view in views])

    def splats(self) -> Splats:
        """The splats of a splatfacto, in the capture's frame.

        Raises:
            InputError: the model has none, or they cannot be moved into the capture's frame.
        """
        model = self.pipeline.model
        if not isinstance(model, SplatfactoModel):
            raise InputError(f"expected a splatfacto, got a {type(model).__name__}, which has no splats")
        return _to_capture_frame(splats_of(model), self.frame)


def load_trained_scene(config_path: Path, *, checkpoint: Path | None = None, data: Path | None = None) -> TrainedScene:
    """Load what ns-train wrote.

    `config_path` is the run's `config.yml`; `checkpoint` is by default its last one, `data` where the capture was when
    the scene was trained.

    Raises:
        InputError: config, checkpoint or capture are missing or broken.
    """
    config = read_config(config_path)
    datamanager = config.pipeline.datamanager
    folder = Path(data or datamanager.data or datamanager.dataparser.data)
    datamanager.data = folder
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = config.pipeline.setup(device=device, test_mode="test")
    path = checkpoint or latest_checkpoint(config_path.parent / config.relative_model_dir)
    state = read_checkpoint(path)
    pipeline.load_pipeline(state["pipeline"], state["step"])
    pipeline.eval()
    trained = from_nerfstudio_cameras(pipeline.datamanager.train_dataset.cameras)
    capture = read_capture(folder if folder.is_dir() else folder.parent, size=max(trained.width, trained.height))
    names = [path.name for path in pipeline.datamanager.train_dataset.image_filenames]
    missing = sorted(set(names) - set(capture.file_names))
    if missing:
        raise InputError(f"{folder}: the scene was trained on {missing[0]}, which this capture lacks")
    seen = capture.cameras[[capture.file_names.index(name) for name in names]]
    return TrainedScene(pipeline, capture, similarity_between(seen, trained))


def _to_capture_frame(splats: Splats, frame: Similarity) -> Splats:
    """Undo shift and scale; a turn is refused, since it would have to turn the spherical harmonics too."""
    if float((frame.rotation - torch.eye(3)).abs().max()) > 1e-4:
        raise InputError(
            "the scene was trained in a frame that is turned against the capture's; train it with "
            "restage-fit-splatfacto, or with: nerfstudio-data --orientation-method none"
        )
    return Splats(
        means=(splats.means - frame.translation) / frame.scale,
        log_scales=splats.log_scales - torch.log(torch.tensor(frame.scale)),
        rotations=splats.rotations,
        opacity_logits=splats.opacity_logits,
        sh=splats.sh,
    )
