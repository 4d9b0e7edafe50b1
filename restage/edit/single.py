"""One edit of one fitted scene by a request that somebody typed; `restage edit` and the viewer share it.

The request becomes an edit case of the scene, so that `compare` and `report` see the result like any other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor

from restage.edit.editors import EditorSource, MenuEditor, OpenEditors, check_editor
from restage.edit.editors.interface import MAX_DRIFT
from restage.edit.editors.referenced import show_references
from restage.edit.editors.weights import is_made
from restage.edit.job import Dialed, EditStep, Method, TimeLimited, asked_pictures, needs_editor
from restage.edit.methods import METHODS
from restage.edit.origins import weights_on
from restage.edit.results import edit_scene
from restage.edit.stage import EditUnit, load_scene, read_case
from restage.records import (
    EditCase,
    EditRequest,
    InputError,
    content_id,
    derive_seed,
    did_you_mean,
    read_json,
    write_json,
)
from restage.regions.given import content_mark, find_region, has_all_masks, read_given, read_regions
from restage.regions.region import Region, render_region
from restage.run.endpoint_config import EndpointConfig
from restage.run.folder import RunFolder
from restage.run.layout import ANSWERS, CAPTURE, EDIT_CASE, EDIT_RECORD, SPLATS, TRUTH
from restage.run.models import edit_model_of
from restage.run.reading import EditRecord
from restage.scenes.capture import Capture
from restage.scenes.device import made_on
from restage.scenes.fit import render_views
from restage.scenes.io import read_capture
from restage.scenes.io.splat_files import read_splats
from restage.scenes.references import read_references
from restage.scenes.splats import Splats

__all__ = ["AUTO", "EditChoice", "EditorChoice", "OpenedEdit", "StartingPoint", "estimate_edit", "find_case"]
__all__ += ["name_case", "open_edit"]


AUTO = "auto"
"""Stands for the editor that suits the scene, the instruction and the machine; `restage.edit.choosing` chooses it."""


@dataclass(frozen=True, kw_only=True)
class EditorChoice:
    """How a user's scene or clip is edited: a method of a menu, and the editor of pictures that it asks."""

    menu: ClassVar[Mapping[str, type]] = {}
    """Methods by their names."""
    what: ClassVar[str] = "method"
    """What messages call one."""
    method: str
    """Name of a method on the menu."""
    settings: Any = None
    """Settings of the method; None for its defaults."""
    editor: str = "edit_model"
    """A name on the menu `EDITORS`, `noisy-<strength>-<one of them>`, or `AUTO`, which is to be replaced before."""
    model: Path | None = None
    """Folder of the editor's model; None with edit_model for the run's own, or else the one of the package."""
    device: str = "cpu"
    """Where the scene is drawn and the editor's model computes; see `restage.scenes.device.choose_device`."""
    model_options: tuple[str, ...] = ()
    """Options of the editor, as `key=value`; see `restage.edit.editors.pipeline.PipelineOptions`."""
    max_drift: float = MAX_DRIFT
    """Views that the editor moves farther than this share of their width are left out."""
    seed: int = 0
    """Seed for the edit's noise."""
    endpoint: EndpointConfig = EndpointConfig()
    """Where the editor `endpoint` asks, and what that may cost."""

    def __post_init__(self) -> None:
        if self.method not in self.menu:
            hint = did_you_mean(self.method, self.menu)
            raise InputError(f"unknown {self.what} {self.method!r}; {hint}choose from {', '.join(self.menu)}")
        if self.editor != AUTO:
            check_editor(self.editor)
        if self.settings is not None and not isinstance(self.settings, self.menu[self.method]):
            raise InputError(f"expected settings of {self.method}, got {type(self.settings).__name__}")

    @property
    def asks_editor(self) -> bool:
        """Whether the method asks an editor at all."""
        return needs_editor(self.menu[self.method])

    @property
    def menu_editor(self) -> MenuEditor:
        """The editor as it is opened."""
        return MenuEditor(
            name=self.editor,
            model=self.model,
            endpoint=self.endpoint,
            options=self.model_options,
            max_drift=self.max_drift,
        )

    def model_sha256(self, default: Path) -> str:
        """Hash of the files of the model that edits; `default` is the run's edit model. Empty where none does."""
        return self.menu_editor.model_sha256(default) if self.asks_editor and self.editor != AUTO else ""

    def marks(self) -> list[str]:
        """Tell the editor from the plain one of its name, in names of results; empty for defaults."""
        marks = []
        if self.model is not None:
            marks.append(content_id("model", str(self.model))[-8:])
        if self.model_options:
            marks.append(content_id("options", sorted(self.model_options))[-8:])
        if self.max_drift != MAX_DRIFT:
            marks.append(f"drift-{self.max_drift:g}")
        return marks


@dataclass(frozen=True, kw_only=True)
class EditChoice(EditorChoice):
    """How a user's scene is edited."""

    menu: ClassVar[Mapping[str, type]] = METHODS
    method: str = "restage"
    settings: Method | None = None
    strength: float = 1.0
    """Share of its way that every splat goes, in [0, 1]."""
    time_budget_s: float | None = None
    """Seconds after which the method ends at its next step; None for its own end."""
    region: Path | None = None
    """Where the scene may change: the name of one of its regions, or a path for `read_regions`; None for everywhere."""

    anchor: str = ""
    """The view that is edited first, and shown with all others; see `restage.edit.editors.anchored.find_anchor`. Empty
    to edit each view by itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.resolved()

    def resolved(self) -> Method:
        """The method with its settings, limited and dialed as chosen."""
        method = self.settings or METHODS[self.method]()
        if self.time_budget_s is not None:
            method = TimeLimited(settings=method, time_budget_s=self.time_budget_s)
        return method if self.strength == 1 else Dialed(settings=method, strength=self.strength)


@dataclass(frozen=True)
class StartingPoint:
    """An edited scene that is to be edited further."""

    splats: Splats
    record_id: str  # id of the record of the edit that it came from

    @classmethod
    def of(cls, folder: Path) -> StartingPoint:
        """Start from a finished edit's folder."""
        record = read_json(folder / EDIT_RECORD, EditRecord)
        if record.problem:
            raise InputError(f"{folder} holds no finished edit: {record.reason or 'not done'}")
        return cls(read_splats(folder / SPLATS), record.id)


class OpenedEdit(NamedTuple):
    """An edit that can begin, or was made before."""

    folder: Path  # where the result lies once the steps are through
    steps: Iterator[EditStep]  # steps that lead to it; none if the result is there already


def open_edit(
    run: RunFolder,
    scene_folder: Path,
    *,
    request: EditRequest,
    choice: EditChoice,
    start: StartingPoint | None = None,
    editors: OpenEditors | None = None,
) -> OpenedEdit:
    """Find out where a result belongs, and prepare the steps that lead to it; an earlier failure is tried again.

    An instruction that the scene has a case for means that case, with its truth. From a starting point the renders of
    its splats stand for the photographs, and the result's name says so. `editors` keeps models open for the next edit.
    A method that needs what this scene does not have is refused.
    """
    method = choice.resolved()
    if choice.region is not None:
        choice = replace(choice, region=find_region(choice.region, scene_folder))
    known = find_case(scene_folder, request) if start is None else None
    name, case = name_case(scene_folder, request, known=known, suffix=_suffix(choice, method, start))
    unit = EditUnit(scene=scene_folder.name, edit=name, method=choice.method, editor=choice.editor, seed=choice.seed)
    folder = unit.folder(run.path)
    weights_id = choice.model_sha256(edit_model_of(run.path))
    if is_made(folder, weights_id, choice.model):
        return OpenedEdit(folder, iter(()))
    capture, fitted = load_scene(scene_folder, choice.device)
    splats = fitted if start is None else start.splats.to(choice.device)
    truth = scene_folder / TRUTH / known if known else None
    given = {"truth": truth, "model": edit_model_of(run.path), "device": choice.device, "answers": run.path / ANSWERS}
    source = EditorSource(file_names=capture.file_names, **given)
    begun = None if start is None else (start.record_id, splats)
    regions, weights = _find_place(choice, method, capture, fitted, scene_folder, begun)
    if start is not None:
        capture = replace(capture, images=render_views(splats, capture.cameras))
    editor = (editors or OpenEditors()).open(choice.menu_editor, source)
    editor = show_references(editor, read_references(scene_folder, request))
    inputs = {"edit_id": case.id} if start is None else {"edit_id": case.id, "starts_from": start.record_id}
    inputs |= {"model_sha256": weights_id} if weights_id else {}
    if choice.anchor:
        from restage.edit.editors.anchored import anchor_mark, find_anchor, follow_anchor  # OpenCV takes a moment

        anchor = find_anchor(choice.anchor, capture, regions, max_drift=choice.max_drift)
        editor = follow_anchor(editor, anchor, choice.anchor)
        inputs |= {"anchor": anchor_mark(choice.anchor), "anchor_view": capture.file_names[anchor.index]}
    case_file = scene_folder / TRUTH / name / EDIT_CASE
    if not case_file.exists():  # written once the models are open, so that a refused edit leaves nothing behind
        write_json(case_file, case)
    if regions is not None:
        inputs["regions_sha256"] = hashlib.sha256(regions.cpu().numpy().tobytes()).hexdigest()
    steps = edit_scene(
        splats,
        capture,
        request=case.request,
        method=method,
        editor=editor,
        seed=derive_seed(run.seed, case.id, choice.seed),
        folder=folder,
        facts={**asdict(unit), "kind": case.kind, "inputs": inputs, **made_on(choice.device)},
        regions=regions,
        weights=weights,
    )
    return OpenedEdit(folder, steps)


class _Place(NamedTuple):
    """Where a scene may change; None for everywhere."""

    regions: Float[Tensor, "n h w"] | None  # in each view of the capture
    weights: Float[Tensor, " k"] | None  # for each splat, where the method takes them


def _find_place(
    choice: EditChoice,
    method: Method,
    capture: Capture,
    fitted: Splats,
    scene_folder: Path,
    begun: tuple[str, Splats] | None,
) -> _Place:
    """Read the chosen region; in an edited scene it is where the splats that are meant are now."""
    path = choice.region
    if path is None:
        return _Place(None, None)
    takes_weights = getattr(method, "takes_weights", False)
    may_have_moved = begun is not None and not has_all_masks(path, capture)
    weights = None
    if takes_weights or may_have_moved:
        region, run = read_given(path, capture, fitted), scene_folder.parents[1]
        weights = weights_on(region, fitted, run=run, scene=scene_folder.name, start=begun)
    if begun is not None and may_have_moved and weights is not None:
        regions = render_region(Region.of(begun[1], weights, by="carried"), begun[1], capture.cameras)
    else:
        regions = read_regions(path, capture, fitted)
    if not bool((regions[list(capture.train_indices)] > 0).any()):
        raise InputError(f"no training view shows anything of the region {path.stem}, where the scene may change")
    return _Place(regions, weights if takes_weights else None)


def estimate_edit(scene_folder: Path, choice: EditChoice, *, num_edits: int = 1) -> str:
    """Says how many views edits of a scene will have edited at most, and what that costs at an endpoint."""
    num_views = len(read_capture(scene_folder / CAPTURE).train_indices)
    asked = asked_pictures(choice.resolved(), num_views)
    if asked is None:
        raise InputError(f"the method {choice.method} does not say how many views it has edited; choose another one")
    # The anchor may be none of the views that the method asks for.
    per_edit = asked.count + (choice.anchor != "" and not Path(choice.anchor).is_file())
    count, price = num_edits * per_edit, choice.endpoint.price_per_picture
    cost = f", {count * price:.4g} at {price:g} each" if price else "; --price-per-picture tells what they cost"
    return f"{count} pictures at most{cost}"


def find_case(scene_folder: Path, request: EditRequest) -> str | None:
    """Returns the name of the case with truth that a request means: the same instruction, captions equal or absent."""
    for path in sorted((scene_folder / TRUTH).glob("*/edit.json")):
        case = read_case(path.parent)
        asked = replace(
            request,
            source_caption=request.source_caption or case.request.source_caption,
            target_caption=request.target_caption or case.request.target_caption,
        )
        if case.has_truth and asked == case.request:
            return path.parent.name
    return None


def _suffix(choice: EditChoice, method: Any, start: StartingPoint | None) -> str:
    """Returns what tells a result from the plain one of this instruction; empty for defaults on the fitted scene."""
    marks = []
    if method != METHODS[choice.method]():
        marks.append(content_id("settings", method)[-8:])
    if choice.region is not None:
        # What has this name may be another region, or other masks, later.
        marks += [f"in-{choice.region.stem}", content_mark(choice.region)]
    marks += choice.marks()
    if choice.anchor:
        from restage.edit.editors.anchored import anchor_mark

        marks.append(anchor_mark(choice.anchor))
    if start is not None:
        marks.append(f"on-{start.record_id[-8:]}")
    return "".join(f"-{mark}" for mark in marks)


def name_case(
    scene_folder: Path, request: EditRequest, *, known: str | None, suffix: str, kind: str = "free"
) -> tuple[str, EditCase]:
    """Find or make the edit case of a request in its scene; a case whose name is taken gets a longer one."""
    if known is not None:
        case = read_case(scene_folder / TRUTH / known)
        if not suffix:
            return known, case
        request = case.request
    case = EditCase(scene=scene_folder.name, kind=kind, request=request, has_truth=False)
    text = re.sub(r"[^a-z0-9]+", "-", request.instruction.lower()).strip("-")[:60].rstrip("-")
    name = (text or case.id) + suffix
    path = scene_folder / TRUTH / name / EDIT_CASE
    if path.exists() and read_case(path.parent).id != case.id:
        name = f"{name}-{case.id[-8:]}"
    return name, case
