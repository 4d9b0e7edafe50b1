"""The pictures of the README and the log, made from a finished demo and the shipped models.

python -m benchmarks.readme_pictures runs/demo docs/pictures
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from restage.diffusion.backbone import load_backbone
from restage.diffusion.sampling import sample_images
from restage.records import EditCase, read_json
from restage.report.pictures import compose_grid
from restage.run.models import models_in
from restage.world.capture import sample_camera
from restage.world.grammar import caption_of, sample_description
from restage.world.render import render_view

METHODS = ("replace_once-edit_model", "idu-edit_model", "restage-edit_model")


def to_pil(image: np.ndarray) -> Image.Image:
    """A picture (3, h, w) in [0, 1] as PIL."""
    return Image.fromarray((image.transpose(1, 2, 0).clip(0, 1) * 255 + 0.5).astype(np.uint8))


def draw_edits(run: Path) -> Image.Image:
    """One row per edit: before, the methods with the trained edit model, truth; one held-out view."""
    rows, labels = [], []
    for edit_path in sorted(run.glob("scenes/*/truth/*/edit.json")):
        case, scene = read_json(edit_path, EditCase), edit_path.parents[2]
        results = run / "edit" / scene.name / edit_path.parent.name
        name = sorted((results / METHODS[0] / "0" / "held_out").glob("*.png"))[1].name
        paths = [
            scene / "capture" / "images" / name,
            *(results / method / "0" / "held_out" / name for method in METHODS),
            edit_path.parent / "images" / name,
        ]
        rows.append([Image.open(path).convert("RGB") for path in paths])
        labels.append(case.request.instruction)
    columns = ["before", *(method.split("-")[0] for method in METHODS), "exact truth"]
    return compose_grid(rows, row_labels=labels, column_labels=columns)


def draw_world() -> Image.Image:
    """Eighteen scenes of the procedural world."""
    images = []
    for seed in range(18):
        description = sample_description(seed)
        images.append(to_pil(render_view(description, sample_camera(description, seed)).image))
    return compose_grid([images[:9], images[9:]], cell_px=128, gap_px=4)


def with_caption(image: Image.Image, caption: str) -> Image.Image:
    """The picture with its caption below, three lines at most."""
    sheet = Image.new("RGB", (image.width, image.height + 44), "white")
    sheet.paste(image)
    lines = textwrap.wrap(caption, width=image.width // 6)[:3]
    ImageDraw.Draw(sheet).multiline_text((2, image.height + 3), "\n".join(lines), fill="black", font_size=11, spacing=2)
    return sheet


def draw_samples() -> Image.Image:
    """Pictures of the text-to-image model, each above what it was asked for: six of one object, six of two."""
    captions = [caption_of(sample_description(5000 + i, num_objects=1 + i // 6), i) for i in range(12)]
    images = sample_images(load_backbone(models_in().text_to_image), captions, seeds=list(range(12)))
    cells = [
        with_caption(to_pil(image.numpy()).resize((192, 192)), caption)
        for image, caption in zip(images, captions, strict=True)
    ]
    sheet = Image.new("RGB", (6 * 200 - 8, 2 * (cells[0].height + 8) - 8), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % 6 * 200, number // 6 * (cell.height + 8)))
    return sheet


def main(run: Path, folder: Path) -> None:
    """Draw all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_world().save(folder / "world.png", optimize=True)
    draw_edits(run).save(folder / "edits.png", optimize=True)
    draw_samples().save(folder / "samples.png", optimize=True)
    Image.open(run / "pairs" / "contact_sheet.png").save(folder / "pairs.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
