from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from restage.clips.config import ClipOptions
from restage.clips.files import StoredClip, is_film, open_clip, store_clip
from restage.clips.films import write_film
from restage.edit.pictures import write_image
from restage.records import InputError
from restage.scenes.io.films import open_film

RATE = 10.0


def shades(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Frames that can be told apart by their gray."""
    return torch.linspace(0.1, 0.9, count).reshape(-1, 1, 1, 1).expand(-1, 3, height, width).contiguous()


def grays(clip: StoredClip) -> np.ndarray:
    return clip.read(range(len(clip))).mean(dim=(1, 2, 3)).numpy()


def ffmpeg(*arguments: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Two seconds of film with a tone."""
    write_film(tmp_path / "silent.mp4", shades(20), frames_per_s=RATE)
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:duration=2"]
    ffmpeg("-i", str(tmp_path / "silent.mp4"), *tone, "-c:v", "copy", "-c:a", "aac", str(tmp_path / "film.mp4"))
    return tmp_path / "film.mp4"


def stored(source: Path, folder: Path, **options: object) -> StoredClip:
    *_, last = store_clip(source, folder, ClipOptions(**options))  # pyright: ignore[reportArgumentType]
    assert last.done == last.total
    return open_clip(folder)


def head_of(path: Path) -> dict[str, object]:
    with open_film(path) as film:
        return film.head


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("num_frames", [0, 3, 30])
def test_a_film_that_was_read_to_any_frame_leaves_no_pipe_and_no_process(film: Path, num_frames: int) -> None:
    before = psutil.Process().num_fds(), len(psutil.Process().children())
    with open_film(film) as opened:
        found = list(itertools.islice(opened.frames, num_frames))
    assert len(found) == min(num_frames, 20)
    assert (psutil.Process().num_fds(), len(psutil.Process().children())) == before


def test_a_film_comes_back_frame_by_frame_with_rate_and_sound(film: Path, tmp_path: Path) -> None:
    clip = stored(film, tmp_path / "clip")
    assert len(clip) == 20 and clip.record.frames_per_s == RATE and clip.record.source == "film.mp4"
    np.testing.assert_allclose(grays(clip), np.linspace(0.1, 0.9, 20), atol=0.02)
    write_film(tmp_path / "out.mp4", clip.read(range(20)), frames_per_s=RATE, sound=clip.sound)
    head = head_of(tmp_path / "out.mp4")
    assert (head["fps"], head["size"], head["audio_codec"]) == (RATE, (48, 32), "aac")
    assert abs(float(str(head["duration"])) - 2) < 0.15


def test_start_length_every_and_size_choose_frames(film: Path, tmp_path: Path) -> None:
    clip = stored(film, tmp_path / "clip", start_s=0.5, length_s=1.0, every=2, size=24)
    assert len(clip) == 5 and clip.record.frames_per_s == RATE / 2
    assert clip.read([0]).shape == (1, 3, 16, 24)
    np.testing.assert_allclose(grays(clip), np.linspace(0.1, 0.9, 20)[5:15:2], atol=0.03)
    assert clip.sound is not None
    assert abs(float(str(head_of_sound(clip.sound))) - 1) < 0.15


def head_of_sound(path: Path) -> float:
    told = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True, check=False
    )
    hours, minutes, seconds = told.stderr.partition("Duration: ")[2].partition(",")[0].split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


@pytest.mark.parametrize("suffix", [".webm", ".gif", ".mkv"])
def test_other_films_are_read_too(film: Path, tmp_path: Path, suffix: str) -> None:
    other = film.with_suffix(suffix)
    codec = {".webm": ["-c:v", "libvpx", "-c:a", "libopus"], ".gif": [], ".mkv": ["-c", "copy"]}[suffix]
    ffmpeg("-i", str(film), *codec, str(other))
    clip = stored(other, tmp_path / "clip")
    assert len(clip) == 20 and clip.record.frames_per_s == RATE
    np.testing.assert_allclose(grays(clip), np.linspace(0.1, 0.9, 20), atol=0.04)
    assert (clip.sound is None) == (suffix == ".gif")
    if suffix == ".webm":  # MP4 takes opus as it is
        write_film(tmp_path / "out.mp4", clip.read(range(20)), frames_per_s=RATE, sound=clip.sound)
        assert head_of(tmp_path / "out.mp4")["audio_codec"] == "opus"


def test_a_folder_of_frames_is_read_by_name(tmp_path: Path) -> None:
    for index, frame in enumerate(shades(6)):
        write_image(tmp_path / "frames" / f"{index}.png", frame)
    clip = stored(tmp_path / "frames", tmp_path / "clip", every=2, frames_per_s=12.0, start_s=1 / 12)
    assert clip.record.frames_per_s == 6 and clip.sound is None
    np.testing.assert_allclose(grays(clip), np.linspace(0.1, 0.9, 6)[1::2], atol=0.01)


def test_frames_are_read_one_after_the_other(tmp_path: Path) -> None:
    alive = 0

    def frames() -> Iterator[torch.Tensor]:
        nonlocal alive
        for frame in shades(40):
            alive += 1
            yield frame

    write_film(tmp_path / "film.mp4", frames(), frames_per_s=RATE)
    assert alive == 40
    steps = store_clip(tmp_path / "film.mp4", tmp_path / "clip", ClipOptions())
    next(steps)
    assert len(list((tmp_path / "clip" / "frames").glob("*.png"))) == 1
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not (tmp_path / "clip" / "clip.json").exists()


def test_a_clip_is_kept_and_another_one_refused(film: Path, tmp_path: Path) -> None:
    stored(film, tmp_path / "clip", every=5)
    assert [step.note for step in store_clip(film, tmp_path / "clip", ClipOptions(every=5))] == ["read before"]
    with pytest.raises(InputError, match="other options"):
        list(store_clip(film, tmp_path / "clip", ClipOptions(every=4)))


def test_what_is_no_clip_is_refused_in_one_line(film: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    for source, options, message in (
        (tmp_path / "broken.mp4", {}, "not readable as a film"),
        (tmp_path / "none.mp4", {}, "does not exist"),
        (tmp_path / "one.png", {}, "expected a film"),
        (tmp_path / "empty", {}, "holds no pictures"),
        (film, {"start_s": 9.0}, "no frame"),
        (film, {"frames_per_s": 5.0}, "a rate of its own"),
    ):
        with pytest.raises(InputError, match=message):
            list(store_clip(source, tmp_path / "clip", ClipOptions(**options)))  # pyright: ignore[reportArgumentType]
    for wrong in ({"every": 0}, {"size": 2}, {"length_s": 0.0}, {"start_s": -1.0}, {"frames_per_s": 0.0}):
        with pytest.raises(InputError, match="expected"):
            ClipOptions(**wrong)  # pyright: ignore[reportArgumentType]
    assert not is_film(tmp_path / "one.png") and is_film(film)


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "frames" / "0.png", shades(1)[0])
    write_image(tmp_path / "frames" / "1.png", shades(1, 16)[0])
    with pytest.raises(InputError, match="frames of one size"):
        list(store_clip(tmp_path / "frames", tmp_path / "clip", ClipOptions()))


def test_names_that_ffmpeg_would_take_for_something_else_are_read_and_written(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("12:30.mp4", "-walk.mp4", "Прогулка в парке.mp4")):
        Path(name).write_bytes(film.read_bytes())
        clip = stored(Path(name), tmp_path / f"clip-{number}", length_s=0.5)
        assert len(clip) == 5
        write_film(Path(f"out-{name}"), clip.read(range(5)), frames_per_s=RATE, sound=clip.sound)
        assert is_film(Path(f"out-{name}"))


def test_frames_and_sound_of_a_longer_clip_that_was_stopped_are_not_taken_over(film: Path, tmp_path: Path) -> None:
    steps = store_clip(film, tmp_path / "clip", ClipOptions())
    for _ in range(9):
        next(steps)
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "clip" / "sound.mka").write_bytes(b"of another film")
    clip = stored(tmp_path / "silent.mp4", tmp_path / "clip", every=5)
    assert len(clip) == 4 and clip.sound is None
    with pytest.raises(InputError, match="choose another folder"):
        list(store_clip(tmp_path / "clip" / "frames", tmp_path / "clip", ClipOptions()))


@pytest.mark.parametrize(
    ("name", "codec"), [("pcm.mov", "pcm_s16be"), ("ac3.mkv", "ac3"), ("old.mov", "adpcm_ima_qt"), ("two.mkv", "mp3")]
)
def test_sound_becomes_what_browsers_play(film: Path, tmp_path: Path, name: str, codec: str) -> None:
    tones = ["-map", "0:v", "-map", "0:a", "-map", "0:a"] if name == "two.mkv" else []
    ffmpeg("-i", str(film), *tones, "-c:v", "copy", "-c:a", codec, str(tmp_path / name))
    clip = stored(tmp_path / name, tmp_path / "clip", every=5)
    for suffix, expected in ((".mp4", "mp3" if codec == "mp3" else "aac"), (".webm", "opus")):
        write_film(tmp_path / f"out{suffix}", clip.read(range(4)), frames_per_s=2.0, sound=clip.sound)
        assert str(head_of(tmp_path / f"out{suffix}")["audio_codec"]).strip(",") == expected
    assert not list(tmp_path.glob(".*"))


def test_a_part_after_the_end_of_the_sound_is_silent(film: Path, tmp_path: Path) -> None:
    tone = ["-f", "lavfi", "-i", "sine=duration=0.5"]
    ffmpeg("-i", str(tmp_path / "silent.mp4"), *tone, "-c:v", "copy", "-c:a", "aac", str(tmp_path / "short.mp4"))
    assert stored(tmp_path / "short.mp4", tmp_path / "start", length_s=0.3).sound is not None
    assert stored(tmp_path / "short.mp4", tmp_path / "end", start_s=1.0).sound is None


def test_what_is_transparent_is_black_in_films_and_folders(tmp_path: Path) -> None:
    pictures = [Image.new("RGBA", (32, 16), (250, 120, 40, 255)) for _ in range(3)]
    for index, picture in enumerate(pictures):
        picture.paste((250, 120, 40, 0), (16, 0, 32, 16))
        (tmp_path / "frames").mkdir(exist_ok=True)
        picture.save(tmp_path / "frames" / f"{index}.png")
    first, *rest = pictures
    first.save(tmp_path / "film.gif", save_all=True, append_images=rest, duration=100, disposal=2)
    ffmpeg("-framerate", "10", "-i", str(tmp_path / "frames" / "%d.png"), "-c:v", "qtrle", str(tmp_path / "film.mov"))
    for number, source in enumerate(("frames", "film.gif", "film.mov")):
        frames = stored(tmp_path / source, tmp_path / f"clip-{number}").read([0])[0] * 255
        np.testing.assert_allclose(frames[:, 4, 4], (250, 120, 40), atol=1)
        np.testing.assert_allclose(frames[:, 4, 20], 0, atol=1)


def test_what_ffmpeg_says_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    with pytest.raises(InputError) as told:
        list(store_clip(tmp_path / "broken.mp4", tmp_path / "clip", ClipOptions()))
    assert "\n" not in str(told.value) and not (tmp_path / "clip").exists()


@pytest.mark.parametrize("curve", ["arib-std-b67", "smpte2084"])
def test_films_of_high_dynamic_range_look_as_they_do_on_a_phone(tmp_path: Path, curve: str) -> None:
    stripes = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=10:d=0.2"]
    standard = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
    plain = ["-vf", f"scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,{standard}"]
    ffmpeg(*stripes, *plain, "-c:v", "libx264", "-qp", "4", str(tmp_path / "sdr.mp4"))
    high = f"{standard},zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt2020,zscale=t={curve}:m=bt2020nc:npl=203"
    tags = ["-color_trc", curve, "-color_primaries", "bt2020", "-colorspace", "bt2020nc"]
    how = ["-vf", f"{high},format=yuv420p10le", "-c:v", "libx264", "-qp", "4", *tags]
    ffmpeg("-i", str(tmp_path / "sdr.mp4"), *how, str(tmp_path / "hdr.mp4"))
    sdr, hdr = (stored(tmp_path / f"{name}.mp4", tmp_path / name).read([0]) for name in ("sdr", "hdr"))
    assert (hdr - sdr).abs().mean() < 0.1  # without tone mapping .25 and more
    assert (hdr - sdr).mean().abs() < 0.08  # white is compressed, since more may lie above it


def test_a_film_that_is_cut_off_is_read_as_far_as_it_goes_and_this_is_said(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=10:d=4", "-c:v", "mjpeg", str(tmp_path / "whole.mkv"))
    content = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="of about 40 frames could be read; it is cut off"):
        steps = list(store_clip(tmp_path / "cut.mkv", tmp_path / "clip", ClipOptions()))
    assert 10 < steps[-1].done < 30 and len(open_clip(tmp_path / "clip")) == steps[-1].done
