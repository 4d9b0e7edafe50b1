from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from restage.clips.files import open_clip
from restage.clips.flow import ClipFlow
from restage.diffusion import sampling
from restage.diffusion.attention import attention_layers
from restage.diffusion.backbone import Backbone, TextCondition
from restage.edit.clips.carried import Carried, agree, carry_grains
from restage.edit.clips.dreammotion import DreamMotion, spatial_similarity_loss, temporal_similarity_loss
from restage.edit.clips.frames import SharedAttention, TokenFlow
from restage.edit.clips.job import ClipJob, ClipMethod, Held
from restage.edit.clips.menu import CLIP_METHODS
from restage.edit.clips.tune_a_video import TuneAVideo, sparse_causal
from restage.edit.editors import EditorSource, open_editor
from restage.edit.editors.edit_model import ModelEditor
from restage.edit.editors.exact import NoisyEditor
from restage.edit.editors.grade import GradeEditor
from restage.edit.editors.interface import Edited, Editor, ViewBatch
from restage.edit.editors.text_to_image import TextToImageEditor
from restage.edit.methods.restage import Restage
from restage.records import EditRequest, InputError
from restage.scenes.config import FitConfig
from restage.world.clips import sample_clip, write_clip
from tests.tiny_models import write_tiny_models

SETTINGS: dict[str, dict[str, Any]] = {name: {} for name in CLIP_METHODS}
SETTINGS["dreammotion"] = {"num_steps": 60}
SETTINGS["through_splats"] = {
    "fit": FitConfig(steps=120, num_splats=1200),
    "edit": Restage(color_steps=30, shape_steps=1, deaths=None, births=None),
}
PLAIN = ("nothing", "frozen", "tune_a_video")  # what gives no exact clip, whatever the editor
GOLDEN = EditRequest(instruction="make it golden", source_caption="", target_caption="")


def job_of(folder: Path, request: EditRequest, editor: Editor, count: int | None = None) -> ClipJob:
    clip = open_clip(folder)
    indices = range(len(clip))[:count]
    cameras = clip.still_cameras
    assert cameras is not None
    return ClipJob(clip.read(indices), tuple(indices), request, editor, 0, None, cameras[list(indices)])


def result(method: ClipMethod, job: ClipJob) -> Edited:
    *_, last = method.run(job)
    assert last.images is not None and last.masks is not None and last.step == last.num_steps
    assert last.images.shape == job.frames.shape and last.masks.shape == job.frames[:, 0].shape
    return Edited(last.images, last.masks)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in PLAIN])
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
    # What is carried between frames is looked up between pixels; splats are fitted.
    limit = {"carried": 0.2, "through_splats": 0.6}.get(name, 0.02)
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
    thing = torch.zeros(count, 4, size, size)
    thing[:, 3] = 1
    for frame in range(count):
        thing[frame, :3, :, 6 + 2 * frame : 18 + 2 * frame] = 0.1 * frame
    agreed = torch.stack(list(agree(thing, shifted(count, 2, size), None, torch.zeros(count, 3, size, size))))
    middle = torch.stack([agreed[frame, :3, :, 10 + 2 * frame : 14 + 2 * frame] for frame in range(count)])
    torch.testing.assert_close(middle, torch.full_like(middle, 0.15))
    assert float(agreed[:, 3].min()) > 0.999
    # What is fine in grain stays each frame's own: flow gets that wrong more often than the editor does.
    fine = torch.zeros(2, 4, size, size)
    fine[:, 3] = 1
    fine[0, :3, :, ::2], fine[0, :3, :, 1::2] = 0.2, -0.2
    kept = next(agree(fine, shifted(2, 0, size), None, torch.zeros(2, 3, size, size)))[:3, :, 4:-4]
    assert float((kept - fine[0, :3, :, 4:-4]).abs().max()) < 0.03


def test_frames_of_the_window_before_are_followed() -> None:
    size, count = 32, 4
    changes = torch.ones(count, 4, size, size)
    changes[:, :3] *= torch.tensor([0.1, 0.9, 0.2, 0.6]).reshape(-1, 1, 1, 1)
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
    # Random weights attend to all tokens alike, and the mean of normed tokens is the same in every frame.
    editor = copy.deepcopy(tiny_edit_model)
    for layer in attention_layers(editor.model.unet):
        if not layer.is_cross_attention:
            layer.to_q.weight.data.mul_(300)
    job = job_of(world_clip[0], GOLDEN, editor)
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


def test_dreammotion_is_held_to_the_source_and_masked(
    world_clip: tuple[Path, EditRequest], tiny_edit_model: ModelEditor
) -> None:
    job = job_of(world_clip[0], GOLDEN, tiny_edit_model, 3)
    steps = list(DreamMotion(num_steps=11, mask="none", spatial_weight=0.0, temporal_weight=0.0).run(job))
    assert [step.step for step in steps] == [10, 11]
    free, held = (
        result(DreamMotion(num_steps=3, mask="none", spatial_weight=weight, temporal_weight=weight), job).images
        for weight in (0.0, 30.0)
    )
    assert not torch.allclose(free, held, atol=1e-4)
    read = tiny_edit_model.scores().read_keys(job.frames, GOLDEN)
    source, push = torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    moved = source + 0.5 * push

    def unlike(latents: torch.Tensor) -> float:
        with torch.no_grad():
            keys = [read(latents, 300, True), read(source, 300, False)]
        return float(spatial_similarity_loss(*keys) + temporal_similarity_loss(*keys))

    gradient = DreamMotion()._similarity_gradient(read, moved, source, 300)
    assert unlike(moved - 0.05 * gradient / gradient.std()) < unlike(moved)


def test_self_similarity_is_that_of_its_definition() -> None:
    keys = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    other = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(2))
    cosine = torch.nn.functional.cosine_similarity
    spatial = sum(
        float((cosine(keys[n, i], keys[n, j], dim=0) - cosine(other[n, i], other[n, j], dim=0)) ** 2)
        for n in range(2)
        for i in range(5)
        for j in range(5)
    )
    assert float(spatial_similarity_loss([keys], [other])) == pytest.approx(spatial / 50, rel=1e-4)
    means = keys.mean(dim=1), other.mean(dim=1)
    temporal = 2 * float((cosine(means[0][0], means[0][1], dim=0) - cosine(means[1][0], means[1][1], dim=0)) ** 2)
    assert float(temporal_similarity_loss([keys], [other])) == pytest.approx(temporal / 4, rel=1e-3)
    assert float(spatial_similarity_loss([keys], [3 * keys])) == pytest.approx(0, abs=1e-9)


@pytest.fixture(scope="session")
def tiny_painter(tmp_path_factory: pytest.TempPathFactory) -> TextToImageEditor:
    models = write_tiny_models(tmp_path_factory.mktemp("painter"))
    editor = open_editor("text_to_image", EditorSource(model=models / "text_to_image"))
    assert isinstance(editor, TextToImageEditor)
    return editor


def test_tune_a_video_tunes_a_copy_and_follows_the_caption(
    world_clip: tuple[Path, EditRequest], tiny_painter: TextToImageEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, inverted_with = sampling.invert_latents, []

    def noted(backbone: Backbone, latents: torch.Tensor, text: TextCondition, *, num_steps: int) -> torch.Tensor:
        inverted_with.append(text.tokens)
        return plain(backbone, latents, text, num_steps=num_steps)

    monkeypatch.setattr(sampling, "invert_latents", noted)
    request = replace(GOLDEN, source_caption="a red cube on the grass", target_caption="a blue cube on the grass")
    job = job_of(world_clip[0], request, tiny_painter, 3)
    before = {name: value.clone() for name, value in tiny_painter.backbone.unet.state_dict().items()}
    method = TuneAVideo(num_steps=10, sampling_steps=2, learning_rate=1e-3)
    steps = list(method.run(job))
    assert [step.step for step in steps] == [10, 10, 11, 12]
    assert torch.equal(inverted_with[0][:1], tiny_painter.backbone.encode_prompts([""]).tokens)
    after = tiny_painter.backbone.unet.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    untuned = result(replace(method, learning_rate=1e-9), job).images
    images = steps[-1].images
    assert images is not None and not torch.allclose(images, untuned, atol=1e-4)
    with pytest.raises(InputError, match="choose --editor text_to_image"):
        list(method.run(job_of(world_clip[0], request, GradeEditor(), 2)))
    with pytest.raises(InputError, match="by captions"):
        list(method.run(job_of(world_clip[0], GOLDEN, tiny_painter, 2)))


def test_sparse_causal_attention_sees_the_first_frame_and_the_one_before(tiny_painter: TextToImageEditor) -> None:
    unet = tiny_painter.backbone.unet
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 4, 8, 8, generator=generator)
    text = torch.randn(1, 5, unet.config["cross_attention_dim"], generator=generator).expand(4, -1, -1)

    def predicted(changed: int | None) -> torch.Tensor:
        shown = latents.clone()
        if changed is not None:
            shown[changed] += 1
        with torch.no_grad(), sparse_causal(unet, 4):
            return unet(shown, torch.full((4,), 100), encoder_hidden_states=text).sample

    plain = predicted(None)
    moved = {
        frame: {other for other in range(4) if not torch.allclose(predicted(frame)[other], plain[other], atol=1e-6)}
        for frame in range(4)
    }
    # Through several layers what a frame sees reaches all behind it, and none before.
    assert moved == {0: {0, 1, 2, 3}, 1: {1, 2, 3}, 2: {2, 3}, 3: {3}}


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in (
        lambda: DreamMotion(num_steps=0),
        lambda: DreamMotion(spatial_weight=-1.0),
        lambda: DreamMotion(lowest_noise=0.9, highest_noise=0.2),
        lambda: TuneAVideo(num_steps=0),
        lambda: TokenFlow(frames_per_key=0),
        lambda: Carried(mask_low=0.6),
    ):
        with pytest.raises(InputError, match="expected"):
            wrong()


def test_the_road_through_splats_needs_cameras_and_a_scene_that_stands_still(
    world_clip: tuple[Path, EditRequest], tmp_path: Path
) -> None:
    job = job_of(world_clip[0], GOLDEN, GradeEditor(), 2)
    with pytest.raises(InputError, match="stands still, with known cameras"):
        next(CLIP_METHODS["through_splats"]().run(replace(job, cameras=None)))
    write_clip(sample_clip(0, motion="slide", num_frames=2, size=24), tmp_path / "moving")
    assert open_clip(tmp_path / "moving").still_cameras is None
