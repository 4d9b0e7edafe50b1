"""What lies where in a run: the name of every file and folder that more than one module reads or writes, once.

Names with a slash are relative to the run. docs/conventions.md shows the whole tree, and says what each file holds.
"""

from __future__ import annotations

import re
from pathlib import Path

from restage.records import InputError

__all__ = ["CAPTURE", "CONTACT_SHEET", "DEPTH", "DIAGNOSIS", "EDITOR_VIEWS", "EDIT_CASE", "EDIT_CASES", "EDIT_RECORD"]
__all__ += ["EDIT_RECORDS", "FITS", "FIT_RECORD", "FIT_STATE", "HELD_OUT", "IMAGES", "MANIFEST", "MASKS", "ORBIT"]
__all__ += ["PAGE", "PROMPTS", "RUN_RECORD", "SCORES", "SOURCE", "SPLATS", "STAGES", "STAGE_MARK", "STAGE_MARKS"]
__all__ += ["TRANSFORMS", "TRUTH", "VIEW_SCORES", "check_is_run", "counting_order", "folders_in", "is_stage_done"]
__all__ += ["ANSWERS", "CHANGES", "CLIPS", "CLIP_FRAMES", "CLIP_RECORD", "CLIP_SOUND", "CLIP_TRUTH", "DESCRIPTION"]
__all__ += ["FILM", "ORIGINS", "REFERENCES", "REGIONS", "REGION_MASKS", "STUDY_FILES", "result_folder"]
__all__ += ["AROUND", "JUDGED", "SAMPLED"]

STAGES = ("prompts", "pairs", "train", "world", "scenes", "edit", "compare", "report")
"""Stages in the order data flows; each has a folder of its name."""

RUN_RECORD = "run.json"
STUDY_FILES = ("study.json", "study.py")
PROMPTS = "prompts/prompts.jsonl"
MANIFEST = "pairs/manifest.parquet"
CONTACT_SHEET = "pairs/contact_sheet.png"
SCORES = "compare/scores.parquet"
VIEW_SCORES = "compare/views.parquet"
ANSWERS = "endpoint"
"""Answers of an image endpoint, a file each."""
DIAGNOSIS = "diagnose/diagnosis.json"
PAGE = "report/index.html"
AROUND, SAMPLED = "around.png", "sampled.png"
"""Pictures beside the fit of a scene that was made from words."""
JUDGED = "judged"
"""What `benchmarks.generate` found out about generated scenes: a record and a picture for each."""

STAGE_MARK = "stage.json"
STAGE_MARKS = f"*/{STAGE_MARK}"

# In the folder of a scene, `scenes/<scene>`.
CAPTURE = "capture"
TRANSFORMS = "transforms.json"
FIT_RECORD = "fit.json"
FIT_STATE = "fit_state.pt"
SOURCE = "source.json"
FITS = f"scenes/*/{FIT_RECORD}"
SPLATS = "splats.ply"
REGIONS = "regions"
REFERENCES = "references"
"""Pictures that requests refer to, each named by its SHA-256."""
HELD_OUT = "held_out"
"""Renders of held-out views, of a fit and of a result."""

# In the folder of a clip, which is a scene of a run, too.
CLIP_RECORD = "clip.json"
CLIP_FRAMES = "frames"
CLIP_SOUND = "sound.mka"
CLIP_TRUTH = "truth.npz"
"""Depth, object ids and flow of a clip of the world."""
DESCRIPTION = "description.json"
"""What a scene of the world holds."""
CLIPS = f"scenes/*/{CLIP_RECORD}"
FILM = "clip.mp4"

# In the folder of what an edit should give, `scenes/<scene>/truth/<edit>`.
TRUTH = "truth"
EDIT_CASE = "edit.json"
EDIT_CASES = f"scenes/*/{TRUTH}/*/{EDIT_CASE}"
IMAGES = "images"
MASKS = "masks"
DEPTH = "depth.npz"

# In the folder of a result, `edit/<scene>/<edit>/<method>-<editor>/<seed>`.
EDIT_RECORD = "record.json"
EDITOR_VIEWS = "views"
REGION_MASKS = "region"
"""Masks of the held-out views in a result whose edit was told where it may change them."""
EDIT_RECORDS = f"edit/*/*/*/*/{EDIT_RECORD}"
ORBIT = "orbit.mp4"
ORIGINS = "origins.npy"
"""Index that each splat of a result had before the edit, -1 for new ones."""
CHANGES = "changes.json"
"""History of the direct edits of a scene, in `edit/<scene>`."""


def is_stage_done(run: Path, stage: str) -> bool:
    """Whether a stage of the run in this folder has been finished."""
    return (run / stage / STAGE_MARK).exists()


def check_is_run(run: Path) -> None:
    """Refuse a folder that holds no run."""
    if not (run / RUN_RECORD).is_file():
        raise InputError(f"{run} is not a run folder (it holds no {RUN_RECORD}); restage ls {run.parent} lists runs")


def result_folder(run: Path, scene: str, edit: str, *, contender: str, seed: int | str) -> Path:
    """Where a result lies; a contender is named `<method>-<editor>`."""
    return run / "edit" / scene / edit / contender / str(seed)


def counting_order(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that counts as people do: `world-7` before `world-11`."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, counted as people do; none if it does not exist."""
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted((path for path in found if path.name[0] != "."), key=lambda path: counting_order(path.name))
