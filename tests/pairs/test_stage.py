import dataclasses
import itertools

import pytest
from PIL import Image

from restage.pairs.config import PUBLISHED, PairsConfig
from restage.pairs.store import done_shards, read_pairs, read_rows
from restage.records import InputError
from tests.pairs.tiny import LENIENT, PROMPTS, WordlessClip, open_run, run_pairs, tiny_config, tiny_model


@pytest.fixture(scope="module")
def backbone():
    return tiny_model()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, backbone):
    run = open_run(tmp_path_factory.mktemp("undisturbed"))
    progress = list(run_pairs(run, tiny_config(), backbone, WordlessClip()))
    return run.path / "pairs", progress


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_accepted_pairs_are_stored_and_every_pair_has_a_row(undisturbed):
    folder, progress = undisturbed
    rows = read_rows(folder)
    accepted = [row["id"] for row in rows if row["accepted"]]
    assert [pair.id for pair in read_pairs(folder)] == accepted
    assert [row["reason"] for row in rows] == [*[""] * 5, "direction cannot be scored"]
    assert [row["accepted"] for row in rows] == [*[True] * 5, False]
    assert [(step.done, step.total) for step in progress][-1] == (6, 6) and len(done_shards(folder)) == 3


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_killed_run_ends_with_the_same_bytes(undisturbed, backbone, tmp_path, num_steps):
    run = open_run(tmp_path / "run")
    list(itertools.islice(run_pairs(run, tiny_config(), backbone, WordlessClip()), num_steps))
    assert len(done_shards(run.path / "pairs")) == num_steps
    (run.path / "pairs" / f"shard-{num_steps - 1:05d}.done").unlink()  # as if killed before the mark
    list(run_pairs(run, tiny_config(), backbone, WordlessClip()))
    assert contents(run.path / "pairs") == contents(undisturbed[0])


def test_a_finished_stage_is_left_as_it_is(undisturbed, backbone):
    folder, _ = undisturbed
    run = open_run(folder.parent)
    (progress,) = run_pairs(run, tiny_config(), backbone, WordlessClip())
    assert progress.note == "already done"


def test_contact_sheet_is_a_picture(undisturbed):
    sheet = Image.open(undisturbed[0] / "contact_sheet.png")
    assert sheet.width > 900 and len(set(sheet.convert("L").get_flattened_data())) > 50


def test_shards_of_another_config_are_not_mixed_in(backbone, tmp_path):
    run = open_run(tmp_path / "run")
    next(run_pairs(run, tiny_config(), backbone, WordlessClip()))
    other = tiny_config(rule=dataclasses.replace(LENIENT, version=2))
    with pytest.raises(InputError, match="another config"):
        list(run_pairs(run, other, backbone, WordlessClip()))


def test_no_accepted_pair_is_an_error_that_points_to_the_sheet(backbone, tmp_path):
    run = open_run(tmp_path / "run", PROMPTS[:1])
    config = tiny_config(rule=dataclasses.replace(PUBLISHED, min_image_similarity=1.1, min_change=0.0))
    with pytest.raises(InputError, match="contact_sheet.png"):
        list(run_pairs(run, config, backbone, WordlessClip()))
    assert (run.path / "pairs" / "contact_sheet.png").exists()


def test_a_bad_prompt_pair_is_refused_before_anything_is_made(backbone, tmp_path):
    run = open_run(tmp_path / "run", [*PROMPTS, dataclasses.replace(PROMPTS[0], words=("castle",))])
    with pytest.raises(InputError, match="castle"):
        list(run_pairs(run, tiny_config(), backbone, WordlessClip()))
    assert not (run.path / "pairs").exists()


@pytest.mark.parametrize("settings", [{"samples_per_prompt": 0}, {"pairs_per_shard": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError):
        PairsConfig(**settings)
