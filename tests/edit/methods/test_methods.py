import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from restage.compare.metrics import progress, spill
from restage.edit.editors import EDITORS, Edited, EditorSource, ViewBatch
from restage.edit.editors.interface import KnownScores
from restage.edit.job import EditJob, Method, TimeLimited, needs_editor
from restage.edit.methods import METHODS, Idu, Joint, Restage
from restage.edit.methods.renewal import KeyViews
from restage.edit.methods.restage import choose_key_views, composite, robust_weights, sharpen
from restage.edit.results import NO_OP_SHARE, changed_share
from restage.edit.sharing import AnchoredNoise
from restage.records import InputError
from restage.scenes.fit import render_views
from restage.scenes.splats import Splats

LONG: dict[str, dict[str, Any]] = {
    "replace_once": {"num_steps": 300},
    "idu": {"num_steps": 400, "edit_every": 5},
    "igs2gs": {"num_steps": 300, "edit_every": 150},
    "sds": {"num_steps": 600},
    "dds": {"num_steps": 900},
    "pds": {"num_steps": 900},
    "dreamcatalyst": {"num_steps": 300},
    "depth_fusion": {"num_steps": 300},
    "controlled": {"num_steps": 300},
    "joint": {"noise_levels": (1.0, 0.3), "steps_per_round": 150},
    "restage": {"noise_levels": (1.0,), "color_steps": 60, "shape_steps": 60},
}
"""Settings with which a method gets to the truth soon; one that is not named here is tried with its defaults."""
SHORT: dict[str, dict[str, Any]] = {
    **{
        name: {"num_steps": 6}
        for name in ("replace_once", "sds", "dds", "pds", "dreamcatalyst", "depth_fusion", "controlled")
    },
    "idu": {"num_steps": 12, "edit_every": 2},
    "igs2gs": {"num_steps": 4, "edit_every": 2},
    "joint": {"steps_per_round": 2},
    "restage": {"color_steps": 3, "shape_steps": 3},
    "video": {"color_steps": 3, "shape_steps": 3},
}
"""Settings with which a method is done in a moment; one that is not named here is tried with its defaults."""
EXACT_BARS = {**dict.fromkeys(LONG, (0.85, 0.01)), "dreamcatalyst": (0.3, 0.01), "depth_fusion": (0.85, 0.02)}
"""Least progress and most spill with the exact editor, for methods that are held to more than `ANY_BARS`. DreamCatalyst
weighs the edit against the unedited view, so that even exact predictions do not lead all the way."""
ANY_BARS = (0.3, 0.02)
EDITING = [name for name, method in METHODS.items() if needs_editor(method) and name != "remove"]
"""Methods that make whatever is asked for; how things are removed is tested in test_remove.py."""


def make(name: str, settings: dict[str, dict[str, Any]]) -> Method:
    return METHODS[name](**settings.get(name, {}))


@pytest.fixture(scope="module")
def truth(tiny_scene, tmp_path_factory) -> Path:
    return tiny_scene.write(tmp_path_factory.mktemp("truth") / "tiny")


@pytest.fixture
def job(tiny_scene, truth) -> EditJob:
    editor = EDITORS["exact"](EditorSource(file_names=tiny_scene.capture.file_names, truth=truth))
    indices = tiny_scene.capture.train_indices
    return EditJob(tiny_scene.splats, tiny_scene.capture.select(indices), indices, tiny_scene.request, editor, 0)


def scores(scene, splats) -> tuple[float, float]:
    held_out = list(scene.capture.held_out_indices)
    cameras, masks = scene.capture.cameras[held_out], scene.truth_masks[held_out]
    edited, unedited = render_views(splats, cameras), render_views(scene.splats, cameras)
    done = progress(edited, scene.capture.images[held_out], scene.truth_images[held_out], masks)
    return done.mean, spill(edited, unedited, masks).mean


@pytest.mark.parametrize("name", EDITING)
def test_with_the_exact_editor_a_method_gets_to_the_truth_on_held_out_views(name, job, tiny_scene):
    steps = list(make(name, LONG).run(job))
    done, spilled = scores(tiny_scene, steps[-1].splats)
    least, most = EXACT_BARS.get(name, ANY_BARS)
    assert done > least
    assert spilled < most


def test_nothing_gives_the_splats_back_bit_for_bit(job, tiny_scene):
    (step,) = METHODS["nothing"]().run(job)
    for name, tensor in step.splats.parameters().items():
        assert torch.equal(tensor, getattr(tiny_scene.splats, name))
    assert scores(tiny_scene, step.splats)[0] == pytest.approx(0, abs=1e-6)


def test_restage_leaves_frozen_splats_bit_for_bit_as_they_were(job, tiny_scene):
    result = list(make("restage", LONG).run(job))[-1].splats
    is_far = (tiny_scene.splats.means[:, :2].norm(dim=1) > 0.8) & ~tiny_scene.is_ball
    assert is_far.sum() > 10
    for name, tensor in result.parameters().items():
        assert torch.equal(tensor[is_far], getattr(tiny_scene.splats, name)[is_far]), name
    assert not torch.equal(result.sh[tiny_scene.is_ball], tiny_scene.splats.sh[tiny_scene.is_ball])


def test_the_last_shape_steps_of_restage_grow_smaller_and_no_others(job):
    def moves(share: float) -> list[float]:
        method = Restage(
            noise_levels=(1.0, 0.5), color_steps=2, shape_steps=8, cooldown_share=share, deaths=None, births=None
        )
        colors = [step.splats.sh for step in method.run(job)]
        return [float((after - before).abs().mean()) for before, after in itertools.pairwise(colors)]

    plain, cooled = moves(0.0), moves(0.5)
    assert cooled[:-3] == plain[:-3]
    shares = [b / a for a, b in zip(plain[-3:], cooled[-3:], strict=True)]
    assert shares == pytest.approx([0.75, 0.5, 0.25], abs=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_what_it_gets_and_its_steps_and_gives_the_same_bits_again(name, job, tiny_scene):
    before = tiny_scene.splats.clone()
    steps, copies = [], []
    for step in make(name, SHORT).run(job):
        steps.append(step)
        copies.append(step.splats.clone())
        assert torch.isfinite(render_views(step.splats, tiny_scene.capture.cameras[0])).all()
    assert steps[-1].step == steps[-1].num_steps
    assert all(torch.equal(step.splats.sh, copy.sh) for step, copy in zip(steps, copies, strict=True))
    *_, again = make(name, SHORT).run(job)
    for field, tensor in steps[-1].splats.parameters().items():
        assert torch.equal(tensor, getattr(again.splats, field))
    for field, tensor in before.parameters().items():
        assert torch.equal(tensor, getattr(tiny_scene.splats, field))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_whose_time_is_up_ends_at_its_first_step_with_a_scene_that_can_be_used(name, job, tiny_scene):
    steps = list(TimeLimited(settings=make(name, SHORT), time_budget_s=1e-9).run(job))
    assert steps[-1].step == 1
    assert all(step.step == 0 for step in steps[:-1])
    if steps[-1].num_steps > 1:
        assert len(steps) < len(list(make(name, SHORT).run(job)))
    assert torch.isfinite(render_views(steps[-1].splats, tiny_scene.capture.cameras)).all()


@dataclasses.dataclass(frozen=True)
class _Unwilling:
    """An editor that changes nothing, and says so."""

    def edit(self, batch: ViewBatch) -> Edited:
        return Edited(batch.originals.clone(), torch.zeros_like(batch.originals[:, 0]))

    def scores(self) -> KnownScores:
        return KnownScores(self)


def test_where_the_editor_changes_nothing_there_is_nothing_to_remove(job):
    with pytest.raises(InputError, match="nothing was found that could be removed"):
        list(METHODS["remove"]().run(dataclasses.replace(job, editor=_Unwilling())))


@pytest.mark.parametrize("name", sorted({*METHODS} - {"remove"}))
def test_where_the_editor_changes_nothing_every_method_leaves_a_scene_that_counts_as_unchanged(name, job):
    result = list(make(name, SHORT).run(dataclasses.replace(job, editor=_Unwilling())))[-1].splats
    assert changed_share(job.splats, result, job.capture) <= NO_OP_SHARE


@pytest.mark.parametrize("name", METHODS)
def test_every_method_states_its_memory(name):
    assert "\n    Memory: " in (METHODS[name].__doc__ or "")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Restage(noise="shared", group_size=0), (0, 1, 2)),
        (Restage(noise="shared", num_noises=2), (0, 1, 0)),
        (Restage(noise="shared", num_noises=1), (0, 0, 0)),
        (Restage(noise="own", group_size=0), None),
        (Restage(noise="anchored", group_size=0), AnchoredNoise),
        (Restage(noise="shared", group_size=2, num_noises=1), (0, 0, 0)),
        (Restage(noise="anchored", group_size=2), AnchoredNoise),
    ],
)
def test_restage_tells_the_editor_which_noise_and_which_views_belong_together(settings, expected, job):
    asked, together = [], []

    class Watching:
        shares_attention = True

        def edit(self, batch):
            asked.append(batch.noise_keys)
            together.extend([] if batch.sharing is None else [batch.sharing])
            return job.editor.edit(batch)

    method = dataclasses.replace(settings, num_key_views=3, color_steps=1, shape_steps=1)
    list(method.run(dataclasses.replace(job, editor=Watching())))
    assert len(asked) == len(method.noise_levels)
    assert len(together) == (len(asked) if settings.group_size else 0)
    if expected is AnchoredNoise:
        assert all(isinstance(noise, AnchoredNoise) and len(noise.maps.cameras) == 3 for noise in asked)
    else:
        assert asked == [expected] * len(asked)


@pytest.mark.parametrize("method", [Joint(steps_per_round=1), Restage(group_size=2, color_steps=1, shape_steps=1)])
def test_an_editor_that_cannot_share_attention_is_not_asked_to(method, job):
    asked = []

    class Plain:
        def edit(self, batch):
            asked.append(batch.sharing)
            return job.editor.edit(batch)

    steps = list(method.run(dataclasses.replace(job, editor=Plain())))
    assert asked and set(asked) == {None}
    assert not isinstance(method, Joint) or "each by itself" in steps[0].note


@pytest.mark.parametrize("name", EDITING)
def test_a_method_asks_the_editor_for_training_views_only(name, job):
    asked = set()

    class Watching:
        def edit(self, batch):
            asked.update(batch.view_indices)
            return job.editor.edit(batch)

        def scores(self):
            return KnownScores(self)

    list(make(name, SHORT).run(dataclasses.replace(job, editor=Watching())))
    assert asked and asked <= set(job.view_indices)
    assert name not in SHORT or asked == set(job.view_indices)


def test_a_job_with_held_out_views_is_refused(job, tiny_scene):
    with pytest.raises(InputError, match="training views only"):
        dataclasses.replace(job, capture=tiny_scene.capture)


def test_key_views_are_far_apart_and_at_most_all_of_them(tiny_scene):
    cameras = tiny_scene.capture.cameras
    assert choose_key_views(cameras, 2) == [0, 4]
    assert choose_key_views(cameras, 4) == [0, 2, 4, 6]
    assert choose_key_views(cameras, 99) == list(range(8))


def test_outside_the_mask_the_target_is_the_unedited_view_bit_for_bit(tiny_scene):
    edited, unedited = torch.rand(2, 1, 3, 32, 32)
    masks = torch.zeros(1, 32, 32)
    masks[:, :4] = 1
    targets = composite(tiny_scene.capture.cameras[0], edited, unedited=unedited, masks=masks)
    assert torch.equal(targets.images[:, :, 4:], unedited[:, :, 4:])
    assert torch.equal(targets.images[:, :, :4], edited[:, :, :4])
    assert targets.weights is not None
    assert torch.equal(targets.weights, torch.ones(1, 32, 32))


def test_undecided_pixels_weigh_half(tiny_scene):
    edited, unedited = torch.rand(2, 1, 3, 32, 32)
    cameras = tiny_scene.capture.cameras[0]
    targets = composite(cameras, edited, unedited=unedited, masks=torch.full((1, 32, 32), 0.5))
    assert targets.weights is not None
    assert targets.weights.unique() == 0.5


def test_sharpening_and_robust_weights_have_known_values():
    assert torch.allclose(sharpen(torch.tensor([[[0.1, 0.4, 0.9]]]), 0.2, 0.6), torch.tensor([[[0.0, 0.5, 1.0]]]))
    assert torch.allclose(robust_weights(torch.tensor([[[0.0, 0.2]]]), 0.2), torch.tensor([[[1.0, 0.5]]]))


@pytest.mark.parametrize(("share", "is_asked"), [(0.4, True), (0.6, False)])
def test_splats_are_born_only_where_an_edit_covers_less_than_half(share, is_asked, job, monkeypatch):
    asked = []

    def seed_none(births, splats, views, *, max_count):
        asked.append(max_count)
        return Splats(**{name: tensor[:0] for name, tensor in splats.parameters().items()})

    monkeypatch.setattr("restage.edit.methods.restage.seed_splats", seed_none)
    cameras, images = job.capture.cameras, job.capture.images
    views = KeyViews(cameras, images, images, torch.full_like(images[:, 0], share))
    lifted = torch.zeros(len(job.splats))
    splats, trainable = Restage(deaths=None)._renew(job.splats, views, lifted=lifted, trainable=lifted)
    assert bool(asked) == is_asked
    assert len(splats) == len(job.splats) == len(trainable)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="noise level"):
        Restage(noise_levels=())
    with pytest.raises(InputError, match="mask_low"):
        Restage(mask_low=0.7, mask_high=0.5)
    with pytest.raises(InputError, match="group_size"):
        Restage(group_size=-1)
    with pytest.raises(InputError, match="noise"):
        Restage(num_noises=0)
    with pytest.raises(InputError, match="cooldown_share"):
        Restage(cooldown_share=1.5)
    with pytest.raises(InputError, match="max_renewed_share"):
        Restage(max_renewed_share=1.5)
    with pytest.raises(InputError, match="lowest_noise"):
        Idu(lowest_noise=0.0)
