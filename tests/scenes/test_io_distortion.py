"""Lenses: what a distorted picture shows lies where a pinhole puts it; what a lens did not see weighs nothing."""

import json
import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from restage.records import InputError
from restage.scenes.io import read_capture
from restage.scenes.io.colmap import ModelCamera, lens_of
from restage.scenes.io.distortion import Lens, undistortion_of

WIDTH, HEIGHT = 150, 110


def distort(lens: Lens, x: float, y: float) -> tuple[float, float]:
    """Pixel of a direction (x, y, 1), by the formulas of OpenCV's documentation (calib3d, and its fisheye model)."""
    r2 = x * x + y * y
    if lens.model == "fisheye":
        r = math.sqrt(r2)
        angle = math.atan(r)
        k1, k2, k3, k4 = (*lens.coefficients, 0, 0, 0, 0)[:4]
        bent = angle * (1 + k1 * angle**2 + k2 * angle**4 + k3 * angle**6 + k4 * angle**8)
        x, y = (x * bent / r, y * bent / r) if r else (x, y)
    else:
        k1, k2, p1, p2, k3, k4, k5, k6 = (*lens.coefficients, *(0,) * 8)[:8]
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        x, y = (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        )
    return x * lens.focal_x_px + lens.center_x_px, y * lens.focal_y_px + lens.center_y_px


def marker(x: float, y: float, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A soft dot around a point; the centre of the top left pixel is at (0.5, 0.5)."""
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    squared = (columns[None] - x) ** 2 + (rows[:, None] - y) ** 2
    return np.exp(-squared / (2 * 0.7**2)).astype(np.float32)


def centroid(picture: np.ndarray) -> tuple[float, float]:
    columns, rows = np.arange(picture.shape[1]) + 0.5, np.arange(picture.shape[0]) + 0.5
    total = picture.sum()
    return float((picture.sum(0) * columns).sum() / total), float((picture.sum(1) * rows).sum() / total)


def small(limit: float) -> st.SearchStrategy[float]:
    return st.floats(-limit, limit, allow_subnormal=False)


def lenses(coefficients: st.SearchStrategy[tuple[float, ...]], *, model: str) -> st.SearchStrategy[dict]:
    """Values of a `Lens`."""
    return st.fixed_dictionaries(
        {
            "width": st.just(WIDTH),
            "height": st.just(HEIGHT),
            "focal_x_px": st.floats(110, 160),
            "focal_y_px": st.floats(110, 160),
            "center_x_px": st.floats(65, 85),
            "center_y_px": st.floats(45, 65),
            "coefficients": coefficients,
            "model": st.just(model),
        }
    )


BROWN = lenses(st.tuples(small(0.25), small(0.05), small(0.005), small(0.005), small(0.01)), model="brown")
RATIONAL = lenses(
    st.tuples(*(small(limit) for limit in (0.2, 0.03, 0.003, 0.003, 0.01, 0.1, 0.02, 0.01))), model="brown"
)
FISHEYE = lenses(st.tuples(small(0.05), small(0.02), small(0.01), small(0.003)), model="fisheye")
# The dot is bent by the lens, which moves its centre: the strongest lenses here move it by half of what is allowed.
PLACE = st.tuples(st.floats(0.12, 0.88), st.floats(0.12, 0.88))


@pytest.mark.parametrize("kind", [BROWN, RATIONAL, FISHEYE], ids=["brown", "rational", "fisheye"])
def test_a_marker_lies_where_the_pinhole_camera_puts_it(kind):
    worst = 0.0

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(values=kind, place=PLACE)
    def check(values, place):
        nonlocal worst
        lens = Lens(**values)
        straight = undistortion_of(lens)
        x, y = place[0] * WIDTH, place[1] * HEIGHT
        assume(straight.valid[int(y) - 8 : int(y) + 9, int(x) - 8 : int(x) + 9].all())
        direction = np.linalg.inv(straight.intrinsics) @ np.array([x, y, 1.0])
        drawn = marker(*distort(lens, direction[0], direction[1]))
        found = centroid(straight.straighten(drawn))
        error = math.hypot(found[0] - x, found[1] - y)
        worst = max(worst, error)
        assert error < 0.1

    check()
    assert 0 < worst < 0.1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(values=st.one_of(BROWN, RATIONAL, FISHEYE), place=PLACE)
def test_every_pixel_is_taken_from_where_the_formulas_say(values, place):
    lens = Lens(**values)
    straight = undistortion_of(lens)
    row, column = int(place[1] * HEIGHT), int(place[0] * WIDTH)
    direction = np.linalg.inv(straight.intrinsics) @ np.array([column + 0.5, row + 0.5, 1.0])
    expected = distort(lens, direction[0], direction[1])
    found = (straight.map_x[row, column] + 0.5, straight.map_y[row, column] + 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(values=st.one_of(BROWN, FISHEYE))
def test_a_usual_lens_leaves_no_border(values):
    assert undistortion_of(Lens(**values)).valid.mean() > 0.995


def test_the_view_of_a_usual_lens_is_that_of_opencv():
    lens = Lens(
        width=WIDTH,
        height=HEIGHT,
        focal_x_px=120.0,
        focal_y_px=118.0,
        center_x_px=76.0,
        center_y_px=54.0,
        coefficients=(-0.1, 0.02, 0.001, -0.001, 0.0),
    )
    moved = lens.intrinsics - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    optimal, _ = cv2.getOptimalNewCameraMatrix(moved, np.array(lens.coefficients), (WIDTH, HEIGHT), 0)
    noise = np.random.default_rng(0).random((HEIGHT, WIDTH, 3), dtype=np.float32)
    expected = cv2.undistort(noise, moved, np.array(lens.coefficients), newCameraMatrix=optimal)
    np.testing.assert_allclose(undistortion_of(lens).straighten(noise)[2:-2, 2:-2], expected[2:-2, 2:-2], atol=0.04)


def test_a_lens_of_180_degrees_shows_60_to_each_side_and_its_circle_is_kept_out():
    lens = Lens(
        width=200,
        height=200,
        focal_x_px=100 / (math.pi / 2),
        focal_y_px=100 / (math.pi / 2),
        center_x_px=100.0,
        center_y_px=100.0,
        model="fisheye",
    )
    whole = undistortion_of(lens)
    assert whole.valid.all()
    assert 2 * math.degrees(math.atan(100 / whole.intrinsics[0, 0])) == pytest.approx(120, abs=1)
    cropped = undistortion_of(Lens(**{**vars(lens), "crop_radius_px": 60.0}))
    angles = np.degrees(np.arctan(np.hypot(*np.mgrid[-99.5:100, -99.5:100]) / cropped.intrinsics[0, 0]))
    shown = 60 / 100 * 90
    assert cropped.valid[angles < shown - 1].all()
    assert not cropped.valid[angles > shown + 1].any()


def test_a_model_that_folds_back_shows_nothing_twice():
    """k1 = -0.5 turns back at r = 0.816; past it the polynomial shows the same pixels again."""
    lens = Lens(
        width=WIDTH,
        height=HEIGHT,
        focal_x_px=70.0,
        focal_y_px=70.0,
        center_x_px=WIDTH / 2,
        center_y_px=HEIGHT / 2,
        coefficients=(-0.5,),
    )
    straight = undistortion_of(lens)
    rows, columns = np.nonzero(straight.valid)
    radius = np.hypot(
        (columns + 0.5 - straight.intrinsics[0, 2]) / straight.intrinsics[0, 0],
        (rows + 0.5 - straight.intrinsics[1, 2]) / straight.intrinsics[1, 1],
    )
    assert 0.7 < radius.max() <= math.sqrt(1 / 1.5) + 0.01
    assert 0.05 < straight.valid.mean() < 1


@pytest.mark.parametrize("coefficients", [(1e9,), (-1e9, 1e9), (0.0, 0.0, 1e6)])
def test_absurd_coefficients_are_refused(coefficients):
    numbers: dict[str, Any] = {"focal_x_px": 90.0, "focal_y_px": 90.0, "center_x_px": 75.0, "center_y_px": 55.0}
    with pytest.raises(InputError, match="check the lens"):
        undistortion_of(Lens(width=WIDTH, height=HEIGHT, coefficients=coefficients, **numbers))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"focal_x_px": 0.0}, "above 0"),
        ({"center_y_px": math.nan}, "finite"),
        ({"coefficients": (0.0,) * 9}, "at most 8"),
        ({"coefficients": (0.0,) * 5, "model": "fisheye"}, "at most 4 coefficients of a fisheye lens"),
        ({"coefficients": (0.0,) * 2, "model": "fov"}, "at most 1 coefficients of a fov lens"),
        ({"crop_radius_px": 0.0}, "crop radius"),
    ],
)
def test_impossible_lenses_are_refused(values, expected):
    numbers: dict[str, Any] = {"focal_x_px": 90.0, "focal_y_px": 90.0, "center_x_px": 75.0, "center_y_px": 55.0}
    with pytest.raises(InputError, match=expected) as error:
        Lens(width=WIDTH, height=HEIGHT, **{**numbers, **values})
    assert "\n" not in str(error.value)


def test_lenses_of_another_size_scale_and_of_another_shape_are_refused():
    lens = Lens(
        width=WIDTH, height=HEIGHT, focal_x_px=90.0, focal_y_px=80.0, center_x_px=75.0, center_y_px=55.0
    ).to_size(300, 220)
    assert (lens.focal_x_px, lens.focal_y_px, lens.center_x_px, lens.center_y_px) == (180, 160, 150, 110)
    with pytest.raises(InputError, match="shape"):
        lens.to_size(220, 300)


def write_fisheye(folder, pixels: np.ndarray, **extra) -> None:
    """A capture of one view whose lens sees 100 degrees to each side across the picture's width."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "0.png")
    focal = pixels.shape[1] / 2 / math.radians(50)
    frame = {"file_path": "0.png", "transform_matrix": np.eye(4).tolist(), **extra}
    meta = {"fl_x": focal, "fl_y": focal, "camera_model": "OPENCV_FISHEYE", "k1": 0.01, "frames": [frame]}
    (folder / "transforms.json").write_text(json.dumps(meta))


def test_a_mask_is_straightened_with_its_picture_and_outside_weighs_nothing(tmp_path):
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, 60:] = 255
    write_fisheye(tmp_path, pixels, mask_path="mask.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "mask.png")
    found = read_capture(tmp_path)
    assert found.masks is not None
    torch.testing.assert_close(found.masks[0], found.images[0, 0], atol=1e-6, rtol=0)
    assert 0.2 < float(found.masks.mean()) < 0.45
    write_fisheye(tmp_path, pixels)
    assert read_capture(tmp_path).masks is None
    meta = json.loads((tmp_path / "transforms.json").read_text())
    (tmp_path / "transforms.json").write_text(json.dumps({**meta, "fisheye_crop_radius": 30.0}))
    cropped = read_capture(tmp_path)
    assert cropped.masks is not None
    assert float(cropped.masks[0, 0, 0]) == 0
    assert float(cropped.masks[0, 50, 50]) == 1
    assert float(cropped.images[0, :, cropped.masks[0] == 0].max()) == 0


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [
        ("FOV", (0.9,)),
        ("FOV", (0.01,)),
        ("THIN_PRISM_FISHEYE", (0.05, -0.02, 0.004, -0.003, 0.01, 0.002, 0.006, -0.005)),
        ("THIN_PRISM_FISHEYE", (0.0,) * 8),
    ],
)
def test_the_models_that_opencv_lacks_bend_as_in_colmap(model, coefficients):
    """Where pycolmap's camera puts the rays of the straight picture's pixels."""
    pycolmap = pytest.importorskip("pycolmap", reason="needs restage[colmap]")
    params = (80.0, 85.0, 74.0, 56.0, *coefficients)
    lens = lens_of(ModelCamera(model, WIDTH, HEIGHT, params))
    found = undistortion_of(lens)
    camera = pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=params)
    rows, columns = np.nonzero(found.valid)
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], axis=1) @ np.linalg.inv(found.intrinsics).T
    expected = camera.img_from_cam(rays)
    assert len(rows) > 0.9 * WIDTH * HEIGHT
    np.testing.assert_allclose(found.map_x[rows, columns] + 0.5, expected[:, 0], atol=2e-3)
    np.testing.assert_allclose(found.map_y[rows, columns] + 0.5, expected[:, 1], atol=2e-3)


def test_an_fov_lens_bends_by_its_closed_form():
    """Devernay and Faugeras, "Straight lines have to be straight" (2001): r_d = atan(2 r tan(w / 2)) / w."""
    omega = 0.9
    lens = lens_of(ModelCamera("FOV", WIDTH, HEIGHT, (80.0, 80.0, 75.0, 55.0, omega)))
    found = undistortion_of(lens)
    row, column = 30, 120
    x = (column + 0.5 - found.intrinsics[0, 2]) / found.intrinsics[0, 0]
    y = (row + 0.5 - found.intrinsics[1, 2]) / found.intrinsics[1, 1]
    r = math.hypot(x, y)
    bent = math.atan(2 * r * math.tan(omega / 2)) / omega / r
    assert float(found.map_x[row, column]) + 0.5 == pytest.approx(80 * x * bent + 75, abs=1e-3)
    assert float(found.map_y[row, column]) + 0.5 == pytest.approx(80 * y * bent + 55, abs=1e-3)
