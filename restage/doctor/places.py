"""Checks of the surroundings: disk, caches, the hub, ffmpeg, a browser, shipped models, nerfstudio's environment."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from packaging.version import InvalidVersion, Version

import restage
from restage.doctor.findings import Finding

__all__ = [
    "check_browser",
    "check_disk",
    "check_ffmpeg",
    "check_hub",
    "check_models",
    "check_nerfstudio",
    "check_numba_cache",
]

ROOM_TO_WORK_GIB, ROOM_TO_START_GIB = 5.0, 1.0
HUB = "https://huggingface.co"
PACKAGE = Path(restage.__file__).parent
NERFSTUDIO_PACKAGES = ("nerfstudio", "torch", "torchvision", "numpy", "viser", "gsplat", "restage")
ASKS_VERSIONS = (
    "import importlib.metadata as m, json;"
    "found = {};"
    "[found.setdefault(d.metadata['Name'].lower(), d.version) for d in m.distributions() if d.metadata['Name']];"
    "print(json.dumps(found))"
)


def _nearest_folder(path: Path) -> Path:
    """Return the path itself, or the closest folder above it that exists."""
    for folder in (path.absolute(), *path.absolute().parents):
        if folder.is_dir():
            return folder
    return Path("/")


def free_gib(path: Path) -> float:
    """Return the free space of the disk that a path is or will be on."""
    return shutil.disk_usage(_nearest_folder(path)).free / 2**30


def is_writable(path: Path) -> bool:
    """Return whether this user may write there, or create it."""
    return os.access(_nearest_folder(path), os.W_OK)


def hub_cache() -> Path:
    """Return the folder where models from the hub are kept."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def check_disk(runs: Path) -> Iterator[Finding]:
    """Check free space and permissions where runs and models go."""
    for name, path, is_needed in (("runs", runs, True), ("model cache", hub_cache(), False)):
        room_gib = free_gib(path)
        if not is_writable(path):
            status, advice = "problem" if is_needed else "note", f"This user may not write there; choose another {name}"
            advice += " folder with --out." if is_needed else " with HF_HOME."
        elif room_gib < ROOM_TO_START_GIB:
            status, advice = (
                "problem" if is_needed else "note",
                "Free some space; a run of the demo takes about 0.2 GiB.",
            )
        elif room_gib < ROOM_TO_WORK_GIB:
            status, advice = "note", "Enough for the demo, not for models from the hub."
        else:
            status, advice = "ok", ""
        found = f"{room_gib:.1f} GiB free at {path}"
        yield Finding(group="Places", name=name, status=status, found=found, advice=advice)


def check_numba_cache() -> Iterator[Finding]:
    """Check whether compiled kernels can be kept between starts."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    folders = [Path(chosen)] if chosen else [PACKAGE / "scenes" / "rasterize" / "__pycache__", Path.home() / ".cache"]
    writable = [folder for folder in folders if is_writable(folder)]
    yield Finding(
        group="Places",
        name="numba cache",
        status="ok" if writable else "note",
        found=f"{writable[0]}" if writable else f"not writable: {', '.join(map(str, folders))}",
        advice=""
        if writable
        else "Kernels are compiled at each start; to keep them: export NUMBA_CACHE_DIR=/a/folder/of/yours",
    )


def query_ffmpeg() -> tuple[str, str]:
    """Return the path of the ffmpeg that clips are written with, and the list of its encoders.

    Raises:
        RuntimeError, OSError, subprocess.SubprocessError: there is none, or it does not start.
    """
    import imageio_ffmpeg

    path = imageio_ffmpeg.get_ffmpeg_exe()
    done = subprocess.run([path, "-hide_banner", "-encoders"], capture_output=True, text=True, timeout=60, check=True)
    return path, done.stdout


def check_ffmpeg() -> Iterator[Finding]:
    """Check whether clips can be written."""
    try:
        path, encoders = query_ffmpeg()
        is_fine, found = "libx264" in encoders, f"libx264 of {Path(path).name}"
        if not is_fine:
            found = f"{path} has no encoder libx264"
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        is_fine, found = False, f"{type(error).__name__}: {error}"
    yield Finding(
        group="Places",
        name="ffmpeg",
        status="ok" if is_fine else "problem",
        found=found,
        advice="" if is_fine else "For clips: unset IMAGEIO_FFMPEG_EXE; pip install --force-reinstall imageio-ffmpeg",
    )


def check_models() -> Iterator[Finding]:
    """Check that the models that ship with the package are complete."""
    folder = PACKAGE / "assets"
    missing = [
        name
        for name in ("text_to_image", "clip", "edit_model")
        if not any(path.stat().st_size > 1000 for path in (folder / name).rglob("*.safetensors"))
    ]
    yield Finding(
        group="Places",
        name="shipped models",
        status="problem" if missing else "ok",
        found=f"missing or empty: {', '.join(missing)}" if missing else str(folder),
        advice="The package is incomplete; install it again (in a clone: git checkout restage/assets)"
        if missing
        else "",
    )


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
        found = "not asked; `restage doctor --online` asks"
        yield Finding(group="Places", name="hub", status="ok", found=found)
        return
    url = os.environ.get("HF_ENDPOINT", HUB)
    why_not = reach_hub(url)
    yield Finding(
        group="Places",
        name="hub",
        status="note" if why_not else "ok",
        found=f"{url}: {why_not}" if why_not else f"{url} answers",
        advice="Shipped models work without it. For others, set HTTPS_PROXY or HF_ENDPOINT, or copy their folders here."
        if why_not
        else "",
    )


def check_browser() -> Iterator[Finding]:
    """Check for a browser that the viewer's tests can drive; using the viewer needs none on this machine."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    has_driver = importlib.util.find_spec("playwright") is not None
    is_there = path is not None and has_driver
    missing = [name for name, has in (("chromium", path), ("playwright", has_driver)) if not has]
    yield Finding(
        group="Places",
        name="browser for tests",
        status="ok" if is_there else "note",
        found=str(path) if is_there else f"missing: {', '.join(missing)}",
        advice="" if is_there else "Only the viewer's browser tests need them: apt install chromium; make",
    )


def query_environment(python: Path) -> dict[str, str]:
    """Return the versions of the packages in another environment by lower-case name.

    Raises:
        OSError, subprocess.SubprocessError, ValueError: it cannot be asked.
    """
    done = subprocess.run([str(python), "-c", ASKS_VERSIONS], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def check_nerfstudio(folder: Path = PACKAGE.parent / ".venv-nerfstudio") -> Iterator[Finding]:
    """Check nerfstudio's own environment: that it exists, and that its versions suit each other."""
    python = folder / "bin" / "python"
    if not python.exists():
        found = f"no environment {folder.name}"
        advice = "Only ns-train and `make test-nerfstudio` need it: make nerfstudio (3.5 GB, some minutes)"
        yield Finding(group="Places", name="nerfstudio", status="note", found=found, advice=advice)
        return
    try:
        versions = query_environment(python)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        found, wrong = f"{python} does not start: {type(error).__name__}", ["it is broken"]
    else:
        found = ", ".join(f"{name} {versions.get(name, 'missing')}" for name in NERFSTUDIO_PACKAGES)
        wrong = find_nerfstudio_faults(versions)
    yield Finding(
        group="Places",
        name="nerfstudio",
        status="note" if wrong else "ok",
        found=found,
        advice=f"{'; '.join(wrong)}. Make it anew: rm -r {folder.name}; make nerfstudio" if wrong else "",
    )


def find_nerfstudio_faults(versions: dict[str, str]) -> list[str]:
    """Return what is wrong with the versions in nerfstudio's environment, given by lower-case name."""
    faults = [f"{name} is missing" for name in ("nerfstudio", "torchvision", "restage") if name not in versions]
    if _at_least(versions.get("numpy"), "2"):
        faults.append(f"numpy {versions['numpy']} is not below 2")
    if _at_least(versions.get("viser"), "1"):
        faults.append(f"viser {versions['viser']} is too new for it (0.2.7)")
    torch, vision = (versions.get(name, "").split("+")[0].split(".") for name in ("torch", "torchvision"))
    if torch[:1] == ["2"] and vision[:1] == ["0"] and int(vision[1]) != int(torch[1]) + 15:
        faults.append(f"torchvision {versions['torchvision']} is not the one of torch {versions['torch']}")
    return faults


def _at_least(version: str | None, least: str) -> bool:
    try:
        return version is not None and Version(version) >= Version(least)
    except InvalidVersion:
        return False
