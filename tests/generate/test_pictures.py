from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restage.cli import run
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.sampling import sample_images
from restage.generate.config import PicturesConfig
from restage.generate.pictures import generate_pictures, made_from, picture_paths
from restage.records import InputError, derive_seed
from tests.tiny_models import write_tiny_models

CAPTION = "a red cube on the grass at noon"
CONFIG = PicturesConfig(num=2, steps=2, batch_size=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def backbone(models: Path) -> Backbone:
    return load_backbone(models / "text_to_image")


def test_one_picture_gets_the_name_that_was_asked_for_and_several_get_numbers() -> None:
    assert picture_paths(Path("a/x.png"), 1) == [Path("a/x.png")]
    assert picture_paths(Path("x.jpg"), 2) == [Path("x-000.jpg"), Path("x-001.jpg")]
    assert picture_paths(Path("folder"), 1) == [Path("folder/000.png")]


def test_a_file_holds_the_picture_of_its_caption_and_says_what_it_was_made_from(
    backbone: Backbone, tmp_path: Path
) -> None:
    steps = list(generate_pictures(backbone, [CAPTION, "a ball"], CONFIG, out=tmp_path / "x.png", seed=5))
    assert [step.done for step in steps] == [1, 2, 3, 4]
    seed = derive_seed(5, CAPTION, 1)
    expected = sample_images(backbone, [CAPTION], seeds=[seed], steps=2)[0].permute(1, 2, 0)
    found = np.asarray(Image.open(tmp_path / "x-001.png"))
    assert np.abs(found - expected.numpy() * 255).max() <= 0.51
    record = json.loads(made_from(tmp_path / "x-001.png"))
    assert (record["caption"], record["seed"], record["steps"]) == (CAPTION, seed, 2)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_is_there_is_kept_and_the_rest_is_made(backbone: Backbone, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"x{suffix}"
    whole = list(generate_pictures(backbone, [CAPTION], CONFIG, out=out))
    kept, lost = (tmp_path / f"x-00{number}{suffix}" for number in range(2))
    before, times = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert len(whole) == 2 and len(list(generate_pictures(backbone, [CAPTION], CONFIG, out=out))) == 1
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == times


def test_a_file_made_from_something_else_is_not_overwritten(backbone: Backbone, tmp_path: Path) -> None:
    out, one = tmp_path / "x.png", PicturesConfig(steps=1)
    list(generate_pictures(backbone, [CAPTION], one, out=out))
    before = out.read_bytes()
    with pytest.raises(InputError, match="something else"):
        list(generate_pictures(backbone, [CAPTION], one, out=out, seed=1))
    assert out.read_bytes() == before


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_caption_in_any_script_is_kept_in_the_file(backbone: Backbone, tmp_path: Path, suffix: str) -> None:
    out, odd = tmp_path / f"x{suffix}", 'a "red" café; = \\ 雪だるま'
    for _ in range(2):
        list(generate_pictures(backbone, [odd], PicturesConfig(steps=1), out=out))
    assert json.loads(made_from(out))["caption"] == odd


def test_a_caption_that_stands_twice_has_two_pictures(backbone: Backbone, tmp_path: Path) -> None:
    list(generate_pictures(backbone, [CAPTION, "a ball", CAPTION], PicturesConfig(steps=1), out=tmp_path / "x.png"))
    records = [json.loads(made_from(tmp_path / f"x-00{number}.png")) for number in range(3)]
    assert [record["seed"] for record in records[::2]] == [derive_seed(0, CAPTION, sample) for sample in range(2)]
    for captions in ([CAPTION, " "], []):
        with pytest.raises(InputError, match="expected a caption"):
            list(generate_pictures(backbone, captions, CONFIG, out=tmp_path / "y.png"))


def test_a_file_of_windows_is_read_as_others(models: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_bytes(b"\xef\xbb\xbf" + f"{CAPTION}\r\n\r\n  a ball \r\n".encode())
    where = ["--captions", str(tmp_path / "captions.txt"), "--backbone", str(models / "text_to_image")]
    assert run(["generate", *where, "--steps", "1", "--out", str(tmp_path / "x.png")]) == 0
    found = [json.loads(made_from(tmp_path / f"x-00{number}.png"))["caption"] for number in range(2)]
    assert found == [CAPTION, "a ball"]
    (tmp_path / "captions.txt").write_text(" \n\n")
    assert run(["generate", *where, "--steps", "1", "--out", str(tmp_path / "y.png")]) == 2


def test_command_makes_pictures_of_the_captions_in_a_file(models: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text(f"{CAPTION}\n\na blue ball on the sand at night\n")
    where = ["--captions", str(tmp_path / "captions.txt"), "--backbone", str(models / "text_to_image")]
    assert run(["generate", *where, "--steps", "1", "--out", str(tmp_path / "x.png")]) == 0
    first, second = (torch.from_numpy(np.asarray(Image.open(tmp_path / f"x-00{n}.png")).copy()) for n in range(2))
    assert first.shape == (128, 128, 3) and not torch.equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "x.png"], "expected a caption"),
        (["a ball", "--out", "x.mp4", "--backbone", "elsewhere"], "no temporal attention lies beside elsewhere"),
        (["a ball", "--out", "x.png", "--frames", "4"], ".mp4, .webm or .gif"),
        (["a ball", "--out", "run", "--generator", "zero"], "choose from ism, refined, sds, views"),
        (["a ball", "--out", "run", "--generator", "views"], "needs an add-on"),
        (
            ["a ball", "--out", "run", "--guidance", "9", "--steps", "3"],
            "--steps and --guidance cannot be used",
        ),
        (["a ball", "--out", "x.png", "--generator", "sds"], "--generator cannot be used for a picture"),
        (["a ball", "--out", "x.gif", "--scene-steps", "9"], "--scene-steps cannot be used for a clip"),
        (["a ball", "--out", "x.png", "--motion", "m"], "--motion is for clips"),
        (["a " + "big " * 60 + "ball", "--out", "run"], "too long"),
        (["a ball", "--captions", "none.txt", "--out", "x.png"], "not both"),
        (["--captions", "none.txt", "--out", "x.png"], "none.txt"),
        (["a ball", "--out", "x.png", "--num", "0"], "at least 1"),
        (["a ball", "--out", "x.png", "--guidance", "nan"], "must be a number"),
        (["a ball", " ", "--out", "x.png"], "got an empty one"),
        (["a ball", "--out", "x.webp"], "pictures end in .png"),
        (["a ball", "--out", "cone.ply"], "restage export"),
        (["a ball", "--out", "x.png", "--backbone", "none"], "none"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and expected in lines[0]
