"""A folder of plain photographs: cameras and sparse points by structure from motion, with pycolmap.

Optional: `pip install 'restage[colmap]'`. The result is a COLMAP model, which `colmap.py` reads like any other.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch

from restage.records import InputError, MissingExtra
from restage.scenes.capture import Capture
from restage.scenes.io.colmap import ModelFiles, read_colmap
from restage.scenes.io.images import list_images, read_image_size
from restage.scenes.io.views import ReadOptions

__all__ = ["MIN_PHOTOGRAPHS", "find_cameras", "read_photographs"]

MIN_PHOTOGRAPHS = 3
MAX_EXHAUSTIVE = 200
"""Up to so many photographs each is matched with each; more are taken for a video and matched with neighbours."""
SEQUENCE_OVERLAP = 15
MAX_FEATURES = 4096
"""A photograph; half of COLMAP's default, since matching on a CPU takes four times as long for twice as many."""


def read_photographs(folder: Path, name: str, options: ReadOptions) -> Capture:
    """Find the cameras of photographs and read them as a capture.

    Photographs that find no place in the scene are left out, with a warning. A hundred take minutes.

    Args:
        folder: With the images right in it.
        name: Of the capture.
        options: Size, and what is held out.

    Raises:
        MissingExtra: pycolmap is not installed.
        InputError: too few photographs, or they do not connect to a scene.
    """
    with tempfile.TemporaryDirectory() as workplace:
        model = find_cameras(folder, Path(workplace))
        return read_colmap(model, name, options, image_folder=folder)


def find_cameras(folder: Path, workplace: Path) -> ModelFiles:
    """Run structure from motion; returns the model with the most photographs, as files below `workplace`.

    Photographs of one size share one camera (model OPENCV); otherwise each size and EXIF has its own (SIMPLE_RADIAL).

    Raises:
        MissingExtra: pycolmap is not installed.
        InputError: too few photographs, or fewer than half of them connect.
    """
    try:
        import pycolmap  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError:
        raise MissingExtra(f"{folder} holds photographs without cameras, and pycolmap", "colmap") from None
    photographs = list_images(folder)
    if len(photographs) < MIN_PHOTOGRAPHS:
        raise InputError(f"{folder}: expected at least {MIN_PHOTOGRAPHS} photographs, got {len(photographs)}")
    is_one_size = len({read_image_size(path) for path in photographs}) == 1
    names = [path.name for path in photographs]
    database, model_folder = workplace / "database.db", workplace / "model"
    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    pycolmap.set_random_seed(0)
    num_threads = torch.get_num_threads()
    verification = pycolmap.TwoViewGeometryOptions(ransac=pycolmap.RANSACOptions(random_seed=0))
    matching = pycolmap.FeatureMatchingOptions(num_threads=num_threads)
    pycolmap.extract_features(
        database,
        folder,
        image_names=names,
        camera_mode=pycolmap.CameraMode.SINGLE if is_one_size else pycolmap.CameraMode.AUTO,
        reader_options=pycolmap.ImageReaderOptions(camera_model="OPENCV" if is_one_size else "SIMPLE_RADIAL"),
        extraction_options=pycolmap.FeatureExtractionOptions(
            num_threads=num_threads, sift=pycolmap.SiftExtractionOptions(max_num_features=MAX_FEATURES)
        ),
        device=pycolmap.Device.cpu,
    )
    common = {"matching_options": matching, "verification_options": verification, "device": pycolmap.Device.cpu}
    if len(names) <= MAX_EXHAUSTIVE:
        pycolmap.match_exhaustive(database, **common)
    else:
        pairing = pycolmap.SequentialPairingOptions(overlap=SEQUENCE_OVERLAP, quadratic_overlap=True)
        pycolmap.match_sequential(database, pairing_options=pairing, **common)
    options = pycolmap.IncrementalPipelineOptions(num_threads=1, random_seed=0)
    models = pycolmap.incremental_mapping(database, folder, workplace / "models", options)
    num_found = {index: model.num_reg_images() for index, model in models.items()}
    best = max(num_found, key=lambda index: (num_found[index], -index), default=None)
    if best is None or num_found[best] < max(MIN_PHOTOGRAPHS, len(names) / 2):
        raise InputError(
            f"{folder}: expected photographs that overlap; {num_found.get(best, 0) if best is not None else 0} "
            f"of {len(names)} connect to one scene; take more views with less motion between them"
        )
    if num_found[best] < len(names):
        message = f"{folder}: {len(names) - num_found[best]} of {len(names)} photographs find no place in the scene"
        warnings.warn(f"{message} and are left out", stacklevel=2)
    model_folder.mkdir()
    models[best].write_binary(model_folder)
    return ModelFiles(model_folder, ".bin")
