"""Assets and the pictures made for the page."""

import numpy as np
import pytest
from PIL import Image

from restage.records import InputError
from restage.report.pictures import AssetFolder, colour_map, read_picture
from restage.scores.overlays import FOUND_RGB, MISSED_RGB, SPILLED_RGB, change_map, mask_overlay


def flat(value, side=4):
    return np.full((side, side, 3), value, np.uint8)


def test_change_map_does_not_wrap_around():
    assert change_map(flat(0), flat(255)).max() == pytest.approx(1.0)
    assert change_map(flat(255), flat(0)).min() == pytest.approx(1.0)
    assert change_map(flat(9), flat(9)).max() == 0


def test_colour_map_rises_from_black_and_stops_at_its_top():
    colours = colour_map(np.array([[0.0, 0.25, 0.5, 0.9]]), top=0.5)[0].astype(int)
    brightness = colours.sum(axis=-1)
    assert brightness[0] == 4
    assert brightness[0] < brightness[1] < brightness[2] == brightness[3]


def test_overlay_tells_found_spilled_and_missed_apart():
    changed = np.array([[True, True], [False, False]])
    should = np.array([[True, False], [True, False]])
    overlay = mask_overlay(flat(128, 2), changed, should).astype(int)
    plain = overlay[1, 1]
    for position, colour in (((0, 0), FOUND_RGB), ((0, 1), SPILLED_RGB), ((1, 0), MISSED_RGB)):
        assert overlay[position] == pytest.approx(0.3 * plain + 0.7 * np.array(colour), abs=1)


def test_overlay_without_truth_only_says_changed():
    changed = np.array([[True, False]])
    overlay = mask_overlay(np.full((1, 2, 3), 128, np.uint8), changed, None)
    assert (overlay[0, 0] != overlay[0, 1]).any()
    assert len(set(overlay[0, 1].tolist())) == 1


def test_small_pictures_are_stored_without_loss(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    path = AssetFolder(tmp_path / "assets").add_picture(picture, "view")
    assert (read_picture(tmp_path / path) == picture).all()


def test_names_of_assets_hold_no_foreign_characters(tmp_path):
    path = AssetFolder(tmp_path / "assets").add_bytes(b"x", "../../<b> é.html?", suffix=".webp")
    assert path.startswith("assets/b-html-")
    assert (tmp_path / path).read_bytes() == b"x"


def test_large_pictures_are_made_smaller(tmp_path):
    Image.new("RGB", (800, 400)).save(tmp_path / "large.png")
    assert read_picture(tmp_path / "large.png", max_px=200).shape == (100, 200, 3)


def test_missing_picture_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.png"):
        read_picture(tmp_path / "none.png")


def test_a_picture_of_another_kind_is_refused_whatever_its_name(tmp_path):
    (tmp_path / "view.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    with pytest.raises(InputError, match="view.png is not readable as a picture"):
        read_picture(tmp_path / "view.png")
