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
from restage.scenes.io.images import list_images, read_head
from restage.scenes.io.views import ReadOptions, common_size

__all__ = ["MIN_PHOTOGRAPHS", "find_cameras", "read_photographs"]

MIN_PHOTOGRAPHS = 3
MAX_EXHAUSTIVE = 200
"""Up to so many photographs each is matched with each; more are taken for a video and matched with neighbours."""
SEQUENCE_OVERLAP = 15
MIN_FOR_PRINCIPAL_POINT = 20
"""Photographs; from few, the principal point comes out anywhere (47 px off for 4 of the bear, 2 px for 24)."""
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
        InputError: too few photographs, of several shapes, or they do not connect to a scene.
    """
    common_size(name, [read_head(path)[:2] for path in list_images(folder)], options.size)
    with tempfile.TemporaryDirectory() as workplace:
        model = find_cameras(folder, Path(workplace))
        return read_colmap(model, name, options, image_folder=folder)


def find_cameras(folder: Path, workplace: Path) -> ModelFiles:
    """Run structure from motion; returns the model with the most photographs, as files below `workplace`.

    Photographs of one size share one camera (OPENCV); otherwise each has its own, by its EXIF (SIMPLE_RADIAL).
    Same photographs, same pycolmap: same model, bit for bit.

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
    has_one_camera = len({read_head(path)[:2] for path in photographs}) == 1
    database, model_folder = workplace / "database.db", workplace / "model"
    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    pycolmap.set_random_seed(0)
    _match_features(folder, [path.name for path in photographs], database, has_one_camera=has_one_camera)
    options = pycolmap.IncrementalPipelineOptions(num_threads=1, random_seed=0)
    models = pycolmap.incremental_mapping(database, folder, workplace / "models", options)
    model = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    num_found = 0 if model is None else model.num_reg_images()
    if model is None or num_found < max(MIN_PHOTOGRAPHS, len(photographs) / 2):
        raise InputError(
            f"{folder}: expected photographs that overlap; {num_found} of {len(photographs)} connect to one scene; "
            "take more views with less motion between them"
        )
    if num_found < len(photographs):
        message = (
            f"{folder}: {len(photographs) - num_found} of {len(photographs)} photographs find no place in the scene"
        )
        warnings.warn(f"{message} and are left out", stacklevel=2)
    if has_one_camera and num_found >= MIN_FOR_PRINCIPAL_POINT:
        # COLMAP keeps the principal point in the middle; once the scene stands, one shared camera tells where it is.
        adjustment = pycolmap.BundleAdjustmentOptions(refine_principal_point=True, print_summary=False)
        adjustment.ceres.solver_options.num_threads = 1
        pycolmap.bundle_adjustment(model, adjustment)
    model_folder.mkdir()
    model.write_binary(model_folder)
    return ModelFiles(model_folder, ".bin")


def _match_features(folder: Path, names: list[str], database: Path, *, has_one_camera: bool) -> None:
    """Fill COLMAP's database: features of each photograph, matches of pairs that pass the geometric check."""
    import pycolmap  # pyright: ignore[reportMissingImports]  (optional)

    num_threads, device = torch.get_num_threads(), pycolmap.Device.cpu
    pycolmap.extract_features(
        database,
        folder,
        image_names=names,
        camera_mode=pycolmap.CameraMode.SINGLE if has_one_camera else pycolmap.CameraMode.AUTO,
        reader_options=pycolmap.ImageReaderOptions(camera_model="OPENCV" if has_one_camera else "SIMPLE_RADIAL"),
        extraction_options=pycolmap.FeatureExtractionOptions(
            num_threads=num_threads, sift=pycolmap.SiftExtractionOptions(max_num_features=MAX_FEATURES)
        ),
        device=device,
    )
    matching = pycolmap.FeatureMatchingOptions(num_threads=num_threads)
    # With a seed of its own each pair's check is the same on any number of threads.
    verification = pycolmap.TwoViewGeometryOptions(ransac=pycolmap.RANSACOptions(random_seed=0))
    common = {"matching_options": matching, "verification_options": verification, "device": device}
    if len(names) <= MAX_EXHAUSTIVE:
        pycolmap.match_exhaustive(database, **common)
    else:
        pairing = pycolmap.SequentialPairingOptions(overlap=SEQUENCE_OVERLAP, quadratic_overlap=True)
        pycolmap.match_sequential(database, pairing_options=pairing, **common)
