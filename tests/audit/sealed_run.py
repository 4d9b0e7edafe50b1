"""A small finished run, sealed as stages seal it, with pictures of one color."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from restage.records import Score, file_sha256, write_record
from restage.run.folder import RunFolder
from restage.scores.rows import write_scores

METHODS = {("restage", "edit_model"): 0.75, ("idu", "edit_model"): 0.5, ("nothing", "none"): 0.0}


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    amount: int = 3


@dataclass(frozen=True, kw_only=True)
class WholeConfig:
    world: StageConfig = StageConfig()
    compare: StageConfig = StageConfig()


def save_picture(path: Path, grey: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)
    return path


def write_sealed_run(folder: Path, *, seed: int = 0, bonus: float = 0.0) -> Path:
    """Write it; `bonus` is added to the progress of the methods that compete."""
    config = WholeConfig()
    run = RunFolder.open(folder, config, seed=seed)
    scene = run.folder("scenes") / "ball"
    save_picture(scene / "capture" / "images" / "view_0.png", 10)
    save_picture(scene / "truth" / "blue" / "images" / "view_0.png", 200)
    run.mark_done("world", config.world, also=["scenes/ball/capture/**/*", "scenes/ball/truth/**/*"])
    (scene / "splats.ply").write_bytes(b"splats")
    write_record(scene / "fit.json", {"num_splats": 1, "seconds": 0.5}, files=[scene / "splats.ply"])
    run.mark_done("scenes", config.world)
    scores = []
    for (method, editor), progress in METHODS.items():
        result = folder / "edit" / "ball" / "blue" / f"{method}-{editor}" / "0"
        picture = save_picture(result / "held_out" / "view_0.png", int(10 + 190 * progress))
        who = {"scene": "ball", "edit": "blue", "kind": "recolour", "method": method, "editor": editor, "seed": 0}
        inputs = {"splats_sha256": file_sha256(scene / "splats.ply")}
        write_record(result / "record.json", {**who, "status": "done", "inputs": inputs}, files=[picture])
        value = progress + bonus * (method != "nothing")
        scores.append(Score(**who, metric="progress", value=value))
    run.mark_done("edit", config.world)
    write_scores(run.folder("compare") / "scores.parquet", scores)
    run.mark_done("compare", config.compare, num_scores=len(scores))
    run.close("done")
    return folder
