"""Reads a run folder into what the page shows, as far as it is there; nothing is written, nothing is computed.

A stage that is missing is left empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from restage.records import GRADED, EditCase, EditRequest, InputError, Score, from_plain, read_json
from restage.run import layout
from restage.run.reading import EditRecord, FitRecord, RunRecord, StageMark, TrainingStep, read_marks, read_metrics
from restage.scores.rows import read_scores

__all__ = [
    "ClipEntry",
    "DiagnosisRecord",
    "EditEntry",
    "PairsEntry",
    "ReportConfig",
    "ResultEntry",
    "RunContents",
    "SceneEntry",
]
__all__ += ["find_figure", "read_contents", "without_user"]


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How the report page is made."""

    formats: tuple[Literal["page", "latex", "slides", "website", "poster", "teaser", "zip"], ...] = ("page",)
    """What is written: the page always; `paper/` for LaTeX, `slides.pptx`, `website/` for a paper's project page,
    `poster.pdf` and `.png`, `teaser.mp4`, and all of it as `supplement.zip`."""
    max_views: int = 6
    """Held-out views shown per edit, evenly spaced over all; our choice, keeps a page of ten edits under 20 MB."""
    max_px: int = 512
    """Pictures are made smaller until their longer side is at most this, in pixels; our choice."""
    max_edits: int = 24
    """Edits shown with pictures, evenly spaced over all; our choice, a page of more is slow on a phone."""
    noop_progress: float = 0.05
    """Progress within plus or minus this is flagged as a no-op where the scores do not flag it; our choice."""

    def __post_init__(self) -> None:
        if self.max_views < 1:
            raise InputError(f"max_views should be at least 1, got {self.max_views}; 6 is the default")
        if self.max_edits < 1:
            raise InputError(f"max_edits should be at least 1, got {self.max_edits}; 24 is the default")
        if self.max_px < 16:
            raise InputError(f"max_px should be at least 16, got {self.max_px}; 512 is the default")
        if not 0 <= self.noop_progress < 1:
            raise InputError(f"noop_progress should be in [0, 1), got {self.noop_progress}; 0.05 is the default")


Kind = TypeVar("Kind")

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True, kw_only=True)
class ResultEntry:
    """What one method with one editor and one seed made of one edit."""

    record: EditRecord
    plain: Mapping[str, Any]  # the record as JSON values, with all that it says
    folder: str  # path of the result in the run
    held_out: Mapping[str, Path]  # renders of the edited scene, by view
    orbit_path: Path | None
    editor_views: Mapping[str, Path]  # what the 2D editor made of some training views, by view
    editor_masks: Mapping[str, Path]

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.record.method

    @property
    def editor(self) -> str:
        """Name of the editor."""
        return self.record.editor

    @property
    def seed(self) -> str:
        """The seed, as its folder is called."""
        return str(self.record.seed)

    @property
    def problem(self) -> str:
        """Why there is no result; empty when there is one."""
        return self.record.reason or "failed" if self.record.status == "failed" else ""


@dataclass(frozen=True, kw_only=True)
class EditEntry:
    """One edit of one scene with all its results."""

    scene: str
    edit: str  # name of its folder
    names: frozenset[str]
    """What rows of the scores may call it: the folder's name or the case's id."""
    kind: str
    request: EditRequest  # what was asked for; the folder's name where nothing says
    results: Sequence[ResultEntry]
    before: Mapping[str, Path]  # the scene before the edit, by view
    is_before_rendered: bool
    """Whether `before` are renders of the unedited scene, not the pictures of the capture."""
    references: Sequence[Path]  # pictures that the request refers to
    truth: Mapping[str, Path]
    truth_masks: Mapping[str, Path]

    @property
    def has_pictures(self) -> bool:
        """Whether some result has anything to look at; without held-out views it has no renders of them."""
        return any(result.held_out or result.orbit_path or result.editor_views for result in self.results)


@dataclass(frozen=True, kw_only=True)
class SceneEntry:
    """A scene: its pictures, and what its fit says of itself."""

    name: str
    fit: FitRecord | None
    plain: Mapping[str, Any]  # the record of the fit as JSON values; empty without a fit
    pictures: Mapping[str, Path]
    renders: Mapping[str, Path]
    """Renders of the unedited scene at held-out views, by view; empty when none are stored."""


class ClipEntry(NamedTuple):
    """A clip of the run."""

    name: str
    num_frames: int


class PairsEntry(NamedTuple):
    """The image pairs: how many, and why some were rejected."""

    sheet_path: Path | None
    num_accepted: int | None  # None without a manifest
    num_rejected: int | None
    reasons: Mapping[str, int]
    """How often each reason was given for a rejected pair, most frequent first."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number of a diagnosis; None where there is none."""

    mean: float | None
    standard_error: float | None
    num_cases: int = 0


@dataclass(frozen=True, kw_only=True)
class DiagnosedPart:
    """How much of a difference a part of two runs is to blame for."""

    label: str
    within: str = ""  # the part that it is a part of; empty for none
    detail: str = ""
    share: Interval
    forward: Interval
    reverse: Interval


@dataclass(frozen=True, kw_only=True)
class DiagnosisRecord:
    """What the page shows of `restage diagnose`'s record."""

    sentence: str
    figure: str = ""
    parts: Sequence[DiagnosedPart] = ()
    total: Interval | None = None
    limits: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class RunContents:
    """All that the page shows of a run."""

    path: Path
    record: RunRecord
    plain: Mapping[str, Any]  # the run's record as JSON values
    stages: Mapping[str, StageMark]
    """The marks of finished stages by name, in the order data flows."""
    scenes: Sequence[SceneEntry]
    clips: Sequence[ClipEntry]
    edits: Sequence[EditEntry]
    """The edits of scenes, then those of clips."""
    scores: Sequence[Score]
    pairs: PairsEntry | None
    train: Sequence[TrainingStep]
    num_prompts: int | None
    diagnosis: DiagnosisRecord | None
    diagnosis_plain: Mapping[str, Any]

    @property
    def has_truth(self) -> bool:
        """Whether some edit has exact truth."""
        return any(edit.truth for edit in self.edits)

    @property
    def is_miniature(self) -> bool:
        """Whether some edit's truth is the miniature world's, and not of graded photographs."""
        return any(edit.truth and edit.kind != GRADED for edit in self.edits)


def read_contents(path: Path) -> RunContents:
    """Read what there is of a run."""
    layout.check_is_run(path)
    (record, plain), marks = _read_both(path / layout.RUN_RECORD, RunRecord), read_marks(path)
    folders = layout.folders_in(path / "scenes")
    clips = [folder for folder in folders if (folder / layout.CLIP_RECORD).is_file()]
    # Truth alone makes no scene of a clip, which has truth of its own.
    of_scenes = (layout.CAPTURE, layout.FIT_RECORD, layout.SPLATS)
    scenes = [
        _read_scene(path, folder)
        for folder in folders
        if any((folder / name).exists() for name in (*of_scenes, *([] if folder in clips else [layout.TRUTH])))
    ]
    names = {scene.name for scene in scenes}
    edited = [*scenes, *(_read_scene(path, folder) for folder in clips if folder.name not in names)]
    order = [*layout.STAGES, *sorted(set(marks) - set(layout.STAGES))]
    prompts_path = path / layout.PROMPTS
    diagnosis = (
        _read_both(path / layout.DIAGNOSIS, DiagnosisRecord) if (path / layout.DIAGNOSIS).exists() else (None, {})
    )
    return RunContents(
        path=path,
        record=record,
        plain=without_user(plain),
        stages={name: marks[name] for name in order if name in marks and name != "report"},
        scenes=scenes,
        clips=[ClipEntry(folder.name, len(_pictures(folder / layout.CLIP_FRAMES))) for folder in clips],
        edits=[edit for scene in edited for edit in _read_edits(path, scene)],
        scores=read_scores(path / layout.SCORES) if (path / layout.SCORES).exists() else (),
        pairs=_read_pairs(path),
        train=read_metrics(path),
        num_prompts=len(prompts_path.read_bytes().splitlines()) if prompts_path.is_file() else None,
        diagnosis=diagnosis[0],
        diagnosis_plain=diagnosis[1],
    )


def without_user(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's record without who ran it, and so without its seal: a report may go to reviewers who are blind."""
    kept = {name: value for name, value in record.items() if name not in ("user", "seal")}
    sessions = [{name: value for name, value in one.items() if name != "user"} for one in record.get("sessions", ())]
    return {**kept, "sessions": sessions}


def _read_both(path: Path, kind: type[Kind]) -> tuple[Kind, dict[str, Any]]:
    """A record as its type, and all that it says as JSON values."""
    plain = read_json(path, dict[str, Any])
    return from_plain(plain, kind, where=path), plain


def find_figure(contents: RunContents) -> Path | None:
    """The figure of a run's diagnosis, which lies beside its record; None without one."""
    # Only the name counts: what a record says must not lead out of the folder.
    name = Path(contents.diagnosis.figure).name if contents.diagnosis else ""
    path = (contents.path / layout.DIAGNOSIS).with_name(name) if name else contents.path
    return path if path.is_file() else None


def _pictures(folder: Path) -> dict[str, Path]:
    """Pictures of a folder by view: the file's name without its picture suffixes, in the order of names."""
    if not folder.is_dir():
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            view = path
            while view.suffix.lower() in PICTURE_SUFFIXES:
                view = view.with_suffix("")
            found[view.name] = path
    return found


def _read_scene(run: Path, folder: Path) -> SceneEntry:
    fit_path = folder / layout.FIT_RECORD
    fit, plain = _read_both(fit_path, FitRecord) if fit_path.exists() else (None, {})
    return SceneEntry(
        name=folder.name,
        fit=fit,
        plain=plain,
        pictures=_pictures(folder / layout.CAPTURE / layout.IMAGES),
        renders=_pictures(folder / layout.HELD_OUT) or _renders_of_nothing(run, folder.name),
    )


def _renders_of_nothing(run: Path, scene: str) -> Mapping[str, Path]:
    """Renders of the unedited scene by the anchor `nothing`, for scenes whose fit kept none."""
    results = (result for folder in layout.folders_in(run / "edit" / scene) for result in _read_results(run, folder))
    return next((result.held_out for result in results if result.method == "nothing" and result.held_out), {})


def _read_edits(run: Path, scene: SceneEntry) -> Iterator[EditEntry]:
    truths = {folder.name: folder for folder in layout.folders_in(run / "scenes" / scene.name / layout.TRUTH)}
    edited = {folder.name: folder for folder in layout.folders_in(run / "edit" / scene.name)}
    for name in sorted({*truths, *edited}, key=layout.counting_order):
        results = _read_results(run, edited[name]) if name in edited else ()
        case_path = truths.get(name, run) / layout.EDIT_CASE
        case = read_json(case_path, EditCase) if case_path.exists() else None
        requests = (result.record.request for result in results)
        request = case.request if case else next(filter(None, requests), None)
        truth = truths[name] if case and case.has_truth else None
        yield EditEntry(
            scene=scene.name,
            edit=name,
            names=frozenset({name, case.id} if case else {name}),
            kind=case.kind if case else "",
            request=request or EditRequest(instruction=name, source_caption="", target_caption=""),
            results=results,
            before=scene.renders or scene.pictures,
            is_before_rendered=bool(scene.renders),
            references=_references(run / "scenes" / scene.name, request),
            truth=_pictures(truth / layout.IMAGES) if truth else {},
            truth_masks=_pictures(truth / layout.MASKS) if truth else {},
        )


def _references(scene_folder: Path, request: EditRequest | None) -> tuple[Path, ...]:
    """Pictures that a request refers to, as far as they are there."""
    names = [Path(reference.picture).name for reference in request.references] if request else []
    paths = [scene_folder / layout.REFERENCES / name for name in names]
    return tuple(path for path in paths if path.is_file())


def _read_results(run: Path, edit_folder: Path) -> list[ResultEntry]:
    """Finished results only: those whose record, which is written last, is there."""
    return [
        ResultEntry(
            record=record,
            plain=plain,
            folder=path.parent.relative_to(run).as_posix(),
            held_out=_pictures(path.parent / layout.HELD_OUT),
            orbit_path=orbit if (orbit := path.parent / layout.ORBIT).exists() else None,
            editor_views=_pictures(path.parent / layout.EDITOR_VIEWS),
            editor_masks=_pictures(path.parent / layout.MASKS),
        )
        for path in sorted(edit_folder.glob(f"*/*/{layout.EDIT_RECORD}"))
        for record, plain in [_read_both(path, EditRecord)]
    ]


def _read_pairs(run: Path) -> PairsEntry | None:
    sheet_path, manifest = run / layout.CONTACT_SHEET, run / layout.MANIFEST
    sheet = sheet_path if sheet_path.exists() else None
    if not manifest.exists():
        return PairsEntry(sheet, None, None, {}) if sheet else None
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.ParquetFile(manifest).read(columns=["accepted", "reason"]).to_pylist()
        rejected = [row["reason"] for row in rows if not row["accepted"]]
    except (OSError, KeyError, pyarrow.ArrowException):
        raise InputError(f"{manifest} is not readable as the manifest of pairs; run the pairs stage again") from None
    reasons = Counter(reason for reason in rejected if reason)
    by_count = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    return PairsEntry(sheet, len(rows) - len(rejected), len(rejected), by_count)
