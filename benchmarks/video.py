"""Clip methods on unseen clips with exact truth, half of them moving: what each reaches and costs.

    python -m benchmarks.video                                     # 20 clips of 8 frames, all methods
    python -m benchmarks.video --clips 2 --methods per_frame,carried --size 48 --long-frames 20 --tiny

Clips are of the world's first edition, whose models come with the package; still ones are seen by a moving camera.
Doing nothing, a frozen first frame and the exact editor are rows of the table; `dreammotion-no-*` leave one part out.
Results are kept in `--out`, so that a run that is killed goes on there. A long clip is edited by `carried` with
`grade`; its peak of memory is that of the edit alone. Rank agreement is Spearman's, over the methods of a clip,
averaged over clips. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from restage.clips.config import ClipOptions
from restage.clips.files import frame_name, store_clip
from restage.compare.clips import CLIP_METRICS, ClipScores, judge_clip
from restage.compare.config import CompareConfig
from restage.compare.judges import Judges, open_judges
from restage.edit.clips.carried import Carried
from restage.edit.clips.dreammotion import DreamMotion
from restage.edit.clips.job import ClipMethod
from restage.edit.clips.menu import CLIP_METHODS
from restage.edit.clips.stage import ClipChoice, open_clip_edit
from restage.edit.clips.tune_a_video import TuneAVideo
from restage.edit.editors import OpenEditors
from restage.edit.pictures import write_image
from restage.records import EditRequest, InputError, read_json
from restage.run.folder import open_run, working
from restage.run.reading import EditRecord
from restage.world.clips import Clip, edit_clip, sample_clip, sample_clip_edits, write_clip, write_clip_truth
from restage.world.grammar import possible_kinds, sample_description
from restage.world.render import render_view

KINDS = ("recolour", "ground", "time", "reshape", "resize")
MOTIONS = ("slide", "turn", "sun")
TRUTH_ROW = "exact"
METHODS = ("nothing", "frozen", "per_frame", "shared_attention", "tokenflow", "tune_a_video", "dreammotion", "carried")
LEFT_OUT: dict[str, dict[str, Any]] = {
    "no-spatial": {"spatial_weight": 0.0},
    "no-temporal": {"temporal_weight": 0.0},
    "no-mask": {"mask": "none"},
}
ABLATIONS = tuple(f"dreammotion-{part}" for part in LEFT_OUT)


def settings_of(name: str, *, is_tiny: bool) -> ClipMethod:
    """The method of a row; a tiny run takes a few steps."""
    steps: dict[str, Any] = {"num_steps": 3} if is_tiny else {}
    if name.startswith("dreammotion"):
        return DreamMotion(**steps, **LEFT_OUT.get(name.removeprefix("dreammotion-"), {}))
    if name == "tune_a_video":
        return TuneAVideo(**steps, **({"sampling_steps": 2} if is_tiny else {}))
    return CLIP_METHODS["per_frame" if name == TRUTH_ROW else name]()


def sample(number: int, num_frames: int, size: int) -> tuple[Clip, str, int]:
    """An unseen clip with the kind of its edit and the seed of that; every second clip moves."""
    draw = 0
    while True:
        seed = 1_000 * number + draw
        scene = sample_description(seed, split="unseen")
        kind = KINDS[number % len(KINDS)]
        motion = MOTIONS[number // 2 % len(MOTIONS)] if number % 2 else "still"
        how = {"motion": motion, "moves_camera": number % 4 != 1, "num_frames": num_frames, "size": size}
        draw += 1
        if kind not in possible_kinds(scene):
            continue
        try:
            clip = sample_clip(seed, scene=scene, **how)
            (edit,) = sample_clip_edits(clip, [kind], seed, edition=1)
            edit_clip(clip, edit)
        except InputError:
            continue
        return clip, kind, seed


def write(run: Path, number: int, num_frames: int, size: int) -> tuple[Path, EditRequest]:
    """Write a clip with its truth into a run, unless it is there; returns its folder and what is asked for."""
    name = f"clip-{number:02d}"
    folder = run / "scenes" / name
    clip, kind, seed = sample(number, num_frames, size)
    (edit,) = sample_clip_edits(clip, [kind], seed, edition=1)
    if not (folder / "clip.json").exists():
        write_clip_truth(clip, edit, folder)
        write_clip(clip, folder)
    return folder, EditRequest(instruction=edit.instruction, source_caption="", target_caption="")


Rows = dict[tuple[str, str], tuple[EditRecord, ClipScores]]


def results(arguments: argparse.Namespace, judges: Judges) -> Iterator[tuple[str, str, EditRecord, ClipScores]]:
    editors = OpenEditors()
    run = open_run(arguments.out)
    with working(run, "edit", "scenes"):
        for number in range(arguments.clips):
            folder, request = write(run.path, number, arguments.num_frames, arguments.size)
            for name in arguments.methods:
                editor = {"tune_a_video": "text_to_image", TRUTH_ROW: "exact"}.get(name, "edit_model")
                method = settings_of(name, is_tiny=arguments.tiny)
                choice = ClipChoice(
                    method=name.partition("-")[0].replace(TRUTH_ROW, "per_frame"), editor=editor, settings=method
                )
                opened = open_clip_edit(run, folder, request=request, choice=choice, editors=editors)
                for step in opened.steps:
                    print(f"{folder.name} {name}: {step.done}/{step.total} {step.note}", file=sys.stderr, flush=True)
                record = read_json(opened.folder / "record.json", EditRecord)
                yield folder.name, name, record, judge_clip(run.path, opened.folder, judges)


def memory(out: Path, num_frames: int, size: int) -> float:
    """Peak of memory in MiB of the edit of a long clip."""
    frames = out / f"pan-{num_frames}"
    scene = sample_clip(5, motion="still", num_frames=2, size=size)
    image = torch.from_numpy(render_view(scene.frames[0], scene.cameras[0]).image)
    for index in range(num_frames):
        if not (frames / frame_name(index)).exists():
            write_image(frames / frame_name(index), image.roll(index, dims=2))
    run = open_run(out / f"run-{num_frames}")
    folder = run.path / "scenes" / "pan"
    list(store_clip(frames, folder, ClipOptions()))
    request = EditRequest(instruction="make it golden", source_caption="", target_caption="")
    opened = open_clip_edit(run, folder, request=request, choice=ClipChoice(editor="grade", settings=Carried()))
    for _ in opened.steps:
        pass
    return read_json(opened.folder / "record.json", EditRecord).cost.get("peak_memory_mb", math.nan)


def mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def rank_agreement(rows: Rows, metric: str, truth: str) -> float:
    """Spearman's correlation of a metric with a true one, both turned so that more is better; mean over clips."""
    from scipy.stats import spearmanr

    signs = [1 if CLIP_METRICS[name].is_high_good else -1 for name in (metric, truth)]
    found = []
    for clip in sorted({clip for clip, _ in rows}):
        pairs = [(scores.values[metric], scores.values[truth]) for (own, _), (_, scores) in rows.items() if own == clip]
        known = [(signs[0] * a, signs[1] * b) for a, b in pairs if a is not None and b is not None]
        if len(known) > 2 and all(len(set(column)) > 1 for column in zip(*known, strict=True)):
            first, second = (list(column) for column in zip(*known, strict=True))
            found.append(float(spearmanr(first, second)[0]))  # pyright: ignore[reportArgumentType]
    return mean(found)


def report(rows: Rows, arguments: argparse.Namespace) -> dict[str, float | None]:
    summary: dict[str, float] = {}
    names = list(CLIP_METRICS)
    print(f"{'method':<24}" + "".join(f"{name:>18}" for name in (*names, "seconds")))
    for method in arguments.methods:
        chosen = [found for (_, own), found in rows.items() if own == method]
        values = {name: mean([scores.values.get(name) for _, scores in chosen]) for name in names}
        values["seconds"] = mean([record.cost.get("seconds") for record, _ in chosen])
        print(f"{method:<24}" + "".join(f"{value:>18.4f}" for value in values.values()))
        key = method.replace("-", "_")
        summary |= {f"{key}_{name}": values[name] for name in ("progress", "spread", "spill", "seconds")}
    for metric in names:
        for truth in ("progress", "spill", "spread"):
            if metric != truth:
                agreement = rank_agreement(rows, metric, truth)
                print(f"rank of {metric:<20} against {truth:<10} {agreement:+.2f}")
                summary[f"rank_{metric}_vs_{truth}"] = agreement
    return {name: None if math.isnan(value) else round(value, 5) for name, value in summary.items()}


def main(given: Sequence[str] | None = None) -> dict[str, float | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/video"))
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*METHODS, TRUTH_ROW, *ABLATIONS])
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--long-frames", type=int, default=300)
    parser.add_argument("--tiny", action="store_true", help="a few steps of what distills or tunes")
    arguments = parser.parse_args(given)
    judges = open_judges(CompareConfig())
    rows: Rows = {}
    for clip, method, record, scores in results(arguments, judges):
        rows[clip, method] = record, scores
    summary = report(rows, arguments)
    if arguments.long_frames:
        short = max(20, arguments.long_frames // 5)
        # The first one warms up what is loaded once.
        for count in (short, arguments.long_frames):
            summary[f"memory_{count}_frames_mb"] = round(memory(arguments.out / "long", count, arguments.size), 1)
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()
