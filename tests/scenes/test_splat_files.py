"""Splats in packed formats: what comes back of them, and what cannot be written."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from restage.records import InputError
from restage.scenes.fit import render_views
from restage.scenes.io import SPLAT_FORMATS, is_capture, read_splats, write_splats
from restage.scenes.io import splat_files as splat_files_module
from restage.scenes.io.packing import flip_axes
from restage.scenes.io.splat_files import SplatFormat, splats_in, splats_sha256
from restage.scenes.splats import Splats, rotation_matrices
from restage.scenes.taken import splats_name
from restage.scenes.turning import export_splats, move_splats
from tests.scenes.some_splats import PACKED, READ, assert_like, covariances, in_order_of, some_splats, write
from tests.scenes.tiny_captures import small_capture


@pytest.mark.parametrize("k", [1, 4, 9, 16])
@pytest.mark.parametrize("form", PACKED)
def test_splats_come_back_as_exactly_as_the_bits_of_a_format_allow(tmp_path, form, k):
    splats = some_splats(k)
    path = write(splats, form, tmp_path)
    assert_like(read_splats(path), splats, form)
    assert splats_in(path) == SPLAT_FORMATS[form].title
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("form", PACKED)
def test_what_comes_back_looks_the_same(tmp_path, form):
    capture, splats = small_capture(), some_splats(1 if form == "splat" else 4)
    splats.sh = splats.sh.clamp(-1.7, 1.7)
    expected = render_views(splats, capture.cameras)
    found = render_views(read_splats(write(splats, form, tmp_path)), capture.cameras)
    assert float(expected.std()) > 0.05
    assert float(((found - expected) ** 2).mean().sqrt()) < 0.01


@pytest.mark.parametrize("form", PACKED)
def test_a_file_is_recognized_by_its_content_whatever_its_name(tmp_path, form):
    if form == "splat":
        pytest.skip(".splat files have nothing to be recognized by but their name")
    path = write(some_splats(), form, tmp_path)
    assert len(read_splats(path.rename(tmp_path / "renamed.bin"))) == 400


def test_a_sog_that_is_not_packed_is_read_by_its_folder_or_its_meta_json(tmp_path):
    packed = write(some_splats(), "sog", tmp_path)
    folder = tmp_path / "bear"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    for path in (folder, folder / "meta.json"):
        assert splats_in(path) == SPLAT_FORMATS["sog"].title and splats_name(path) == "bear"
        for name, expected in read_splats(packed).parameters().items():
            assert torch.equal(read_splats(path).parameters()[name], expected)
    assert not is_capture(folder)  # its pictures are no photographs
    before = splats_sha256(folder)
    assert before == splats_sha256(folder / "meta.json")
    picture = folder / "quats.webp"
    picture.write_bytes(picture.read_bytes() + b" ")
    assert splats_sha256(folder) != before
    meta = folder / "meta.json"
    meta.write_bytes(meta.read_bytes().replace(b'"quats.webp"', b'"../quats.webp"'))
    picture.rename(tmp_path / "quats.webp")
    with pytest.raises(InputError, match="a file beside meta.json"):
        read_splats(folder)
    meta.write_text('{"title": "another program\'s"}')
    assert splats_in(folder) == ""


@pytest.mark.parametrize("form", list(SPLAT_FORMATS))
def test_the_same_splats_give_the_same_bytes(tmp_path, form):
    first, second = (write(some_splats(), form, tmp_path, name) for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("form", READ)
def test_a_single_splat_and_equal_splats_are_kept(tmp_path, form):
    one = some_splats(4, 1)
    assert_like(read_splats(write(one, form, tmp_path)), one, form)
    many = Splats(**{name: tensor.expand(300, *tensor.shape[1:]) for name, tensor in one.parameters().items()})
    found = read_splats(write(many, form, tmp_path))
    assert len(found) == 300 and float((found.means - one.means).abs().max()) < 1e-3


@pytest.mark.parametrize("form", list(SPLAT_FORMATS))
def test_numbers_at_the_ends_of_their_range_are_written(tmp_path, form):
    splats = some_splats(4, 8)
    splats.opacity_logits[:2] = torch.tensor([80.0, -80.0])
    splats.log_scales[2], splats.rotations[3], splats.sh[4] = -30.0, 0.0, 50.0
    splats.means[5] = torch.tensor([900.0, -700.0, 3000.0])
    path = write(splats, form, tmp_path)
    if SPLAT_FORMATS[form].read:
        found = in_order_of(read_splats(path), splats[torch.arange(8) != 2])
        assert (
            float(torch.sigmoid(found.opacity_logits[0])) > 0.99
            and float(torch.sigmoid(found.opacity_logits[1])) < 0.01
        )
        assert torch.allclose(rotation_matrices(found.rotations)[2], torch.eye(3), atol=0.02)


def test_spz_is_as_fine_as_the_farthest_splat_allows(tmp_path):
    near = some_splats(1, 50)
    near.means *= 1e-2
    found = read_splats(write(near, "spz", tmp_path))
    assert float((found.means - near.means).abs().max()) < 1e-6
    near.means[0] = torch.tensor([1e7, 0.0, 0.0])
    with pytest.raises(InputError, match="positions in SPZ are below 8388608, got 1e"):
        write(near, "spz", tmp_path, "far")
    assert not (tmp_path / "far.spz").exists()


def test_more_than_65536_sets_of_harmonics_share_some_in_a_sog(tmp_path):
    splats = some_splats(4, 70_000)
    found = in_order_of(read_splats(write(splats, "sog", tmp_path)), splats)
    off = (found.sh[:, 1:] - splats.sh[:, 1:]).square().mean().sqrt()
    assert len(np.unique(found.sh[:, 1:].reshape(len(splats), -1).numpy(), axis=0)) > 60_000
    assert float(off) < 0.15 * float(splats.sh[:, 1:].std())


def test_turned_axes_are_those_of_a_half_turn():
    splats = some_splats(16)
    for signs in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1)):
        change = torch.diag(torch.tensor([*signs, 1], dtype=torch.float64))
        expected, found = move_splats(splats, change), flip_axes(splats, x=signs[0], y=signs[1], z=signs[2])
        torch.testing.assert_close(found.means, expected.means)
        torch.testing.assert_close(found.sh, expected.sh, atol=1e-5, rtol=0)
        for one, other in zip(*(covariances(which) for which in (found, expected)), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", list(SPLAT_FORMATS))
def test_a_write_that_fails_leaves_nothing_behind(tmp_path, form, monkeypatch):
    def fail(splats: Splats, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("stop")

    chosen = SPLAT_FORMATS[form]
    monkeypatch.setitem(splat_files_module.SPLAT_FORMATS, form, SplatFormat(chosen.title, chosen.suffix, None, fail))
    with pytest.raises(RuntimeError, match="stop"):
        write_splats(some_splats(1), tmp_path / f"out{chosen.suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", list(SPLAT_FORMATS))
def test_what_a_format_cannot_hold_is_refused(tmp_path, form):
    path = tmp_path / f"out{SPLAT_FORMATS[form].suffix}"
    with pytest.raises(InputError, match="at least one splat"):
        write_splats(some_splats(1)[:0], path)
    broken = some_splats(1)
    broken.log_scales[3, 1] = float("nan")
    with pytest.raises(InputError, match="infinity in log_scales"):
        write_splats(broken, path)
    far = some_splats(1)
    far.means = far.means.double() + 1e9
    if form != "ply":
        with pytest.raises(InputError, match="--frame upright"):
            write_splats(far, path)
    assert not list(tmp_path.iterdir())


def test_the_loss_of_view_dependent_color_is_told(tmp_path):
    with pytest.warns(UserWarning, match="one color a splat"):
        write_splats(some_splats(4), tmp_path / "out.splat")


def test_a_file_of_splats_is_converted_in_its_own_frame(tmp_path):
    splats = some_splats(16)
    path = write(splats, "ply", tmp_path)
    assert export_splats(path, tmp_path / "out.spz", frame="own") == 400
    assert_like(read_splats(tmp_path / "out.spz"), splats, "spz")
