"""Command lines in this process, and a small capture for them."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from restage.cli import run


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def restage(*arguments: str | Path) -> Result:
    """Run a command line in this process, which saves seconds of imports."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = run([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), errors.getvalue())


def restage_process(*arguments: str | Path) -> Result:
    """Run a command line as a user does."""
    command = [sys.executable, "-m", "restage.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def assert_is_bad_input(result: Result, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


def write_capture_folder(folder: Path, num_views: int = 4, size: int = 32) -> Path:
    (folder / "images").mkdir(parents=True)
    frames = []
    for index in range(num_views):
        pixels = np.random.default_rng(index).integers(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        angle = 2 * np.pi * index / num_views
        # OpenGL axes: the camera looks along its -z, here at the origin from a circle of radius 3.
        right, up, back = (-np.sin(angle), np.cos(angle), 0), (0, 0, 1), (np.cos(angle), np.sin(angle), 0)
        matrix = np.eye(4)
        matrix[:3] = np.stack([right, up, back, 3 * np.array(back)], axis=1)
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": matrix.tolist()})
    meta = {"w": size, "h": size, "fl_x": size, "fl_y": size, "cx": size / 2, "cy": size / 2, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder
