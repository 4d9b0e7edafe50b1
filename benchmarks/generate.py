"""Scenes from captions by every generator, judged from all sides.

    python -m benchmarks.generate --out runs/generate [--models FOLDER] [--views FOLDER] [--probe FILE]
        [--generators sds ism views refined] [--captions 60] [--seeds 3] [--scene-steps N]

Unseen captions of one object and of two x generators x seeds. A probe that was trained on rendered truth only reads 12
views that no generator was shown; what it reads is rendered exactly, and compared. Each generator has a run in --out;
what is made and judged is kept, so it may be killed at any moment. The last line is JSON; sheets of the first captions
lie in `<out>/<generator>/judged`, and `restage report <out>/<generator>` shows them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from PIL import Image
from scipy import stats
from torch import Tensor

from benchmarks.inverse_reading import FACED, ReadScene, faces_shown, is_two_faced, read_scene
from benchmarks.miniature.parts import fits
from benchmarks.miniature.verdicts import judge, seen_in
from miniature.probe import Probe, load_probe, read_pictures
from restage.diffusion.clip import Clip, load_clip
from restage.diffusion.loading import load_tokenizer
from restage.generate.rig import Rig
from restage.generate.scene import USERS_OF_VIEWS, SceneOrder, generate_scenes, scene_name
from restage.records import content_id, derive_seed, file_sha256, read_json, write_atomically, write_json
from restage.run.layout import FIT_RECORD, JUDGED, SPLATS
from restage.run.models import add_on_of, folder_sha256, models_in
from restage.run.progress import show_progress
from restage.run.reading import FitRecord
from restage.scenes.fit import render_views
from restage.scenes.io.splat_files import read_splats
from restage.scenes.rasterize import rasterize
from restage.world.description import Description
from restage.world.second import caption_of, sample_description

NUM_VIEWS = 12
START_RAD = 0.13  # between the views of the rings that generators use
NUM_SHEETS = 12
WANTED = {"one_object": 0.8, "two_objects": 0.6}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is made and judged."""

    out: Path = Path("runs/generate")
    """Where the runs lie."""
    models: Path | None = None
    """Folder with `text_to_image`, `clip` and, for generators that need it, `views`; default: those of the package."""
    views: Path | None = None
    """Add-on of several views; default: `views` in the folder of the models."""
    probe: Path = Path(__file__).parent / "miniature" / "probe.safetensors"
    """The probe's weights."""
    generators: tuple[str, ...] = ("sds", "ism", "views", "refined")
    """Those of the menu that are compared; without an add-on `views` is left out."""
    captions: int = 60
    """Captions of one object, and as many of two."""
    seeds: int = 3
    """Scenes of each caption."""
    scene_steps: int | None = None
    """Steps of each scene; default: the generator's own."""
    world_seed: int = 0
    """Chooses other captions."""
    device: str = "cpu"
    """Where scenes are made."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A caption, and the scene that it describes."""

    caption: str
    description: Description


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is known of one scene; NaN is written as null where nothing could be measured."""

    caption: str
    seed: int
    num_objects: int
    right_share: float
    """Share of the views in which kinds, colors, count, ground and light are those of the caption."""
    seconds: float
    sampled_psnr_db: float | None
    """How well the splats show the views that were sampled for them."""
    inverse_iou: float
    depth_error: float | None
    """Median relative difference of depth from the exact render of what was read, where that shows no sky."""
    is_two_faced: bool | None
    """None for scenes without an object that looks different from behind."""
    has_face: bool | None
    """Whether any view shows such an object from its front; one that looks alike all around has no face at all."""
    clip_similarity: float

    @property
    def is_right(self) -> bool:
        """Whether all views are right."""
        return self.right_share == 1


def ask(settings: Settings, tokenizers: Sequence[Any]) -> list[Asked]:
    """Captions of unseen scenes whose words the models take whole: of one object, then of two."""
    found = []
    for num_objects in (1, 2):
        numbers, chosen = itertools.count(), []
        while len(chosen) < settings.captions:
            seed = derive_seed("captions of scenes", settings.world_seed, num_objects, next(numbers))
            scene = sample_description(seed, num_objects=num_objects, split="unseen")
            caption = caption_of(scene, seed)
            if all(fits(tokenizer, caption) for tokenizer in tokenizers):
                chosen.append(Asked(caption=caption, description=scene))
        found += chosen
    return found


class Judge:
    """Judges scenes from views that no generator was shown."""

    def __init__(self, probe: Probe, clip: Clip) -> None:
        self.probe, self.clip = probe, clip
        self.cameras = Rig().ring(NUM_VIEWS, size=128, start_rad=START_RAD)

    def judge(self, folder: Path, asked: Asked, seed: int, sheet: Path | None = None) -> Judged:
        """Judge one scene, and draw what was seen in it if a file is named."""
        splats = read_splats(folder / SPLATS)
        images = render_views(splats, self.cameras)
        readings = read_pictures(self.probe, images)
        seen = seen_in(readings)
        read = read_scene(seen, readings.classes, images, self.cameras)
        depths = torch.stack([rasterize(splats, self.cameras[view]).depth for view in range(NUM_VIEWS)])
        record = read_json(folder / FIT_RECORD, FitRecord)
        if sheet is not None:
            draw_sheet(sheet, images, readings.classes, depths, read)
        return Judged(
            caption=asked.caption,
            seed=seed,
            num_objects=len(asked.description.objects),
            right_share=float(np.mean([judge(one, asked.description).is_all_right for one in seen])),
            seconds=record.seconds,
            sampled_psnr_db=record.sampled_views_psnr_db,
            inverse_iou=read.iou,
            depth_error=depth_error(depths, read),
            **self._faces(read, images),
            clip_similarity=float((self.clip.encode_images(images) @ self.clip.encode_text([asked.caption]).T).mean()),
        )

    def _faces(self, read: ReadScene, images: Float[Tensor, "n 3 h w"]) -> dict[str, bool | None]:
        objects = () if read.description is None else read.description.objects
        faced = [index for index, item in enumerate(objects) if item.kind in FACED]
        if not faced:
            return {"is_two_faced": None, "has_face": None}
        shown = [faces_shown(read, index, images, self.cameras) for index in faced]
        return {"is_two_faced": any(is_two_faced(one, self.cameras) for one in shown), "has_face": all(map(any, shown))}


def depth_error(depths: Float[Tensor, "n h w"], read: ReadScene) -> float | None:
    """Median relative difference of depth from the exact renders, where these show no sky; None without a render."""
    if read.description is None:
        return None
    exact = torch.from_numpy(np.stack([view.depth for view in read.views]))
    is_thing = torch.from_numpy(np.stack([view.object_ids for view in read.views])) > 0
    off = (depths * read.scale - exact).abs() / exact
    return float(off[is_thing & torch.isfinite(off)].median())


COLORS_OF_CLASSES = np.array([
    (190, 215, 240), (170, 160, 130), (220, 60, 60), (60, 120, 220), (70, 170, 90), (240, 150, 40), (150, 90, 190),
    (40, 110, 60), (230, 110, 170), (120, 80, 50),
], np.uint8)  # fmt: skip


def draw_sheet(
    path: Path,
    images: Float[Tensor, "n 3 h w"],
    classes: Tensor,
    depths: Float[Tensor, "n h w"],
    read: ReadScene,
) -> None:
    """Draw a row each: views, what the probe reads in their cells, the exact render of that, depth."""
    side = images.shape[-1]

    def row(pictures: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(pictures, axis=1)

    def as_bytes(image: np.ndarray) -> np.ndarray:
        return (image.transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8)

    shown = [as_bytes(image.numpy()) for image in images]
    cells = [COLORS_OF_CLASSES[one.numpy()].repeat(side // 16, 0).repeat(side // 16, 1) for one in classes]
    exact = [as_bytes(view.image) for view in read.views] or [np.full_like(shown[0], 255)] * len(shown)
    near = [as_bytes((1 - depth / 8).clamp(0, 1).expand(3, -1, -1).numpy()) for depth in depths]
    with write_atomically(path) as temporary:
        Image.fromarray(np.concatenate([row(shown), row(cells), row(exact), row(near)])).save(temporary)


def make_and_judge(settings: Settings, name: str, asked: Sequence[Asked], judge: Judge) -> Iterator[Judged]:
    """Make all scenes of one generator and judge them; what is there is read."""
    folder = settings.out / name
    models = models_in(settings.models)
    order = SceneOrder(
        captions=tuple(one.caption for one in asked),
        seeds=tuple(range(settings.seeds)),
        generator=name,
        num_steps=settings.scene_steps,
        model=models.text_to_image,
        views=settings.views if name in USERS_OF_VIEWS else None,
        device=settings.device,
    )
    show_progress(generate_scenes(folder, order))
    # Verdicts of another probe or CLIP lie elsewhere.
    judged = folder / JUDGED / content_id("judge", [file_sha256(settings.probe), folder_sha256(models.clip)])
    for seed in range(settings.seeds):
        for number, one in enumerate(asked):
            scene = scene_name(one.caption, seed)
            path = judged / f"{scene}.json"
            if not path.exists():
                is_shown = seed == 0 and number % settings.captions < NUM_SHEETS // 2
                sheet = judged / f"{scene}.png" if is_shown else None
                write_json(path, judge.judge(folder / "scenes" / scene, one, seed, sheet))
            yield read_json(path, Judged)


def spread_over_seeds(folder: Path, asked: Sequence[Asked], num_seeds: int) -> float | None:
    """Mean absolute difference of the views of scenes of one caption with different seeds; None with one seed."""
    values = []
    cameras = Rig().ring(4, size=64, start_rad=START_RAD)
    for one in asked if num_seeds > 1 else ():
        scenes = [folder / "scenes" / scene_name(one.caption, seed) / SPLATS for seed in range(num_seeds)]
        views = [render_views(read_splats(path), cameras) for path in scenes]
        values += [float((a - b).abs().mean()) for a, b in itertools.combinations(views, 2)]
    return mean(values)


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return float(np.mean(values)) if len(values) else None


def figures_of(rows: Sequence[Judged]) -> dict[str, float | None]:
    """The figures of one generator."""
    faced = [row.is_two_faced for row in rows if row.is_two_faced is not None]
    found: dict[str, float | None] = {
        "one_object": mean([row.is_right for row in rows if row.num_objects == 1]),
        "two_objects": mean([row.is_right for row in rows if row.num_objects == 2]),
        "right_views": mean([row.right_share for row in rows]),
        "seconds": median(row.seconds for row in rows),
        "fit_psnr_db": mean([row.sampled_psnr_db for row in rows if row.sampled_psnr_db is not None]),
        "inverse_iou": mean([row.inverse_iou for row in rows]),
        "depth_error": mean([row.depth_error for row in rows if row.depth_error is not None]),
        "two_faced_share": mean(faced),
        "faced": len(faced),
        "faceless_share": mean([not row.has_face for row in rows if row.has_face is not None]),
        "clip_similarity": mean([row.clip_similarity for row in rows]),
        "scenes": len(rows),
    }
    # Whether CLIP orders scenes as the probe does that knows the truth; one scene has no order.
    agreement = math.nan
    if len(rows) > 1:
        agreement = stats.kendalltau([r.clip_similarity for r in rows], [r.right_share for r in rows]).statistic
    return {**found, "clip_rank_agreement": None if math.isnan(agreement) else float(agreement)}


def summarize(tables: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    """The JSON: the figures that are wanted by name, then all of each generator."""
    found: dict[str, Any] = {}
    for name, table in tables.items():
        found |= {f"{name}_{key}": table[key] for key in ("one_object", "two_objects", "seconds")}
    found["views_fit_psnr_db"] = tables.get("views", {}).get("fit_psnr_db")
    best = tables.get("refined", {})
    found |= {key: best.get(key) for key in ("inverse_iou", "two_faced_share")}
    rounded = json.loads(json.dumps(found | {"details": tables}), parse_float=lambda text: round(float(text), 4))
    return rounded


def main(settings: Settings) -> None:
    """Make, judge, print the table and, last, the JSON."""
    models = models_in(settings.models)
    asked = ask(settings, [load_tokenizer(models.text_to_image / "tokenizer"), load_tokenizer(models.clip)])
    judge = Judge(load_probe(settings.probe), load_clip(models.clip))
    has_views = settings.views is not None or add_on_of(models.text_to_image, "views") is not None
    tables: dict[str, dict[str, float | None]] = {}
    for name in settings.generators:
        if name == "views" and not has_views:
            print("views: left out, for there is no add-on; restage miniature train views makes one")
            continue
        rows = list(make_and_judge(settings, name, asked, judge))
        tables[name] = {**figures_of(rows), "spread": spread_over_seeds(settings.out / name, asked, settings.seeds)}
        line = ", ".join(f"{key} {value:.3g}" for key, value in tables[name].items() if value is not None)
        print(f"{name}: {line}", flush=True)
    print(json.dumps(summarize(tables)))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Settings], description=__doc__))
