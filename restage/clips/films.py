"""Films out, and their sound: frame after frame, so that length costs no memory.

They are encoded by the ffmpeg that imageio-ffmpeg brings, a program of its own that frames are piped through.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
from jaxtyping import Float
from torch import Tensor

from restage.clips.config import ClipOptions
from restage.records import InputError, write_atomically
from restage.scenes.io.images import to_uint8

__all__ = ["is_webm", "read_comment", "store_sound", "write_film"]


def _named(path: Path) -> str:
    """A path as ffmpeg takes it: what stands before a colon would be a protocol, and a dash an option."""
    return f"file:{path}"


def _last_line(text: str) -> str:
    """The last line of what ffmpeg says, which sums it up."""
    return text.strip().rpartition("\n")[2][-200:]


def store_sound(source: Path, target: Path, options: ClipOptions) -> None:
    """Store the sound of the frames that are taken, as it is where Matroska can hold it; none if it ends before."""
    length = [] if options.length_s is None else ["-t", f"{options.length_s:.6f}"]
    with write_atomically(target) as temporary:
        # Before the film `-ss` would go back to the last whole picture, and copy the sound from there on.
        cut = ["-i", _named(source), "-ss", f"{options.start_s:.6f}", *length, "-map", "0:a:0"]
        try:
            _ffmpeg(*cut, "-c:a", "copy", _named(temporary), what=f"the sound of {source}")
        except InputError:
            _ffmpeg(*cut, "-c:a", "flac", _named(temporary), what=f"the sound of {source}")
    if not _sound_codec(target):
        target.unlink()


def _sound_codec(path: Path) -> str:
    """The codec of a file of sound; empty where there is nothing to hear."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-i", _named(path)]
    told = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stderr
    found = re.search(r"Audio: (\w+)", told)
    return found.group(1) if found else ""


def _ffmpeg(*arguments: str, what: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise InputError(f"{what} cannot be taken over: {_last_line(done.stderr)}")


def write_film(
    path: Path,
    frames: Iterable[Float[Tensor, "3 h w"]],
    *,
    frames_per_s: float,
    sound: Path | None = None,
    comment: str = "",
) -> None:
    """Write RGB frames in [0, 1] as a film that browsers play, atomically; odd sizes lose their last line.

    It is encoded as VP9 where the name ends in .webm, else as H.264. A silent film may carry a comment of one line.

    `sound` is a file whose first track is put beside them: as it is where browsers play it, else as AAC, or Opus.
    """
    with write_atomically(path) as temporary:
        if sound is None:
            _encode(temporary, frames, frames_per_s, comment)
        else:
            silent = temporary.with_name(f"{temporary.stem}.silent.tmp{path.suffix}")
            codecs = PLAYED_SOUND[is_webm(path)]
            codec = "copy" if _sound_codec(sound) in codecs else codecs[0]
            try:
                _encode(silent, frames, frames_per_s)
                both = ["-i", _named(silent), "-i", _named(sound), "-map", "0:v:0", "-map", "1:a:0", "-c:v", "copy"]
                how = ["-c:a", codec, "-b:a", "160k", "-movflags", "+faststart"]
                _ffmpeg(*both, *how, _named(temporary), what=f"the sound {sound}")
            finally:
                silent.unlink(missing_ok=True)


PLAYED_SOUND = {False: ("aac", "mp3", "opus"), True: ("libopus", "opus", "vorbis")}
"""What browsers play in MP4 and in WebM; the first is what others are turned into."""


def is_webm(path: Path) -> bool:
    """Whether a film of this name is WebM."""
    return path.suffix.lower() == ".webm"


def read_comment(path: Path) -> str:
    """Return the comment of a film, as `write_film` gives it one; empty where there is none."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-i", _named(path), "-f", "ffmetadata", "-"]
    told = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    found = re.search(r"^comment=(.*)$", told.stdout, re.MULTILINE | re.IGNORECASE)
    return re.sub(r"\\(.)", r"\1", found.group(1)) if found else ""


def _encode(path: Path, frames: Iterable[Tensor], frames_per_s: float, comment: str = "") -> None:
    writer, told = None, ["-metadata", f"comment={comment}"] if comment else []
    for frame in frames:
        height, width = (side - side % 2 for side in frame.shape[1:])
        if writer is None:
            webm = is_webm(path)
            codec = {"codec": "libvpx-vp9", "bitrate": 2_000_000} if webm else {"codec": "libx264", "quality": 8}
            writer = imageio_ffmpeg.write_frames(
                _named(path),
                (width, height),
                fps=frames_per_s,  # pyright: ignore[reportArgumentType]  (ffmpeg takes any number)
                macro_block_size=2,
                ffmpeg_log_level="error",
                output_params=["-threads", "1", *([] if webm else ["-movflags", "+faststart"]), *told],
                **codec,
            )
            writer.send(None)
        writer.send(to_uint8(frame[:, :height, :width]))
    if writer is None:
        raise InputError("a film needs at least one frame")
    writer.close()
