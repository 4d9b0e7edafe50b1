"""Measure the miniature's models on worlds that no training has seen.

    python -m benchmarks.miniature [--models FOLDER] [--world-seed N] [--parts text_to_image clip ...] [--page FOLDER]

A probe, trained on rendered truth only, reads what sampled pictures show. The last line is JSON; `--page` holds the
pictures. The table of figures and what they should be: `WANTED`. Captions and edits are those of the world's second
edition: models of the first do not know its places and patterns, and are not asked what is too long for them.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from PIL import Image

from benchmarks.miniature import edits, held_out, page, parts, text_to_image, verdicts
from miniature.edit_model import GUIDANCE
from miniature.probe import load_probe
from restage.diffusion.backbone import load_backbone
from restage.diffusion.clip import load_clip
from restage.diffusion.edit_models import load_edit_model, widen_unet
from restage.diffusion.editor import EditModel
from restage.records import parse_json

__all__ = ["PARTS", "WANTED", "Figures", "main"]

PartName = Literal[
    "probe", "autoencoder", "text_to_image", "unseen", "places", "clip", "sampling", "edit_model", "train_step",
    "assets",
]  # fmt: skip
PARTS: tuple[PartName, ...] = get_args(PartName)

WANTED: dict[str, tuple[str, float]] = {
    "vae_psnr_db": (">=", 34),
    "color_accuracy": (">=", 0.97),
    "kind_accuracy": (">=", 0.95),
    "ground_accuracy": (">=", 0.99),
    "time_accuracy": (">=", 0.99),
    "count_accuracy": (">=", 0.95),
    "all_accuracy": (">=", 0.92),
    "unseen_accuracy": (">=", 0.85),
    "place_accuracy": (">=", 0.85),
    "word_iou": (">=", 0.6),
    "clip_top1_of_256": (">=", 0.95),
    "clip_direction_auc": (">=", 0.97),
    "edit_progress_appearance": (">=", 0.8),
    "edit_progress_shape": (">=", 0.5),
    "edit_progress_recolour": (">=", 0.8),
    "edit_progress_ground": (">=", 0.8),
    "edit_progress_time": (">=", 0.8),
    "edit_progress_reshape": (">=", 0.45),
    "edit_progress_remove": (">=", 0.7),
    "edit_progress_add": (">=", 0.45),
    "edit_progress_move": (">=", 0.4),
    "edit_spill": ("<=", 0.01),
    "edit_mask_iou": (">=", 0.7),
    "train_step_ratio": (">=", 2.0),
    "sample16_s": ("<=", 4.0),
    "assets_mb": ("<=", 90.0),
}
"""The figures, in the order in which they are reported, and what they should at least (or at most) be."""


@dataclass
class Figures:
    """What was measured: the wanted figures at the top, all others as details."""

    values: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Image.Image] = field(default_factory=dict)

    def add(self, found: dict[str, float]) -> None:
        """Sort figures to where they belong."""
        for name, value in found.items():
            (self.values if name in WANTED else self.details)[name] = value

    def falls_short(self, name: str) -> bool:
        """Whether a figure misses what is wanted; NaN does."""
        direction, bound = WANTED[name]
        value = self.values[name]
        return not (value >= bound if direction == ">=" else value <= bound)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    models: Path | None = None
    """Folder with `text_to_image`, `clip` and `edit_model`; default: those of the package."""
    edit_model: Path | None = None
    """The edit model that is measured, such as one of another version; default: that of `models`."""
    state: Path | None = None
    """A `state.pt` of a text-to-image training in progress, whose averaged weights are measured in place of the
    model's own."""
    edit_state: Path | None = None
    """The same of an edit model's training, which started from the text-to-image model of `models`."""
    probe: Path = Path(__file__).parent / "probe.safetensors"
    """The probe's weights."""
    parts: tuple[PartName, ...] = PARTS
    """Which parts to measure."""
    world_seed: int = 0
    """Moves all worlds, captions and edits."""
    edition: Literal[1, 2] = 2
    """Edition of the world that captions are of; those that say places, and edits, are always of the second."""
    captions: int = 240
    """Captions to sample pictures of; half as many again with unseen combinations, and with places."""
    cases: int = 90
    """Edits to score, kinds in turn."""
    probe_pictures: int = 1000
    """Unseen renders that the probe is measured on."""
    train_step: Path | None = None
    """Output of `python -m benchmarks.train_step`, whose ratio is reported; that takes too long to be done beside."""
    sampling: text_to_image.Sampling = field(default_factory=text_to_image.Sampling)
    """How pictures are sampled."""
    page: Path = Path("runs/benchmark-miniature")
    """Where the pictures go."""


class Benchmark:
    """The parts, each a method that fills in its figures; models and worlds are loaded when first asked for."""

    def __init__(self, settings: Settings) -> None:
        from restage.run.models import models_in

        self.settings = settings
        self.folders = models_in(settings.models)
        self.backbone = load_backbone(self.folders.text_to_image)
        self.figures = Figures()
        if settings.state is not None:
            parts_of = {"unet": self.backbone.unet, "text_encoder": self.backbone.text_encoder}
            self.figures.details["state_step"] = text_to_image.load_training_state(parts_of, settings.state)

    def run(self) -> Figures:
        """Measure the chosen parts, in order."""
        for name in PARTS:
            if name in self.settings.parts:
                start_s = time.perf_counter()
                getattr(self, name)()
                print(f"{name}: {time.perf_counter() - start_s:.0f} s", flush=True)
        return self.figures

    def captions(self, count: int, split: str = "train", *, placed: bool = False) -> list[held_out.Captioned]:
        """Captions of the held-out split that the model takes whole; `placed` only those whose place can be judged."""

        def fits(item: held_out.Captioned) -> bool:
            is_wanted = not placed or (item.place is not None and item.place.relation in verdicts.JUDGED_PLACES)
            return is_wanted and parts.fits(self.backbone.tokenizer, item.caption)

        edition = 2 if placed else self.settings.edition
        return held_out.captions(self.settings.world_seed, count, split=split, edition=edition, fits=fits)

    def cases(self) -> list[held_out.Case]:
        """Edits whose texts the models take whole."""
        every = list(held_out.edit_cases(self.settings.world_seed, max(2, self.settings.cases)))
        prompts = [(case.prompt.source, case.prompt.target, case.prompt.instruction) for case in every]
        found = [case for case, told in zip(every, prompts, strict=True) if parts.fits(self.backbone.tokenizer, *told)]
        self.figures.details["cases_too_long"] = len(every) - len(found)
        return found

    def probe(self) -> None:
        """What the probe reads in renders, and in renders that went through the autoencoder."""
        half = self.settings.probe_pictures // 2
        items = self.captions(half) + self.captions(half, "unseen")
        rendered = held_out.render_captioned(items)
        probe = load_probe(self.settings.probe)
        softened = parts.round_trip(self.backbone, rendered.images)
        self.figures.details["probe_on_renders"] = parts.measure_probe(probe, rendered, rendered.images)
        self.figures.details["probe_on_reconstructions"] = parts.measure_probe(probe, rendered, softened)

    def autoencoder(self) -> None:
        """PSNR of the autoencoder."""
        rendered = held_out.render_captioned(self.captions(64))
        self.figures.add(parts.measure_autoencoder(self.backbone, rendered.images))

    def _sample(self, items: list[held_out.Captioned]) -> list[text_to_image.Sample]:
        return text_to_image.sample(self.backbone, items, load_probe(self.settings.probe), self.settings.sampling)

    def text_to_image(self) -> None:
        """What pictures of held-out captions show."""
        samples = self._sample(self.captions(self.settings.captions))
        found = [sample.verdict for sample in samples]
        self.figures.add(verdicts.accuracies(found) | text_to_image.word_iou(samples))
        self.figures.details["by_number_of_objects"] = verdicts.accuracies_by_count(found)
        self.figures.details["by_word"] = verdicts.shares_by_word(found, [s.item.description for s in samples])
        self.figures.pictures["samples"] = page.draw_cards([page.card_of(sample) for sample in samples[:36]])
        word_masks = page.draw_word_masks(samples)
        if word_masks is not None:
            self.figures.pictures["word masks"] = word_masks
        failed = [page.card_of(sample) for sample in samples if not sample.verdict.is_all_right]
        if failed:
            self.figures.pictures["failures"] = page.draw_cards(failed[:36])

    def unseen(self) -> None:
        """What pictures of unseen combinations of kind and color show."""
        samples = self._sample(self.captions(self.settings.captions // 2, "unseen"))
        found = [sample.verdict for sample in samples]
        self.figures.values["unseen_accuracy"] = verdicts.accuracies(found)["all_accuracy"]
        self.figures.details["unseen"] = verdicts.accuracies(found)
        self.figures.details["unseen_by_number_of_objects"] = verdicts.accuracies_by_count(found)
        self.figures.pictures["unseen"] = page.draw_cards([page.card_of(sample) for sample in samples[:24]])

    def places(self) -> None:
        """Whether pictures of captions that say a place show it, and what the same probe says of renders that do."""
        items = self.captions(self.settings.captions // 2, placed=True)
        samples = self._sample(items)
        judged = [(s.item.place, s.is_place_right) for s in samples if s.item.place and s.is_place_right is not None]
        found = verdicts.place_accuracies(judged)
        self.figures.values["place_accuracy"] = found["all"]
        self.figures.details["place_accuracy_by_relation"] = found
        of_renders = parts.judge_places(load_probe(self.settings.probe), held_out.render_captioned(items))
        self.figures.details["place_accuracy_of_renders"] = verdicts.place_accuracies(of_renders)
        self.figures.pictures["places"] = page.draw_cards([page.card_of(sample) for sample in samples[:36]])

    def clip(self) -> None:
        """Retrieval, and what direction similarity separates."""
        cases, rendered = self.cases(), held_out.render_captioned(self.captions(256))
        self.figures.add(parts.measure_clip(load_clip(self.folders.clip), rendered, cases, self.backbone))

    def sampling(self) -> None:
        """Seconds for 16 pictures, with the threads that torch has."""
        self.figures.add(parts.measure_sampling(self.backbone, self.captions(16), self.settings.sampling))
        self.figures.details["num_threads"] = torch.get_num_threads()

    def _load_edit_model(self) -> EditModel:
        path = self.settings.edit_state
        if path is None:
            return load_edit_model(self.settings.edit_model or self.folders.edit_model)
        unet, encoder = widen_unet(self.backbone.unet), copy.deepcopy(self.backbone.text_encoder)
        step = text_to_image.load_training_state({"unet": unet, "text_encoder": encoder}, path)
        self.figures.details["edit_state_step"] = step
        backbone = replace(self.backbone, text_encoder=encoder)
        return EditModel(backbone, unet, guidance=GUIDANCE, has_own_text_encoder=True)

    def edit_model(self) -> None:
        """Edits of single rendered views against their truth."""
        cases = self.cases()
        edited = edits.run_edits(self._load_edit_model(), cases)
        self.figures.add(edits.edit_figures(edited))
        self.figures.details.update(edits.adding_elsewhere(cases))
        self.figures.pictures["edits"] = page.draw_edits(edited)

    def train_step(self) -> None:
        """How many times as fast as the public way a training step is; NaN where no measurement of it is named."""
        path, ratio = self.settings.train_step, float("nan")
        if path is not None:
            ratio = float(parse_json(path.read_text().splitlines()[-1], where=path)["train_step_ratio"])
        self.figures.values["train_step_ratio"] = ratio

    def assets(self) -> None:
        """Size of the models' folder."""
        root = self.folders.text_to_image.parent
        folders = (self.folders.text_to_image, self.folders.clip, self.folders.edit_model)
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        assert all(root in path.parents for path in files)
        self.figures.values["assets_mb"] = sum(path.stat().st_size for path in files) / 1e6


def main(settings: Settings) -> None:
    """Measure, write the page, print the table and, last, the JSON."""
    figures = Benchmark(settings).run()
    table = {
        name: (figures.values[name], f"{direction} {bound:g}", figures.falls_short(name))
        for name, (direction, bound) in WANTED.items()
        if name in figures.values
    }
    for name, (value, wanted, is_short) in table.items():
        print(f"{name:26} {value:8.3f}   {wanted:8}{'  falls short' if is_short else ''}")
    what = f"World seed {settings.world_seed}; models: {settings.models or 'those of the package'}."
    page.write_page(settings.page, table, figures.pictures, what=what)
    print(f"page: {settings.page / 'index.html'}")
    facts = {"world_seed": settings.world_seed, "captions": settings.captions, "cases": settings.cases}
    print(json.dumps(_rounded({**facts, **figures.values, "details": figures.details})))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Settings], description=__doc__))
