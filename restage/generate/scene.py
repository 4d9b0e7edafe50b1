"""Captions become scenes of a run: splats, cameras, and a capture of their own renders, as if somebody had fitted them.

What is finished is not made again; what was stopped goes on from its last state.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from restage.diffusion.backbone import load_backbone
from restage.generate.generators import GenerateJob, GenerateStep, make_generator
from restage.generate.generators import Generator as SceneGenerator
from restage.generate.generators.views import NO_ADD_ON
from restage.generate.rig import Rig
from restage.records import (
    InputError,
    Progress,
    content_id,
    derive_seed,
    read_json,
    to_plain,
    write_atomically,
    write_record,
)
from restage.run.folder import open_run, working
from restage.run.layout import AROUND, CAPTURE, FIT_RECORD, FIT_STATE, SAMPLED, SPLATS
from restage.run.models import add_on_of, folder_sha256, models_in
from restage.run.reading import FitRecord
from restage.scenes.capture import Capture
from restage.scenes.device import made_on
from restage.scenes.fit import psnr, render_views
from restage.scenes.io import read_capture, write_capture
from restage.scenes.io.images import write_png
from restage.scenes.io.posed import ReadOptions, split_every
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.rasterize import rasterize
from restage.scenes.splats import SH_C0, Splats
from restage.scenes.stage import PREVIEW, capture_sha256, measure_fit

__all__ = ["USERS_OF_VIEWS", "Growing", "SceneOrder", "capture_of", "choose_generator", "generate_scenes"]
__all__ += ["grow_scenes", "scene_name"]

SAVE_EVERY_S, PEEK_EVERY_S = 10.0, 5.0
NUM_VIEWS, NUM_PREVIEWS, NUM_AROUND = 40, 4, 8
STATE_VERSION = 1
USERS_OF_VIEWS = ("refined", "views")
"""Generators that the add-on of several views makes a difference to."""
OPAQUE, MAX_POINTS = 0.3, 6000
"""Splats that stand for the sparse points of the capture: those that are opaque, and at most so many."""


@dataclass(frozen=True, kw_only=True)
class SceneOrder:
    """What scenes are made of, and how."""

    captions: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    """Every caption is made once with each."""
    generator: str = "auto"
    preset: str = ""
    num_steps: int | None = None
    model: Path | None = None
    """A text-to-image model in diffusers layout; None for the miniature's."""
    views: Path | None = None
    """Add-on of several views; None for the one beside the model, if there is one."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.captions or not self.seeds or not all(caption.strip() for caption in self.captions):
            raise InputError("expected a caption of the scene, such as 'a red cone on grass', and none that is empty")
        if self.preset and self.model is None:
            raise InputError(f"the preset {self.preset} is for another model than the miniature; name its --backbone")


def scene_name(caption: str, seed: int) -> str:
    """Name of a scene's folder: what its caption says, and its seed."""
    words = re.sub("[^a-z0-9]+", "-", caption.lower()).strip("-")
    # Captions that begin alike, or differ by what a folder's name cannot say, must not share a folder.
    is_whole = 0 < len(words) <= 48 and words.replace("-", " ") == caption
    tail = "" if is_whole else f"-{content_id('caption', caption)[-6:]}"
    return f"{words[:48].strip('-') or 'scene'}{tail}-{seed}"


class Growing(NamedTuple):
    """A scene on its way."""

    name: str
    number: int  # of scenes before it
    count: int  # of scenes in all
    step: GenerateStep


def generate_scenes(folder: Path, order: SceneOrder) -> Iterator[Progress]:
    """Make scenes as `grow_scenes` does, and tell how far they are."""
    with contextlib.closing(grow_scenes(folder, order)) as scenes:
        for name, number, count, step in scenes:
            note = f"{name}: {step.note}"
            if step.loss:
                note += f", loss {step.loss:.4g} ({PREVIEW})"
            done, total = number * step.num_steps + step.step, count * step.num_steps
            yield Progress(stage="scenes", done=done, total=total, note=note)


def grow_scenes(folder: Path, order: SceneOrder) -> Generator[Growing, None, None]:
    """Make a scene of every caption and seed in the run of a folder, which is made if it does not exist.

    Each is `scenes/<name>` with `capture/`, `splats.ply` and, last, `fit.json`. While one grows, `preview.png` shows it
    and `fit_state.pt` keeps its state; a stop, such as Ctrl-C, leaves `splats.ply` as it is then, too.

    Raises:
        InputError: the generator, its preset or the model cannot be used, or a folder holds another scene.
    """
    name, generator = choose_generator(order)
    base = order.model or models_in().text_to_image
    views = order.views or add_on_of(base, "views")
    made_with = {"model_sha256": folder_sha256(base)}
    if views is not None and name in USERS_OF_VIEWS:
        made_with["views_sha256"] = folder_sha256(views)
    backbone = load_backbone(base, order.device)
    backbone.token_ids(order.captions)  # one that is too long is refused before anything is made
    with working(open_run(folder, seed=order.seeds[0]), "scenes"):
        items = [(caption, seed) for seed in order.seeds for caption in order.captions]
        for number, (caption, seed) in enumerate(items):
            job = GenerateJob(caption, backbone, derive_seed(seed, "generate", caption), views)
            config = {
                "caption": caption,
                "seed": seed,
                "generator": name,
                "settings": to_plain(generator),
                "rig": to_plain(job.rig),
                **made_with,
            }
            scene = _Scene(folder / "scenes" / scene_name(caption, seed), config, job)
            for step in scene.make(generator):
                yield Growing(scene.folder.name, number, len(items), step)


def choose_generator(order: SceneOrder) -> tuple[str, SceneGenerator]:
    """Return the generator that makes an order, with its name on the menu.

    Raises:
        InputError: there is none of that name and preset, or its settings or the add-on cannot be used.
    """
    name = order.generator if order.generator != "auto" else "sds" if order.preset else "refined"
    generator: Any = make_generator(name, order.preset)
    if order.views is not None and name not in USERS_OF_VIEWS:
        raise InputError(f"{name} makes no use of --views; the generators {' and '.join(USERS_OF_VIEWS)} do")
    if order.views is not None and not (order.views / "config.json").is_file():
        raise InputError(f"{order.views} holds no add-on of several views; make one with restage miniature train views")
    if name == "views" and (order.views or add_on_of(order.model or models_in().text_to_image, "views")) is None:
        raise InputError(NO_ADD_ON)
    return name, generator if order.num_steps is None else replace(generator, num_steps=order.num_steps)


class _Scene:
    """One scene on its way."""

    def __init__(self, folder: Path, config: Mapping[str, Any], job: GenerateJob) -> None:
        self.folder, self.config, self.job = folder, config, job
        self.id = content_id("fit", config)
        self.seconds = 0.0

    def make(self, generator: SceneGenerator) -> Iterator[GenerateStep]:
        """Make it, unless it is there; yields its steps."""
        if (self.folder / FIT_RECORD).exists():
            if read_json(self.folder / FIT_RECORD, FitRecord).id != self.id:
                raise InputError(
                    f"{self.folder} holds a scene that was made otherwise; choose another --out, or remove it"
                )
            yield GenerateStep(1, 1, 0.0, read_splats(self.folder / SPLATS), "made before", dict)
            return
        last, began_s = None, time.perf_counter()
        saved_s, peeked_s = began_s, began_s - PEEK_EVERY_S
        state = self._load_state()
        spent_s = self.seconds
        try:
            for last in generator.run(self.job, state):
                now_s = time.perf_counter()
                self.seconds = spent_s + now_s - began_s
                if now_s - peeked_s > PEEK_EVERY_S:
                    self._peek(last.splats)
                    peeked_s = time.perf_counter()
                if now_s - saved_s > SAVE_EVERY_S:
                    self._save_state(last)
                    saved_s = time.perf_counter()
                yield last
        except (KeyboardInterrupt, GeneratorExit) as stop:
            # An interrupt within a step leaves that step half done, which the last saved state knows nothing of.
            if last is not None and isinstance(stop, GeneratorExit):
                self._save_state(last)
            if last is not None:
                write_splats(last.splats, self.folder / SPLATS)
            raise
        assert last is not None
        self._finish(last)

    def _finish(self, last: GenerateStep) -> None:
        capture = capture_of(last.splats, self.folder.name, self.job.rig, size=self.job.size)
        write_capture(capture, self.folder / CAPTURE)
        write_splats(last.splats, self.folder / SPLATS)
        written = read_capture(self.folder / CAPTURE)
        record = measure_fit(written, self.folder, read_splats(self.folder / SPLATS))
        record |= {
            "id": self.id,
            "capture_sha256": capture_sha256(written),
            "config": self.config,
            "steps": last.num_steps,
            "seconds": self.seconds,
            "generated_from": self.config["caption"],
            **made_on(self.job.backbone.device.type),
        }
        self._draw_around(last.splats)
        files = [
            self.folder / SPLATS,
            self.folder / AROUND,
            *self.folder.glob("held_out*.png"),
            *self.folder.glob("held_out/*.png"),
        ]
        if last.views is not None:
            sampled, renders = (views.cpu() for views in last.views)
            record["sampled_views_psnr_db"] = float(psnr(renders, sampled).mean())
            files.append(self.folder / SAMPLED)
            write_png(files[-1], _strip(sampled, renders))
        write_record(self.folder / FIT_RECORD, record, files=files)
        for path in (self.folder / FIT_STATE, self.folder / PREVIEW):
            path.unlink(missing_ok=True)

    @torch.no_grad()
    def _draw_around(self, splats: Splats) -> None:
        cameras = self.job.rig.ring(NUM_AROUND, size=self.job.size)
        depths = torch.stack([rasterize(splats, cameras[view]).depth.cpu() for view in range(NUM_AROUND)])
        near = (1 - depths / (2.5 * self.job.rig.distance)).clamp(0, 1)[:, None].expand(-1, 3, -1, -1)
        write_png(self.folder / AROUND, _strip(render_views(splats, cameras).cpu(), near))

    def _peek(self, splats: Splats) -> None:
        cameras = self.job.rig.ring(NUM_PREVIEWS, size=self.job.size)
        write_png(self.folder / PREVIEW, _strip(render_views(splats, cameras).cpu()))

    def _save_state(self, step: GenerateStep) -> None:
        state = {"version": STATE_VERSION, "id": self.id, "seconds": self.seconds, "state": step.state()}
        with write_atomically(self.folder / FIT_STATE) as temporary:
            torch.save(state, temporary)

    def _load_state(self) -> dict[str, Any] | None:
        path = self.folder / FIT_STATE
        if not path.exists():
            return None
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            if state["version"] != STATE_VERSION or state["id"] != self.id:
                return None  # of other settings, and never finished
            self.seconds = float(state["seconds"])
            return dict(state["state"])
        except Exception as error:  # noqa: BLE001 - torch.load raises whatever the broken file brings about
            raise InputError(f"{path} is not readable as the state of a scene; delete it: {error}") from None


def capture_of(splats: Splats, name: str, rig: Rig, *, size: int) -> Capture:
    """Return the capture that stands for photographs of generated splats: their renders, all around."""
    cameras = rig.ring(NUM_VIEWS, size=size)
    split = split_every(NUM_VIEWS, ReadOptions().hold_out_every)
    shown = splats.to("cpu").detach()
    shown = shown[torch.sigmoid(shown.opacity_logits) > OPAQUE]
    shown = shown[:: len(shown) // MAX_POINTS + 1]
    return Capture(
        name=name,
        cameras=cameras,
        images=render_views(splats, cameras).cpu(),
        file_names=tuple(f"view_{index:03d}.png" for index in range(NUM_VIEWS)),
        points=shown.means,
        point_colors=(0.5 + SH_C0 * shown.sh[:, 0]).clamp(0, 1),
        train_indices=split.train,
        held_out_indices=split.held_out,
        notes=("made from words: renders of the splats stand for photographs",),
    )


def _strip(*rows: torch.Tensor) -> torch.Tensor:
    """One picture "h w 3" of rows of views "n 3 h w"."""
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).permute(1, 2, 0)
