"""Regions are data: they are kept with what they belong to, and combine as sets do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from restage.edit.pictures import write_mask
from restage.records import InputError, write_json
from restage.regions.files import (
    delete_region,
    list_regions,
    load_region,
    read_region,
    region_path,
    save_region,
    write_region,
)
from restage.regions.given import find_region, read_regions
from restage.regions.making import RegionMaker
from restage.regions.masks import keep_largest
from restage.regions.region import Region, combine, grow, largest, render_region, shrink, splats_sha256
from restage.scenes.io.splat_files import read_splats, write_splats


@pytest.fixture
def ball(tiny_scene):
    return Region.of(tiny_scene.splats, tiny_scene.is_ball.float(), by="words", words="the ball")


def half(scene):
    return Region.of(scene.splats, torch.linspace(0, 1, 200), by="space")


def test_a_region_comes_back_from_its_run_as_it_was(tiny_scene, ball, tmp_path):
    path = write_region(tmp_path, "tiny", "ball", ball)
    write_region(tmp_path, "tiny", "half", half(tiny_scene))
    found = read_region(tmp_path, "tiny", "ball", tiny_scene.splats)
    assert torch.equal(found.weights, ball.weights) and found.made == {"by": "words", "words": "the ball"}
    assert found.id == ball.id and path == tmp_path / "scenes" / "tiny" / "regions" / "ball.npz"
    records = list_regions(tmp_path, "tiny")
    assert list(records) == ["ball", "half"] and records["ball"].share == pytest.approx(0.4)
    assert records["ball"].num_splats == 200 and records["ball"].id == ball.id
    delete_region(tmp_path, "tiny", "ball")
    assert list(list_regions(tmp_path, "tiny")) == ["half"]
    with pytest.raises(InputError, match="tiny has no region 'ball'; there are: half"):
        read_region(tmp_path, "tiny", "ball")
    assert [entry.name for entry in path.parent.iterdir()] == ["half.npz"]


def test_splats_are_known_by_their_numbers_through_a_file(tiny_scene, tmp_path):
    write_splats(tiny_scene.splats, tmp_path / "splats.ply")
    assert splats_sha256(read_splats(tmp_path / "splats.ply")) == splats_sha256(tiny_scene.splats)
    assert splats_sha256(tiny_scene.recolored) != splats_sha256(tiny_scene.splats)


def test_a_region_of_other_splats_is_refused(tiny_scene, ball, tmp_path):
    save_region(tmp_path / "ball.npz", ball)
    for other in (tiny_scene.recolored, tiny_scene.splats[:100]):
        with pytest.raises(InputError, match="ball.npz belongs to other splats"):
            load_region(tmp_path / "ball.npz", other)
        with pytest.raises(InputError, match="belongs to other splats"):
            grow(ball, other, 0.1)
    with pytest.raises(InputError, match="regions of the same splats"):
        combine("and", ball, Region.of(tiny_scene.recolored, torch.ones(200), by="space"))


def test_files_that_are_no_regions_are_refused(tiny_scene, ball, tmp_path):
    save_region(tmp_path / "ball.npz", ball)
    with np.load(tmp_path / "ball.npz") as arrays:
        record = arrays["record"]
    np.savez_compressed(tmp_path / "changed.npz", weights=np.zeros(200, dtype=np.float32), record=record)
    with pytest.raises(InputError, match="changed.npz was changed after it was written"):
        load_region(tmp_path / "changed.npz")
    np.savez_compressed(tmp_path / "wide.npz", weights=np.zeros((2, 2)), record=record)
    with pytest.raises(InputError, match="expected float32 weights in a row"):
        load_region(tmp_path / "wide.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "ball.npz").read_bytes()[:90])
    np.savez_compressed(tmp_path / "bare.npz", weights=np.zeros(2))
    for name in ("cut", "bare"):
        with pytest.raises(InputError, match="is not readable as a region"):
            load_region(tmp_path / f"{name}.npz")
    for name in ("", "../ball", ".ball", "a/b"):
        with pytest.raises(InputError, match="expected a region's name"):
            region_path(tmp_path, name)


@pytest.mark.parametrize("weights", [torch.full((200,), 1.1), torch.full((200,), -0.1), torch.full((200,), torch.nan)])
def test_weights_lie_between_0_and_1(tiny_scene, weights):
    with pytest.raises(InputError, match="expected weights in"):
        Region.of(tiny_scene.splats, weights, by="space")
    with pytest.raises(InputError, match="a weight for each of 200"):
        Region.of(tiny_scene.splats, weights[:7], by="space")


def test_regions_combine_as_sets_do(tiny_scene, ball):
    soft = half(tiny_scene)
    both, either, rest = combine("and", ball, soft), combine("or", ball, soft), combine("not", soft)
    assert torch.equal(both.weights, torch.minimum(ball.weights, soft.weights))
    assert torch.equal(combine("not", combine("or", combine("not", ball), rest)).weights, 1 - (1 - both.weights))
    assert torch.equal(either.weights, torch.maximum(ball.weights, soft.weights))
    assert both.made["by"] == "and" and [origin["id"] for origin in both.made["of"]] == [ball.id, soft.id]
    for how, regions in (("xor", (ball, soft)), ("and", ()), ("not", (ball, soft))):
        with pytest.raises(InputError, match="expected and, or"):
            combine(how, *regions)


def test_a_region_grows_shrinks_and_keeps_its_largest_piece(tiny_scene, ball):
    splats = tiny_scene.splats.clone()
    splats.means[:10] += torch.tensor([20.0, 0.0, 0.0])
    moved = Region.of(splats, ball.weights, by="words")
    kept = largest(moved, splats)
    assert kept.weights[:10].sum() == 0 and kept.weights[10:80].sum() > 60 and kept.made["of"][0]["id"] == moved.id
    grown = grow(ball, tiny_scene.splats, 0.2)
    assert grown.share > ball.share and bool((grown.weights >= ball.weights).all()) and grown.made["distance"] == 0.2
    assert shrink(grown, tiny_scene.splats, 0.15).share < grown.share


def test_a_region_renders_to_masks_of_a_file(tiny_scene, ball):
    masks = render_region(ball, tiny_scene.splats, tiny_scene.capture.cameras)
    wanted = tiny_scene.truth_masks > 0
    assert float(((masks > 0.5) & wanted).sum() / ((masks > 0.5) | wanted).sum()) > 0.6
    assert torch.equal(masks, (masks * 255).round() / 255)


def test_a_region_is_found_by_name_or_path(tiny_scene, ball, tmp_path):
    scene = tmp_path / "scenes" / "tiny"
    write_region(tmp_path, "tiny", "ball", ball)
    path = find_region(type(tmp_path)("ball"), scene)
    assert path == region_path(scene, "ball") and find_region(path, scene) == path
    masks = read_regions(path, tiny_scene.capture, tiny_scene.splats)
    assert torch.equal(masks, render_region(ball, tiny_scene.splats, tiny_scene.capture.cameras))
    with pytest.raises(InputError, match="cube is no region of tiny and no file"):
        find_region(type(tmp_path)("cube"), scene)


def test_masks_of_some_views_make_those_of_the_others(tiny_scene, tmp_path):
    capture, truth = tiny_scene.capture, tiny_scene.truth_masks
    for view in (0, 1, 3, 5):
        write_mask(tmp_path / "masks" / capture.file_names[view], truth[view])
    found = read_regions(tmp_path / "masks", capture, tiny_scene.splats) > 0.5
    overlap = (found & (truth > 0)).sum(dim=(1, 2)) / (found | (truth > 0)).sum(dim=(1, 2))
    assert float(overlap.min()) > 0.55
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="expected masks as PNG by the names of views, such as view_0.png"):
        read_regions(tmp_path / "none", capture, tiny_scene.splats)
    write_mask(tmp_path / "black" / "view_1.png", torch.zeros(32, 32))
    with pytest.raises(InputError, match="no splat shows"):
        read_regions(tmp_path / "black", capture, tiny_scene.splats)


def test_boxes_around_nothing_are_refused(tiny_scene, tmp_path):
    write_json(tmp_path / "boxes.json", {"view_0.png": [0, 0, 0.01, 0.01]})
    with pytest.raises(InputError, match="no part of the scene"):
        read_regions(tmp_path / "boxes.json", replace(tiny_scene.capture), tiny_scene.splats)


def test_a_region_of_a_name_comes_before_a_file_of_that_name(tiny_scene, ball, tmp_path, monkeypatch):
    scene = tmp_path / "scenes" / "tiny"
    tiny_scene.write(scene)
    write_region(tmp_path, "tiny", "ball", ball)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ball").mkdir()  # such as the capture that the scene was fitted to
    assert find_region(Path("ball"), scene) == region_path(scene, "ball")
    assert find_region(Path("./ball/"), scene) == region_path(scene, "ball")
    assert find_region(tmp_path / "ball", scene) == tmp_path / "ball"
    (tmp_path / "ball").rmdir()
    (tmp_path / "ball").write_text("no region")
    assert RegionMaker(scene).load("ball").id == ball.id


def test_masks_of_the_photographs_own_size_serve_smaller_views(tiny_scene, tmp_path):
    capture = tiny_scene.capture
    for view, name in enumerate(capture.file_names):
        large = tiny_scene.truth_masks[view].repeat_interleave(3, 0).repeat_interleave(3, 1)
        write_mask(tmp_path / name, large)
    assert torch.equal(read_regions(tmp_path, capture, tiny_scene.splats), tiny_scene.truth_masks)
    write_mask(tmp_path / capture.file_names[0], torch.ones(64, 96))
    with pytest.raises(InputError, match="another size than the views: expected 32x32 or larger.*got 96x64"):
        read_regions(tmp_path, capture, tiny_scene.splats)


def test_the_largest_piece_is_the_same_where_there_are_too_many_pairs(tiny_scene, ball, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    means = torch.cat([0.1 * torch.randn(150, 3, generator=generator), torch.randn(50, 3, generator=generator) + 9])
    splats = replace(tiny_scene.splats, means=means, log_scales=torch.full((200, 3), -9.0))
    before = keep_largest(splats, torch.ones(200))
    monkeypatch.setattr("restage.regions.masks.MAX_PAIRS", 0)
    after = keep_largest(splats, torch.ones(200))
    assert torch.equal(before, after) and 100 < int(after.sum()) < 200
