from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from restage.audit.show import describe_run
from restage.audit.verify import verify_folder
from restage.cli import run as run_command
from restage.diffusion.backbone import load_backbone, save_half
from restage.diffusion.view_attention import build_view_attention
from restage.generate.generators import Blob, Generator, Ism, Refined, Sds, Views
from restage.generate.scene import SceneOrder, generate_scenes, scene_name
from restage.generate.view_sampler import ViewSampler
from restage.pairs.config import VerifyConfig
from restage.records import InputError, Progress, read_json
from restage.report.stage import write_report
from restage.scenes.io import read_capture
from restage.scenes.io.splat_files import read_splats
from restage.scenes.stage import find_scene
from restage.scenes.turning import export_splats
from tests.tiny_models import write_tiny_models

CAPTION = "a red cone on grass"
SMALL = Blob(num_splats=120, num_ground=80, num_sky=40)
GENERATORS: dict[str, Generator] = {
    "sds": Sds(num_steps=4, num_pictures=1, blob=SMALL),
    "ism": Ism(num_steps=4, num_pictures=1, blob=SMALL),
    "views": Views(num_steps=4, num_views=4, sampler=ViewSampler(num_steps=2), blob=SMALL),
    "refined": Refined(
        num_steps=2, noise_levels=(0.4,), num_views=3, steps_per_round=2, sampler=ViewSampler(num_steps=2)
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_models(tmp_path_factory.mktemp("models")) / "text_to_image"


@pytest.fixture(scope="module")
def add_on(model: Path) -> Path:
    folder = model.parent / "some views"
    save_half(build_view_attention(load_backbone(model).unet, num_views=4), folder)
    return folder


@pytest.fixture(autouse=True)
def small_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restage.generate.scene.NUM_VIEWS", 8)
    monkeypatch.setattr("restage.generate.scene.make_generator", lambda name, preset: GENERATORS[name])
    for name in ("Sds", "Views"):  # what `refined` begins with
        small: Any = GENERATORS[name.lower()]
        monkeypatch.setattr(f"restage.generate.generators.refined.{name}", partial(replace, small))


def order(model: Path, generator: str = "sds", **more: object) -> SceneOrder:
    return SceneOrder(captions=(CAPTION,), generator=generator, model=model, **more)  # pyright: ignore


def stopped_after(steps: Iterator[Progress], number: int) -> None:
    for done, _ in enumerate(steps, start=1):
        if done == number:
            break
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]  (a generator; as Ctrl-C does)


def test_a_generated_scene_is_an_ordinary_run(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    *_, last = generate_scenes(run, order(model))
    assert last.done == last.total == 4
    scene = find_scene(run)
    assert scene.name == scene_name(CAPTION, 0)
    capture = read_capture(scene / "capture")
    assert len(capture.train_indices) == 7 and len(capture.held_out_indices) == 1
    record = read_json(scene / "fit.json")
    assert record["generated_from"] == CAPTION and record["held_out_psnr_db"] > 40
    assert not (scene / "fit_state.pt").exists() and not (scene / "preview.png").exists()
    assert export_splats(scene, tmp_path / "scene.spz", frame="own") == len(read_splats(scene / "splats.ply")) == 240
    assert not verify_folder(str(run), VerifyConfig())
    assert any("made from words" in line for line in describe_run(run))


@pytest.mark.parametrize("name", GENERATORS)
def test_a_scene_that_was_stopped_ends_as_one_that_was_not(
    name: str, model: Path, add_on: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = order(model, name, views=add_on if name in ("views", "refined") else None)
    list(generate_scenes(tmp_path / "whole", asked))
    run, folder = tmp_path / "stopped", tmp_path / "stopped" / "scenes" / scene_name(CAPTION, 0)
    for _ in range(2):
        stopped_after(generate_scenes(run, asked), 2)
        assert (folder / "splats.ply").is_file() and not (folder / "fit.json").exists()
        assert not verify_folder(str(run), VerifyConfig())
    list(generate_scenes(run, asked))
    found, whole = (read_splats(find_scene(tmp_path / place) / "splats.ply") for place in ("stopped", "whole"))
    for parameter, value in whole.parameters().items():
        assert torch.equal(found.parameters()[parameter], value), parameter


def test_captions_times_seeds_make_scenes_of_their_own_which_are_made_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GENERATORS, "sds", Sds(num_steps=1, num_pictures=1, blob=SMALL))
    several = SceneOrder(captions=(CAPTION, "a blue ball"), seeds=(0, 1), generator="sds", model=model)
    list(generate_scenes(tmp_path / "run", several))
    scenes = sorted(path.parent.name for path in (tmp_path / "run").glob("scenes/*/fit.json"))
    assert scenes == ["a-blue-ball-0", "a-blue-ball-1", "a-red-cone-on-grass-0", "a-red-cone-on-grass-1"]
    splats = [read_splats(tmp_path / "run" / "scenes" / name / "splats.ply").means for name in scenes]
    assert not any(torch.equal(splats[0], other) for other in splats[1:])
    again = list(generate_scenes(tmp_path / "run", several))
    assert len(again) == 4 and all("made before" in step.note for step in again)
    with pytest.raises(InputError, match="made otherwise"):
        list(generate_scenes(tmp_path / "run", order(model, "ism")))


def test_the_default_is_refined_and_works_without_an_add_on(model: Path, tmp_path: Path) -> None:
    list(generate_scenes(tmp_path / "run", order(model, "auto")))
    record = read_json(find_scene(tmp_path / "run") / "fit.json")
    assert record["config"]["generator"] == "refined" and "views_sha256" not in record["config"]


def test_long_captions_that_begin_alike_have_folders_of_their_own() -> None:
    long = "a big red cone next to a small blue ball on the side of a green tree on grass"
    assert scene_name(long, 0) != scene_name(f"{long} at night", 0)
    alike = ("a red cone on grass", "A red cone on grass", "a red cone, on grass", "a red  cone on grass")
    assert (
        len({scene_name(caption, 0) for caption in alike}) == 4 and scene_name(alike[0], 0) == "a-red-cone-on-grass-0"
    )
    assert scene_name("雪だるま", 3).startswith("scene-") and scene_name("雪だるま", 3).endswith("-3")


def test_views_without_an_add_on_say_where_to_get_one_and_leave_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs an add-on"):
        list(generate_scenes(tmp_path / "run", order(model, "views")))
    assert not (tmp_path / "run").exists()


def test_an_empty_caption_is_refused() -> None:
    with pytest.raises(InputError, match="a red cone on grass"):
        SceneOrder(captions=(" ",))


def test_the_page_turns_a_generated_scene_and_shows_it_from_all_sides(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    list(generate_scenes(run, order(model)))
    sheet = run / "judged" / f"{scene_name(CAPTION, 0)}.png"
    sheet.parent.mkdir()
    sheet.write_bytes((find_scene(run) / "around.png").read_bytes() + b" ")
    page = write_report(run)
    text = page.read_text()
    assert f"“{CAPTION}” <span>by sds, seed 0" in text and "dB held-out PSNR" not in text
    data = json.loads(text.partition('data-role="turn-data">')[2].partition("</script>")[0])
    assert data["before"] is None and (page.parent / data["after"][0]).is_file()
    assert "All around, and how near it is" in text and "what the probe reads in their cells" in text
    assert not verify_folder(str(run), VerifyConfig())


def test_the_residual_of_sampled_views_is_recorded(model: Path, add_on: Path, tmp_path: Path) -> None:
    list(generate_scenes(tmp_path / "run", order(model, "views", views=add_on)))
    scene = find_scene(tmp_path / "run")
    record = read_json(scene / "fit.json")
    assert 5 < record["sampled_views_psnr_db"] < 60 and "sampled.png" in record["files"]


def test_the_command_makes_as_many_scenes_as_asked_for(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", CAPTION, "--num", "2", "--seed", "4", "--generator", "sds", "--scene-steps", "1"]
    assert run_command([*arguments, "--backbone", str(model), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    for seed in (4, 5):
        assert f"scene {scene_name(CAPTION, seed)}: 240 splats from '{CAPTION}'" in said
        assert read_json(tmp_path / "run" / "scenes" / scene_name(CAPTION, seed) / "fit.json")["steps"] == 1


def test_the_command_compares_generators_in_runs_of_their_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", CAPTION, "--scene-steps", "1", "--backbone", str(model), "--out", str(tmp_path / "runs")]
    assert run_command([*arguments, "--generator", "sds", "ism", "--views", str(tmp_path / "none")]) == 2
    assert "sds makes no use of --views" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert run_command([*arguments, "--generator", "sds", "ism", "sds"]) == 0
    for name in ("sds", "ism"):
        record = read_json(tmp_path / "runs" / name / "scenes" / scene_name(CAPTION, 0) / "fit.json")
        assert record["config"]["generator"] == name
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["ism", "sds"]


def test_a_preset_or_an_add_on_that_cannot_be_used_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name its --backbone"):
        SceneOrder(captions=(CAPTION,), preset="sd15")
    with pytest.raises(InputError, match="holds no add-on"):
        list(generate_scenes(tmp_path / "run", order(model, "refined", views=tmp_path)))
    assert not (tmp_path / "run").exists()
