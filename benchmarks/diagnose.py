"""Plants faults in runs and asks `restage diagnose` for each; a pair of runs without a fault is among them.

Run A goes through the stages at a small size. Each run B is made the same way but for one fault, and for differences
that do no harm: another robust scale of the method and, where B is trained or fitted again, another seed of that. So a
fault cannot be found in a list of what differs, only by trying.

    python benchmarks/diagnose.py --out runs/diagnose
    python benchmarks/diagnose.py --faults guidance none

Prints one JSON object as its last line: by fault, the part that was named, its share of progress, whether that is the
planted one, CPU seconds as if nothing had been tried before, and wall seconds.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from miniature.edit_model import NO_RULE
from restage.diagnose import DiagnoseConfig, run_diagnose
from restage.diffusion.clip import load_clip
from restage.diffusion.config import SamplerConfig, TrainingConfig
from restage.edit.config import EditConfig
from restage.edit.methods import Restage
from restage.pairs.config import GenerateConfig, PairsConfig
from restage.pairs.encoding import ImagePair
from restage.pairs.score import score_pairs
from restage.pairs.store import done_shards, read_pairs, read_rows, write_shard
from restage.prompts.config import PromptsConfig
from restage.prompts.stage import run_prompts
from restage.recipes import RULE, make_pairs
from restage.records import Progress, derive_seed, read_json, write_json
from restage.run.folder import RunFolder, open_run
from restage.run.models import models_in
from restage.run.progress import show_progress
from restage.scenes.config import FitConfig, ScenesConfig
from restage.scenes.io import read_capture, write_capture
from restage.scenes.stage import run_scenes
from restage.train.config import LossWeights, TrainConfig
from restage.train.stage import run_train
from restage.world.config import CaptureConfig, WorldConfig
from restage.world.stage import run_world

NUM_SCENES = 8
KINDS = ("ground", "time")
"""Edits that the miniature's edit model can do: where A fails too, there is nothing to lose."""
PROMPTS = PromptsConfig(num_prompts=96, kinds=("ground", "time", "recolour"))
PAIRS = PairsConfig(
    generate=GenerateConfig(sampler=SamplerConfig(num_steps=8), guidance=1.0, self_share=(0.6, 0.9)),
    rule=RULE,
    pairs_per_shard=32,
)
NUM_SPOILED_PROMPTS = 320
TRAIN = TrainConfig(
    training=TrainingConfig(num_steps=120, batch_size=8, learning_rate=5e-4, num_warmup_steps=5, ema_decay=0.9),
    weights=LossWeights(mask=0.1, changed=1.0),
)
METHOD = Restage(num_key_views=4, noise_levels=(1.0,), color_steps=30, shape_steps=30)
HARMLESS = replace(METHOD, robust_scale=0.25)
FIT = FitConfig(steps=400, num_splats=2000)


@dataclass(frozen=True)
class Settings:
    """What to run."""

    out: Path = Path("runs/diagnose")
    faults: tuple[str, ...] = ("guidance", "captions", "cameras", "selection", "noise_range", "none")
    cases: int = 8
    time_budget_s: float = 3600.0


def retrained(config: TrainConfig, seed: int) -> TrainConfig:
    return replace(config, training=replace(config.training, seed=seed))


def work(steps: Iterable[Progress]) -> None:
    show_progress(steps)


def set_method(run: RunFolder, method: Restage) -> None:
    """Record the method as an edit stage of this config would; diagnose edits by itself."""
    run.folder("edit")
    config = EditConfig(methods=("restage",), editors=("edit_model",), settings={"restage": method})
    run.mark_done("edit", config)


def make_a(folder: Path) -> None:
    run = open_run(folder)
    world = WorldConfig(num_scenes=NUM_SCENES, num_objects=1, edit_kinds=KINDS, capture=CaptureConfig(num_views=15))
    work(run_world(run, world))
    work(run_scenes(run, ScenesConfig(fit=FIT)))
    make_model(run, PAIRS, TRAIN)
    set_method(run, METHOD)


def make_filtered_a(b: Path, folder: Path) -> None:
    """A run like A on B's pairs, most of which are spoiled, with the filter on."""
    if (folder / "edit" / "stage.json").exists():
        return
    run = copied(b, folder, "world", "scenes", "prompts", "pairs")
    work(make_pairs(run, PAIRS, models_in(), is_rejudging=True))
    work(run_train(run, TRAIN, start=models_in().edit_model))
    set_method(run, METHOD)


def make_model(run: RunFolder, pairs: PairsConfig, train: TrainConfig) -> None:
    work(run_prompts(run, PROMPTS))
    work(make_pairs(run, pairs, models_in()))
    work(run_train(run, train, start=models_in().edit_model))


def copied(a: Path, folder: Path, *stages: str, seed: int = 0) -> RunFolder:
    """A new run with the results of some stages of A; one that was begun goes on."""
    mark = folder / "copied.json"
    if folder.exists() and not mark.exists():
        shutil.rmtree(folder)
    run = open_run(folder, seed=seed)
    if not mark.exists():
        for stage in stages:
            shutil.copytree(a / stage, folder / stage, ignore=shutil.ignore_patterns("state.pt", "cache"))
        write_json(mark, {"stages": stages})
    return run


EVERYTHING = ("prompts", "pairs", "train", "world", "scenes")


def plant_guidance(a: Path, folder: Path) -> None:
    """The two guidances of InstructPix2Pix, 7.5 for the text and 1.5 for the picture, the wrong way round."""
    run = copied(a, folder, *EVERYTHING)
    path = folder / "train" / "edit_model.json"
    record = read_json(path)
    record["guidance"].update(text=1.5, image=7.5)
    write_json(path, record)
    set_method(run, HARMLESS)


def plant_noise_range(a: Path, folder: Path) -> None:
    """Edits start from too little noise."""
    set_method(copied(a, folder, *EVERYTHING), replace(HARMLESS, noise_levels=(0.35,)))


def plant_cameras(a: Path, folder: Path) -> None:
    """Poses of the capture are off by about two degrees and some hundredths of the distance, as of a bad COLMAP run."""
    run = copied(a, folder, "prompts", "pairs", "train", "world")
    for path in sorted((a / "scenes").glob("*")):
        if not path.is_dir():
            continue
        target = folder / "scenes" / path.name
        shutil.copytree(path / "truth", target / "truth", dirs_exist_ok=True)
        shutil.copy(path / "description.json", target / "description.json")
        capture = read_capture(path / "capture")
        cameras = replace(capture.cameras, camera_to_world=shifted(capture.cameras.camera_to_world, path.name))
        write_capture(replace(capture, cameras=cameras), target / "capture")
    work(run_scenes(run, ScenesConfig(fit=replace(FIT, seed=1))))
    set_method(run, HARMLESS)


def shifted(poses: torch.Tensor, name: str) -> torch.Tensor:
    rng = np.random.default_rng(derive_seed("shift", name))
    found = poses.clone()
    for pose in found:
        axis = rng.normal(size=3)
        x, y, z = axis / np.linalg.norm(axis) * math.radians(2.0)
        turn = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
        pose[:3, :3] = (turn @ pose[:3, :3].double()).float()
        pose[:3, 3] += torch.from_numpy(rng.normal(size=3) * 0.05).float()
    return found


def plant_captions(a: Path, folder: Path) -> None:
    """Each pair has the captions and the instruction of another one."""
    run = copied(a, folder, "prompts", "pairs", "world", "scenes")
    marks = done_shards(a / "pairs")
    pairs, rows = list(read_pairs(a / "pairs")), read_rows(a / "pairs")
    order = np.roll(np.random.default_rng(0).permutation(len(pairs)), 1)
    texts = dict(zip((pairs[i].id for i in order), (pairs[i].prompt for i in np.roll(order, 1)), strict=True))
    pairs = [replace(pair, prompt=texts[pair.id]) for pair in pairs]
    for row in rows:
        if row["id"] in texts:
            prompt = texts[row["id"]]
            row.update(source_caption=prompt.source, target_caption=prompt.target, instruction=prompt.instruction)
    write_again(folder / "pairs", marks, pairs, rows)
    work(run_train(run, retrained(TRAIN, 1), start=models_in().edit_model))
    set_method(run, HARMLESS)


def write_again(
    folder: Path, marks: Mapping[int, Mapping[str, Any]], pairs: Sequence[ImagePair], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the shards of these marks with other pairs and rows, in the same order."""
    start = 0
    for index, mark in marks.items():
        own = rows[start : start + mark["num_pairs"]]
        start += mark["num_pairs"]
        names = {row["id"] for row in own}
        (folder / f"shard-{index:05d}.done").unlink(missing_ok=True)
        facts = {name: mark[name] for name in ("content", "rule") if name in mark}
        write_shard(folder, index, pairs=[pair for pair in pairs if pair.id in names], rows=own, facts=facts)


def plant_selection(a: Path, folder: Path) -> None:
    """Three of four pairs were saved with the edited picture of another pair, and no pair is rejected."""
    run = copied(a, folder, "world", "scenes")
    if not (folder / "spoiled.json").exists():
        work(run_prompts(run, replace(PROMPTS, num_prompts=NUM_SPOILED_PROMPTS)))
        work(make_pairs(run, replace(PAIRS, rule=NO_RULE), models_in()))
        spoil_pairs(folder / "pairs")
        write_json(folder / "spoiled.json", {})
    work(run_train(run, retrained(TRAIN, 1), start=models_in().edit_model))
    set_method(run, HARMLESS)


def spoil_pairs(folder: Path) -> None:
    """Exchange the edited pictures of three of four pairs among them; the scores are those of what is saved."""
    marks, pairs, rows = done_shards(folder), list(read_pairs(folder)), read_rows(folder)
    chosen = [index for index in range(len(pairs)) if index % 4]
    others = [pairs[index].edited for index in np.roll(chosen, 1)]
    for index, edited in zip(chosen, others, strict=True):
        pairs[index] = replace(pairs[index], edited=edited)
    scores = score_pairs(
        load_clip(models_in().clip),
        [pair.prompt for pair in pairs],
        sources=torch.stack([pair.source for pair in pairs]),
        edited=torch.stack([pair.edited for pair in pairs]),
        masks=torch.stack([pair.mask for pair in pairs]),
    )
    found = {pair.id: score._asdict() for pair, score in zip(pairs, scores, strict=True)}
    write_again(folder, marks, pairs, [{**row, **found.get(row["id"], {})} for row in rows])


def plant_none(a: Path, folder: Path) -> None:
    """No fault: another seed for prompts, pairs and training."""
    run = copied(a, folder, "world", "scenes", seed=1)
    make_model(run, PAIRS, TRAIN)
    set_method(run, HARMLESS)


PLANT: dict[str, Callable[[Path, Path], None]] = {
    "guidance": plant_guidance,
    "captions": plant_captions,
    "cameras": plant_cameras,
    "selection": plant_selection,
    "noise_range": plant_noise_range,
    "none": plant_none,
}


def main(settings: Settings) -> None:
    good = settings.out / "a"
    make_a(good)
    config = DiagnoseConfig(max_cases=settings.cases, time_budget_s=settings.time_budget_s, editor_steps=5)
    results = {}
    for fault in settings.faults:
        a, b = good, settings.out / fault
        if not (b / "planted.json").exists():
            PLANT[fault](a, b)
            write_json(b / "planted.json", {"fault": fault, "what": PLANT[fault].__doc__})
        if fault == "selection":
            a = settings.out / "a_filtered"
            make_filtered_a(b, a)
        started_s = time.monotonic()
        work(run_diagnose(a, b, config, models=models_in(), cache=settings.out / "trials"))
        found = read_json(b / "diagnose" / "diagnosis.json")
        expected = "" if fault == "none" else fault
        shares = {part["part"]: round(part["share"]["mean"], 3) for part in found["parts"]}
        results[fault] = {
            "named": found["answer"] or "nothing",
            "is_right": found["answer"] == expected,
            "lost": round(found["total"]["mean"], 3),
            "standard_error": round(found["total"]["standard_error"], 3),
            "share": shares.get(found["answer"]),
            "shares": shares,
            "cpu_s": round(found["cpu_seconds"], 1),
            "wall_s": round(time.monotonic() - started_s, 1),
            "sentence": found["sentence"],
        }
        print(json.dumps({fault: results[fault]}, indent=1), flush=True)
    right = sum(result["is_right"] for result in results.values())
    print(json.dumps({"right": right, "of": len(results), "faults": results}))


if __name__ == "__main__":
    main(tyro.cli(Settings))
