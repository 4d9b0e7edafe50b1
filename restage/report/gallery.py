"""Prepares what the page shows of each edit: pictures of held-out views by method, difference and mask views, numbers.

`restage.report.stage` calls `edit_sections`; pictures go into the asset folder, the records hold relative paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from restage.records import Score, from_plain
from restage.report.pictures import AssetFolder, colour_map, first_frame, read_mask, read_picture
from restage.report.read import EditEntry, ReportConfig, ResultEntry, RunContents
from restage.report.trace import trace_results
from restage.report.turn import MAX_PAGE_BYTES, SceneStore, TurnableEdit
from restage.scores.overlays import change_map, mask_overlay
from restage.scores.statistics import Estimate, clustered_estimate
from restage.scores.tables import anchor_note, estimates_of

__all__ = ["EditSection", "MethodEntry", "edit_sections", "spread"]

Item = TypeVar("Item")

CHANGED = 0.05
"""A pixel has changed when the mean over channels of its change is above this (docs/conventions.md, mask IoU)."""


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """One method with one editor, as one edit's part of the page shows it."""

    method: str
    editor: str
    is_anchor: bool
    seed: str  # seed of the result whose pictures are shown
    num_seeds: int
    problem: str  # why there is nothing to show; empty when there is
    drift_note: str  # what is to be said about views that the editor moved; empty for nothing
    estimates: Mapping[str, Estimate]
    pictures: Mapping[str, list[str | None]]
    """By kind of picture (`after`, `change`, `error`, `mask`), one path per shown view; None where there is none."""
    record: int  # number of that result's record on the page
    folder: str  # path of that result in the run
    orbit: str | None
    poster: str | None
    """First frame of the orbit, for where it does not play: on paper, or with less motion."""
    editor_views: Sequence[tuple[str | None, str | None]]
    """What the 2D editor made of training views, each with its mask."""

    @property
    def label(self) -> str:
        """How text names it."""
        has_editor = self.method != "nothing" and self.editor not in ("", "none")
        return f"{self.method} with {self.editor}" if has_editor else self.method


@dataclass(frozen=True, kw_only=True)
class EditSection:
    """All that the page shows of one edit."""

    entry: EditEntry
    number: int
    views: Sequence[str]
    before: list[str | None]
    truth: list[str | None]
    references: list[str]
    """Pictures that the request refers to."""
    methods: Sequence[MethodEntry]
    chosen: int  # index of the method that is shown first
    width: int
    height: int
    turnable: TurnableEdit | None
    """The scene itself before and after; None where it is not stored."""

    @property
    def has_truth(self) -> bool:
        """Whether any shown view has exact truth."""
        return any(self.truth)

    @property
    def script_data(self) -> dict[str, Any]:
        """What the page's script needs to swap pictures."""
        return {
            "views": list(self.views),
            "before": self.before,
            "truth": self.truth,
            "methods": [
                {
                    "label": method.label,
                    "seed": method.seed,
                    "record": method.record,
                    "problem": method.problem,
                    **method.pictures,
                    "orbit": method.orbit,
                    "poster": method.poster,
                    "editorViews": [list(pair) for pair in method.editor_views],
                }
                for method in self.methods
            ],
        }


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced, first and last among them."""
    if len(items) <= count:
        return list(items)
    last = len(items) - 1
    return [items[round(index * last / max(count - 1, 1))] for index in range(count)]


def edit_sections(contents: RunContents, assets: AssetFolder, config: ReportConfig) -> Iterator[EditSection]:
    """Prepare edits that have a result to show, one after the other; of very many, evenly spaced ones."""
    records = {trace.result.folder: trace.number for trace in trace_results(contents).values()}
    shown = spread([entry for entry in contents.edits if entry.has_pictures], config.max_edits)
    store = SceneStore(assets, MAX_PAGE_BYTES // max(len(shown), 1))
    for number, entry in enumerate(shown, start=1):
        scores = [s for s in contents.scores if s.scene == entry.scene and s.edit in entry.names]
        section = _edit_section(entry, scores, assets, records, number=number, config=config)
        yield replace(section, turnable=_turnable(contents, section, store))


def _turnable(contents: RunContents, section: EditSection, store: SceneStore) -> TurnableEdit | None:
    """Store what the page draws of an edit by itself."""
    return store.store_edit(
        contents.path / "scenes" / section.entry.scene,
        [contents.path / method.folder for method in section.methods],
        chosen=section.chosen,
        views=section.views,
    )


def _edit_section(
    entry: EditEntry,
    scores: Sequence[Score],
    assets: AssetFolder,
    records: Mapping[str, int],
    *,
    number: int,
    config: ReportConfig,
) -> EditSection:
    groups: dict[tuple[str, str], list[ResultEntry]] = {}
    for result in entry.results:
        groups.setdefault((result.method, result.editor), []).append(result)
    all_views = sorted({view for result in entry.results for view in result.held_out})
    views = spread(all_views, config.max_views)
    prepared = _Pictures(entry, assets, f"edit-{number}", views, config.max_px)
    prepared.records = records
    methods = [
        _method_entry(results, [s for s in scores if (s.method, s.editor) == key], prepared)
        for key, results in groups.items()
    ]

    def rank(method: MethodEntry) -> tuple[bool, float, str, str]:
        progress = method.estimates["progress"].mean
        return method.is_anchor, -progress if progress == progress else np.inf, method.method, method.editor

    methods.sort(key=rank)
    # Shown first: `restage` with a model as editor, or else the first that has pictures.
    chosen = min(methods, key=lambda method: (bool(method.problem), method.method != "restage" or method.is_anchor))
    first = prepared.size
    return EditSection(
        entry=entry,
        number=number,
        views=views,
        before=[prepared.copy(entry.before.get(view), f"{view}-before") for view in views],
        truth=[prepared.copy(entry.truth.get(view), f"{view}-truth") for view in views],
        references=[
            assets.add_picture(read_picture(path, max_px=config.max_px), f"edit-{number}-reference")
            for path in entry.references
        ],
        methods=methods,
        chosen=methods.index(chosen),
        width=first[0],
        height=first[1],
        turnable=None,
    )


def _method_entry(results: Sequence[ResultEntry], scores: Sequence[Score], prepared: _Pictures) -> MethodEntry:
    shown = next((result for result in results if result.held_out), results[0])
    estimates = estimates_of(scores)
    if not scores and "seconds" in shown.record.cost:
        where = f"{shown.folder}/record.json: cost.seconds"
        estimates["seconds"] = clustered_estimate([from_plain(shown.record.cost["seconds"], float, where=where)], [""])
    return MethodEntry(
        method=shown.method,
        editor=shown.editor,
        is_anchor=bool(anchor_note(shown.method, shown.editor)),
        seed=shown.seed,
        num_seeds=len(results),
        record=prepared.records[shown.folder],
        folder=shown.folder,
        drift_note=shown.record.drift_note,
        problem="" if shown.held_out else shown.problem or "no held-out renders",
        estimates=estimates,
        pictures=prepared.of_result(shown),
        orbit=prepared.assets.add_file(shown.orbit_path, f"{prepared.label}-{shown.method}-{shown.editor}-orbit")
        if shown.orbit_path
        else None,
        poster=prepared.poster(shown),
        editor_views=prepared.editor_views(shown),
    )


class _Pictures:
    """Reads the pictures of one edit and stores what is made of them."""

    def __init__(self, entry: EditEntry, assets: AssetFolder, label: str, views: Sequence[str], max_px: int) -> None:
        self.entry, self.assets, self.label, self.views, self.max_px = entry, assets, label, views, max_px
        shown = [result.held_out[view] for result in entry.results for view in views if view in result.held_out]
        picture = read_picture(shown[0], max_px=max_px) if shown else np.zeros((1, 1, 3), np.uint8)
        self.size = picture.shape[1], picture.shape[0]
        self.records: Mapping[str, int] = {}

    def copy(self, path: Path | None, label: str) -> str | None:
        if path is None:
            return None
        return self.assets.add_picture(read_picture(path, max_px=self.max_px), f"{self.label}-{label}")

    def of_result(self, result: ResultEntry) -> dict[str, list[str | None]]:
        pictures: dict[str, list[str | None]] = {"after": [], "change": [], "error": [], "mask": []}
        for view in self.views:
            stored = self._of_view(result, view)
            for kind, paths in pictures.items():
                paths.append(stored.get(kind))
        return pictures

    def _of_view(self, result: ResultEntry, view: str) -> dict[str, str]:
        if view not in result.held_out:
            return {}
        label = f"{self.label}-{view}-{result.method}-{result.editor}"
        after = read_picture(result.held_out[view], max_px=self.max_px)
        made = {"after": after}
        before = self._matching(self.entry.before.get(view), after)
        truth = self._matching(self.entry.truth.get(view), after)
        if before is not None:
            change = change_map(after, before)
            made["change"] = colour_map(change)
            mask_path = self.entry.truth_masks.get(view)
            should_change = read_mask(mask_path, max_px=self.max_px) if mask_path else None
            if should_change is not None and should_change.shape != change.shape:
                should_change = None
            made["mask"] = mask_overlay(before, change > CHANGED, should_change)
        if truth is not None:
            made["error"] = colour_map(change_map(after, truth))
        return {kind: self.assets.add_picture(picture, f"{label}-{kind}") for kind, picture in made.items()}

    def _matching(self, path: Path | None, like: np.ndarray) -> np.ndarray | None:
        """The picture, if there is one of the same size: of another size there is no difference to show."""
        if path is None:
            return None
        picture = read_picture(path, max_px=self.max_px)
        return picture if picture.shape == like.shape else None

    def poster(self, result: ResultEntry) -> str | None:
        frame = first_frame(result.orbit_path) if result.orbit_path else None
        label = f"{self.label}-{result.method}-{result.editor}-poster"
        return None if frame is None else self.assets.add_picture(frame, label)

    def editor_views(self, result: ResultEntry) -> list[tuple[str | None, str | None]]:
        names = {
            view: f"{result.method}-{result.editor}-editor-{view}" for view in spread(list(result.editor_views), 4)
        }
        return [
            (self.copy(result.editor_views[view], name), self.copy(result.editor_masks.get(view), f"{name}-mask"))
            for view, name in names.items()
        ]
