"""A complete run folder of small synthetic pictures, laid out as docs/conventions.md says."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from restage.records import EditCase, EditRequest, to_plain, write_json

SIDE = 128
RED, BLUE, GREEN = (200, 60, 50), (50, 90, 200), (70, 150, 80)
METHODS = {
    ("restage", "trained"): (0.72, 0.008, 0.83, 24.0),
    ("idu", "trained"): (0.48, 0.041, 0.55, 131.0),
    ("replace_once", "trained"): (0.31, 0.052, 0.47, 18.0),
    ("sds", "trained"): (-0.22, 0.094, 0.21, 88.0),
    ("restage", "exact"): (0.97, 0.004, 0.95, 20.0),
    ("replace_once", "exact"): (0.94, 0.006, 0.91, 15.0),
    ("nothing", ""): (0.0, 0.0, 0.0, 0.0),
}


def draw_world(angle_rad, colour, *, ground=(214, 205, 188), sky=(170, 200, 230), side=None):
    """A shaded sphere on a ground, and the mask of the sphere; not our renderer, only something to look at."""
    side = side or SIDE
    y, x = np.mgrid[0:side, 0:side] / side
    picture = np.where(
        (y < 0.42)[..., None],
        np.array(sky) * (1 - 0.25 * y[..., None]),
        np.array(ground) * (0.75 + 0.35 * y[..., None]),
    )
    centre_x, centre_y, radius = 0.5 + 0.16 * math.sin(angle_rad), 0.52, 0.2
    shadow = ((x - centre_x - 0.07) / 0.26) ** 2 + ((y - 0.71) / 0.06) ** 2
    picture *= np.where(y > 0.42, 1 - 0.45 * np.exp(-shadow), 1)[..., None]
    across, down = (x - centre_x) / radius, (y - centre_y) / radius
    inside = across**2 + down**2 < 1
    toward = np.sqrt(np.clip(1 - across**2 - down**2, 0, 1))
    light = np.clip(-0.5 * across - 0.6 * down + 0.62 * toward, 0, 1)
    shade = np.array(colour) * (0.35 + 0.75 * light[..., None]) + 90 * light[..., None] ** 24
    picture = np.where(inside[..., None], shade, picture)
    return np.clip(picture, 0, 255).astype(np.uint8), inside


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _mix(before, truth, mask, progress, spill, seed):
    noise = np.random.default_rng(seed).normal(0, 1, (8, 8, 3)).repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)
    mixed = (
        before
        + progress * (truth.astype(float) - before)
        + np.where(mask[..., None], 18 * (progress != 0), 255 * spill * 1.25) * noise
    )
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _write_orbit(path, colour):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(str(path), (SIDE, SIDE), fps=12, codec="libx264", pix_fmt_out="yuv420p")
    writer.send(None)
    for index in range(12):
        writer.send(np.ascontiguousarray(draw_world(index * math.pi / 6, colour)[0]))
    writer.close()


def write_fake_run(
    folder: Path,
    *,
    instructions=("make the red sphere blue", "turn the sky to evening and the ground to grass"),
    scene_names=("world-7", "world-11"),
    has_truth=True,
    stages=("prompts", "pairs", "train", "scenes", "edit", "compare"),
    num_views=4,
    with_orbit=True,
):
    """Write a fake but complete run folder; `stages` leaves parts of it out."""
    sphere_to_grass = {"colour": RED, "ground": (120, 160, 90), "sky": (240, 170, 120)}
    edits = ({"colour": BLUE}, sphere_to_grass)
    write_json(
        folder / "run.json",
        {
            "id": "run-0123456789abcdef",
            "seed": 7,
            "command": ["restage", "demo", "--out", str(folder.name)],
            "config": {"pairs": {"num_pairs": 96}, "fit": {"num_splats": 6000}},
            "git_commit": "20703b7c0ffee",
            "versions": {"torch": "2.13.0"},
            "machine": {"cpu_count": 2, "memory_gib": 8.0},
            "status": "done",
            "started_s": 1.7e9,
            "sessions": [{"status": "done", "wall_s": 605.4, "peak_memory_mb": 3120.0}],
        },
    )
    _write_stages(folder, [stage for stage in stages if stage not in ("scenes", "edit")])
    if "prompts" in stages:
        (folder / "prompts" / "prompts.jsonl").write_text('{"id": "prompt-1"}\n' * 96)
    if "pairs" in stages:
        _write_pairs(folder / "pairs")
    if "train" in stages:
        rng = np.random.default_rng(0)
        lines = [{"step": s, "loss": 0.08 + 0.5 * math.exp(-s / 40) + 0.05 * abs(rng.normal())} for s in range(1, 301)]
        (folder / "train" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    scores = []
    for number, (name, instruction) in enumerate(zip(scene_names, instructions, strict=True)):
        if "scenes" in stages:
            _write_scene(folder, name, num_views)
        case = EditCase(
            scene=name,
            kind=("recolour", "ground")[number % 2],
            request=EditRequest(
                instruction=instruction,
                source_caption="a red sphere on sand at noon",
                target_caption="a red sphere on grass at dusk" if number % 2 else "a blue sphere on sand at noon",
            ),
            has_truth=has_truth,
        )
        edit = f"edit-{number}"
        if "scenes" in stages:
            write_json(folder / "scenes" / name / "truth" / edit / "edit.json", case)
        for (method, editor), (progress, spill, iou, seconds) in METHODS.items():
            if has_truth or (editor != "exact"):
                shared = {"scene": name, "edit": edit, "kind": case.kind, "method": method, "editor": editor, "seed": 0}
                if "edit" in stages:
                    result = folder / "edit" / name / edit / f"{method}-{editor}" / "0"
                    _write_result(
                        result,
                        folder / "scenes" / name / "truth" / edit,
                        edits[number % 2],
                        num_views,
                        METHODS[method, editor],
                        has_truth=has_truth,
                    )
                    if with_orbit and method == "restage":
                        _write_orbit(result / "orbit.mp4", edits[number % 2].get("colour", RED))
                    record = {**shared, "id": "result-1", "status": "done", "cost": {"seconds": seconds}}
                    write_json(result / "record.json", record)
                covers_all = number % 2 == 1
                for metric, value in (
                    ("progress", progress - 0.06 * number * (method != "nothing")),
                    ("spill", math.nan if covers_all else spill),
                    ("mask_iou", iou),
                    ("psnr_db", 18 + 14 * progress),
                    ("seconds", seconds),
                    ("peak_memory_mb", 1200.0),
                ):
                    reason = "the edit changes every pixel" if math.isnan(value) else ""
                    is_cost = metric in ("seconds", "peak_memory_mb")
                    scores.append({**shared, "metric": metric, "value": value, "reason": reason, "is_cost": is_cost})
    if "compare" in stages:
        pq.write_table(pa.Table.from_pylist(scores), folder / "compare" / "scores.parquet")
    return folder


def _write_stages(folder, stages):
    facts = {
        "pairs": {"num_pairs": 96, "num_accepted": 61, "rule": "clip_direction > 0.10 and mask_share in [0.01, 0.9]"},
        "train": {"num_steps": 300, "seconds": 92.4, "final_loss": 0.094},
    }
    for stage in stages:
        mark = {"id": f"{stage}-00aa11bb22cc33dd", "config": {"seed": 7, "batch": 16}, "facts": facts.get(stage, {})}
        write_json(folder / stage / "stage.json", mark)


def _write_pairs(folder):
    sheet = np.concatenate(
        [np.concatenate([draw_world(a * 0.8 + b, c)[0] for a in range(8)], 1) for b, c in ((0, RED), (1, GREEN))]
    )
    _save(folder / "contact_sheet.png", sheet)
    rows = [
        {"id": f"pair-{i}", "accepted": i % 3 != 0, "reason": "" if i % 3 else "nothing changed"} for i in range(96)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")


def _write_scene(folder, name, num_views):
    scene = folder / "scenes" / name
    for view in range(num_views + 4):
        _save(scene / "capture" / "images" / f"frame_{view:05d}.png", draw_world(view * 0.7, RED)[0])
    fit = {"held_out_psnr_db": 37.94, "seconds": 33.1, "num_splats": 6000, "config": to_plain({"num_steps": 900})}
    write_json(scene / "fit.json", fit)


def _write_result(folder, truth_folder, edit, num_views, numbers, *, has_truth):
    progress, spill, _, _ = numbers
    for view in range(num_views):
        before, sphere = draw_world(view * 0.7, RED)
        truth, _ = draw_world(view * 0.7, **{"colour": RED, **edit})
        mask = np.ones_like(sphere) if "ground" in edit else sphere
        name = f"frame_{view:05d}.png"
        if has_truth:
            _save(truth_folder / "images" / name, truth)
            _save(truth_folder / "masks" / name, mask.astype(np.uint8) * 255)
        _save(folder / "held_out" / name, _mix(before, truth, mask, progress, spill, view))
    for view in range(num_views, num_views + 2):
        truth, sphere = draw_world(view * 0.7, **{"colour": RED, **edit})
        _save(folder / "views" / f"frame_{view:05d}.png", truth)
        _save(folder / "masks" / f"frame_{view:05d}.png", sphere.astype(np.uint8) * 255)


def _writer(folder: Path) -> Callable[..., Path]:
    return lambda name="run", **options: write_fake_run(
        folder / name, **{"with_orbit": False, "num_views": 2, **options}
    )


@pytest.fixture
def fake_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a fake run below the test's folder; takes the options of `write_fake_run`."""
    monkeypatch.setitem(globals(), "SIDE", 32)
    return _writer(tmp_path)


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Writes a fake run, as `fake_run` does, that several tests of a file look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "SIDE", 32)
        yield _writer(tmp_path_factory.mktemp("shared"))
