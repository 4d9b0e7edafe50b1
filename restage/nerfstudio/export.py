"""From a trained or edited nerfstudio scene back to Restage: `python -m restage.nerfstudio.export CONFIG --out FOLDER`.

Writes a capture whose pictures are the scene's own renders, from which `restage fit` makes splats; of a splatfacto
also its splats, which Restage and viewers open as they are.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from torch import Tensor

from restage.nerfstudio.frames import (
    Similarity,
    from_nerfstudio_cameras,
    similarity_between,
    splats_of,
    to_nerfstudio_cameras,
)
from restage.nerfstudio.trainer import latest_checkpoint, read_checkpoint, read_config
from restage.records import InputError
from restage.run.layout import CAPTURE, SPLATS
from restage.scenes.cameras import Cameras
from restage.scenes.capture import Capture
from restage.scenes.io import read_capture
from restage.scenes.io.nerfstudio import write_capture
from restage.scenes.io.splat_files import write_splats
from restage.scenes.splats import Splats

__all__ = ["Exported", "TrainedScene", "export_scene", "load_trained_scene", "main"]


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
        """The splats of a splatfacto, in the capture's frame."""
        model = self.pipeline.model
        if not isinstance(model, SplatfactoModel):
            raise InputError(f"expected a splatfacto, got a {type(model).__name__}, which has no splats")
        return _to_capture_frame(splats_of(model), self.frame)


def load_trained_scene(config_path: Path, *, checkpoint: Path | None = None, data: Path | None = None) -> TrainedScene:
    """Load what ns-train wrote: its config, a checkpoint (the last one), and the capture (where it was then)."""
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


class Exported(NamedTuple):
    """What was written."""

    capture: Path
    """Folder of the capture."""
    splats: Path | None
    """PLY in the layout of 3D Gaussian splatting; None for a scene that has no splats."""


def export_scene(scene: TrainedScene, folder: Path) -> Exported:
    """Write `capture/` and, of a splatfacto, `splats.ply`, in the original capture's frame, if it can be moved."""
    splats = scene.splats() if hasattr(scene.pipeline.model, "gauss_params") else None
    capture = dataclasses.replace(scene.capture, images=scene.render(scene.capture.cameras))
    write_capture(capture, folder / CAPTURE)
    if splats is not None:
        write_splats(splats, folder / SPLATS)
    return Exported(folder / CAPTURE, None if splats is None else folder / SPLATS)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m restage.nerfstudio.export", description=__doc__)
    parser.add_argument("config", type=Path, help="the config.yml that ns-train wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--data", type=Path, help="the capture's folder, if it was moved since")
    options = parser.parse_args(arguments)
    try:
        exported = export_scene(load_trained_scene(options.config, data=options.data), options.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"renders: {exported.capture}")
    if exported.splats is not None:
        print(f"splats: {exported.splats}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
