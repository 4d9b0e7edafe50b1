"""The benchmark of light control from its first step to its JSON line, at a tiny size, and the reader that judges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.control import in_other_colors, main, measure, orbits, renders, wanted_worlds
from miniature import pictures
from miniature.command import MiniatureConfig, train_miniature
from miniature.pictures import make_pictures
from miniature.reader import OTHER, SIZE, Readout, id_iou, middles_of, read_ids
from restage.diffusion.backbone import load_backbone
from tests.tiny_models import write_tiny_models

KEYS = {"id_iou", "psnr_gain_db", "caption_right", "caption_right_uncontrolled", "mismatch_followed"}
KEYS |= {"parameter_share", "time_share", "steps_to_iou_cross_norm", "steps_to_iou_zero_conv", "orbit_id_iou"}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_models(tmp_path_factory.mktemp("models")) / "text_to_image"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a reader that has hardly learned anything."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "SHARD_SIZE", 4)
        list(make_pictures(folder / "pictures", 8))
        list(train_miniature("reader", MiniatureConfig(folder=folder, num_pictures=8, num_steps=2, batch_size=2)))
    return folder


def run(folder: Path, start: Path, out: Path, *more: str) -> dict[str, float]:
    sizes = ["--num-pictures", "8", "--batch-size", "2", "--worlds", "3", "--frames", "2", "--sampling-steps", "2"]
    arms = ["--arms", "none", "cross_norm", "zero_conv"]
    return main(["--folder", str(folder), "--start", str(start), "--out", str(out), *sizes, *arms, *more])


def test_the_benchmark_ends_with_its_line_and_goes_on_where_it_was_stopped(
    folder: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "SHARD_SIZE", 4)
    run(folder, start, tmp_path, "--steps", "1", "--every", "1")
    record = json.loads((tmp_path / "arms" / "cross_norm.json").read_text())
    capfd.readouterr()
    found = run(folder, start, tmp_path, "--steps", "2", "--every", "1")
    shown = capfd.readouterr().out
    assert KEYS <= json.loads(shown.splitlines()[-1]).keys() and found["num_worlds"] == 3
    after = json.loads((tmp_path / "arms" / "cross_norm.json").read_text())
    assert set(after["curve"]) == {"1", "2"} and after["curve"]["1"] == record["curve"]["1"]
    assert "| zero_conv |" in shown and (tmp_path / "control.png").is_file()
    assert len((tmp_path / "arms" / "cross_norm" / "state" / "metrics.jsonl").read_text().splitlines()) == 2


def test_other_colors_keep_things_and_places(start: Path) -> None:
    worlds = wanted_worlds(load_backbone(start), 4, 0)
    for item in worlds:
        other = in_other_colors(item)
        assert (other.view.object_ids == item.view.object_ids).all() and (other.view.depth == item.view.depth).all()
        assert other.description.ground != item.description.ground and other.description.time != item.description.time
        pairs = zip(other.description.objects, item.description.objects, strict=True)
        assert all(new.kind == old.kind and new.color != old.color for new, old in pairs)
    (path,) = orbits(worlds[:1], 3)
    assert len(path) == 3 and (path[0].view.image != path[2].view.image).any()


def test_a_reader_that_sees_all_finds_every_thing_and_one_that_is_off_does_not() -> None:
    ids = torch.ones(SIZE, SIZE, dtype=torch.long)
    ids[:20] = 0
    ids[30:40, 5:15], ids[30:45, 40:55] = 2, 5
    logits = torch.nn.functional.one_hot(ids.clamp(max=2), 3).permute(2, 0, 1).float()
    votes = torch.zeros(2, SIZE, SIZE)
    for number, middle in middles_of(ids).items():
        votes[:, ids == number] = middle[:, None]
    exact = Readout(logits[None], votes[None], torch.zeros(1, SIZE, SIZE))
    assert torch.equal(read_ids(exact, 0, ids), ids) and id_iou(read_ids(exact, 0, ids), ids) == 1
    # A thing where the wanted picture has none belongs to nothing.
    astray = exact._replace(middles=torch.where(ids == 5, 0.99, exact.middles))
    found = read_ids(astray, 0, ids)
    assert (found[ids == 5] == OTHER).all() and id_iou(found, ids) == pytest.approx(0.75)


def test_exact_pictures_have_no_error_of_their_own(folder: Path, start: Path) -> None:
    from benchmarks.control import Judges
    from miniature.probe import load_probe
    from miniature.reader import load_reader

    worlds = wanted_worlds(load_backbone(start), 2, 1)
    probe = load_probe(Path("benchmarks/miniature/probe.safetensors"))
    judges = Judges(load_reader(folder / "miniature" / "reader" / "reader.safetensors"), probe)
    assert min(measure(renders(worlds), worlds, judges).psnr_db) > 60
