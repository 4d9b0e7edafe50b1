"""Which control makes usable pairs: acceptance, truth and layout of every control on held-out prompt pairs.

    python -m benchmarks.controls                        # 200 prompt pairs of each kind of edit
    python -m benchmarks.controls --prompts 20 --kinds recolour ground
    python -m benchmarks.controls --compiled             # some minutes to compile, then faster

Every setting edits the same sampled sources. A pair is *accepted* by the rule of the miniature. The probe, which was
trained on renders, then says of each pair: *source right*: the source shows its caption; *edit right*: the edited
picture shows its own; *layout kept*: the objects stand where they stood; the last two are counted among pairs whose
source is right. A pair of which all three hold is *good*; good pairs are counted among all.
Kinds are done in turn, four prompts each, so that a run that is cut off has equally many of each: rows are kept in
`--folder`, and a run goes on there. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Int
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.miniature.verdicts import judge as judge_picture
from benchmarks.miniature.verdicts import seen_in
from miniature.probe import Probe, load_probe, read_pictures
from miniature.probe_pictures import FIRST_KIND_CLASS
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.clip import load_clip
from restage.diffusion.config import (
    BLEND_ONLY,
    INSTRUCT_PIX2PIX,
    MASACTRL,
    PROMPT_TO_PROMPT,
    ControlOptions,
    LocalBlend,
    SamplerConfig,
)
from restage.diffusion.control import PairControl
from restage.diffusion.control_options import build_control
from restage.diffusion.hardware import keep_freed_memory
from restage.diffusion.pair_sampler import PairBatch, sample_pairs
from restage.diffusion.word_maps import blend_masks
from restage.pairs.config import PAIRS
from restage.pairs.generate import reversed_prompt
from restage.pairs.score import PairScores, judge, score_pairs
from restage.recipes import RULE
from restage.records import InputError, PromptPair, derive_seed, read_json, write_atomically
from restage.world.grammar import (
    EDIT_KINDS,
    KINDS,
    Edit,
    possible_kinds,
    prompt_pair_of,
    sample_description,
    sample_edit,
)

ASSETS = Path(__file__).parents[1] / "restage" / "assets"
PROBE = Path(__file__).parent / "miniature" / "probe.safetensors"
NO_BLEND = LocalBlend(start=1.0)
PROMPTS_PER_BATCH = 4
KEPT_LAYOUT = 0.7
RESIZED = 1.15
"""Factor on the cells of an object that counts as another size."""


def _own(cross: float, own: float, **options: Any) -> ControlOptions:
    return ControlOptions(cross_window=(0.0, cross), self_window=(0.0, own), **options)


CONTROLS = {
    "none": _own(0.0, 0.0, blend=NO_BLEND),
    "cross 0.8": _own(0.8, 0.0, blend=NO_BLEND),
    "cross 0.8, self 0.4": _own(0.8, 0.4, blend=NO_BLEND),
    "cross 0.8, self 0.4, blend": _own(0.8, 0.4),
    "cross 0.8, self 0.2, blend": _own(0.8, 0.2),
    "cross 0.8, self 0.6, blend": _own(0.8, 0.6),
    "cross 0.4, self 0.4, blend": _own(0.4, 0.4),
    "blend only": BLEND_ONLY,
    "blend only, backwards": BLEND_ONLY,
    "Prompt-to-Prompt": PROMPT_TO_PROMPT,
    "InstructPix2Pix, p = 0.6": dataclasses.replace(INSTRUCT_PIX2PIX, self_window=(0.0, 0.6)),
    "MasaCtrl": MASACTRL,
    "MasaCtrl by region": dataclasses.replace(MASACTRL, region_threshold=0.3),
}

BACKWARDS = frozenset({"blend only, backwards"})
"""Made from the edited caption back to the source's, and the pictures change places; their sources are others."""


def held_out_edits(kind: str, count: int) -> list[tuple[Edit, PromptPair]]:
    """Edits of one kind of scenes that no training sees, with their prompt pairs."""
    found: list[tuple[Edit, PromptPair]] = []
    draw = 0
    while len(found) < count:
        seed = derive_seed("controls benchmark", kind, draw)
        description = sample_description(seed)
        if kind in possible_kinds(description):
            edit = sample_edit(description, seed, kind=kind)
            found.append((edit, prompt_pair_of(edit, seed)))
        draw += 1
    return found


def sample_batch(
    backbone: Backbone,
    prompts: Sequence[PromptPair],
    controls: dict[str, ControlOptions],
    *,
    seeds: Sequence[int],
    guidance: float,
    sampler: SamplerConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sources (prompts, ...), edited pictures and masks (prompts, controls, ...), every control on the same sources."""
    made = [
        build_control(backbone.tokenizer, p.source, p.target, swaps=p.swaps, words=p.words, options=options)[1]
        for p in prompts
        for options in controls.values()
    ]
    batch = PairBatch(
        control=PairControl.merge(made),
        source_of=torch.arange(len(prompts)).repeat_interleave(len(controls)),
        source_text=backbone.encode_prompts([p.source for p in prompts]),
        edit_text=backbone.encode_prompts([p.target for p in prompts for _ in controls]),
        seeds=tuple(seeds),
        guidance=torch.full((len(prompts),), guidance),
    )
    *_, last = sample_pairs(backbone, batch, sampler)
    images = backbone.decode_latents(torch.cat([last.source_latents, last.edit_latents]))
    sources, edited = images[: len(prompts)], images[len(prompts) :].unflatten(0, (len(prompts), len(controls)))
    masks = torch.ones(edited.shape[0] * edited.shape[1], *edited.shape[3:])
    if last.maps is not None:
        masks = blend_masks(last.maps, batch.control.blend, size=(edited.shape[3], edited.shape[4]))
    return sources, edited, masks.unflatten(0, edited.shape[:2])


def _kinds_that_change(edit: Edit) -> tuple[set[int], set[int]]:
    """Classes of the probe's cells of the objects that the edit changes: before it, and after it."""
    before, after = edit.before.objects, edit.after.objects
    gone, come = [o for o in before if o not in after], [o for o in after if o not in before]
    return tuple({FIRST_KIND_CLASS + KINDS.index(o.kind) for o in objects} for objects in (gone, come))  # pyright: ignore


def _overlap(first: Bool[Tensor, "h w"], second: Bool[Tensor, "h w"], whole: Tensor) -> float:
    return float((first & second).sum()) / float(whole) if whole > 0 else 1.0


def layout_kept(edit: Edit, source: Int[Tensor, "h w"], edited: Int[Tensor, "h w"]) -> bool:
    """Whether all objects stand where they stood, by the cells of source and edited picture as the probe reads them.

    Of what is not changed, the cells agree to an IoU of `KEPT_LAYOUT`, apart from those that what changes takes in
    either picture; of what is changed and is in both, half of the smaller one's cells are the other's, too.
    """
    gone, come = _kinds_that_change(edit)
    old, new = torch.isin(source, torch.tensor(sorted(gone))), torch.isin(edited, torch.tensor(sorted(come)))
    free = ~(old | new)
    first, second = (source >= FIRST_KIND_CLASS) & free, (edited >= FIRST_KIND_CLASS) & free
    is_kept = _overlap(first, second, (first | second).sum()) >= KEPT_LAYOUT
    is_in_place = not (gone and come) or _overlap(old, new, torch.minimum(old.sum(), new.sum())) >= 0.5
    return is_kept and is_in_place


def size_is_right(edit: Edit, source: Int[Tensor, "h w"], edited: Int[Tensor, "h w"]) -> bool:
    """Whether a resized object takes clearly more cells, or fewer, as asked; True for other kinds of edit."""
    if edit.kind != "resize":
        return True
    (old,) = (o for o in edit.before.objects if o not in edit.after.objects)
    (new,) = (o for o in edit.after.objects if o not in edit.before.objects)
    number = FIRST_KIND_CLASS + KINDS.index(old.kind)
    before, after = float((source == number).sum()), float((edited == number).sum())
    return after > RESIZED * before if new.scale > old.scale else before > RESIZED * after


def measure(
    models: tuple[Backbone, Any, Probe],
    items: Sequence[tuple[Edit, PromptPair]],
    controls: dict[str, ControlOptions],
    *,
    guidance: float,
    sampler: SamplerConfig,
) -> tuple[list[dict[str, Any]], Tensor]:
    """Rows of a batch of prompts under every control, and its pictures (prompts, 1 + controls, 3, h, w)."""
    backbone, clip, probe = models
    prompts = [prompt for _, prompt in items]
    seeds = [derive_seed("controls benchmark noise", prompt.source) for prompt in prompts]
    forwards = {name: options for name, options in controls.items() if name not in BACKWARDS}
    backwards = {name: options for name, options in controls.items() if name in BACKWARDS}
    found = []
    if forwards:
        before, after, masks = sample_batch(
            backbone, prompts, forwards, seeds=seeds, guidance=guidance, sampler=sampler
        )
        found.append((before[:, None].expand_as(after), after, masks))
    for name, options in backwards.items():
        back = [reversed_prompt(prompt) for prompt in prompts]
        own = {name: options}
        after, before, masks = sample_batch(backbone, back, own, seeds=seeds, guidance=guidance, sampler=sampler)
        found.append((before, after[:, None], masks))
    names = names_in_order(controls)
    sources, edited, masks = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    pictures = torch.stack([sources, edited])
    readings = read_pictures(probe, pictures.flatten(0, 2))
    seen = seen_in(readings)
    cells = readings.classes.unflatten(0, pictures.shape[:3])
    rows = []
    for i, (edit, prompt) in enumerate(items):
        scores = score_pairs(clip, [prompt] * len(names), sources=sources[i], edited=edited[i], masks=masks[i])
        for j, (name, score) in enumerate(zip(names, scores, strict=True)):
            first = i * len(names) + j
            second = first + len(items) * len(names)
            is_right = judge_picture(seen[second], edit.after).is_all_right
            rows.append(
                {
                    "prompt": prompt.id,
                    "kind": edit.kind,
                    "num_objects": len(edit.before.objects),
                    "control": name,
                    **score._asdict(),
                    "source_right": judge_picture(seen[first], edit.before).is_all_right,
                    "edit_right": is_right and size_is_right(edit, cells[0, i, j], cells[1, i, j]),
                    "layout_kept": layout_kept(edit, cells[0, i, j], cells[1, i, j]),
                }
            )
    return rows, torch.cat([sources[:, :1], edited], dim=1)


def names_in_order(controls: Iterable[str]) -> list[str]:
    """Names as the columns of pictures stand: those made backwards come last."""
    return sorted(controls, key=lambda name: name in BACKWARDS)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return round(float(np.mean(known)), 3) if known else math.nan


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of one group of rows: of all pairs, of those that are accepted, or of those whose source is right."""
    sound = [row for row in rows if row["source_right"]]
    good = [bool(row["source_right"] and row["edit_right"] and row["layout_kept"]) for row in rows]
    return {
        "good": _mean([float(x) for x in good]),
        "accepted_and_good": _mean([float(x and row["accepted"]) for x, row in zip(good, rows, strict=True)]),
        "good_if_accepted": _mean([float(x) for x, row in zip(good, rows, strict=True) if row["accepted"]]),
        "pairs": len(rows),
        "accepted": _mean([float(row["accepted"]) for row in rows]),
        "edit_right": _mean([float(row["edit_right"]) for row in sound]),
        "layout_kept": _mean([float(row["layout_kept"]) for row in sound]),
        "accepted_and_right": _mean([float(row["accepted"] and row["edit_right"]) for row in sound]),
        "right_if_accepted": _mean([float(row["edit_right"]) for row in sound if row["accepted"]]),
    }


def print_table(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Print by kind which pairs are accepted, and which of these are good; returns the summaries of every control."""
    kinds = [kind for kind in EDIT_KINDS if any(row["kind"] == kind for row in rows)]
    names = list(dict.fromkeys(row["control"] for row in rows))
    found = {}
    for name in names:
        own = [row for row in rows if row["control"] == name]
        by_kind = {kind: summarize([row for row in own if row["kind"] == kind]) for kind in kinds}
        found[name] = {**summarize(own), "by_kind": by_kind}
    shares = ("edit_right", "layout_kept", "good_if_accepted")
    for key, more in (("accepted", ()), ("accepted_and_good", shares)):
        titles = [key, *kinds, "all", *more]
        print(f"| {' | '.join(title.replace('_', ' ') for title in titles)} |\n{'| --- ' * len(titles)}|")
        for name, row in found.items():
            cells = [*(row["by_kind"][kind][key] for kind in kinds), *(row[column] for column in (key, *more))]
            print(f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return found


def draw_grid(pictures: Sequence[Tensor], prompts: Sequence[PromptPair], names: Sequence[str], path: Path) -> None:
    """A row for each prompt: its source, and its edit under every control."""
    side, top, left = 96, 16, 0
    width, height = left + side * (1 + len(names)), (side + top) * len(pictures) + 30
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(["source", *names]):
        for line, part in enumerate(name.replace(" by ", ", by ").split(", ")[:3]):
            draw.text((left + column * side + 2, line * 9), part[:17], fill="black")
    for row, (strip, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        y = 30 + row * (side + top)
        draw.text((2, y), f"{prompt.source}  ->  {prompt.instruction}", fill="black")
        for column, picture in enumerate(strip):
            array = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
            sheet.paste(Image.fromarray(array).resize((side, side)), (left + column * side, y + 12))
    sheet.save(path)


def join_grids(paths: Sequence[Path], path: Path, *, rows: int = 2) -> None:
    """The heads of all kinds' grids, under one line of names."""
    grids = [Image.open(each) for each in paths]
    top, height = 30, rows * (96 + 16)
    sheet = Image.new("RGB", (grids[0].width, top + height * len(grids)), "white")
    sheet.paste(grids[0].crop((0, 0, grids[0].width, top)), (0, 0))
    for i, grid in enumerate(grids):
        sheet.paste(grid.crop((0, top, grid.width, top + height)), (0, top + i * height))
    sheet.save(path)


def run_all(
    models: tuple[Backbone, Any, Probe], arguments: argparse.Namespace, controls: dict[str, ControlOptions]
) -> Iterator[list[dict[str, Any]]]:
    """Rows of all prompts, batch by batch, kinds in turn; those already in the folder are read."""
    sampler = SamplerConfig(num_steps=arguments.steps)
    items = {kind: held_out_edits(kind, arguments.prompts) for kind in arguments.kinds}
    for start in range(0, arguments.prompts, PROMPTS_PER_BATCH):
        for kind in arguments.kinds:
            batch = items[kind][start : start + PROMPTS_PER_BATCH]
            path = arguments.folder / f"{kind}-{start:04d}.parquet"
            if not path.exists():
                rows, pictures = measure(models, batch, controls, guidance=arguments.guidance, sampler=sampler)
                if start == 0:
                    prompts = [prompt for _, prompt in batch]
                    draw_grid(list(pictures), prompts, names_in_order(controls), arguments.folder / f"grid-{kind}.png")
                with write_atomically(path) as temporary:
                    pq.write_table(pa.Table.from_pylist(rows), temporary)
            for row in (rows := pq.read_table(path).to_pylist()):
                row["reason"] = judge(PairScores(*(row[name] for name in PairScores._fields)), RULE)
                row["accepted"] = not row["reason"]
            yield rows


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or check that its rows were made with the same settings.

    Raises:
        InputError: they were made with others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if path.exists() and (found := read_json(path)) != settings:
        raise InputError(f"{folder} holds rows made with {found}, not with {settings}; choose another --folder")
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(settings) + "\n")


def main() -> None:
    """Run the study, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200, help="prompt pairs of each kind")
    parser.add_argument("--kinds", nargs="+", default=list(EDIT_KINDS), choices=EDIT_KINDS)
    parser.add_argument("--controls", nargs="+", default=list(CONTROLS), choices=CONTROLS)
    parser.add_argument("--steps", type=int, default=PAIRS.generate.sampler.num_steps)
    parser.add_argument("--guidance", type=float, default=PAIRS.generate.guidance)
    parser.add_argument("--compiled", action="store_true", help="compile the UNet")
    parser.add_argument("--folder", type=Path, default=Path("runs/controls"))
    arguments = parser.parse_args()
    settings = {"steps": arguments.steps, "guidance": arguments.guidance, "controls": arguments.controls}
    try:
        open_folder(arguments.folder, settings)
    except InputError as error:
        parser.error(str(error))
    keep_freed_memory()
    backbone = load_backbone(ASSETS / "text_to_image")
    models = (backbone.compiled() if arguments.compiled else backbone, load_clip(ASSETS / "clip"), load_probe(PROBE))
    controls = {name: CONTROLS[name] for name in arguments.controls}
    rows: list[dict[str, Any]] = []
    for batch in run_all(models, arguments, controls):
        rows += batch
        print(f"{len(rows)} pairs so far, {time.process_time():.0f} CPU seconds", flush=True)
    grids = [path for kind in arguments.kinds if (path := arguments.folder / f"grid-{kind}.png").exists()]
    if grids:
        join_grids(grids, arguments.folder / "grid.png")
    sources = {row["prompt"]: row["source_right"] for row in rows}
    result = {"source_right": _mean([float(value) for value in sources.values()]), "controls": print_table(rows)}
    print(json.dumps({"prompts": len(sources), "steps": arguments.steps, "guidance": arguments.guidance, **result}))


if __name__ == "__main__":
    main()
