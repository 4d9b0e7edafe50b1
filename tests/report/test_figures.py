"""Grids of pictures for READMEs and papers."""

import pytest
from PIL import Image

from restage.records import InputError
from restage.report.pictures import compose_grid, load_images

RED, BLUE = Image.new("RGB", (10, 10), "red"), Image.new("RGB", (20, 10), "blue")


def test_pictures_lie_in_their_cells():
    grid = compose_grid([[RED, BLUE], [None, RED]], cell_px=40, gap_px=10)
    assert grid.size == (110, 110)
    assert grid.getpixel((30, 30)) == (255, 0, 0)
    assert grid.getpixel((80, 30)) == (0, 0, 255)
    assert grid.getpixel((80, 12)) == (255, 255, 255), "a wide picture keeps its shape"
    assert grid.getpixel((30, 80)) == (255, 255, 255), "None leaves its cell empty"
    assert grid.getpixel((80, 80)) == (255, 0, 0)


def test_labels_make_room_for_themselves_and_stand_out():
    plain = compose_grid([[RED]], cell_px=100)
    labelled = compose_grid([[RED]], cell_px=100, row_labels=["make it blue"], column_labels=["before"])
    assert labelled.height > plain.height and labelled.width == plain.width
    dark = compose_grid([[RED]], cell_px=100, column_labels=["before"], background="#101010")
    assert max(dark.crop((0, 0, 116, 24)).convert("L").tobytes()) > 200


def test_long_row_label_is_broken_into_lines():
    short = compose_grid([[RED]], cell_px=100, row_labels=["one"])
    long = compose_grid([[RED]], cell_px=100, row_labels=["make the cube on the left blue and the sky dark"])
    assert long.height > short.height and long.width == short.width


def test_same_pictures_give_the_same_grid():
    grids = [compose_grid([[RED, BLUE]], row_labels=["x"], column_labels=["a", "b"]).tobytes() for _ in range(2)]
    assert grids[0] == grids[1]


def test_wrong_number_of_labels_is_refused():
    with pytest.raises(InputError, match="expected 2 column labels or none, got 1"):
        compose_grid([[RED, BLUE]], column_labels=["a"])
    with pytest.raises(InputError, match="at least one picture"):
        compose_grid([])


def test_unreadable_picture_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"bad\.png"):
        load_images([tmp_path / "bad.png"])
