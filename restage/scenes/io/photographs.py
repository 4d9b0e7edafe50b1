"""Plain photographs, or the sharpest frames of a video: cameras and sparse points by structure from motion.

Needs pycolmap (`pip install 'restage[colmap]'`). Photographs that are turned by EXIF, or of a format that pycolmap may
not read, are given to it as upright copies; the capture is then made of the originals.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from restage.records import InputError, MissingExtra, Progress
from restage.run.progress import report
from restage.scenes.io.colmap import ModelFiles, lens_of, pose_of, read_cameras, read_colmap_points, read_images
from restage.scenes.io.films import open_film
from restage.scenes.io.images import UNREADABLE, Orientation, list_images, open_picture, read_head
from restage.scenes.io.posed import Photo, PosedPhotos, ReadOptions, SceneFormat, note

__all__ = ["MIN_PHOTOGRAPHS", "PHOTOGRAPHS", "VIDEO", "find_cameras", "pose_photographs", "sharpest_frames"]
__all__ += ["sharpness"]

Result = TypeVar("Result")

MIN_PHOTOGRAPHS = 3
ENOUGH = 0.5
"""Share of the photographs that should connect."""
MAX_EXHAUSTIVE = 200
"""Up to this many photographs each is matched with each; more are taken for a video and matched with neighbors."""
SEQUENCE_OVERLAP = 15
MIN_FOR_PRINCIPAL_POINT = 20
"""Photographs; from few, the principal point comes out anywhere (47 px off for 4 of the bear, 2 px for 24)."""
MAX_SIDE = 1600
"""Longer side in pixels at which features are looked for, and of the frames of a video. For a photograph of 12
megapixels, COLMAP's own 3200 takes 17 CPU s."""
MAX_FEATURES = 4096
"""A photograph; half of COLMAP's default, since matching on a CPU takes four times as long for twice as many."""
ORIENTATION = 0x0112
LOOK_EVERY_S = 0.5
TAKEN_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PLAIN_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Read by every pycolmap."""


PHOTOGRAPHS = SceneFormat(
    lambda path: next((folder for folder in (path, path / "images", path / "input") if list_images(folder)), None),
    lambda folder, name, options: pose_photographs({path.name: path for path in list_images(folder)}, str(folder)),
    "photographs (jpg, png, tiff, webp, heic, avif)",
    finds_cameras=True,
)


def pose_photographs(originals: Mapping[str, Path], where: str) -> PosedPhotos:
    """Find the cameras of photographs, given by name, by structure from motion; `where` opens error messages."""
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as workplace:
        upright, model_place = Path(workplace) / "images", Path(workplace) / "model"
        upright.mkdir()
        model_place.mkdir()
        original_of = {_upright_copy(path, upright): name for name, path in sorted(originals.items())}
        model = find_cameras(upright, model_place, where)
        images = read_images(model.folder / f"images{model.suffix}")
        cameras = read_cameras(model.folder / f"cameras{model.suffix}")
        points = read_colmap_points(model)
    photos = [
        Photo(
            name=original_of[image.name],
            path=originals[original_of[image.name]],
            lens=lens_of(cameras[image.camera_id]),
            camera_to_world=pose_of(image, where),
            orientation=Orientation(before=read_head(originals[original_of[image.name]]).orientation),
        )
        for image in images
    ]
    found, total = len(photos), len(originals)
    if found < ENOUGH * total:
        more = "connect to one scene and are used; take more views with less motion between them"
        note(notes, f"{where}: ONLY {found} OF {total} PHOTOGRAPHS {more}")
    elif found < total:
        note(notes, f"{where}: {total - found} of {total} photographs find no place in the scene and are left out")
    return PosedPhotos(photos=sorted(photos, key=lambda photo: photo.name), points=points, notes=tuple(notes))


def _upright_copy(path: Path, folder: Path) -> str:
    """Link or write a photograph as pycolmap is to see it; returns its name in the folder."""
    if path.suffix.lower() in PLAIN_SUFFIXES and read_head(path).orientation == 1:
        try:
            (folder / path.name).symlink_to(path.resolve())
        except OSError:  # Windows lets few users make links
            shutil.copyfile(path, folder / path.name)
        return path.name
    with open_picture(path) as image:
        try:
            exif = image.getexif()  # tells the focal length
            upright = ImageOps.exif_transpose(image).convert("RGB")
        except UNREADABLE as error:
            raise InputError(f"{path} is not readable as an image: {str(error)[:200]}") from None
    exif[ORIENTATION] = 1
    Image.Image.save(upright, folder / f"{path.name}.jpg", quality=98, subsampling=0, exif=exif)
    return f"{path.name}.jpg"


def find_cameras(folder: Path, workplace: Path, where: str) -> ModelFiles:
    """Run structure from motion; returns the model with the most photographs, as files below `workplace`.

    Photographs of one size share one camera (OPENCV); otherwise each has its own, by its EXIF (SIMPLE_RADIAL).
    Same photographs, same pycolmap: same model, bit for bit.
    """
    try:
        import pycolmap  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError:
        raise MissingExtra(f"{where} holds photographs without cameras, and pycolmap", "colmap") from None
    if threading.current_thread() is threading.main_thread():
        # Its import takes over SIGTERM and others, prints a stack trace at each and aborts.
        for number in TAKEN_SIGNALS:
            signal.signal(number, signal.getsignal(number))
    photographs = list_images(folder)
    if len(photographs) < MIN_PHOTOGRAPHS:
        raise InputError(f"{where}: expected at least {MIN_PHOTOGRAPHS} photographs, got {len(photographs)}")
    has_one_camera = len({read_head(path)[:2] for path in photographs}) == 1
    database, model_folder = workplace / "database.db", workplace / "model"
    # It would print its errors before ours, and leave a log file of each in the temporary folder.
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    pycolmap.set_random_seed(0)
    names = [path.name for path in photographs]
    _match_features(folder, names, database, has_one_camera=has_one_camera)
    models = _place_cameras(folder, database, workplace / "models", len(names))
    model = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    num_found = 0 if model is None else model.num_reg_images()
    if model is None or num_found < MIN_PHOTOGRAPHS:
        raise InputError(
            f"{where}: expected photographs that overlap; {num_found} of {len(photographs)} connect to one scene; "
            "take more views with less motion between them"
        )
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
    extract = partial(
        pycolmap.extract_features,
        database,
        folder,
        image_names=names,
        camera_mode=pycolmap.CameraMode.SINGLE if has_one_camera else pycolmap.CameraMode.AUTO,
        reader_options=pycolmap.ImageReaderOptions(camera_model="OPENCV" if has_one_camera else "SIMPLE_RADIAL"),
        extraction_options=pycolmap.FeatureExtractionOptions(
            num_threads=num_threads,
            max_image_size=MAX_SIDE,
            sift=pycolmap.SiftExtractionOptions(max_num_features=MAX_FEATURES),
        ),
        device=device,
    )
    _watched(extract, "features", len(names), partial(_rows_in, database, "keypoints"))
    matching = pycolmap.FeatureMatchingOptions(num_threads=num_threads)
    # With a seed of its own each pair's check is the same on any number of threads.
    verification = pycolmap.TwoViewGeometryOptions(ransac=pycolmap.RANSACOptions(random_seed=0))
    common = {"matching_options": matching, "verification_options": verification, "device": device}
    if len(names) <= MAX_EXHAUSTIVE:
        match, num_pairs = partial(pycolmap.match_exhaustive, database, **common), math.comb(len(names), 2)
    else:
        pairing = pycolmap.SequentialPairingOptions(overlap=SEQUENCE_OVERLAP, quadratic_overlap=True)
        match = partial(pycolmap.match_sequential, database, pairing_options=pairing, **common)
        # Each with its 15 neighbors, and with those 16, 32, ... further on.
        num_pairs = len(names) * 2 * SEQUENCE_OVERLAP
    _watched(match, "matches", num_pairs, partial(_rows_in, database, "matches"))


def _place_cameras(folder: Path, database: Path, output: Path, num_photographs: int) -> dict[int, Any]:
    """Return COLMAP's models of the photographs that were matched."""
    import pycolmap  # pyright: ignore[reportMissingImports]  (optional)

    num_placed = 0

    def count(placed: int | None = None) -> None:
        nonlocal num_placed
        num_placed = num_placed + 1 if placed is None else placed

    place = partial(
        pycolmap.incremental_mapping,
        database,
        folder,
        output,
        pycolmap.IncrementalPipelineOptions(num_threads=1, random_seed=0),
        initial_image_pair_callback=partial(count, 2),
        next_image_callback=count,
    )
    return _watched(place, "cameras", num_photographs, lambda: num_placed)


def _watched(work: Callable[..., Result], stage: str, total: int, num_done: Callable[[], int]) -> Result:
    """Do a step of COLMAP's in another thread; report how far it is, and stop it where this thread is interrupted."""
    import pycolmap  # pyright: ignore[reportMissingImports]  (optional)

    stop = pycolmap.CancellationToken()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work, cancellation_token=stop)
        try:
            report(Progress(stage=stage, done=0, total=total))
            while not wait([running], timeout=LOOK_EVERY_S).done:
                report(Progress(stage=stage, done=min(num_done(), total), total=total))
        except BaseException:
            stop.cancel()
            raise
        found = running.result()
        report(Progress(stage=stage, done=total, total=total))
        return found


def _rows_in(database: Path, table: str) -> int:
    """Count what COLMAP has written so far; 0 while the table cannot be read."""
    try:
        # "Immutable" takes no lock, since COLMAP aborts the process when it finds one; the count may be wrong for once.
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?immutable=1", uri=True)) as connection:
            return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
    except sqlite3.DatabaseError:
        return 0


VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
NUM_FRAMES = 120
"""Frames that are taken of a video, at most; matching each with each takes minutes for that many."""
FRAMES_A_SECOND = 3.0
"""Frames that are taken of a second of video, at most: in less time the camera hardly moves."""
JUDGED_SIDE = 480
"""Frames are brought to about this side before their sharpness is judged, where noise hardly counts."""


def _read_video(path: Path, name: str, options: ReadOptions) -> PosedPhotos:
    workplace = tempfile.TemporaryDirectory()
    frames = {}
    for index, frame in sharpest_frames(path):
        frames[f"frame_{index:06d}.png"] = Path(workplace.name) / f"frame_{index:06d}.png"
        Image.fromarray(frame).save(frames[f"frame_{index:06d}.png"], compress_level=1)
    posed = pose_photographs(frames, str(path))
    return PosedPhotos(photos=posed.photos, points=posed.points, notes=posed.notes, workplace=workplace)


VIDEO = SceneFormat(
    lambda path: path if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES else None,
    _read_video,
    f"a video ({' '.join(VIDEO_SUFFIXES)})",
    finds_cameras=True,
)


def sharpest_frames(path: Path) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Cut a video into stretches of equal length and yield the sharpest frame of each, upright, with its index."""
    # Only ever smaller, in its own shape; ffmpeg turns what a phone has filmed upright before it scales.
    scale = f"scale=w='min({MAX_SIDE},iw)':h='min({MAX_SIDE},ih)':force_original_aspect_ratio=decrease"
    with contextlib.ExitStack() as stack:
        try:
            film = stack.enter_context(open_film(path, filters=[scale]))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not readable as a video: {error}") from None
        num_frames = max(1, round((film.head["duration"] or 0) * (film.head["fps"] or 0)))
        stretch = max(film.head["fps"] / FRAMES_A_SECOND, num_frames / NUM_FRAMES, 1.0)
        best: tuple[float, int, np.ndarray] | None = None
        for index, frame in enumerate(film.frames):
            if best is not None and int(index / stretch) > int(best[1] / stretch):
                yield best[1], best[2]
                best = None
            score = sharpness(frame)
            if best is None or score > best[0]:
                best = (score, index, frame)
    if best is None:
        raise InputError(f"{path}: expected a video with frames, got none")
    yield best[1], best[2]


def sharpness(frame: UInt8[np.ndarray, "h w 3"]) -> float:
    """Variance of the Laplacian of a frame's brightness; motion blur and bad focus lower it."""
    scale = min(1.0, JUDGED_SIDE / max(frame.shape[:2]))
    gray: Float[np.ndarray, "h w"] = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray
    return float(cv2.Laplacian(small, cv2.CV_32F).var())
