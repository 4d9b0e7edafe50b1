"""Clips as folders of frames, read from films or other folders; frame after frame, so that length costs no memory.

Called by `restage clip` and by the edit of clips. Films are written in `films.py`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from restage.clips.config import ClipOptions
from restage.clips.films import store_sound
from restage.records import (
    InputError,
    Progress,
    content_id,
    file_sha256,
    hash_files,
    read_json,
    to_plain,
    write_atomically,
    write_json,
)
from restage.run.layout import CLIP_FRAMES, CLIP_RECORD, CLIP_SOUND, CLIP_TRUTH, DESCRIPTION, TRUTH
from restage.scenes.cameras import Cameras
from restage.scenes.io.films import open_film
from restage.scenes.io.images import UNREADABLE, list_images, open_picture, read_head, read_image

__all__ = [
    "DEFAULT_RATE",
    "FILM_SUFFIXES",
    "ClipRecord",
    "StoredClip",
    "is_film",
    "open_clip",
    "store_clip",
]

FILM_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".gif")
DEFAULT_RATE = 8.0
"""Frames a second of what has no rate of its own: a folder of frames, a clip of the world."""
FEW = 0.9
"""Share of the frames that a film says it has below which some are missed; it says so roughly."""


def is_film(path: Path) -> bool:
    """Whether a path is a file that ffmpeg reads as a film, by its name."""
    return path.is_file() and path.suffix.lower() in FILM_SUFFIXES


@dataclass(frozen=True, kw_only=True)
class ClipPath:
    """The cameras of a clip, one a frame."""

    camera_to_world: list[list[list[float]]]
    intrinsics: list[list[list[float]]]


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """What a `clip.json` says of a clip, whoever made it; one of the world says more beside it."""

    frames_per_s: float = DEFAULT_RATE
    source: str = ""
    """Name of the film or folder that it was read from."""
    source_sha256: str = ""
    options: ClipOptions = ClipOptions()
    """How it was read."""
    motion: str = ""
    """What moves in a clip of the world; empty for clips that say nothing of it."""
    cameras: ClipPath | None = None
    """Cameras of a clip of the world or an orbit."""


@dataclass(frozen=True)
class StoredClip:
    """A clip on disk, of which frames are read when they are asked for."""

    folder: Path
    frame_paths: tuple[Path, ...]
    record: ClipRecord

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frame_paths)

    @property
    def sound(self) -> Path | None:
        """The sound of the clip; None for a silent one."""
        path = self.folder / CLIP_SOUND
        return path if path.is_file() else None

    @property
    def still_cameras(self) -> Cameras | None:
        """Cameras of the frames where nothing moves but them; None where they are unknown or something does."""
        path = self.record.cameras
        if path is None or self.record.motion not in ("", "still"):
            return None
        width, height = read_head(self.frame_paths[0])[:2]
        return Cameras(torch.tensor(path.camera_to_world), torch.tensor(path.intrinsics), width, height)

    def read(self, indices: Sequence[int]) -> Float[Tensor, "n 3 h w"]:
        """Read frames, RGB in [0, 1]."""
        frames = [torch.from_numpy(read_image(self.frame_paths[index])) for index in indices]
        if len({frame.shape for frame in frames}) != 1:
            raise InputError(f"{self.folder / CLIP_FRAMES}: expected frames of one size; read the clip anew")
        return torch.stack(frames).permute(0, 3, 1, 2).contiguous()


def open_clip(folder: Path) -> StoredClip:
    """Open a clip that `restage clip` or `store_clip` has written."""
    record = read_json(folder / CLIP_RECORD, ClipRecord)
    paths = tuple(list_images(folder / CLIP_FRAMES))
    if not paths:
        raise InputError(f"{folder / CLIP_FRAMES} holds no frames; make the clip anew")
    return StoredClip(folder, paths, record)


_Frames = Generator[UInt8[np.ndarray, "h w 3"], None, None]


class _Source(NamedTuple):
    frames_per_s: float  # before any are left out
    num_frames: int  # about; films say it roughly
    frames: _Frames
    has_sound: bool
    is_film: bool


def store_clip(source: Path, folder: Path, options: ClipOptions) -> Iterator[Progress]:
    """Read a film or a folder of frames into `frames/`, its sound beside it, and `clip.json` last.

    What is transparent becomes black, as in pictures of scenes.

    A clip that is there and was read from the same source with the same options is kept; another is refused.
    """
    sha256 = _source_sha256(source)
    if source.resolve() == (folder / CLIP_FRAMES).resolve():
        raise InputError(f"{source} is where the frames of {folder} belong; choose another folder")
    if (folder / CLIP_RECORD).exists():
        found = open_clip(folder).record
        if (found.source_sha256, found.options) != (sha256, options):
            raise InputError(f"{folder} holds another clip, or one read with other options; choose another folder")
        yield Progress(stage="clip", done=1, total=1, note="read before")
        return
    opened = _open_folder(source, options) if source.is_dir() else _open_film(source, options)
    rate = opened.frames_per_s / options.every
    total, done = max(1, -(-opened.num_frames // options.every)), 0
    with contextlib.closing(_every(opened.frames, options.every)) as frames:
        for done, frame in enumerate(frames, start=1):
            with write_atomically(folder / CLIP_FRAMES / frame_name(done - 1)) as temporary:
                Image.fromarray(frame).save(temporary)
            yield Progress(stage="clip", done=done, total=max(done, total), note=f"{rate:g} frames a second")
    if opened.is_film and done + 1 < FEW * total:
        warnings.warn(
            f"{source}: {done} of about {total} frames could be read; it is cut off or damaged, or its sound is longer",
            stacklevel=2,
        )
    if not done:
        raise InputError(f"{source} has no frame between {options.start_s:g} s and its end or the asked length")
    drop_frames(folder, done)
    (folder / CLIP_SOUND).unlink(missing_ok=True)
    if opened.has_sound:
        store_sound(source, folder / CLIP_SOUND, options)
    record = ClipRecord(frames_per_s=rate, source=source.resolve().name, source_sha256=sha256, options=options)
    write_json(folder / CLIP_RECORD, to_plain(record))


def copy_clip(source: Path, folder: Path) -> None:
    """Copy a clip with all that is known of it, its record last; one that is there is kept, another one refused."""
    record = source / CLIP_RECORD
    if (folder / CLIP_RECORD).exists():
        if (folder / CLIP_RECORD).read_bytes() != record.read_bytes():
            raise InputError(f"{folder} holds another clip; move the run away, or name the clip otherwise")
        return
    for name in (CLIP_FRAMES, TRUTH):
        if (source / name).is_dir():
            if name == CLIP_FRAMES:  # those of another clip, whose copy was stopped, would stay among them
                shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    for name in (CLIP_SOUND, CLIP_TRUTH, DESCRIPTION):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    with write_atomically(folder / CLIP_RECORD) as temporary:
        shutil.copyfile(record, temporary)


def frame_name(index: int) -> str:
    """File name of a frame; they sort as they are shown."""
    return f"frame_{index:06d}.png"


def drop_frames(folder: Path, count: int) -> None:
    """Remove what a longer clip, which was stopped before its record, left behind the frames of a clip."""
    kept = {frame_name(index) for index in range(count)}
    for path in (folder / CLIP_FRAMES).glob("frame_*.png"):
        if path.name not in kept:
            path.unlink()


def _every(frames: _Frames, step: int) -> _Frames:
    with contextlib.closing(frames):
        for index, frame in enumerate(frames):
            if index % step == 0:
                yield frame


def _source_sha256(source: Path) -> str:
    if not source.exists():
        raise InputError(f"{source} does not exist; name a film ({' '.join(FILM_SUFFIXES)}) or a folder of frames")
    if source.is_dir():
        return content_id("frames", hash_files(source, list_images(source)))
    if not is_film(source):
        raise InputError(f"{source}: expected a film ({' '.join(FILM_SUFFIXES)}) or a folder of frames")
    return file_sha256(source)


def _open_folder(source: Path, options: ClipOptions) -> _Source:
    rate = options.frames_per_s or DEFAULT_RATE
    paths = list_images(source)
    if not paths:
        raise InputError(f"{source} holds no pictures; name a film or a folder of frames, which are taken by name")
    first = round(options.start_s * rate)
    last = len(paths) if options.length_s is None else first + max(1, round(options.length_s * rate))
    chosen = paths[first:last]
    return _Source(rate, len(chosen), _read_pictures(chosen, options.size), has_sound=False, is_film=False)


def _read_pictures(paths: Sequence[Path], size: int | None) -> _Frames:
    first = None
    for path in paths:
        with open_picture(path) as image:
            try:
                upright = ImageOps.exif_transpose(image)
                if upright.has_transparency_data:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright)
                upright = upright.convert("RGB")
                scale = 1.0 if size is None else min(1.0, size / max(upright.size))
                if scale < 1:
                    width, height = (max(1, round(side * scale)) for side in upright.size)
                    upright = upright.resize((width, height), Image.Resampling.LANCZOS)
            except UNREADABLE as error:
                raise InputError(f"{path} is not readable as an image: {str(error)[:200]}") from None
        first = first or upright.size
        if upright.size != first:
            raise InputError(
                f"{path}: expected frames of one size, {first[0]}x{first[1]} as the first, got "
                f"{upright.size[0]}x{upright.size[1]}"
            )
        yield np.asarray(upright)


def _open_film(source: Path, options: ClipOptions) -> _Source:
    if options.frames_per_s is not None:
        raise InputError(f"{source} has a rate of its own; omit --frames-per-s, or take every n-th frame with --every")
    head = _head_of(source)
    rate, duration = float(head.get("fps") or 0), float(head.get("duration") or 0)
    if not rate > 0:
        raise InputError(f"{source} does not say how many frames a second it has; convert it to mp4 first")
    left = max(0.0, duration - options.start_s)
    length = left if options.length_s is None else min(left, options.length_s)
    frames = _decode(source, rate, options, head)
    return _Source(rate, max(1, round(length * rate)), frames, has_sound="audio_codec" in head, is_film=True)


def _head_of(source: Path) -> dict[str, Any]:
    try:
        with open_film(source) as film:
            return film.head
    except (OSError, ValueError) as error:
        raise InputError(f"{source} is not readable as a film: {error}") from None


HAS_ALPHA = re.compile("rgba|bgra|argb|abgr|gbrap|yuva|ya8|ya16|pal8")
"""Pixel formats of ffmpeg that have transparent pixels."""


def _decode(source: Path, rate: float, options: ClipOptions, head: Mapping[str, Any]) -> _Frames:
    # Phones film at a rate that varies; what follows counts on even times.
    filters = [f"fps={rate:.6g}"]
    if HAS_ALPHA.match(head["pix_fmt"]):
        filters.append("format=gbrap,premultiply=inplace=1")
    if options.size is not None:
        filters.append(
            f"scale=w='min({options.size},iw)':h='min({options.size},ih)':force_original_aspect_ratio=decrease"
        )
    start = ["-ss", f"{options.start_s:.6f}"] if options.start_s else []
    length = [] if options.length_s is None else ["-t", f"{options.length_s:.6f}"]
    with contextlib.ExitStack() as stack:
        try:
            film = stack.enter_context(open_film(source, input_params=start, filters=filters, output_params=length))
        except (OSError, ValueError) as error:
            raise InputError(f"{source}: no frame at {options.start_s:g} s: {error}") from None
        yield from film.frames
