"""What a reader of the documentation has before the first command: captures, films, runs, under the page's names."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from restage.clips.films import write_film
from restage.regions.making import RegionMaker
from restage.run.folder import open_run, working
from restage.scenes.config import FitConfig, ScenesConfig
from restage.scenes.io import read_capture, write_capture
from restage.scenes.io.images import write_png
from restage.scenes.stage import find_scene, run_scenes
from restage.world.config import CaptureConfig, WorldConfig
from restage.world.stage import run_world
from tests.docs.blocks import Block, Shell

__all__ = ["GIVEN", "give"]


@functools.cache
def _made(kind: str) -> Path:
    """Return a folder that is made once for all pages of this process."""
    room = Path(tempfile.mkdtemp(prefix=f"restage-docs-{kind}-"))
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    folder = room / kind
    {"run": _write_run, "photographs": _write_photographs}[kind](folder)
    return folder


def _write_run(folder: Path) -> None:
    """Write a run with one fitted scene of the miniature world, and the truth of a recoloring."""
    capture = CaptureConfig(num_views=6, held_out_every=3, size=64, num_points=300)
    with working(open_run(folder), "world", "scenes") as run:
        list(run_world(run, WorldConfig(num_objects=1, edit_kinds=("recolour",), capture=capture)))
        list(run_scenes(run, ScenesConfig(fit=FitConfig(steps=20, num_splats=300))))
    middle = [(0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7)]
    maker = RegionMaker(find_scene(folder))
    maker.save("bear", maker.by_outline("0", middle))


def _write_photographs(folder: Path) -> None:
    """Write its views as a capture with cameras, of which nothing says that it is of the miniature world."""
    write_capture(read_capture(find_scene(_made("run")) / "capture"), folder)


def _copy(kind: str) -> Callable[[Path], None]:
    return lambda place: shutil.copytree(_made(kind), place)  # pyright: ignore[reportReturnType]


def _edited_run(place: Path) -> None:
    """Make a run with a compared edit by commands, as a run has to be made that is to be made again."""
    shell = Shell(place.parents[1])
    text = "restage world {0}\nrestage scenes {0}\nrestage edits {0}\nrestage compare {0}"
    shell.run_block(Block(0, text.format(place.relative_to(shell.folder)), "", ()))


def _fitted_run(place: Path) -> None:
    """Make a run by one command, which is soon made again."""
    shell = Shell(place.parents[1])
    give(shell.folder, "photographs")
    shell.run_block(Block(0, f"restage fit photographs --out {place.relative_to(shell.folder)}", "", ()))


def _film(place: Path) -> None:
    shades = torch.linspace(0.3, 1, 6).reshape(-1, 1, 1, 1)
    noise = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    write_film(place, list(noise * shades), frames_per_s=5.0)


def _picture(place: Path) -> None:
    shade = torch.linspace(0.2, 0.9, 48).expand(40, 48)
    write_png(place, torch.stack([shade, 1 - shade, shade**2], dim=-1))


def _mask(place: Path) -> None:
    mask = torch.zeros(40, 48)
    mask[10:30, 12:36] = 1
    write_png(place, mask)


def _layout() -> tuple[np.ndarray, np.ndarray]:
    """Depth in world units, and ids: sky above, ground below, a block in the middle."""
    depth, ids = np.full((128, 128), 9.0, np.float32), np.zeros((128, 128), np.uint8)
    depth[48:], ids[48:] = np.linspace(8, 2, 80, dtype=np.float32)[:, None], 1
    depth[40:88, 44:84], ids[40:88, 44:84] = 4.0, 2
    return depth, ids


STUDY = """from dataclasses import replace

from tests.studies.tiny_study import tiny_study

STUDY = tiny_study()
STUDY = replace(STUDY, methods={name: method for name, method in STUDY.methods.items() if name != "failing"})
"""


GIVEN: dict[str, Callable[[Path], object]] = {
    "benchmarks/small_study.py": lambda place: place.write_text(STUDY),
    "benchmarks/truth_study.py": lambda place: place.write_text(STUDY),
    "blue.png": _picture,
    "captions.txt": lambda place: place.write_text("a red cube on the grass at noon\n"),
    "depth.npy": lambda place: np.save(place, _layout()[0]),
    "film.mp4": _film,
    "ids.png": lambda place: Image.fromarray(_layout()[1]).save(place),
    "walk.mp4": _film,
    "paper.toml": lambda place: place.write_text('title = "Editing scenes by text"\n'),
    "path/to/bear": _copy("photographs"),
    "path/to/capture": _copy("photographs"),
    "photo.png": _picture,
    "photographs": _copy("photographs"),
    "runs/a": _copy("run"),
    "runs/after": _edited_run,
    "runs/b": _copy("run"),
    "runs/before": _edited_run,
    "runs/bear": _copy("run"),
    "runs/mine": _copy("run"),
    "bear-run": _copy("run"),
    "runs/other": _copy("run"),
    "runs/demo": _copy("run"),
    "runs/tower": _fitted_run,
    "runs/why": _edited_run,
    "subject.png": _mask,
}
"""What makes a thing at its place, by its name on the pages."""


def give(folder: Path, *names: str) -> None:
    """Put things into a folder under their names on a page."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        GIVEN[name](folder / name)
