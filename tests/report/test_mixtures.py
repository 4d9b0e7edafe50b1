"""The page says what a run holds, whatever mixture of scenes, clips, pairs and models that is."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restage.records import read_json, write_json
from restage.report.stage import write_report
from tests.report.test_page import Elements

Add = Callable[[Path], None]


def add_clip(run: Path) -> None:
    """Two frames, with truth of an edit beside them, as a clip of the world has it."""
    folder = run / "scenes" / "walk"
    for index in range(2):
        (folder / "frames").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 60 * index, np.uint8)).save(folder / "frames" / f"frame_{index:06d}.png")
    write_json(folder / "clip.json", {"frames_per_s": 8.0})
    request = {"instruction": "make it golden", "source_caption": "", "target_caption": ""}
    case = {"scene": "walk", "kind": "grade", "request": request, "has_truth": False}
    write_json(folder / "truth" / "golden" / "edit.json", case)


def add_generated(run: Path) -> None:
    fit = {
        "num_splats": 5000,
        "seconds": 8.0,
        "generated_from": "a red cone",
        "config": {"generator": "sds", "seed": 0},
    }
    write_json(run / "scenes" / "cone" / "fit.json", fit)


def add_scene(run: Path) -> None:
    write_json(run / "scenes" / "bear" / "fit.json", {"num_splats": 9000, "seconds": 60.0, "held_out_psnr_db": 28.5})


def add_unfitted(run: Path) -> None:
    (run / "scenes" / "hall" / "capture" / "images").mkdir(parents=True)


def add_model(run: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2, 3)]
    (run / "train").mkdir()
    (run / "train" / "metrics.jsonl").write_text("\n".join(lines) + "\n")


PARTS: dict[str, Add] = {
    "one edit model after 3 training steps": add_model,
    "one fitted scene": add_scene,
    "one scene made from words": add_generated,
    "one scene without a fit": add_unfitted,
    "one clip": add_clip,
}
MIXTURES = [mixture for count in (1, 2, 5) for mixture in itertools.combinations(PARTS, count)]


@pytest.mark.parametrize("mixture", MIXTURES, ids=" + ".join)
def test_headline_names_what_there_is_and_nothing_else(fake_run: Callable[..., Path], mixture: tuple[str, ...]) -> None:
    run = fake_run(stages=())
    for part in mixture:
        PARTS[part](run)
    page = write_report(run).read_text(encoding="utf-8")
    headline = page.partition("<h1>")[2].partition("</h1>")[0].lower()
    for part in PARTS:
        assert (part in headline) == (part in mixture), f"{part}: {headline}"
    assert ("with no edit yet" in headline) == (mixture != ("one edit model after 3 training steps",))
    scenes = page.partition('<section id="scenes">')[2].partition("</section>")[0]
    assert "walk" not in scenes, "a clip is no scene that was not fitted"
    assert ("Not fitted" in scenes) == ("one scene without a fit" in mixture)
    assert ('<section id="clips">' in page) == ("one clip" in mixture)
    for link in (attrs["href"][1:] for tag, attrs in Elements(page).tags if tag == "a" and attrs["href"][:1] == "#"):
        assert f'id="{link}"' in page, f"#{link} leads nowhere"


def test_headline_of_edits_leaves_the_rest_to_the_line_below(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    add_clip(run)
    add_generated(run)
    text = Elements(write_report(run).read_text(encoding="utf-8")).text
    assert "2 edits of 2 miniature scenes by text, with 4 methods" in text
    held = "one edit model after 300 training steps, 2 fitted scenes, one scene made from words and one clip."
    assert f"In this run: 96 prompt pairs, 96 image pairs, {held}" in text


def test_edits_of_clips_alone_are_the_headline_and_have_records(fake_run: Callable[..., Path]) -> None:
    run = fake_run(stages=())
    add_clip(run)
    film = run / "edit" / "walk" / "golden" / "carried-grade" / "0"
    request = read_json(run / "scenes/walk/truth/golden/edit.json", dict)["request"]
    shared = {"scene": "walk", "edit": "golden", "method": "carried", "editor": "grade", "seed": 0, "id": "edited-1"}
    write_json(film / "record.json", {**shared, "status": "done", "request": request})
    shutil.copyfile(run / "scenes/walk/frames/frame_000000.png", film / "clip.mp4")
    page = write_report(run).read_text(encoding="utf-8")
    assert "<h1>One edit of one clip by text.</h1>" in page and 'id="edits"' not in page
    assert "edit/walk/golden/carried-grade/0/record.json" in page
    assert 'edits of clips are measured <a href="#clips">beside their films</a>' in page
