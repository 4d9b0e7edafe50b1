"""The compare stage: every result of the edit stage against truth on the held-out views, into rows of Score."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from restage.compare.cases import Result, find_results
from restage.compare.metrics import Measured, mask_iou, progress, psnr_db, spill
from restage.compare.rows import read_scores, write_scores
from restage.edit.pictures import quantize, read_image, read_mask
from restage.records import InputError, Progress, RunFolder, Score
from restage.scenes.fit import render_views
from restage.scenes.io import read_capture
from restage.scenes.io.ply import read_splats

__all__ = ["CompareConfig", "HeldOut", "measure", "read_scores", "run_compare", "write_scores"]

METRICS = ("progress", "spill", "mask_iou", "psnr_db", "no_op", "wrong_way")
COSTS = ("seconds", "peak_memory_mb")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How results are judged."""

    no_op_share: float = 0.1
    """An edit whose mean change inside the region is below this share of what truth changes there is a no-op."""

    def __post_init__(self) -> None:
        if not 0 <= self.no_op_share < 1:
            raise InputError(f"expected no_op_share in [0, 1), got {self.no_op_share}")


@dataclass(frozen=True)
class HeldOut:
    """The held-out views of one edit of one scene; all as 8-bit files hold them."""

    names: tuple[str, ...]
    """File name of each view's picture in result and truth folders."""
    source: Float[Tensor, "n 3 h w"]
    """S, true views before the edit."""
    truth: Float[Tensor, "n 3 h w"]
    """T, true views after it."""
    unedited: Float[Tensor, "n 3 h w"]
    """B, renders of the unedited splats."""
    regions: Float[Tensor, "n h w"]
    """R, 1 where truth changes."""


def measure(edited: Float[Tensor, "n 3 h w"], views: HeldOut, config: CompareConfig) -> dict[str, Measured]:
    """All metrics of one result; `no_op` and `wrong_way` are flags, 0 or 1.

    A wrong-way edit is one that did something (it is no no-op) and ended further from truth than the source was.
    """
    done = progress(edited, views.source, views.truth, views.regions)
    share = _share_moved(edited, views)
    is_no_op = share < config.no_op_share
    unscored = Measured(math.nan, (), "truth changes nothing in the held-out views")
    flags = {"no_op": is_no_op, "wrong_way": not is_no_op and done.mean < 0}
    return {
        "progress": done,
        "spill": spill(edited, views.unedited, views.regions),
        "mask_iou": mask_iou(edited, views.unedited, views.regions),
        "psnr_db": psnr_db(edited, views.truth),
        **{name: unscored if math.isnan(share) else Measured(float(is_so), (), "") for name, is_so in flags.items()},
    }


def _share_moved(edited: Tensor, views: HeldOut) -> float:
    """Mean |E - B| inside R as a share of mean |S - T| there, over all views at once; NaN if nothing is to change."""
    inside = views.regions[:, None] > 0.5
    whole = float(((views.source - views.truth).abs() * inside).double().sum())
    return float(((edited - views.unedited).abs() * inside).double().sum()) / whole if whole > 0 else math.nan


def run_compare(run: RunFolder, config: CompareConfig) -> Iterator[Progress]:
    """Score all results of the run's edit stage and write `compare/scores.parquet`.

    Raises:
        InputError: there are no results, or a picture of a finished one is missing or broken.
    """
    if run.is_done("compare", config):
        yield Progress(stage="compare", done=1, total=1, note="done before")
        return
    results = find_results(run.path)
    scores: list[Score] = []
    views: tuple[tuple[str, str], HeldOut] | None = None
    for done, result in enumerate(results):
        if not result.problem and (views is None or views[0] != (result.scene, result.edit)):
            views = (result.scene, result.edit), load_held_out(run.path, result)
        scores += score_result(result, views[1] if views and not result.problem else None, config)
        note = f"{result.scene} {result.edit} {result.contender.method}-{result.contender.editor}"
        yield Progress(stage="compare", done=done + 1, total=len(results), note=note)
    write_scores(run.folder("compare") / "scores.parquet", scores)
    run.mark_done("compare", config, num_results=len(results), num_scores=len(scores))


def score_result(result: Result, views: HeldOut | None, config: CompareConfig) -> list[Score]:
    """All rows of one result; NaN with the reason where it cannot be scored.

    Args:
        result: What to score.
        views: The held-out views; None if the result has a problem.
        config: How to judge.
    """
    if views is None:
        measured = {metric: Measured(math.nan, (), result.problem) for metric in METRICS}
    else:
        edited = torch.stack([read_image(result.folder / "held_out" / name) for name in views.names])
        if edited.shape != views.truth.shape:
            expected, got = tuple(views.truth.shape), tuple(edited.shape)
            raise InputError(f"{result.folder}: expected held-out renders of shape {expected}, got {got}")
        measured = measure(edited, views, config)
    rows = [_score(result, metric, value.mean, value.reason) for metric, value in measured.items()]
    cost = (result.record or {}).get("cost", {})
    for metric in COSTS:
        reason = "" if metric in cost else (result.problem or "not recorded")
        rows.append(_score(result, metric, cost.get(metric, math.nan), reason, is_cost=True))
    return rows


def _score(result: Result, metric: str, value: float, reason: str, *, is_cost: bool = False) -> Score:
    return Score(
        scene=result.scene,
        edit=result.edit,
        kind=result.kind,
        method=result.contender.method,
        editor=result.contender.editor,
        seed=result.contender.seed,
        metric=metric,
        value=float(value),
        reason=reason,
        is_cost=is_cost,
    )


def load_held_out(run_path: Path, result: Result) -> HeldOut:
    """Read and render what a result is measured against.

    Raises:
        InputError: a file is missing or broken.
    """
    assert result.truth is not None
    scene = run_path / "scenes" / result.scene
    capture = read_capture(scene / "capture")
    held_out = list(capture.held_out_indices)
    if not held_out:
        raise InputError(f"{scene / 'capture'} has no held-out views to measure on")
    names = tuple(Path(capture.file_names[index]).with_suffix(".png").name for index in held_out)
    return HeldOut(
        names=names,
        source=quantize(capture.images[held_out]),
        truth=torch.stack([read_image(result.truth / "images" / name) for name in names]),
        unedited=quantize(render_views(read_splats(scene / "splats.ply"), capture.cameras[held_out])),
        regions=torch.stack([read_mask(result.truth / "masks" / name) for name in names]),
    )
