from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import pictures, probe, probe_pictures
from miniature.pictures import Pictures, make_pictures
from miniature.probe import (
    Probe,
    augment,
    likeliest_kinds,
    load_probe,
    probe_losses,
    read_pictures,
    save_probe,
    train_probe,
)
from miniature.probe_pictures import (
    FIRST_KIND_CLASS,
    IGNORED,
    Labels,
    ProbePictures,
    label_of,
    make_probe_pictures,
    render_many,
    sample_free_description,
    to_unit,
)
from restage.diffusion.backbone import load_backbone
from restage.diffusion.training import read_metrics
from restage.records import InputError, derive_seed
from restage.world.description import COLORS, KINDS, PATTERNS, Description, SceneObject
from restage.world.grammar import HELD_OUT_COMBINATIONS
from restage.world.looks import HELD_OUT_PATTERNS
from tests.tiny_models import write_tiny_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder of a few pictures."""
    folder = tmp_path_factory.mktemp("probe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "SHARD_SIZE", 6)
        list(make_pictures(folder / "pictures", 6))
    write_tiny_models(folder / "miniature")
    return folder


@pytest.fixture(scope="module")
def rendered():
    return render_many([derive_seed("probe test", i) for i in range(6)])


def _scene(*objects: tuple[str, str]) -> Description:
    things = tuple(SceneObject(kind=kind, color=color) for kind, color in objects)
    return Description(objects=things, ground="sand", time="fog")


def _ids(*areas: int) -> np.ndarray:
    """A picture of sky over ground in which object i covers so many pixels."""
    ids = np.zeros((128, 128), np.int32)
    ids[64:] = 1
    flat, start = ids.reshape(-1), 8192
    for number, area in enumerate(areas):
        flat[start : start + area] = 2 + number
        start += area
    return ids


def test_labels_name_what_a_picture_shows() -> None:
    labels = label_of(_scene(("ball", "red"), ("tree", "pink")), _ids(3000, 2000))
    assert labels.present[0].tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    assert labels.colors[0, 0] == COLORS.index("red") and labels.colors[0, 5] == COLORS.index("pink")
    assert (labels.colors[0, [1, 2, 3, 4, 6, 7]] == IGNORED).all()
    assert (labels.count[0], labels.ground[0], labels.time[0]) == (2, 1, 3)
    assert labels.classes[0, 0].tolist() == [0] * 16 and labels.classes[0, -1].tolist() == [1] * 16
    assert labels.classes[0, 8, 0] == FIRST_KIND_CLASS + KINDS.index("ball")


def test_an_object_that_hardly_shows_is_neither_there_nor_not_there() -> None:
    labels = label_of(_scene(("ball", "red"), ("tree", "pink")), _ids(3000, 149))
    assert labels.present[0, 5] == IGNORED and labels.colors[0, 5] == IGNORED and labels.count[0] == IGNORED
    assert label_of(_scene(("ball", "red"), ("tree", "pink")), _ids(3000, 150)).present[0, 5] == 1


def test_a_kind_in_two_colours_has_no_colour_but_counts_twice() -> None:
    labels = label_of(_scene(("cube", "red"), ("cube", "blue")), _ids(900, 900))
    assert (labels.present[0, 1], labels.colors[0, 1], labels.count[0]) == (1, IGNORED, 2)
    assert label_of(_scene(("cube", "red"), ("cube", "red")), _ids(900, 900)).colors[0, 1] == COLORS.index("red")


def test_a_color_without_a_name_is_not_asked_for_and_of_a_pattern_the_first_is() -> None:
    striped = SceneObject(kind="cube", color="red", pattern="striped", second_color="blue")
    scene = replace(_scene(("ball", "#123456")), objects=(SceneObject(kind="ball", color="#123456"), striped))
    labels = label_of(scene, _ids(3000, 2000))
    assert labels.present[0, 0] == 1 and labels.colors[0, 0] == IGNORED
    assert labels.colors[0, 1] == COLORS.index("red")
    assert labels.patterns[0, :3].tolist() == [0, 1 + PATTERNS.index("striped"), IGNORED]


def test_labels_at_the_latent_grid_are_those_of_the_whole_picture() -> None:
    scene, ids = _scene(("ball", "red")), _ids(3000)
    whole, coarse = label_of(scene, ids), label_of(scene, ids[4::8, 4::8])
    assert all((a == b).all() for a, b in zip(whole, coarse, strict=True))


def test_free_scenes_hold_what_training_scenes_never_do() -> None:
    scenes = [sample_free_description(seed) for seed in range(200)]
    pairs = {(item.kind, item.color) for scene in scenes for item in scene.objects}
    assert pairs >= HELD_OUT_COMBINATIONS
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4}
    assert any(len({o.kind for o in scene.objects}) < len(scene.objects) for scene in scenes)
    assert any(len({o.color for o in scene.objects}) < len(scene.objects) for scene in scenes)
    assert {(o.kind, o.pattern) for scene in scenes for o in scene.objects} & HELD_OUT_PATTERNS


def test_a_mirrored_picture_has_mirrored_cells(rendered) -> None:
    images, labels = to_unit(rendered[0]), rendered[1]
    changed, moved = augment(images, labels, torch.Generator().manual_seed(0))
    is_mirrored = [not np.array_equal(a, b) for a, b in zip(labels.classes, moved.classes, strict=True)]
    assert True in is_mirrored and False in is_mirrored
    for index, mirrored in enumerate(is_mirrored):
        expected = images[index].flip(2) if mirrored else images[index]
        assert (changed[index] - expected).abs().mean() < 0.05


def test_what_is_ignored_costs_nothing(rendered) -> None:
    _, labels = rendered
    torch.manual_seed(0)
    output = Probe()(torch.rand(6, 3, 128, 128))
    nothing = Labels(*(np.full_like(column, IGNORED) for column in labels))
    only_ground = nothing._replace(ground=labels.ground)
    losses = probe_losses(output, only_ground)
    assert float(losses["present"].detach()) == 0.0 and float(losses["ground"].detach()) > 0
    some = labels._replace(present=np.where(labels.present == 1, IGNORED, labels.present))
    masked, full = probe_losses(output, some)["present"], probe_losses(output, labels)["present"]
    assert bool(masked < full)


def test_pictures_made_in_two_sessions_are_those_of_one(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(probe_pictures, "SHARD_SIZE", 3)
    backbone = load_backbone(folder / "miniature" / "text_to_image")
    list(make_probe_pictures(tmp_path / "one", 6, backbone))
    next(make_probe_pictures(tmp_path / "two", 6, backbone))
    list(make_probe_pictures(tmp_path / "two", 6, backbone))
    one, two = ProbePictures(tmp_path / "one", 6), ProbePictures(tmp_path / "two", 6)
    for is_soft in (False, True):
        soft = [is_soft] * 6
        assert np.array_equal(one.images(range(6), is_soft=soft), two.images(range(6), is_soft=soft))
    assert all(np.array_equal(a, b) for a, b in zip(one.labels, two.labels, strict=True))
    assert not np.array_equal(one.images([0], is_soft=[False]), one.images([0], is_soft=[True]))


def test_probe_that_is_stopped_ends_with_the_same_losses(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "SHARD_SIZE", 6)
    monkeypatch.setattr(probe_pictures, "SHARD_SIZE", 3)
    monkeypatch.setattr(probe, "NUM_PROBE_PICTURES", 3)
    config = replace(probe.RECIPE, num_steps=3, batch_size=4, checkpoint_every_s=0.0)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text_to_image").symlink_to(folder / "miniature" / "text_to_image")
        if name == "stopped":
            list(itertools.islice(train_probe(tmp_path / name, Pictures(folder / "pictures"), config), 3))
        list(train_probe(tmp_path / name, Pictures(folder / "pictures"), config))
    whole, stopped = (read_metrics(tmp_path / name / "state" / "probe") for name in ("whole", "stopped"))
    assert len(whole) == 3 and whole == stopped
    paths = [tmp_path / name / "probe" / "probe.safetensors" for name in ("whole", "stopped")]
    assert paths[0].read_bytes() == paths[1].read_bytes() and paths[0].stat().st_size < 5e6


def test_probe_reads_the_same_from_disk(tmp_path: Path) -> None:
    torch.manual_seed(1)
    saved, images = Probe(), torch.rand(3, 3, 128, 128)
    save_probe(saved, tmp_path / "probe.safetensors")
    loaded = load_probe(tmp_path / "probe.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(saved(images).colors, loaded(images).colors, atol=0.02, rtol=0.02)
    whole, parts = read_pictures(loaded, images), read_pictures(loaded, images, batch_size=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_kinds_and_number_of_objects_are_the_likeliest_that_go_together() -> None:
    generator = torch.Generator().manual_seed(3)
    present, count = 2 * torch.randn(40, 5, generator=generator), 3 * torch.randn(40, 5, generator=generator)
    found, number = likeliest_kinds(present, count)
    for row in range(len(present)):

        def likelihood(kinds: tuple[int, ...], objects: int, row: int = row) -> float:
            there = torch.tensor([kind in kinds for kind in range(5)])
            signs = torch.where(there, 1.0, -1.0)
            return float((signs * present[row]).sigmoid().log().sum() + count[row].log_softmax(0)[objects])

        possible = [
            (kinds, objects)
            for objects in range(5)
            for size in range(min(1, objects), objects + 1)
            for kinds in itertools.combinations(range(5), size)
        ]
        best = max(possible, key=lambda item: likelihood(*item))
        assert (tuple(found[row].nonzero()[:, 0].tolist()), int(number[row])) == best


def test_a_probe_goes_on_from_the_weights_of_another(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "SHARD_SIZE", 6)
    monkeypatch.setattr(probe_pictures, "SHARD_SIZE", 3)
    monkeypatch.setattr(probe, "NUM_PROBE_PICTURES", 3)
    torch.manual_seed(5)
    first = Probe()
    save_probe(first, tmp_path / "first" / "probe.safetensors")
    (tmp_path / "text_to_image").symlink_to(folder / "miniature" / "text_to_image")
    config = replace(probe.RECIPE, num_steps=1, batch_size=4, learning_rate=1e-9, weight_decay=0.0)
    list(train_probe(tmp_path, Pictures(folder / "pictures"), config, start=tmp_path / "first"))
    second = load_probe(tmp_path / "probe" / "probe.safetensors").state_dict()
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second[name], value, rtol=2e-3, atol=1e-5, msg=name)
    with pytest.raises(InputError, match="expected a probe"):
        next(train_probe(tmp_path, Pictures(folder / "pictures"), config, start=tmp_path / "none"))


def test_a_probe_of_the_first_edition_reads_no_patterns_and_is_nothing_to_start_from(
    folder: Path, tmp_path: Path
) -> None:
    save_probe(Probe(reads_patterns=False), tmp_path / "probe.safetensors")
    readings = read_pictures(load_probe(tmp_path / "probe.safetensors"), torch.rand(2, 3, 128, 128))
    assert (readings.patterns == -1).all()
    with pytest.raises(InputError, match="reads no patterns"):
        next(train_probe(tmp_path, Pictures(folder / "pictures"), start=tmp_path))


def test_missing_or_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_probe(tmp_path / "probe.safetensors")
    save_probe(Probe((16, 16, 16)), tmp_path / "small.safetensors")
    with pytest.raises(InputError, match="no probe of this shape"):
        load_probe(tmp_path / "small.safetensors")
