"""Splats and other programs: what they read of our files, and what is read of theirs."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from restage.scenes.io import read_splats
from restage.scenes.splats import Splats
from restage.scenes.turning import move_splats
from tests.scenes.some_splats import READ, assert_like, covariances, in_order_of, some_splats, write

TOOL = os.environ.get("RESTAGE_SPLAT_TRANSFORM") or shutil.which("splat-transform")
WITH_TOOL = pytest.mark.skipif(
    TOOL is None, reason="not compared with splat-transform: not on PATH, nor named by RESTAGE_SPLAT_TRANSFORM"
)


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
