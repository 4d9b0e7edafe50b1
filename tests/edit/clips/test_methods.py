from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from restage.clips.files import open_clip
from restage.clips.flow import ClipFlow
from restage.edit.clips.carried import Carried, agree, carry_grains
from restage.edit.clips.frames import SharedAttention, TokenFlow
from restage.edit.clips.job import ClipJob, ClipMethod, Held
from restage.edit.clips.menu import CLIP_METHODS
from restage.edit.editors import EditorSource, open_editor
from restage.edit.editors.edit_model import ModelEditor
from restage.edit.editors.exact import NoisyEditor
from restage.edit.editors.grade import GradeEditor
from restage.edit.editors.interface import Edited, Editor, ViewBatch
from restage.records import EditRequest
from tests.tiny_models import write_tiny_models

SETTINGS: dict[str, dict[str, Any]] = {name: {} for name in CLIP_METHODS}
GOLDEN = EditRequest(instruction="make it golden", source_caption="", target_caption="")


def job_of(folder: Path, request: EditRequest, editor: Editor, count: int | None = None) -> ClipJob:
    clip = open_clip(folder)
    indices = range(len(clip))[:count]
    return ClipJob(clip.read(indices), tuple(indices), request, editor, 0)


def result(method: ClipMethod, job: ClipJob) -> Edited:
    *_, last = method.run(job)
    assert last.images is not None and last.masks is not None and last.step == last.num_steps
    assert last.images.shape == job.frames.shape and last.masks.shape == job.frames[:, 0].shape
    return Edited(last.images, last.masks)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("nothing", "frozen")])
def test_with_an_exact_editor_every_method_gives_the_exact_clip(
    name: str, world_clip: tuple[Path, EditRequest]
) -> None:
    folder, request = world_clip
    (truth,) = (folder / "truth").iterdir()
    clip = open_clip(folder)
    names = tuple(path.name for path in clip.frame_paths)
    job = job_of(folder, request, open_editor("exact", EditorSource(file_names=names, truth=truth)))
    found = result(CLIP_METHODS[name](**SETTINGS[name]), job)
    expected = job.editor.edit(job.batch()).images
    before = float((job.frames - expected).abs().mean())
    limit = 0.2 if name == "carried" else 0.02  # what is carried between frames is looked up between pixels
    assert float((found.images - expected).abs().mean()) < limit * before


def test_nothing_does_nothing_and_frozen_shows_one_frame(world_clip: tuple[Path, EditRequest]) -> None:
    job = job_of(world_clip[0], GOLDEN, GradeEditor())
    assert torch.equal(result(CLIP_METHODS["nothing"](), job).images, job.frames)
    frozen = result(CLIP_METHODS["frozen"](), job).images
    assert torch.equal(frozen, frozen[:1].expand_as(frozen)) and not torch.equal(frozen, job.frames)


def shifted(count: int, step: int, size: int) -> ClipFlow:
    """All goes to the right by whole pixels."""
    forward = torch.zeros(count - 1, 2, size, size)
    forward[:, 0] = step
    return ClipFlow(forward, -forward)


def test_grains_of_noise_go_with_what_the_frames_show() -> None:
    frames = torch.rand(3, 3, 16, 16)
    job = ClipJob(frames, (4, 5, 6), GOLDEN, GradeEditor(), 0)
    grains = carry_grains(shifted(3, 4, 16), job)
    assert torch.equal(grains[1][:, 4:], grains[0][:, :-4]) and torch.equal(grains[2][:, 8:], grains[0][:, :-8])
    assert not set(grains[1][:, :4].flatten().tolist()) & set(grains[0].flatten().tolist())
    held = Held(frames[:1], frames[:1, 0], grains[1])
    again = carry_grains(shifted(2, 4, 16), replace(job, frames=frames[1:], indices=(5, 6), held=held))
    assert torch.equal(again[0], grains[1]) and torch.equal(again[1], grains[2])


def test_what_frames_disagree_on_is_averaged_along_the_flow() -> None:
    count, size = 4, 32
    point = torch.zeros(count, 4, size, size)
    for frame in range(count):
        point[frame, :3, :, 10 + 2 * frame] = 0.1 * frame
        point[frame, 3] = 1
    agreed = torch.stack(list(agree(point, shifted(count, 2, size), None, torch.zeros(count, 3, size, size))))
    columns = torch.stack([agreed[frame, 0, :, 10 + 2 * frame] for frame in range(count)])
    torch.testing.assert_close(columns, torch.full_like(columns, 0.15))
    assert float(agreed[:, 3].min()) > 0.999


def test_frames_of_the_window_before_are_followed() -> None:
    size, count = 32, 4
    changes = torch.cat([torch.rand(count, 3, size, size), torch.ones(count, 1, size, size)], dim=1)
    held = Held(torch.full((2, 3, size, size), 0.5), torch.ones(2, size, size))
    agreed = torch.stack(list(agree(changes, shifted(count, 0, size), held, torch.zeros(count, 3, size, size))))
    assert float((agreed[:, :3] - 0.5).abs().mean()) < 0.04


def test_ours_makes_a_noisy_editor_agree(world_clip: tuple[Path, EditRequest]) -> None:
    job = job_of(world_clip[0], GOLDEN, NoisyEditor(editor=GradeEditor(), color_std=0.1))
    apart, agreed = (result(CLIP_METHODS[name](), job).images for name in ("per_frame", "carried"))
    true = GradeEditor().edit(job.batch()).images
    # By whole-frame colors: five frames with errors of their own become one error for all.
    spreads = [(images - true).mean(dim=(2, 3)).std(dim=0).mean() for images in (apart, agreed)]
    assert float(spreads[1]) < 0.3 * float(spreads[0])


@pytest.fixture(scope="session")
def tiny_edit_model(tmp_path_factory: pytest.TempPathFactory) -> ModelEditor:
    models = write_tiny_models(tmp_path_factory.mktemp("models"))
    editor = open_editor("edit_model", EditorSource(model=models / "edit_model"))
    assert isinstance(editor, ModelEditor)
    return editor


def test_shared_attention_and_tokenflow_change_what_a_model_says(
    world_clip: tuple[Path, EditRequest], tiny_edit_model: ModelEditor
) -> None:
    job = job_of(world_clip[0], GOLDEN, tiny_edit_model)
    same_noise = job.editor.edit(job.batch(noise_keys=(0,) * len(job.frames))).images
    shared, flow = (result(method, job).images for method in (SharedAttention(), TokenFlow(frames_per_key=3)))
    assert not torch.allclose(shared, same_noise, atol=1e-4) and not torch.allclose(shared, flow, atol=1e-4)
    # With every frame a key nothing is taken over, and all attend to all.
    keys = result(TokenFlow(frames_per_key=1), job).images
    torch.testing.assert_close(keys, shared)


def test_matches_of_tokenflow_are_those_of_the_source(
    world_clip: tuple[Path, EditRequest], tiny_edit_model: ModelEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restage.edit.editors import edit_model

    asked, plain = [], edit_model.best_matches

    def kept(features: torch.Tensor, others: torch.Tensor, allowed: torch.Tensor | None = None) -> torch.Tensor:
        asked.append((len(features), allowed, plain(features, others)))
        return asked[-1][2]

    monkeypatch.setattr(edit_model, "best_matches", kept)
    job = job_of(world_clip[0], GOLDEN, tiny_edit_model, 2)
    still = replace(job, frames=job.frames[:1].expand(2, -1, -1, -1).contiguous())
    result(TokenFlow(frames_per_key=2), still)
    assert asked and all(rows == 1 and allowed is None for rows, allowed, _ in asked)
    # Of two equal frames with equal noise every token is its own best match.
    assert all(torch.equal(match[0], torch.arange(match.shape[1])) for _, _, match in asked)


def test_an_editor_without_attention_edits_each_frame_from_the_same_noise(world_clip: tuple[Path, EditRequest]) -> None:
    seen: list[ViewBatch] = []

    class Recording:
        def edit(self, batch: ViewBatch) -> Edited:
            seen.append(batch)
            return GradeEditor().edit(batch)

    job = job_of(world_clip[0], GOLDEN, Recording())
    result(SharedAttention(), job)
    assert seen[0].sharing is None and seen[0].noise_keys == (0,) * len(job.frames)
    result(Carried(), job)
    assert len(set(seen[1].noise_seeds())) == 1  # for editors that take seeds alone
