"""From a trained or edited nerfstudio scene back to Restage: `python -m restage.nerfstudio.export CONFIG --out FOLDER`.

Writes a capture whose pictures are the scene's own renders, from which `restage fit` makes splats; of a splatfacto
also its splats, which Restage and viewers open as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

from restage.nerfstudio.scene import TrainedScene, load_trained_scene
from restage.records import InputError
from restage.run.layout import CAPTURE, SPLATS
from restage.scenes.io.nerfstudio import write_capture
from restage.scenes.io.ply import write_splats

__all__ = ["Exported", "export_scene", "main"]


class Exported(NamedTuple):
    """What was written."""

    capture: Path
    """Folder of the capture."""
    splats: Path | None
    """PLY in the layout of 3D Gaussian splatting; None for a scene that has no splats."""


def export_scene(scene: TrainedScene, folder: Path) -> Exported:
    """Write `capture/` and, of a splatfacto, `splats.ply`; everything is in the frame of the original capture.

    Raises:
        InputError: the splats cannot be moved into that frame.
    """
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
