"""The borders that are tried: what is brought to each, which part of it is spoiled how, and what reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.borders import talks
from benchmarks.borders.archives import BUNDLE, TAR
from benchmarks.borders.faults import FILE, JSON, LINES, TEXT, Fault, deep, long_number, other_top
from benchmarks.borders.judge import Case, call_cli, lay_out
from benchmarks.borders.pictures import PICTURE, PLY
from benchmarks.borders.programs import CODE, WEIGHTS
from benchmarks.borders.tables import ARRAY, PARQUET

__all__ = ["BORDERS", "Border", "FileBorder"]

ALL = "*"
FIT = ("fit", "{given}", "--out", "{out}", "--steps", "3", "--num-splats", "50")
MODELS = ("--models", "{inputs}/models")
SAMPLER = ("--generate.sampler.num-steps", "2", "--generate.batch-size", "2")
RULE = (
    *("--rule.min-image-similarity", "-2", "--rule.min-direction-similarity", "-2"),
    *("--rule.min-text-similarity", "-2", "--rule.min-change", "0", "--rule.min-mask-share", "0"),
)
VERIFY = ("verify", "{given}", "--fast")
SHOW = ("show", "{given}")
DIFF = ("diff", "{given}", "{inputs}/run")
BUNDLED = ("bundle", "{given}", "--out", "{out}.zip")
EXPORT = ("export", "{given}", "{out}.ply")
EXPORT_PAIRS = ("export", "{given}", "--format", "hf", "--out", "{out}")
REPORT = ("report", "{given}", "--max-views", "1")
EDIT = ("edit", "{given}", "make it blue", "--method", "nothing")
EDITS = ("edits", "{given}", "--methods", "nothing", "--editors", "exact", "--seeds", "1")
PAIRS = ("pairs", "{given}", *MODELS, *SAMPLER, *RULE)
REJUDGE = (*PAIRS, "--rejudge")
TRAIN = ("train", "{given}", *MODELS, "--training.num-steps", "2", "--training.batch-size", "2")
IMPORT = ("import", "{given}", "--out", "{out}", "--format")
PROMPTS = ("prompts", "{out}", "--num-prompts", "2")
WITH_MODELS = ("pairs", "{beside}/prompted", "--models", "{given}", *SAMPLER, *RULE)
EDITED_BY = ("edit", "{beside}/fitted", "make it blue", "--method", "replace_once", "--model", "{given}/edit_model")
CALIBRATE = ("calibrate", "{given}/clip", "--num-pairs", "30")
OUT = ("out", "out/*", "out.*")
IN_PLACE = ("given/*", *OUT)
READS_ONLY = (SHOW, DIFF, BUNDLED, EXPORT, EXPORT_PAIRS)

Border = Callable[[Path, Random, Path], Case]
"""Lays a spoiled input, drawn by the generator, into an empty folder; the last is the folder of valid inputs."""


@dataclass(frozen=True)
class FileBorder:
    """One file of a valid input is spoiled, and a command reads it."""

    given: str
    """The valid input."""
    file: str
    """Pattern of the file in it, of which one is drawn."""
    faults: tuple[Fault, ...]
    command: tuple[str, ...]
    forgives: str = ""
    """Names of faults that need not be refused here, with a space between; `*` for all."""
    writes: tuple[str, ...] = OUT
    beside: str = ""
    """Another valid input that the command works on."""
    notices_all: bool = False
    """Whether any change must be noticed, as `verify` does."""

    def __call__(self, place: Path, rng: Random, inputs: Path) -> Case:
        """Lay out the input with a fault."""
        return self.spoiled(place, rng, inputs, rng.choice(self.faults))

    def spoiled(self, place: Path, rng: Random, inputs: Path, fault: Fault | None) -> Case:
        """Lay out the input with the given fault, or as it is."""
        lay_out(place)
        for name in filter(None, (self.given, self.beside)):
            shutil.copytree(inputs / name, place / "given" / name)
        given = place / "given" / self.given
        path = rng.choice(sorted(given.glob(self.file)))
        before = content_of(path)
        must_refuse = fault is not None and fault(path, rng)
        name = fault.__name__ if fault is not None else "nothing"
        if self.notices_all:
            must_refuse = content_of(path) != before
        elif self.forgives == ALL or name.partition("_in_a_line")[0] in self.forgives.split():
            must_refuse = False
        names = {"given": f"given/{self.given}", "beside": "given", "out": "out", "inputs": str(inputs)}
        command = [word.format(**names) for word in self.command]
        return Case(
            what=f"{command[0]} {path.relative_to(place / 'given')}: {name}",
            command=command,
            run=lambda: call_cli(command),
            must_refuse=must_refuse,
            writes=self.writes,
            codes=(0, 1, 2) if command[0] == "verify" else (0, 2),
        )


def content_of(path: Path) -> Any:
    """What a file says: JSON by its values, so that another layout of it is no change."""
    if not path.is_file() or path.stat().st_size > 1 << 25:
        return None
    content = path.read_bytes()
    try:
        return repr(json.loads(content))
    except (ValueError, RecursionError):
        return content


def of_capture(given: str, file: str, kind: tuple[Fault, ...], forgives: str = "") -> FileBorder:
    return FileBorder(given, file, kind, FIT, forgives)


def record(given: str, file: str, *commands: tuple[str, ...], kind: tuple[Fault, ...] = JSON) -> list[FileBorder]:
    """A file of a run that several commands read: `verify` finds any change, others may do without it."""
    found = []
    for command in commands:
        writes = ("given/*/verify*",) if command is VERIFY else OUT if command in READS_ONLY else IN_PLACE
        beside = "prompted" if command is WITH_MODELS else "fitted" if command is EDITED_BY else ""
        is_verify = command is VERIFY
        found.append(FileBorder(given, file, kind, command, ALL, writes, beside, notices_all=is_verify))
    return found


FILE_BORDERS: tuple[FileBorder, ...] = (
    # Captures.
    of_capture("nerfstudio", "transforms.json", JSON, "missing"),
    of_capture("nerfstudio", "transforms.json", JSON, "missing"),
    of_capture("nerfstudio", "images/*0?.png", PICTURE, ALL),
    of_capture("nerfstudio", "points.ply", PLY, ALL),
    of_capture("blender", "transforms_train.json", JSON, "missing"),
    of_capture("colmap_text", "sparse/0/*.txt", TEXT, ALL),
    of_capture("colmap_binary", "sparse/0/*.bin", FILE, ALL),
    of_capture("llff", "poses_bounds.npy", ARRAY, "missing"),
    of_capture("record3d", "metadata", JSON, "missing"),
    of_capture("polycam", "keyframes/cameras/*0?.json", JSON, ALL),
    of_capture("video", "walk.mp4", FILE),
    of_capture("photographs", "images/*.png", PICTURE, ALL),
    # Runs.
    *record("run", "run.json", SHOW, VERIFY, DIFF, BUNDLED, REPORT),
    *record("fitted", "run.json", ("ls", "given"), EDIT),
    *record("run", "*/stage.json", SHOW, VERIFY, REPORT),
    *record("run", "scenes/*/fit.json", SHOW, VERIFY, REPORT, EXPORT),
    *record("unedited", "scenes/*/fit.json", EDITS),
    *record("unedited", "run.json", EDITS),
    *record("fitted", "scenes/*/fit.json", EDIT),
    *record("unedited", "scenes/*/truth/*/edit.json", EDITS),
    *record("run", "scenes/*/truth/*/edit.json", VERIFY, REPORT),
    *record("run", "edit/*/*/*/*/record.json", SHOW, VERIFY, REPORT, DIFF),
    *record("unedited", "scenes/*/description.json", EDITS),
    *record("unedited", "scenes/*/capture/transforms.json", EDITS, VERIFY),
    *record("unedited", "scenes/*/splats.ply", EXPORT, EDITS, VERIFY, kind=PLY),
    *record("run", "train/metrics.jsonl", SHOW, REPORT, kind=LINES),
    *record("run", "compare/scores.parquet", SHOW, DIFF, REPORT, VERIFY, kind=PARQUET),
    *record("unedited", "scenes/*/truth/*/images/*.png", EDITS, kind=PICTURE),
    *record("run", "scenes/*/truth/*/images/*.png", REPORT, kind=PICTURE),
    # Prompts and pairs.
    *record("prompted", "prompts/prompts.jsonl", PAIRS, PAIRS, VERIFY, kind=LINES),
    FileBorder("paired", "prompts/prompts.jsonl", LINES, (*PROMPTS, "--learn-from", "{given}"), ALL),
    FileBorder("pictures", "pairs.jsonl", LINES, ("prompts", "{out}", "--path", "{given}/pairs.jsonl"), ALL),
    FileBorder("pictures", "cat.png", PICTURE, ("prompts", "{out}", "--path", "{given}/pairs.jsonl"), ALL),
    FileBorder("texts", "captions.txt", TEXT, (*PROMPTS, "--captions", "{given}/captions.txt"), ALL),
    FileBorder(
        "texts", "settings.json", (*FILE, other_top, deep, long_number), ("diagnose", *["{given}/settings.json"] * 2)
    ),
    *record("paired", "pairs/plan.json", REJUDGE, VERIFY),
    *record("paired", "pairs/rule.json", REJUDGE, EXPORT_PAIRS, VERIFY),
    *record("paired", "pairs/shard-00000.done", TRAIN, EXPORT_PAIRS, VERIFY),
    *record("paired", "pairs/shard-00000.tar", TRAIN, EXPORT_PAIRS, VERIFY, kind=TAR),
    *record("paired", "pairs/*.parquet", TRAIN, EXPORT_PAIRS, VERIFY, kind=PARQUET),
    # Data sets of others: a bad pair is listed, and the rest is taken.
    FileBorder("pairs_hf", "**/*.parquet", PARQUET, (*IMPORT, "hf"), ALL),
    FileBorder("pairs_webdataset", "*.tar", TAR, (*IMPORT, "webdataset"), ALL),
    FileBorder("pairs_instruct-pix2pix", "seeds.json", JSON, (*IMPORT, "instruct-pix2pix"), ALL),
    FileBorder("pairs_instruct-pix2pix", "*/*.json*", LINES, (*IMPORT, "instruct-pix2pix"), ALL),
    FileBorder("pairs_instruct-pix2pix", "*/*.jpg", PICTURE, (*IMPORT, "instruct-pix2pix"), ALL),
    FileBorder("pairs_images", "metadata.jsonl", LINES, (*IMPORT, "imagefolder"), ALL),
    FileBorder("pairs_images", "*.png", PICTURE, (*IMPORT, "imagefolder"), ALL),
    # Models.
    *record("models", "text_to_image/**/*.json", WITH_MODELS, WITH_MODELS),
    *record("models", "text_to_image/**/*.safetensors", WITH_MODELS, kind=WEIGHTS),
    *record("models", "clip/*.json", CALIBRATE, WITH_MODELS),
    *record("models", "clip/*.safetensors", CALIBRATE, kind=WEIGHTS),
    *record("models", "edit_model/edit_model.json", EDITED_BY),
    *record("models", "edit_model/unet/*.json", EDITED_BY),
    *record("models", "edit_model/unet/*.safetensors", EDITED_BY, kind=WEIGHTS),
    # Bundles, splats, studies.
    FileBorder("bundle", "bundle.zip", BUNDLE, ("verify", "{given}/bundle.zip", "--fast")),
    FileBorder("bundle", "bundle.zip", BUNDLE, ("verify", "{given}/bundle.zip", "--fast")),
    FileBorder("splats", "splats.ply", PLY, ("view", "{given}/splats.ply"), ALL),
    FileBorder("study", "mine.py", (*FILE, *CODE), ("study", "{given}/mine.py", "--out", "{out}"), "shifted"),
)

BORDERS: tuple[Border, ...] = (
    *FILE_BORDERS,
    *(talks.arguments,) * 12,
    *(talks.answers,) * 6,
    *(talks.names,) * 2,
    *(talks.requests,) * 3,
    talks.stores,
)
"""One after the other has its turn, so that each is tried equally often."""
