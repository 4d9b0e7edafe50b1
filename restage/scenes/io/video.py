"""A video as a capture: the sharpest frame of each stretch of it, then structure from motion as for photographs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from restage.records import InputError
from restage.scenes.io.photographs import pose_photographs
from restage.scenes.io.posed import PosedPhotos, ReadOptions, SceneFormat

__all__ = ["VIDEO", "sharpest_frames", "sharpness"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
NUM_FRAMES = 120
"""Frames that are taken of a video, at most; matching each with each takes minutes for that many."""
FRAMES_A_SECOND = 3.0
"""Frames that are taken of a second of video, at most: in less time the camera hardly moves."""
MAX_SIDE = 1600
"""Longer side in pixels of the frames; ffmpeg makes larger ones smaller."""
JUDGED_SIDE = 480
"""Frames are brought to about this side before their sharpness is judged, where noise hardly counts."""


def _find_video(path: Path) -> Path | None:
    return path if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES else None


def _read_video(path: Path, name: str, options: ReadOptions) -> PosedPhotos:
    """Take frames of a video and find their cameras.

    Raises:
        MissingExtra: pycolmap is not installed.
        InputError: it is no video that ffmpeg reads, or its frames do not connect to a scene.
    """
    workplace = tempfile.TemporaryDirectory()
    frames = {}
    for index, frame in sharpest_frames(path):
        frames[f"frame_{index:06d}.png"] = Path(workplace.name) / f"frame_{index:06d}.png"
        Image.fromarray(frame).save(frames[f"frame_{index:06d}.png"], compress_level=1)
    posed = pose_photographs(frames, str(path))
    return PosedPhotos(photos=posed.photos, points=posed.points, notes=posed.notes, workplace=workplace)


VIDEO = SceneFormat(_find_video, _read_video, f"a video ({' '.join(VIDEO_SUFFIXES)})", finds_cameras=True)


def sharpest_frames(path: Path) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Cut a video into stretches of equal length and yield the sharpest frame of each, upright, with its index.

    Raises:
        InputError: ffmpeg cannot read it.
    """
    # Only ever smaller, in its own shape; ffmpeg turns what a phone has filmed upright before it scales.
    scale = f"scale=w='min({MAX_SIDE},iw)':h='min({MAX_SIDE},ih)':force_original_aspect_ratio=decrease"
    try:
        stream = imageio_ffmpeg.read_frames(str(path), output_params=["-vf", scale])
        head = next(stream)
    except (OSError, RuntimeError, StopIteration, IndexError, ValueError) as error:
        raise InputError(f"{path} is not readable as a video: {str(error).strip()[-200:]}") from None
    width, height = head["size"]
    num_frames = max(1, round((head["duration"] or 0) * (head["fps"] or 0)))
    stretch = max(head["fps"] / FRAMES_A_SECOND, num_frames / NUM_FRAMES, 1.0)
    best: tuple[float, int, np.ndarray] | None = None
    for index, content in enumerate(stream):
        if best is not None and int(index / stretch) > int(best[1] / stretch):
            yield best[1], best[2]
            best = None
        frame = np.frombuffer(content, np.uint8).reshape(height, width, 3)
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
