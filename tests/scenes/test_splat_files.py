"""Splats in packed formats: what comes back, what other programs read of it, and what becomes of broken files."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import random
import shutil
import struct
import subprocess
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import KDTree

from restage.records import InputError
from restage.scenes.fit import render_views
from restage.scenes.io import SPLAT_FORMATS, read_splats, write_splats
from restage.scenes.io import splat_files as splat_files_module
from restage.scenes.io.packing import flip_axes
from restage.scenes.io.splat_files import SplatFormat, splats_in
from restage.scenes.splats import Splats, rotation_matrices
from restage.scenes.turning import export_splats, move_splats
from tests.scenes.tiny_captures import small_capture

READ = [name for name, form in SPLAT_FORMATS.items() if form.read]
PACKED = [name for name in READ if name != "ply"]
TOOL = os.environ.get("RESTAGE_SPLAT_TRANSFORM") or shutil.which("splat-transform")
WITH_TOOL = pytest.mark.skipif(
    TOOL is None, reason="not compared with splat-transform: not on PATH, nor named by RESTAGE_SPLAT_TRANSFORM"
)


def some_splats(k: int = 16, count: int = 400) -> Splats:
    generator = torch.Generator().manual_seed(k)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    sh = torch.cat([draw(1, 3), 0.2 * draw(k - 1, 3)], dim=1)
    return Splats(draw(3) * torch.tensor([1.0, 0.6, 0.3]), 0.6 * draw(3) - 3, draw(4), 2 * draw(), sh)


def write(splats: Splats, form: str, folder: Path, name: str = "splats") -> Path:
    path = folder / f"{name}{SPLAT_FORMATS[form].suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that `.splat` loses harmonics
        write_splats(splats, path)
    return path


def in_order_of(found: Splats, expected: Splats) -> Splats:
    """Formats may sort: each splat that is nearest to an expected one."""
    return found[torch.from_numpy(KDTree(found.means.numpy()).query(expected.means.numpy())[1])]


def assert_like(found: Splats, expected: Splats, form: str, *, tolerance: float = 1.0) -> None:
    """Compare with what each format's bits allow."""
    assert len(found) == len(expected)
    found = in_order_of(found, expected)
    size = float((expected.means.max(dim=0).values - expected.means.min(dim=0).values).max())
    assert float((found.means - expected.means).abs().max()) <= 1e-3 * size + 1e-6
    assert float((found.log_scales - expected.log_scales).abs().max()) <= 0.04 * tolerance
    turns = rotation_matrices(found.rotations) - rotation_matrices(expected.rotations)
    assert float(turns.abs().max()) <= 0.03 * tolerance
    opacities = torch.sigmoid(found.opacity_logits) - torch.sigmoid(expected.opacity_logits)
    assert float(opacities.abs().max()) <= 0.0025 * tolerance
    # `.splat` holds colors from 0 to 1, SPZ from about -.4 to 1.4; the others keep what is beyond.
    color, own_color = found.sh[:, 0], expected.sh[:, 0]
    if form in ("splat", "spz"):
        own_color = own_color.clamp(*((-1.7725, 1.7725) if form == "splat" else (-3.3333, 3.3333)))
    assert float((color - own_color).abs().max()) <= 0.04 * tolerance
    rest = expected.sh[:, 1:]
    if form == "splat":
        assert found.degree == 0
        return
    assert found.degree == expected.degree
    # SPZ has harmonics from -1 to 1 in 5 bits, then 4.
    rest, step = (rest.clamp(-1, 1), 0.07) if form == "spz" else (rest, 0.02)
    assert not rest.numel() or float((found.sh[:, 1:] - rest).abs().max()) <= step * tolerance


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


def covariances(splats: Splats) -> torch.Tensor:
    axes = rotation_matrices(splats.rotations) * splats.log_scales.exp()[:, None]
    return axes @ axes.transpose(1, 2)


def read_glb(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    content = path.read_bytes()
    magic, version, length, json_length, json_kind = struct.unpack_from("<4sIIII", content)
    assert (magic, version, length, json_kind) == (b"glTF", 2, len(content), 0x4E4F534A)
    document = json.loads(content[20 : 20 + json_length])
    start = 20 + json_length + 8
    assert struct.unpack_from("<II", content, start - 8) == (document["buffers"][0]["byteLength"], 0x004E4942)
    columns = {}
    for name, index in document["meshes"][0]["primitives"][0]["attributes"].items():
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        kind = {5126: "<f4", 5121: "u1"}[accessor["componentType"]]
        rows = np.frombuffer(content, kind, accessor["count"] * width, start + view["byteOffset"])
        assert rows.nbytes == view["byteLength"]
        columns[name] = rows.reshape(-1, width)
    return document, columns


@pytest.mark.parametrize("k", [1, 4, 9, 16])
def test_gltf_holds_the_splats_with_y_up_and_linear_sizes_and_opacities(tmp_path, k):
    splats = some_splats(k)
    document, columns = read_glb(write(splats, "gltf", tmp_path))
    turned = move_splats(splats, torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64)))
    name = "KHR_gaussian_splatting"
    assert document["extensionsUsed"] == [name]
    assert document["meshes"][0]["primitives"][0]["extensions"][name]["kernel"] == "ellipse"
    np.testing.assert_array_equal(columns["POSITION"], turned.means)
    assert document["accessors"][0]["min"] == turned.means.min(dim=0).values.tolist()
    np.testing.assert_allclose(columns[f"{name}:SCALE"], splats.log_scales.exp(), rtol=1e-6)
    np.testing.assert_allclose(columns[f"{name}:OPACITY"][:, 0], torch.sigmoid(splats.opacity_logits), rtol=1e-6)
    xyzw = torch.from_numpy(columns[f"{name}:ROTATION"].copy())
    torch.testing.assert_close(xyzw.norm(dim=1), torch.ones(400))
    found = Splats(turned.means, splats.log_scales, xyzw.roll(1, dims=1), splats.opacity_logits, splats.sh)
    torch.testing.assert_close(covariances(found), covariances(turned))
    for degree in range(splats.degree + 1):
        for index in range(2 * degree + 1):
            found_sh = columns[f"{name}:SH_DEGREE_{degree}_COEF_{index}"]
            np.testing.assert_allclose(found_sh, turned.sh[:, degree**2 + index], atol=1e-5)
    assert not any(f"DEGREE_{splats.degree + 1}" in column for column in columns)


# Three splats as splat-transform 2.7.1 writes them: means (1, 2, 3), (-1, .5, 0), (.25, -4, 2); log scales -1, -2, -3;
# rotations (1, 0, 0, 0), (.5, .5, .5, .5), (0, .6, 0, .8); opacity logits 0, 2, -2; f_dc 0, 1, -1 in all channels;
# f_rest_0 to f_rest_8 are -.5, -.375, ... .5.
GOLDEN_SPZ = {
    3: (
        "H4sIAAAAAAAAA/NzDw5gZmBgAGFGHiAhwMDw4D/Dhf8MH/4z/PgPFGBgYWBwAAk2PJRraGhYtmxZZGTkhIYCCALKH8hcOteMgUlj"
        "94EJCRsaAhImHMBkAAA/J4rWZwAAAA=="
    ),
    4: (
        "TkdTUAQAAAADAAAAAQwABiAAAAAAAAAAAAAAAAAAAAAkAAAAAAAAABsAAAAAAAAADAAAAAAAAAADAAAAAAAAABIAAAAAAAAACQAA"
        "AAAAAAASAAAAAAAAAAkAAAAAAAAAFQAAAAAAAAAMAAAAAAAAABkAAAAAAAAAGwAAAAAAAAAotS/9IBvZAAAAEAAA4P8A0P8A8P8A"
        "+P8AAAAABAAAQAAA4P8otS/9IAMZAACA4R4otS/9IAlJAACAgICmpqZZWVkotS/9IAlJAACQgHCQgHCQgHAotS/9IAxhAAAAAADA"
        "aaWdNgACKLsotS/9IBuFAABQwJBgsIBQYJDAwAEAnAsS"
    ),
}


def golden_splats() -> Splats:
    means = torch.tensor([[1.0, 2, 3], [-1, 0.5, 0], [0.25, -4, 2]])
    rotations = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [0, 0.6, 0, 0.8]])
    dc = torch.tensor([0.0, 1, -1])[:, None, None].expand(3, 1, 3)
    rest = torch.linspace(-0.5, 0.5, 9).reshape(3, 3).T.expand(3, 3, 3)
    log_scales = torch.tensor([[-1.0, -2, -3]]).expand(3, 3)
    return Splats(means, log_scales, rotations, torch.tensor([0.0, 2, -2]), torch.cat([dc, rest], dim=1))


@pytest.mark.parametrize("version", [3, 4])
def test_spz_of_another_program_is_read_in_the_axes_of_a_ply(tmp_path, version):
    (tmp_path / "golden.spz").write_bytes(base64.b64decode(GOLDEN_SPZ[version]))
    assert_like(read_splats(tmp_path / "golden.spz"), golden_splats(), "spz")


def test_spz_of_version_2_has_rotations_in_three_bytes(tmp_path):
    path = write(golden_splats(), "spz", tmp_path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[4] = 2
    start = 16 + 3 * (9 + 1 + 3 + 3)
    # xyz of the golden rotations with y and z turned, in bytes around 127.5; w is what is left.
    xyz = np.array([[0.0, 0, 0], [0.5, -0.5, -0.5], [0.6, 0, -0.8]])
    rotations = np.rint(xyz * 127.5 + 127.5).astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(bytes(content[:start]) + rotations + bytes(content[start + 12 :])))
    assert_like(read_splats(path), golden_splats(), "spz", tolerance=5.0)


def run_tool(*arguments: Path | str) -> None:
    assert TOOL is not None
    subprocess.run([TOOL, "-q", "-w", "-g", "cpu", *map(str, arguments)], check=True, capture_output=True, timeout=300)


@WITH_TOOL
@pytest.mark.parametrize("form", READ)
def test_splat_transform_reads_what_is_written_here(tmp_path, form):
    splats = some_splats()
    run_tool(write(splats, form, tmp_path), tmp_path / "back.ply")
    found = read_splats(tmp_path / "back.ply")
    assert_like(found, splats, form)
    if form == "ply":
        assert torch.equal(found.means, splats.means) and torch.equal(found.sh, splats.sh)


@WITH_TOOL
@pytest.mark.parametrize("ending", ["ply", "compressed.ply", "sog", "spz", "version 3 of spz"])
def test_what_splat_transform_writes_is_read_here_as_it_reads_it_itself(tmp_path, ending):
    splats = some_splats()
    path, options = tmp_path / f"theirs.{ending.split()[-1]}", ["--spz-version", "3"] if "3" in ending else []
    run_tool(*options, write(splats, "ply", tmp_path), path)
    run_tool(path, tmp_path / "back.ply")
    found, theirs = read_splats(path), read_splats(tmp_path / "back.ply")
    assert len(found) == len(splats)
    theirs.opacity_logits = theirs.opacity_logits.clamp(-13.8, 13.8)
    for name, tensor in theirs.parameters().items():
        own = found.parameters()[name].clamp(-13.8, 13.8) if name == "opacity_logits" else found.parameters()[name]
        torch.testing.assert_close(own, tensor, atol=2e-4, rtol=1e-4, msg=name)
    size = float((splats.means.max(dim=0).values - splats.means.min(dim=0).values).max())
    assert float((in_order_of(found, splats).means - splats.means).abs().max()) <= 1e-3 * size


@WITH_TOOL
def test_gltf_has_the_axes_of_splat_transforms(tmp_path):
    splats = some_splats()
    run_tool(write(splats, "ply", tmp_path), tmp_path / "theirs.glb")
    own, theirs = (read_glb(path)[1] for path in (write(splats, "gltf", tmp_path), tmp_path / "theirs.glb"))
    assert set(own) == set(theirs)
    for name, column in own.items():
        if name != "COLOR_0" and "ROTATION" not in name:  # theirs are of any length, and its colors are not linear
            np.testing.assert_allclose(column, theirs[name], atol=1e-5)


def damaged(content: bytes, seed: int) -> bytes:
    """The same file cut off, with flipped bits, with other bytes in its header, or with a huge number in it."""
    draw = random.Random(seed)
    changed = bytearray(content)
    if seed % 4 == 0:
        return bytes(changed[: draw.randrange(1, len(changed))])
    if seed % 4 == 1:
        for _ in range(draw.randrange(1, 9)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif seed % 4 == 2:
        for _ in range(3):
            changed[draw.randrange(min(len(changed), 400))] = draw.randrange(256)
    else:
        at = draw.randrange(min(len(changed), 400) - 4)
        changed[at : at + 4] = draw.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x10"))
    return bytes(changed)


@pytest.mark.parametrize("form", READ)
def test_damaged_files_are_read_or_refused_in_one_line_within_little_memory(tmp_path, form):
    content = write(some_splats(16, 300), form, tmp_path).read_bytes()
    path = tmp_path / f"damaged{SPLAT_FORMATS[form].suffix}"
    num_refused = 0
    tracemalloc.start()
    try:
        for seed in range(160):
            path.write_bytes(damaged(content, seed))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    found = read_splats(path)
                assert 0 < len(found) <= max(4096, path.stat().st_size)
                assert all(tensor.isfinite().all() for tensor in found.parameters().values())
            except InputError as error:
                num_refused += 1
                assert "\n" not in str(error) and path.name in str(error) and len(str(error)) < 400 + len(str(path))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert num_refused >= 35


def spz_header(count: int, version: int = 3, degree: int = 0) -> bytes:
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, 12, 0, 0)


def sog_of(tmp_path: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A SOG with other files in it; None takes one out."""
    with zipfile.ZipFile(write(some_splats(4, 300), "sog", tmp_path)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()} | change
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)
    return file.getvalue()


def sog_meta(tmp_path: Path, **change: object) -> bytes:
    with zipfile.ZipFile(write(some_splats(4, 300), "sog", tmp_path)) as archive:
        meta = json.loads(archive.read("meta.json"))
    return json.dumps(meta | change).encode()


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (width, height)).save(file, "WEBP", lossless=True)
    return file.getvalue()


BOMBS = {
    "gzip of gigabytes": (".spz", lambda _: gzip.compress(spz_header(100) + bytes(200_000_000)), "unpacks to more"),
    "gzip of a huge count": (".spz", lambda _: gzip.compress(spz_header(2**31)), "2147483648 splats"),
    "gzip of no splat": (".spz", lambda _: gzip.compress(spz_header(0)), "0 splats"),
    "gzip of nothing": (".spz", lambda _: gzip.compress(b""), "cut off"),
    "gzip of something else": (".spz", lambda _: gzip.compress(b"hello" * 10), "does not start with 'NGSP'"),
    "another version": (".spz", lambda _: gzip.compress(spz_header(1, 9) + bytes(99)), "version 2 or 3.*got 9"),
    "degree 200": (".spz", lambda _: gzip.compress(spz_header(1, 3, 200) + bytes(99)), "degree 200"),
    "streams elsewhere": (".spz", lambda _: spz_header(9, 4)[:15] + struct.pack("<BI12x", 5, 2**31), "5 streams"),
    "streams of gigabytes": (
        ".spz",
        lambda _: spz_header(9, 4)[:15] + struct.pack("<BI12x", 5, 32) + struct.pack("<QQ", 1, 2**40) * 5 + bytes(64),
        "another size",
    ),
    "zip of gigabytes": (
        ".sog",
        lambda folder: sog_of(folder, {"means_l.webp": bytes(100_000_000)}, zipfile.ZIP_DEFLATED),
        "means_l.webp unpacks to 100000000 bytes",
    ),
    "long description": (
        ".sog",
        lambda folder: sog_of(folder, {"meta.json": b" " * 10_000_000}, zipfile.ZIP_DEFLATED),
        "meta.json unpacks to 10000000 bytes",
    ),
    "picture of gigabytes": (
        ".sog",
        lambda folder: sog_of(folder, {"quats.webp": picture(16_000, 8_000)}),
        "quats.webp has 16000x8000 pixels",
    ),
    "too small a picture": (".sog", lambda folder: sog_of(folder, {"quats.webp": picture(4, 4)}), "16 pixels for 300"),
    "no picture": (".sog", lambda folder: sog_of(folder, {"quats.webp": b"GIF89a"}), "not readable as a picture"),
    "missing picture": (".sog", lambda folder: sog_of(folder, {"quats.webp": None}), "no 'quats.webp'"),
    "narrow palette": (
        ".sog",
        lambda folder: sog_of(folder, {"shN_centroids.webp": picture(64, 64)}),
        "64 pixels wide, expected 192",
    ),
    "short palette": (".sog", lambda folder: sog_of(folder, {"shN_centroids.webp": picture(192, 1)}), "names entry"),
    "huge count": (
        ".sog",
        lambda folder: sog_of(folder, {"meta.json": sog_meta(folder, count=2**40)}),
        "1099511627776 splats",
    ),
    "no count": (".sog", lambda folder: sog_of(folder, {"meta.json": sog_meta(folder, count="many")}), r"\$\.count"),
    "version 1": (".sog", lambda folder: sog_of(folder, {"meta.json": b'{"means": {}}'}), "version 2 .*got 1"),
    "no JSON": (".sog", lambda folder: sog_of(folder, {"meta.json": b"hello"}), "JSON is malformed"),
    "short codebook": (
        ".sog",
        lambda folder: sog_of(
            folder, {"meta.json": sog_meta(folder, scales={"codebook": [0.0], "files": ["scales.webp"]})}
        ),
        "its codebook 1 entries",
    ),
    "zip of nothing": (".sog", lambda _: b"PK\x03\x04" + bytes(50), "zip file"),
    "odd length": (".splat", lambda _: bytes(33), "33 in all"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_lies_are_refused_by_name_before_they_take_memory(tmp_path, name):
    suffix, make, expected = BOMBS[name]
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(make(tmp_path))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=expected) as error:
            read_splats(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("element chunk 2", "element chunk 1"), "a chunk for every 256 of 300"),
        (("property float min_x", "property float other"), "it has no min_x"),
        (("property uint packed_scale", "property float packed_scale"), "of type uint"),
        (("element sh 300", "element sh 200"), "bytes for 300 splats"),
        (("property uchar f_rest_3", "property uchar other"), "columns f_rest_"),
    ],
)
def test_wrong_tables_of_a_compressed_ply_are_named(tmp_path, change, expected):
    path = write(some_splats(4, 300), "compressed-ply", tmp_path)
    before, after = (text.encode() for text in change)
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))
    with pytest.raises(InputError, match=expected):
        read_splats(path)


def test_early_compressed_plys_without_bounds_of_colors_are_read(tmp_path):
    splats = some_splats(1, 300)
    splats.sh = splats.sh.clamp(-1.7, 1.7)
    path = write(splats, "compressed-ply", tmp_path)
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = [line for line in head.split(b"\n") if not line.endswith((b"_r", b"_g", b"_b"))]
    chunks = np.frombuffer(body, "<f4", 2 * 18).reshape(2, 18)
    rows = np.frombuffer(body, "<u4", offset=2 * 72).reshape(300, 4).copy()
    least, most = chunks[np.arange(300) // 256, 12:15], chunks[np.arange(300) // 256, 15:]
    levels = np.stack([rows[:, 3] >> shift & 255 for shift in (24, 16, 8)], axis=1) / 255
    colors = np.rint((least + (most - least) * levels) * 255).astype(np.uint32)
    rows[:, 3] = colors[:, 0] << 24 | colors[:, 1] << 16 | colors[:, 2] << 8 | rows[:, 3] & 255
    path.write_bytes(b"\n".join(lines) + b"end_header\n" + chunks[:, :12].tobytes() + rows.tobytes())
    assert_like(read_splats(path), splats, "compressed-ply")


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
