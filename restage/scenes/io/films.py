"""Frames of a film as ffmpeg decodes them, with what it says of the film; clips and videos of scenes are read by it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import imageio_ffmpeg
import numpy as np
from imageio_ffmpeg import _parsing
from jaxtyping import UInt8

__all__ = ["Film", "open_film", "to_standard_range"]


class Film(NamedTuple):
    """A film that is being decoded."""

    head: dict[str, Any]
    """What ffmpeg says of it: `fps`, `duration` in seconds, `size` of the frames, `audio_codec` if it has sound."""
    frames: Iterator[UInt8[np.ndarray, "h w 3"]]


HDR = re.compile(r"Video: .*\b(smpte2084|arib-std-b67)\b")
"""How ffmpeg names the transfer curves of films with a high dynamic range: PQ, and HLG, which phones write."""


def _start(path: Path) -> list[str]:
    # With `file:` what stands before a colon in a name is no protocol.
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-i", f"file:{path}"]


def to_standard_range(path: Path) -> list[str]:
    """Return the filters that bring a film of high dynamic range to sRGB's; none for another film.

    100 cd/m2 become white, what is brighter is compressed (mobius, which keeps what is darker as it is). Without this
    PQ and HLG look gray and dull.
    """
    said = subprocess.run(_start(path), stdin=subprocess.DEVNULL, capture_output=True, check=False, process_group=0)
    found = HDR.search(said.stderr.decode("utf-8", "ignore"))
    if found is None:
        return []
    linear = f"zscale=tin={found[1]}:pin=bt2020:min=bt2020nc:t=linear:npl=100,format=gbrpf32le"
    return [linear, "zscale=p=bt709", "tonemap=tonemap=mobius:desat=0", "zscale=t=bt709:m=bt709:r=tv,format=yuv420p"]


@contextlib.contextmanager
def open_film(
    path: Path, *, input_params: Sequence[str] = (), filters: Sequence[str] = (), output_params: Sequence[str] = ()
) -> Iterator[Film]:
    """Decode a film, of whatever dynamic range, with options of ffmpeg before and after the input, through filters.

    `imageio_ffmpeg.read_frames` leaves its pipes open where ffmpeg ends by itself; here all are closed at the end.

    Raises:
        ValueError: The film cannot be decoded, with the last line of what ffmpeg says.
    """
    program, silent, *source = _start(path)
    chain = [*filters, *to_standard_range(path)]
    command = [program, silent, *input_params, *source, *(["-vf", ",".join(chain)] if chain else [])]
    command += ["-pix_fmt", "rgb24", "-vcodec", "rawvideo", "-f", "image2pipe", *output_params, "-"]
    # What it says goes to a file, since a pipe that nobody reads would fill up and stop it. In a process group of its
    # own it does not see Ctrl-C, after which it would end early, as if the film were short.
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, bufsize=2**20, process_group=0
        ) as process,
    ):
        try:
            assert process.stdout is not None
            process.stdout.peek(1)  # pyright: ignore[reportAttributeAccessIssue]  # the head is complete before a frame
            log.seek(0)
            text = log.read().decode("utf-8", "ignore")
            try:
                head = _parsing.parse_ffmpeg_header(text)
            except (IndexError, ValueError, AttributeError):
                head = {}
            if "Output #0" not in text or not head:
                raise ValueError(text.strip().rpartition("\n")[2][-200:])
            yield Film(head, _frames(process.stdout, *head["size"]))
        finally:
            process.kill()


def _frames(stream: IO[bytes], width: int, height: int) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    size = width * height * 3
    while len(content := stream.read(size)) == size:
        yield np.frombuffer(content, np.uint8).reshape(height, width, 3)
