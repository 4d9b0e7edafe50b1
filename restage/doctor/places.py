"""Checks of the surroundings: disk, caches, the hub, ffmpeg, shipped models, nerfstudio's environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import restage
from restage.doctor.findings import Finding

__all__ = ["check_disk", "check_ffmpeg", "check_hub", "check_models", "check_nerfstudio"]

ROOM_TO_WORK_GIB, ROOM_TO_START_GIB = 5.0, 1.0
HUB = "https://huggingface.co"
PACKAGE = Path(restage.__file__).parent


def _nearest_folder(path: Path) -> Path:
    """Return the path itself, or the closest folder above it that exists."""
    return next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir()), Path("/"))


def free_gib(path: Path) -> float:
    """Return the free space of the disk that a path is or will be on."""
    return shutil.disk_usage(_nearest_folder(path)).free / 2**30


def is_writable(path: Path) -> bool:
    """Return whether this user may write there, or create it."""
    return os.access(_nearest_folder(path), os.W_OK)


def check_disk(runs: Path) -> Iterator[Finding]:
    """Check free space and permissions where runs and models from the hub go."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    models = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    for name, path, option, is_needed in (("runs", runs, "--out", True), ("model cache", models, "HF_HOME", False)):
        room_gib = free_gib(path)
        found, is_problem = f"{room_gib:.1f} GiB free at {path}", is_needed
        if not is_writable(path):
            advice = f"This user may not write there; choose another {name} folder with {option}."
        elif room_gib < ROOM_TO_START_GIB:
            advice = "Free some space; a run of the demo takes about 0.2 GiB."
        else:
            is_problem = False
            advice = "Enough for the demo, not for models from the hub." if room_gib < ROOM_TO_WORK_GIB else ""
        yield Finding(name, found, advice, is_problem=is_problem)


def query_ffmpeg() -> tuple[str, str]:
    """Return the path of the ffmpeg that clips are written with, and the list of its encoders; raises without one."""
    import imageio_ffmpeg

    path = imageio_ffmpeg.get_ffmpeg_exe()
    done = subprocess.run([path, "-hide_banner", "-encoders"], capture_output=True, text=True, timeout=60, check=True)
    return path, done.stdout


def check_ffmpeg() -> Iterator[Finding]:
    """Check whether clips can be written."""
    try:
        path, encoders = query_ffmpeg()
        is_fine = "libx264" in encoders
        found = f"libx264 of {Path(path).name}" if is_fine else f"{path} has no encoder libx264"
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        is_fine, found = False, f"{type(error).__name__}: {error}"
    advice = "" if is_fine else "For clips: unset IMAGEIO_FFMPEG_EXE; pip install --force-reinstall imageio-ffmpeg"
    yield Finding("ffmpeg", found, advice, is_problem=not is_fine)


def check_models() -> Iterator[Finding]:
    """Check that the models that ship with the package are complete."""
    folder = PACKAGE / "assets"
    missing = [
        name
        for name in ("text_to_image", "clip", "edit_model")
        if not any(path.stat().st_size > 1000 for path in (folder / name).rglob("*.safetensors"))
    ]
    found = f"missing or empty: {', '.join(missing)}" if missing else str(folder)
    advice = "The package is incomplete; install it again (in a clone: git checkout restage/assets)" if missing else ""
    yield Finding("shipped models", found, advice, is_problem=bool(missing))


def reach_hub(url: str = HUB, timeout_s: float = 8.0) -> str:
    """Ask the hub for its front page; return nothing if it answers, else why not. Nothing is downloaded."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_s):
            return ""
    except urllib.error.HTTPError:
        return ""  # it answered
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def check_hub(*, is_online: bool) -> Iterator[Finding]:
    """Check whether the hub can be reached; the network is used only if that was asked for."""
    if not is_online:
        yield Finding("hub", "not asked; `restage doctor --online` asks")
        return
    url = os.environ.get("HF_ENDPOINT", HUB)
    why_not = reach_hub(url)
    advice = "Shipped models work without it. For others, set HTTPS_PROXY or HF_ENDPOINT, or copy their folders here."
    yield Finding("hub", f"{url}: {why_not}" if why_not else f"{url} answers", advice if why_not else "")


def check_nerfstudio(folder: Path = PACKAGE.parent / ".venv-nerfstudio") -> Iterator[Finding]:
    """Check nerfstudio's own environment, if there is one: that it starts, and that its packages suit each other."""
    python = folder / "bin" / "python"
    if not python.exists():
        advice = "Only ns-train and `make test-nerfstudio` need it: make nerfstudio (3.5 GB, some minutes)"
        yield Finding("nerfstudio", f"no environment {folder.name}", advice)
        return
    try:
        done = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, timeout=60, check=False)
        faults = (done.stdout or done.stderr).strip() if done.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        faults = f"it does not start: {type(error).__name__}"
    advice = f"Make it anew: rm -r {folder.name}; make nerfstudio" if faults else ""
    yield Finding("nerfstudio", faults or str(folder), advice)
